//! A tokenizer from a GGUF file, rebuilt in the form of the `tokenizer.json` of the original model.
//!
//! GGUF stores the vocabulary but only names how text is split before merging, in `tokenizer.ggml.pre`. The
//! splits here are those of the original models' `tokenizer.json`, as llama.cpp has them too. transformers' GGUF
//! reader (5.23) differs from both: it lacks the single digits of `smollm`, the `ignore_merges` of Llama 3 and
//! Tekken, Qwen2's NFC, and BOS where the file relies on llama.cpp's default; for SentencePiece it overlooks
//! `add_space_prefix`, and puts a blank only before the whole text, and not when that starts with one.

mod ends;
mod splits;

use std::collections::HashMap;
use std::path::Path;

use lora_core::{Error, Result};
use serde_json::{Map, Value as Json, json};
use tokenizers::AddedToken;

use crate::checkpoint::Gguf;
use crate::tokenizer::{Parts, add_specials, parse, surround};
use ends::is_an_end;
pub(crate) use ends::{ends_in_template, more_ends};
pub(crate) use splits::{Split, steps};

/// Token types, as llama.cpp numbers them.
pub(crate) const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
pub(crate) const CONTROL: i64 = 3;
pub(crate) const USER_DEFINED: i64 = 4;
pub(crate) const UNUSED: i64 = 5;
pub(crate) const BYTE: i64 = 6;

/// Trying every cut of a token takes time with the square of its length. Real ones have up to 50 bytes.
pub(crate) const LONGEST: usize = 512;

/// The key of a chat template named `tool_use`, as gguf-py's `add_chat_template` has it.
pub(crate) const TOOL_USE: &str = "tokenizer.chat_template.tool_use";

/// The vocabulary as the file gives it.
struct Vocabulary<'a> {
    gguf: &'a Gguf,
    tokens: &'a [String],
    types: Vec<i64>,
    /// Ids beside EOS that end a turn or a text.
    ends: Vec<i64>,
}

/// How one kind of vocabulary works: the parts of a `tokenizer.json`.
struct Kind {
    model: Json,
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    /// Whether BOS goes before a text, where the file does not say.
    add_bos: bool,
}

/// What a file says of its tokenizer; and the chat template for conversations with tools, if that is another one.
pub(crate) fn read(path: &Path) -> Result<(Parts, Option<String>)> {
    let gguf = Gguf::open(path)?;
    let tool_use = gguf.opt(Gguf::str, TOOL_USE).map_err(|e| e.at(path.display()))?.map(str::to_owned);
    Ok((of(&gguf)?, tool_use))
}

/// The tokenizer in `gguf`.
pub(crate) fn of(gguf: &Gguf) -> Result<Parts> {
    let place = |e: Error| e.at(gguf.path().display());
    let tokens = gguf.strs("tokenizer.ggml.tokens")?;
    let types = gguf.opt(Gguf::i64s, "tokenizer.ggml.token_type")?.unwrap_or_default();
    if tokens.is_empty() || (!types.is_empty() && types.len() != tokens.len()) {
        let what = format!("{} tokens with {} types", tokens.len(), types.len());
        return Err(place(Error::data(what).at("`tokenizer.ggml.tokens`")));
    }
    let ends = more_ends(gguf).map_err(place)?;
    let vocabulary = Vocabulary { gguf, tokens, types: with_ends(types, tokens, &ends), ends };
    vocabulary.parts().map_err(place)
}

/// What ends a text by its own is a mark and no text, whatever the file says: llama.cpp overrides the type too (of what a key
/// alone names it does not). As plain text it would be cut into pieces, and no row would have the id that generation stops at.
fn with_ends(types: &[i64], tokens: &[String], ends: &[i64]) -> Vec<i64> {
    let mut types = if types.is_empty() { vec![NORMAL; tokens.len()] } else { types.to_vec() };
    for at in ends.iter().filter_map(|&id| usize::try_from(id).ok()) {
        if tokens.get(at).is_some_and(|text| is_an_end(text))
            && let Some(kind) = types.get_mut(at)
            && matches!(*kind, NORMAL | USER_DEFINED | UNUSED)
        {
            *kind = CONTROL;
        }
    }
    types
}

impl Vocabulary<'_> {
    fn parts(&self) -> Result<Parts> {
        let model = self.gguf.str("tokenizer.ggml.model")?;
        let default = |id: i64| if model == "llama" { Some(id) } else { None };
        let bos = self.special("bos_token_id", default(1))?;
        let eos = self.special("eos_token_id", default(2))?;
        // Some files have a number here that is no token: of a text alone nothing is padded.
        let pad = self.gguf.opt(Gguf::i64, "tokenizer.ggml.padding_token_id")?;
        let pad = pad.and_then(|id| self.tokens.get(usize::try_from(id).ok()?)).cloned();
        let unk = self.special("unknown_token_id", default(0))?;
        let kind = match model {
            "gpt2" => self.byte_level()?,
            "llama" => self.sentence_piece(unk.as_deref())?,
            other => return Err(unsupported("model", other, "gpt2, llama")),
        };
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(),
            "normalizer": kind.normalizer, "pre_tokenizer": kind.pre_tokenizer, "post_processor": null,
            "decoder": kind.decoder, "model": kind.model,
        });
        let mut inner = parse(json.to_string().as_bytes())?;
        let flag = |name: &str| self.gguf.opt(Gguf::bool, &format!("tokenizer.ggml.{name}"));
        let add_bos = flag("add_bos_token")?.unwrap_or(kind.add_bos);
        let add_eos = flag("add_eos_token")?.unwrap_or(false);
        surround(&mut inner, bos.as_deref().filter(|_| add_bos), eos.as_deref().filter(|_| add_eos))?;
        // What the configuration names is special wherever that is read.
        let named = [&bos, &eos, &unk, &pad].into_iter().flatten();
        add_specials(&mut inner, named.map(|text| AddedToken::from(text.as_str(), true)).collect())?;
        let config = self.config([("bos", &bos), ("eos", &eos), ("unk", &unk), ("pad", &pad)]);
        let template = self.gguf.opt(Gguf::str, "tokenizer.chat_template")?.map(str::to_owned);
        Ok(Parts { inner, bos, pad, eos, more_eos: self.ends.clone(), template, config })
    }

    /// The text of a special token.
    fn special(&self, name: &str, default: Option<i64>) -> Result<Option<String>> {
        let key = format!("tokenizer.ggml.{name}");
        let Some(id) = self.gguf.opt(Gguf::i64, &key)?.or(default) else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        let bad = || Error::data(format!("id {id} is not in the vocabulary of {} tokens", self.tokens.len()));
        token.map(|token| Some(token.clone())).ok_or_else(|| bad().at(format!("`{key}`")))
    }

    fn kind_of(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    /// Tokens that are found in the text before it is split: llama.cpp's `cache_special_tokens`.
    fn added(&self) -> Vec<Json> {
        let of = |(id, token): (usize, &String)| {
            let special = match self.kind_of(id) {
                CONTROL | UNKNOWN => true,
                USER_DEFINED => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        self.tokens.iter().enumerate().filter_map(of).collect()
    }

    /// The vocabulary without `skip`ped kinds: duplicates would shift ids, so they are an error.
    fn vocab(&self, keep: impl Fn(i64) -> bool) -> Result<Map<String, Json>> {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| keep(self.kind_of(*id))) {
            if let Some(other) = vocab.insert(token.clone(), id.into()) {
                let what = format!("token {token:?} has two ids, {other} and {id}");
                return Err(Error::data(what).at("`tokenizer.ggml.tokens`"));
            }
        }
        Ok(vocab)
    }

    /// The merges that the file lists: two tokens with a blank between (which neither of them holds).
    fn merges(&self) -> Result<Option<Vec<Json>>> {
        let Some(lines) = self.gguf.opt(Gguf::strs, "tokenizer.ggml.merges")? else { return Ok(None) };
        let pair = |(n, line): (usize, &String)| match line.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => {
                Err(Error::data(format!("merge {n} is not a pair: {line:?}")).at("`tokenizer.ggml.merges`"))
            }
        };
        lines.iter().enumerate().map(pair).collect::<Result<_>>().map(Some)
    }

    /// `gpt2`: BPE over bytes.
    fn byte_level(&self) -> Result<Kind> {
        let pre = match self.gguf.opt(Gguf::str, "tokenizer.ggml.pre")? {
            None | Some("default") => return Err(unsaid()),
            Some(pre) => pre,
        };
        let split = Split::named(pre).ok_or_else(|| unsupported("pre", pre, &Split::known()))?;
        let merges = self.merges()?.ok_or_else(|| Error::data("missing").at("`tokenizer.ggml.merges`"))?;
        Ok(Kind {
            // Unused tokens are llama.cpp's filling (`[PAD151646]`), which the original does not have.
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": split.whole,
                "vocab": self.vocab(|kind| kind != UNUSED)?, "merges": merges,
            }),
            normalizer: if pre == "qwen2" { json!({"type": "NFC"}) } else { Json::Null },
            pre_tokenizer: split.json(),
            decoder: splits::bytes(true),
            add_bos: split.add_bos,
        })
    }

    /// `llama`: SentencePiece BPE, characters with bytes to fall back on.
    fn sentence_piece(&self, unk: Option<&str>) -> Result<Kind> {
        let architecture = self.gguf.opt(Gguf::str, "general.architecture")?.unwrap_or_default();
        if architecture.starts_with("gemma") {
            return Err(unsupported("model", "llama of Gemma", "llama of other architectures")
                .hint("use the model's folder in Hugging Face's layout"));
        }
        let vocab = self.vocab(|_| true)?;
        let merges = match self.merges()? {
            Some(merges) => merges,
            None => merges_from_scores(self.tokens, self.gguf.f64s("tokenizer.ggml.scores")?)?,
        };
        let prefix = self.gguf.opt(Gguf::bool, "tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(Kind {
            model: json!({
                "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            }),
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Json::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            add_bos: true,
        })
    }

    /// `tokenizer_config.json`, with the class that takes `tokenizer.json` as it is.
    fn config(&self, specials: [(&str, &Option<String>); 4]) -> Map<String, Json> {
        let mut config = Map::new();
        config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".into(), false.into());
        for (name, token) in specials {
            if let Some(token) = token {
                config.insert(format!("{name}_token"), token.as_str().into());
            }
        }
        let context =
            self.gguf.str("general.architecture").and_then(|a| self.gguf.u64(&format!("{a}.context_length")));
        if let Ok(context) = context {
            config.insert("model_max_length".into(), context.into());
        }
        config
    }
}

/// Every way to cut a token into two tokens is a merge; the better the token's score, the earlier. Ties go as in
/// transformers' `generate_merges`, so that the same merges come out: longer parts first, then by id.
fn merges_from_scores(tokens: &[String], scores: &[f64]) -> Result<Vec<Json>> {
    if scores.len() != tokens.len() {
        let what = format!("{} scores for {} tokens", scores.len(), tokens.len());
        return Err(Error::data(what).at("`tokenizer.ggml.scores`"));
    }
    if let Some(id) = tokens.iter().position(|token| token.len() > LONGEST) {
        let what = format!("token {id} is {} bytes long", tokens.get(id).map_or(0, String::len));
        return Err(Error::data(what).at("`tokenizer.ggml.tokens`"));
    }
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, &score) in tokens.iter().zip(scores) {
        let cuts = token.char_indices().enumerate().skip(1).filter_map(|(chars, (at, _))| {
            let (left, right) = token.split_at(at);
            let lengths = (chars, right.chars().count());
            Some((*ids.get(left)?, *ids.get(right)?, score, lengths, left, right))
        });
        let mut cuts: Vec<_> = cuts.collect();
        cuts.sort_by_key(|cut| (cut.0, cut.1));
        merges.extend(cuts);
    }
    merges.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.3.cmp(&a.3)));
    Ok(merges.into_iter().map(|cut| json!([cut.4, cut.5])).collect())
}

/// Converters wrote no name, or `default`, before they knew one: of Llama 3 and Qwen as of others.
fn unsaid() -> Error {
    Error::unsupported("the file does not say how text is split before merging, and a guess would give other ids")
        .at("`tokenizer.ggml.pre`")
        .hint("it was made by an old converter: use a newer file of the model, or its folder in Hugging Face's layout")
}

fn unsupported(key: &str, value: &str, known: &str) -> Error {
    Error::unsupported(format!("vocabulary of kind `{value}`; known: {known}"))
        .at(format!("`tokenizer.ggml.{key}`"))
        .hint("use the model's folder in Hugging Face's layout, whose `tokenizer.json` says everything")
}
