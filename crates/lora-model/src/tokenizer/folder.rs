//! A tokenizer from a folder in Hugging Face's layout.
//!
//! `tokenizer.json` is followed to the letter, but for added tokens that `tokenizer_config.json` describes otherwise.
//! (transformers 5 rebuilds some tokenizers from a Python class named in `tokenizer_config.json` and drops parts of the file;
//! with the class `PreTrainedTokenizerFast` it does not.) So what goes around a text is the post-processor's affair alone: as
//! in transformers 5 (5.23), which leaves `add_bos_token` and `add_eos_token` of `tokenizer_config.json` out where there is a
//! `tokenizer.json`. transformers 4 obeyed them in Llama's classes.

use std::path::Path;

use lora_core::{Error, Result};
use serde_json::{Map, Value as Json};
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{Parts, parse};
use crate::gguf_tokenizer::ends_in_template;

const CONFIG: &str = "tokenizer_config.json";
/// The configuration's list of added tokens.
const ADDED: &str = "added_tokens_decoder";
/// Where old folders name the special tokens.
const SPECIALS: &str = "special_tokens_map.json";

pub(super) fn read(dir: &Path) -> Result<Parts> {
    let path = dir.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io("read the tokenizer", &path, e);
        if missing { error.hint("the model's folder must hold a `tokenizer.json`") } else { error }
    })?;
    let mut inner = parse(&bytes).map_err(|e| e.at(path.display()))?;
    let mut config = read_json(&dir.join(CONFIG))?.unwrap_or_default();
    // As transformers 5: a configuration that lists the added tokens is one of its time, else the old file has the last word.
    if !config.contains_key(ADDED) {
        let named = read_json(&dir.join(SPECIALS))?.unwrap_or_default();
        config.extend(named.into_iter().filter(|(name, _)| name.ends_with("_token")).map(as_text));
    }
    let in_config = |e: Error| e.at(dir.join(CONFIG).display());
    add_tokens(&mut inner, &config).map_err(in_config)?;
    let [bos, eos, pad] = ["bos_token", "eos_token", "pad_token"].map(|name| token(&config, name));
    let [bos, eos, pad] = [bos.map_err(in_config)?, eos.map_err(in_config)?, pad.map_err(in_config)?];
    let mut more_eos = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let settings = read_json(&dir.join(name))?.unwrap_or_default();
        more_eos.extend(eos_ids(&settings).map_err(|e| e.at(dir.join(name).display()))?);
    }
    let template = read_template(dir, &config)?;
    // A base model's folder often has a template for chats, and as its end that of texts alone.
    more_eos.extend(template.iter().flat_map(|source| ends_in_template(&inner, source)));
    Ok(Parts { inner, bos, pad, eos, more_eos, template, config })
}

/// A JSON object; `None` when there is no such file.
fn read_json(path: &Path) -> Result<Option<Map<String, Json>>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let object = serde_json::from_slice(&bytes);
    object.map(Some).map_err(|e| Error::data(format!("not a JSON object: {e}")).at(path.display()))
}

/// Tokens that the configuration adds to those of `tokenizer.json`, or describes otherwise: what it says of one goes before
/// what the file says, as in transformers 5.
fn add_tokens(inner: &mut Inner, config: &Map<String, Json>) -> Result<()> {
    let Some(Json::Object(listed)) = config.get(ADDED) else { return Ok(()) };
    let bad = |id: &str| Error::data(format!("malformed entry `{id}`")).at(format!("`{ADDED}`"));
    let mut tokens = Vec::new();
    for (key, value) in listed {
        let id: u32 = key.parse().map_err(|_| bad(key))?;
        let token: AddedToken = serde_json::from_value(value.clone()).map_err(|_| bad(key))?;
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    let known = inner.get_added_tokens_decoder();
    let other = tokens.iter().filter(|(id, token)| known.get(id) != Some(token));
    let other: Vec<_> = other.map(|(_, token)| token.clone()).collect();
    if !other.is_empty() {
        inner.add_tokens(other).map_err(|e| Error::data(e.to_string()))?;
    }
    match tokens.iter().find(|(id, token)| inner.token_to_id(&token.content) != Some(*id)) {
        Some((id, _)) => {
            Err(bad(&id.to_string())
                .hint("its id does not fit `tokenizer.json`: do the files belong together?"))
        }
        None => Ok(()),
    }
}

/// A special token, written as a text or as an object with its `content`.
pub(super) fn token(config: &Map<String, Json>, name: &str) -> Result<Option<String>> {
    match config.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(value) => match value.get("content").and_then(Json::as_str) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(Error::data("not a token").at(format!("`{name}`"))),
        },
    }
}

/// A token that is an object with its text as that alone: an object that does not name its type, as those of old files, is none
/// to transformers in a configuration.
fn as_text((name, token): (String, Json)) -> (String, Json) {
    let text = token.get("content").and_then(Json::as_str).map(Json::from);
    (name, text.unwrap_or(token))
}

fn eos_ids(settings: &Map<String, Json>) -> Result<Vec<i64>> {
    let ids = match settings.get("eos_token_id") {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Array(ids)) => ids.iter().map(Json::as_i64).collect(),
        Some(id) => id.as_i64().map(|id| vec![id]),
    };
    ids.ok_or_else(|| Error::data("neither an id nor a list of ids").at("`eos_token_id`"))
}

/// The template file, or the configuration's `chat_template`: a text, or a list of named ones.
fn read_template(dir: &Path, config: &Map<String, Json>) -> Result<Option<String>> {
    let path = dir.join("chat_template.jinja");
    match std::fs::read_to_string(&path) {
        Ok(text) => return Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(Error::io("read the chat template", &path, e)),
    }
    match config.get("chat_template") {
        Some(Json::String(text)) => Ok(Some(text.clone())),
        Some(Json::Array(named)) => {
            let default = named.iter().find(|t| t.get("name").and_then(Json::as_str) == Some("default"));
            Ok(default.and_then(|t| t.get("template")).and_then(Json::as_str).map(str::to_owned))
        }
        _ => Ok(None),
    }
}
