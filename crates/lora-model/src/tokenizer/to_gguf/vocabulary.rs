//! What is in a `tokenizer.json`, in GGUF's terms.

use std::collections::HashMap;

use lora_core::{Error, Result};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokenizers::Tokenizer as Inner;

use crate::gguf_tokenizer::{BYTE, CONTROL, NORMAL, Split, UNUSED, USER_DEFINED, steps};

/// What is looked at of a `tokenizer.json`.
#[derive(Deserialize)]
pub(super) struct File {
    added_tokens: Vec<Added>,
    normalizer: Json,
    pre_tokenizer: Json,
    pub(super) model: Bpe,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
}

#[derive(Deserialize)]
pub(super) struct Bpe {
    pub(super) unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    pub(super) byte_fallback: bool,
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    pub(super) merges: Vec<(String, String)>,
}

impl File {
    pub(super) fn of(inner: &Inner) -> Result<Self> {
        let internal = |e: &dyn std::fmt::Display| Error::internal(e.to_string()).at("tokenizer");
        let text = inner.to_string(false).map_err(|e| internal(&e))?;
        let json: Json = serde_json::from_str(&text).map_err(|e| internal(&e))?;
        let kind = json["model"]["type"].as_str().unwrap_or_default();
        if kind != "BPE" {
            return Err(foreign(format!("a vocabulary of the kind `{kind}`")));
        }
        let file: Self = serde_json::from_value(json).map_err(|e| internal(&e))?;
        let affixes = [&file.model.continuing_subword_prefix, &file.model.end_of_word_suffix];
        if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
            return Err(foreign("BPE whose tokens say where in a word they stand".into()));
        }
        // llama.cpp has such tokens, and knows them by the names of a few models. Of special ones, which stand between texts, its own
        // converter drops it too.
        let found = |t: &&Added| !t.special && (t.lstrip || t.rstrip || t.single_word);
        if let Some(token) = file.added_tokens.iter().find(found) {
            let what =
                format!("{:?} takes the blanks beside it, or is found between words alone", token.content);
            return Err(Error::unsupported(what).at("the tokenizer's added tokens").hint(
                "GGUF cannot say it: where it does not matter, make `lstrip`, `rstrip` and `single_word` false in \
                 tokenizer.json and tokenizer_config.json",
            ));
        }
        Ok(file)
    }

    /// llama.cpp's name for how byte-level BPE splits a text. NFC, which llama.cpp leaves to the user, may come before.
    pub(super) fn pre(&self) -> Result<&'static str> {
        let normalizers = steps(&self.normalizer, "normalizers");
        let known = normalizers.iter().all(|step| *step == json!({"type": "NFC"}));
        let name = Split::name_of(&self.pre_tokenizer, self.model.ignore_merges).filter(|_| known);
        name.ok_or_else(|| {
            Error::unsupported("a way of splitting text whose name in llama.cpp is not known here")
                .at("`normalizer` and `pre_tokenizer` of the tokenizer")
                .hint("say the name by hand: --pre NAME, which is `tokenizer.ggml.pre` of the model's GGUF file; or give that file as --model")
        })
    }

    /// Whether SentencePiece's BPE puts a blank before a text; nothing else may happen before merging. Metaspace leaves
    /// it out where the text begins with one, and `first` after a special token: in llama.cpp it is always there.
    pub(super) fn space_prefix(&self) -> Result<bool> {
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizers = steps(&self.normalizer, "normalizers");
        match (&normalizers[..], &steps(&self.pre_tokenizer, "pretokenizers")[..]) {
            ([first, second], []) if *first == prepend && *second == replace => Ok(true),
            ([only], []) if *only == replace => Ok(false),
            ([], [meta])
                if meta["type"] == "Metaspace" && meta["replacement"] == "▁" && meta["split"] == false =>
            {
                Ok(meta["prepend_scheme"] != "never")
            }
            _ => Err(foreign(
                "BPE with byte fallback that changes or splits the text in a way of its own".into(),
            )),
        }
    }
}

fn foreign(what: String) -> Error {
    Error::unsupported(what)
        .at("the tokenizer")
        .hint("written are byte-level BPE (GPT-2's sort) and BPE with byte fallback (SentencePiece's)")
}

/// The text and the sort of every id: each row of the embedding has one.
pub(super) struct Vocabulary {
    pub(super) tokens: Vec<String>,
    pub(super) types: Vec<i32>,
}

impl Vocabulary {
    /// Sorts and fillings as convert_hf_to_gguf.py has them.
    pub(super) fn new(file: &File, rows: i64) -> Result<Self> {
        let rows = rows as usize;
        let mut tokens: Vec<_> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED as i32; rows];
        let mut put = |id: u32, token: &str, sort: i64| -> Result<()> {
            let place = tokens.get_mut(id as usize).zip(types.get_mut(id as usize));
            let (text, of) = place.ok_or_else(|| {
                Error::data(format!("token {token:?} has the id {id}, the model has {rows}"))
                    .hint("do the tokenizer and the weights belong together?")
            })?;
            (*text, *of) = (token.to_owned(), sort as i32);
            Ok(())
        };
        let mut bytes = 0;
        for (token, &id) in &file.model.vocab {
            let byte = file.model.byte_fallback && is_byte(token);
            bytes += usize::from(byte);
            put(id, token, if byte { BYTE } else { NORMAL })?;
        }
        if file.model.byte_fallback && bytes != 256 {
            return Err(foreign(format!("a vocabulary with tokens for {bytes} of 256 bytes")));
        }
        for token in &file.added_tokens {
            if token.special || looks_special(&token.content) {
                put(token.id, &token.content, CONTROL)?;
            } else {
                put(token.id, &token.content.replace('▁', " "), USER_DEFINED)?;
            }
        }
        Ok(Self { tokens, types })
    }
}

fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    hex.is_some_and(|hex| hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Tokens that some models add as plain ones though they mark things up.
fn looks_special(token: &str) -> bool {
    let within = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || within("<|", "|>")
        || within("<｜", "｜>")
        || within("<unused", ">")
}
