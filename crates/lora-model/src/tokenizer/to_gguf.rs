//! A tokenizer as the metadata of a GGUF file: the inverse of `gguf_tokenizer.rs`.

mod scores;
mod vocabulary;

use lora_core::{Error, Result};
use serde_json::Value as Json;

use super::Tokenizer;
use super::folder::token;
use crate::ModelConfig;
use crate::checkpoint::Metadata;
use crate::gguf_tokenizer::TOOL_USE;
use vocabulary::{File, Vocabulary};

impl Tokenizer {
    /// Puts all of `tokenizer.*` into `to`. `pre` is llama.cpp's name for how text is split, said by hand.
    ///
    /// # Errors
    /// [`Error::unsupported`] for what llama.cpp has no match for; data, when the vocabulary does not fit the model.
    pub(crate) fn to_gguf(&self, config: &ModelConfig, pre: Option<&str>, to: &mut Metadata) -> Result<()> {
        let file = File::of(&self.inner)?;
        let vocabulary = Vocabulary::new(&file, config.vocab_size)?;
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        if file.model.byte_fallback {
            if pre.is_some() {
                return Err(
                    Error::usage("this tokenizer splits nothing before merging").hint("leave out --pre")
                );
            }
            to.put(key("add_space_prefix"), file.space_prefix()?);
            to.put(key("model"), "llama");
            to.put(key("pre"), "default");
            to.put(key("scores"), scores::from_merges(&vocabulary, &file.model.merges)?);
        } else {
            let pre = match pre {
                Some(name) => name,
                None => file.pre()?,
            };
            to.put(key("model"), "gpt2");
            to.put(key("pre"), pre);
            let merges: Vec<_> = file.model.merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
            to.put(key("merges"), merges.iter().map(String::as_str).collect::<Vec<_>>());
        }
        to.put(key("tokens"), vocabulary.tokens.iter().map(String::as_str).collect::<Vec<_>>());
        to.put(key("token_type"), vocabulary.types);
        self.specials(config, file.model.unk_token.as_deref(), to)?;
        if let Some(template) = &self.chat {
            to.put("tokenizer.chat_template", template.source());
        }
        if let Some(template) = &self.tool_use {
            to.put("tokenizer.chat_templates", vec!["tool_use"]);
            to.put(TOOL_USE, template.source());
        }
        Ok(())
    }

    /// The ids of tokens with a meaning, and which of them go around a text.
    fn specials(&self, config: &ModelConfig, unk: Option<&str>, to: &mut Metadata) -> Result<()> {
        let (bare, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        let before = (0..whole.len()).find(|&at| whole.get(at..).is_some_and(|rest| rest.starts_with(&bare)));
        let (before, rest) = whole.split_at(before.unwrap_or(0));
        let after = rest.get(bare.len()..).unwrap_or_default();
        let named = |key: &str| config.raw.get(key).and_then(Json::as_i64).filter(|&id| id >= 0);
        let (bos, add_bos) = added(before, self.bos, "before")?;
        let (eos, add_eos) = added(after, self.eos.first().copied(), "after")?;
        let declared = token(&self.config, "unk_token")?;
        let unk = declared.as_ref().map(|token| token.content.as_str()).or(unk);
        let ids = [
            ("bos", bos.or_else(|| named("bos_token_id"))),
            ("eos", eos),
            ("eot", self.end_of_turn()),
            ("unknown", unk.and_then(|token| self.inner.token_to_id(token)).map(i64::from)),
            ("padding", self.pad.or_else(|| named("pad_token_id"))),
        ];
        for (name, id) in ids {
            let Some(id) = id else { continue };
            if id >= config.vocab_size {
                let what = format!("id {id} is beyond the model's {} tokens", config.vocab_size);
                return Err(Error::data(what).at(format!("the {name} token")));
            }
            to.put(format!("tokenizer.ggml.{name}_token_id"), id as u32);
        }
        to.put("tokenizer.ggml.add_bos_token", add_bos);
        to.put("tokenizer.ggml.add_eos_token", add_eos);
        Ok(())
    }

    /// What ends a turn where that is not what ends a text: the chat template shows it. llama.cpp finds other tokens
    /// that end a generation by their texts.
    fn end_of_turn(&self) -> Option<i64> {
        let template = self.chat.as_ref()?.source();
        let (eos, more) = self.eos.split_first()?;
        let in_template = |id: &&i64| {
            let token = u32::try_from(**id).ok().and_then(|id| self.inner.id_to_token(id));
            token.is_some_and(|token| template.contains(&token))
        };
        if in_template(&eos) { None } else { more.iter().find(in_template).copied() }
    }
}

/// The id that stands on one side of a text or could, and whether it does.
fn added(ids: &[i64], declared: Option<i64>, side: &str) -> Result<(Option<i64>, bool)> {
    match ids {
        [] => Ok((declared, false)),
        [id] if declared.is_none_or(|declared| declared == *id) => Ok((Some(*id), true)),
        _ => Err(Error::unsupported(format!("the tokenizer puts the ids {ids:?} {side} every text"))
            .hint("GGUF knows one token before a text, BOS, and one after it, EOS")),
    }
}
