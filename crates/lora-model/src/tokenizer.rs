//! Text to token ids and back.
//!
//! A model's tokenizer comes from its folder (`tokenizer.json` and the files beside it) or from its GGUF file,
//! whose vocabulary is first brought into the form of a `tokenizer.json` (see `gguf_tokenizer.rs`).

mod folder;
mod seam;
mod stream;
mod to_gguf;

use std::ops::Range;
use std::path::Path;

use lora_core::{Error, Result};
use serde_json::{Map, Value as Json, json};
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer as Inner};

use crate::chat::ChatTemplate;
use crate::gguf_tokenizer;

pub(crate) use self::folder::{TEMPLATES, template_files};
use self::seam::Seam;
pub use self::stream::TextStream;

/// The tokenizer of a model, with its special tokens and chat template.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Inner,
    bos: Option<i64>,
    pad: Option<i64>,
    eos: Vec<i64>,
    vocab_size: usize,
    chat: Option<ChatTemplate>,
    /// For conversations with tools, if that is another one.
    tool_use: Option<ChatTemplate>,
    /// Of a tokenizer that puts a blank before every text.
    seam: Option<Seam>,
    /// The contents of `tokenizer_config.json`, for [`Tokenizer::save`].
    config: Map<String, Json>,
}

/// Token ids with the bytes of the text that each came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// One id a token.
    pub ids: Vec<i64>,
    /// The byte range of each token in the text. Tokens that share a character (an emoji in several byte-level
    /// tokens) share its range; tokens that were added (BOS) have the empty range `0..0`.
    pub offsets: Vec<Range<usize>>,
}

impl Encoded {
    /// Which tokens overlap one of `spans` (byte ranges, in order): the loss mask of a conversation.
    /// A token that straddles the edge of a span counts, as in transformers' `return_assistant_tokens_mask`.
    pub fn mask(&self, spans: &[Range<usize>]) -> Vec<bool> {
        let within = |token: &Range<usize>, span: &Range<usize>| {
            // An offset shrunk to nothing (white space, with `trim_offsets`) stands at the token's end.
            let begins = if token.is_empty() { token.end <= span.end } else { token.start < span.end };
            begins && token.end > span.start
        };
        self.offsets.iter().map(|token| spans.iter().any(|span| within(token, span))).collect()
    }
}

/// What a folder or a GGUF file says about a tokenizer.
pub(crate) struct Parts {
    /// With all special tokens.
    pub(crate) inner: Inner,
    pub(crate) bos: Option<String>,
    pub(crate) pad: Option<String>,
    /// Texts and ids of tokens that end a turn or a text; the first is the tokenizer's own.
    pub(crate) eos: Option<String>,
    pub(crate) more_eos: Vec<i64>,
    pub(crate) template: Option<String>,
    pub(crate) config: Map<String, Json>,
}

impl Parts {
    /// A chat template with what it is given in transformers: the texts of the special tokens that have a name.
    fn chat(&self, source: &str) -> Result<ChatTemplate> {
        let text = |token: &Option<String>| token.clone().unwrap_or_default();
        let template = ChatTemplate::new(source, &text(&self.bos), &text(&self.eos))?;
        let named = folder::named(&self.config);
        Ok(named.fold(template, |template, (name, token)| template.with_variable(name, token.into())))
    }
}

impl Tokenizer {
    /// Opens the tokenizer of a model: a folder in Hugging Face's layout (`tokenizer.json`,
    /// `tokenizer_config.json`, `chat_template.jinja`, `additional_chat_templates`, `generation_config.json`; only the first is
    /// required), or a `.gguf` file.
    ///
    /// # Errors
    /// Io, when a file cannot be read; data, when one is malformed; unsupported, for a GGUF vocabulary of a
    /// kind that this build does not know.
    pub fn open(model: &Path) -> Result<Self> {
        let (parts, tool_use) =
            if model.is_dir() { folder::read(model)? } else { gguf_tokenizer::read(model)? };
        Self::from_parts(parts, tool_use.as_deref()).map_err(|e| e.at(model.display()))
    }

    pub(crate) fn from_parts(mut parts: Parts, tool_use: Option<&str>) -> Result<Self> {
        let inner = &mut parts.inner;
        // Lengths are the trainer's business; a padding length from a file could ask for any amount of memory.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::data(e.to_string()))?;
        let id =
            |text: &Option<String>| text.as_deref().and_then(|text| inner.token_to_id(text)).map(i64::from);
        let (bos, pad) = (id(&parts.bos), id(&parts.pad));
        let mut eos = Vec::new();
        for id in id(&parts.eos).into_iter().chain(parts.more_eos.iter().copied()) {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        let vocab = inner.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |&max| max as usize + 1);
        let seam = Seam::find(inner, &vocab);
        let chat = parts.template.as_deref().map(|source| parts.chat(source)).transpose()?;
        let tool_use = tool_use.map(|source| parts.chat(source)).transpose()?;
        let Parts { inner, config, .. } = parts;
        Ok(Self { inner, bos, pad, eos, vocab_size, chat, tool_use, seam, config })
    }

    /// The ids of `text`. `add_special` adds what the tokenizer puts around a text (BOS, mostly); the text of a
    /// rendered conversation has them already. Special tokens written in `text` become their ids.
    ///
    /// # Errors
    /// Data, when the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.encode_fast(text, add_special).map_err(cannot_encode)?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// The ids of `text` where it goes on another: without special tokens, and without the blank that some tokenizers put
    /// before a text.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_after(&self, text: &str) -> Result<Vec<i64>> {
        if let Some(seam) = &self.seam {
            let ids = self.encode(&seam.before(text), false)?;
            // Not so where the text begins with a token that takes white space before it along: then no blank is put.
            if let Some(ids) = ids.strip_prefix(seam.ids.as_slice()) {
                return Ok(ids.to_vec());
            }
        }
        self.encode(text, false)
    }

    /// As [`encode`](Self::encode), with the byte range of each token.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str, add_special: bool) -> Result<Encoded> {
        let encoding = self.inner.encode(text, add_special).map_err(cannot_encode)?;
        Ok(Encoded {
            ids: encoding.get_ids().iter().map(|&id| i64::from(id)).collect(),
            offsets: encoding.get_offsets().iter().map(|&(start, end)| start..end).collect(),
        })
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves special tokens out. An id without
    /// a token has no text: a model whose embedding has more rows may generate it.
    ///
    /// # Errors
    /// Data, for what cannot be an id.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let ids = ids.iter().map(|&id| checked(id)).collect::<Result<Vec<_>>>()?;
        self.inner.decode(&ids, skip_special).map_err(|e| Error::data(e.to_string()).at("decoding"))
    }

    /// Decodes ids as they come, giving out text only when its characters are whole.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream::new(self, skip_special)
    }

    /// Whether an id is decoded to nothing, whatever stands around it.
    fn is_silent(&self, id: u32, skip_special: bool) -> bool {
        let special = |token: &str| self.inner.get_added_vocabulary().is_special_token(token);
        self.inner.id_to_token(id).is_none_or(|token| skip_special && special(&token))
    }

    /// Ids that end a generation: the tokenizer's own first, then those of the model's generation settings, then what the chat
    /// template ends turns with.
    pub fn eos_ids(&self) -> &[i64] {
        &self.eos
    }

    /// The beginning-of-text id, if the tokenizer has one.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos
    }

    /// The padding id, if the tokenizer has one.
    pub fn pad_id(&self) -> Option<i64> {
        self.pad
    }

    /// One more than the highest id. A model may have more rows in its embedding, never fewer.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The model's chat template, if it has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat.as_ref()
    }

    /// The chat template for a conversation with these tools, null ones being none: a model may have one named `tool_use`.
    pub fn chat_template_for(&self, tools: Option<&Json>) -> Option<&ChatTemplate> {
        let given = tools.is_some_and(|tools| !tools.is_null());
        self.tool_use.as_ref().filter(|_| given).or(self.chat.as_ref())
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and, with templates, `chat_template.jinja` and that for tools into
    /// `dir`, such that transformers' `AutoTokenizer` loads them and gives the same ids.
    ///
    /// # Errors
    /// Io, when a file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let internal = |e: &dyn std::fmt::Display| Error::internal(e.to_string()).at("tokenizer");
        let tokenizer = self.inner.to_string(false).map_err(|e| internal(&e))?;
        let config = serde_json::to_string_pretty(&self.config).map_err(|e| internal(&e))?;
        let mut files =
            vec![(dir.join("tokenizer.json"), tokenizer), (dir.join("tokenizer_config.json"), config)];
        for (name, template) in [
            ("chat_template.jinja".to_owned(), &self.chat),
            (format!("{TEMPLATES}/tool_use.jinja"), &self.tool_use),
        ] {
            files.extend(template.iter().map(|template| (dir.join(&name), template.source().to_owned())));
        }
        for (path, text) in files {
            let folder = path.parent().unwrap_or(dir);
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
            std::fs::write(&path, text).map_err(|e| Error::io("write", &path, e))?;
        }
        Ok(())
    }
}

fn checked(id: i64) -> Result<u32> {
    u32::try_from(id).map_err(|_| Error::data(format!("{id} is no token id")))
}

fn cannot_encode(e: tokenizers::Error) -> Error {
    Error::data(e.to_string()).at("encoding text")
}

/// Parses a `tokenizer.json`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Inner> {
    // The library panics on some malformed files (a merge that is longer than any token).
    let parsed = std::panic::catch_unwind(|| Inner::from_bytes(bytes));
    let fail = |what: String| Error::data(what).hint("fetch the file again; it may be cut short");
    parsed
        .map_err(|_| fail("malformed tokenizer".into()))?
        .map_err(|e| fail(format!("malformed tokenizer: {e}")))
}

/// Adds special tokens where they are not there: one that is there as a plain token becomes special, and stays what it is but for
/// that.
pub(crate) fn add_specials(inner: &mut Inner, specials: Vec<AddedToken>) -> Result<()> {
    let known = inner.get_added_tokens_decoder();
    let plain = |token: AddedToken| match known.values().find(|known| known.content == token.content) {
        Some(known) => known.clone().special(true),
        None => token,
    };
    let missing = |token: &AddedToken| !inner.get_added_vocabulary().is_special_token(&token.content);
    let missing: Vec<_> = specials.into_iter().filter(missing).map(plain).collect();
    inner.add_special_tokens(missing).map_err(|e| Error::data(e.to_string()).at("special tokens"))?;
    Ok(())
}

/// Puts `bos` before a text and `eos` after it.
pub(crate) fn surround(inner: &mut Inner, bos: Option<&str>, eos: Option<&str>) -> Result<()> {
    let special = |token: &str, part: u32| json!({"SpecialToken": {"id": token, "type_id": part}});
    let side = |name: &str, part: u32| -> Vec<Json> {
        let text = json!({"Sequence": {"id": name, "type_id": part}});
        [bos.map(|t| special(t, part)), Some(text), eos.map(|t| special(t, part))]
            .into_iter()
            .flatten()
            .collect()
    };
    let mut tokens = Map::new();
    for token in [bos, eos].into_iter().flatten() {
        let id = inner.token_to_id(token).ok_or_else(|| Error::data(format!("no token `{token}`")))?;
        tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    let (single, second) = (side("A", 0), side("B", 1));
    let pair = [single.clone(), second].concat();
    let template = json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens,
    });
    let processor: PostProcessorWrapper =
        serde_json::from_value(template).map_err(|e| Error::internal(e.to_string()).at("post-processor"))?;
    inner.with_post_processor(Some(processor));
    Ok(())
}
