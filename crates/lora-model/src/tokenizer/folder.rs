//! A tokenizer from a folder in Hugging Face's layout.
//!
//! `tokenizer.json` is followed to the letter, but for tokens that `tokenizer_config.json` adds or describes otherwise.
//! (transformers 5 rebuilds some tokenizers from a Python class named in `tokenizer_config.json` and drops parts of the file;
//! with the class `PreTrainedTokenizerFast` it does not.) So what goes around a text is the post-processor's affair alone: as
//! in transformers 5 (5.23), which leaves `add_bos_token` and `add_eos_token` of `tokenizer_config.json` out where there is a
//! `tokenizer.json`. transformers 4 obeyed them in Llama's classes.

use std::path::{Path, PathBuf};

use lora_core::{Error, Result};
use serde_json::{Map, Value as Json};
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::{Parts, add_specials, parse};
use crate::gguf_tokenizer::ends_in_template;

const CONFIG: &str = "tokenizer_config.json";
/// The configuration's list of added tokens.
const ADDED: &str = "added_tokens_decoder";
/// Where old folders name the special tokens.
const SPECIALS: &str = "special_tokens_map.json";
/// The special tokens that have a name, in the order in which transformers 5 gives ids to those that are new.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Lists of more of them: the first that holds any.
const MORE: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// Where named chat templates lie, each in a file.
pub(crate) const TEMPLATES: &str = "additional_chat_templates";

/// What a folder says of its tokenizer; and the chat template for conversations with tools, if that is another one.
pub(super) fn read(dir: &Path) -> Result<(Parts, Option<String>)> {
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
        let mut named = read_json(&dir.join(SPECIALS))?.unwrap_or_default();
        let listed = MORE.iter().any(|list| config.contains_key(*list));
        named.retain(|name, _| name.ends_with("_token") || !listed && MORE.contains(&name.as_str()));
        config.extend(named.into_iter().map(as_text));
    }
    let in_config = |e: Error| e.at(dir.join(CONFIG).display());
    add_tokens(&mut inner, &config).map_err(in_config)?;
    let specials = specials(&inner, &config).map_err(in_config)?;
    add_specials(&mut inner, specials).map_err(in_config)?;
    let text = |name| token(&config, name).map(|token| token.map(|token| token.content)).map_err(in_config);
    let (bos, eos, pad) = (text("bos_token")?, text("eos_token")?, text("pad_token")?);
    let mut more_eos = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let settings = read_json(&dir.join(name))?.unwrap_or_default();
        more_eos.extend(eos_ids(&settings).map_err(|e| e.at(dir.join(name).display()))?);
    }
    let [template, tool_use] = read_templates(dir, &config)?;
    // A base model's folder often has a template for chats, and as its end that of texts alone.
    let both = template.iter().chain(&tool_use);
    more_eos.extend(both.flat_map(|source| ends_in_template(&inner, source)));
    Ok((Parts { inner, bos, pad, eos, more_eos, template, config }, tool_use))
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

/// The special tokens of a configuration, in the order in which those that are new take their ids: the named ones, those with
/// names of the model's own, and those of a list, which leaves a token that is there as it is.
fn specials(inner: &Inner, config: &Map<String, Json>) -> Result<Vec<AddedToken>> {
    let named = NAMED.iter().filter_map(|name| token(config, name).transpose());
    let mut specials = named.collect::<Result<Vec<_>>>()?;
    // The named ones are among them: what comes twice is added once.
    specials.extend(with_names(config).map(|(_, token)| token.special(true)));
    let mut lists = MORE.iter().filter_map(|name| Some((name, config.get(*name)?.as_array()?)));
    if let Some((name, list)) = lists.find(|(_, list)| !list.is_empty()) {
        let bad = || Error::data("not a list of tokens").at(format!("`{name}`"));
        let listed = list.iter().map(|token| added(token).ok_or_else(bad)).collect::<Result<Vec<_>>>()?;
        let known = inner.get_added_tokens_decoder();
        let is_new = |token: &AddedToken| !known.values().any(|known| known.content == token.content);
        specials.extend(listed.into_iter().filter(is_new));
    }
    Ok(specials)
}

/// What has the name of a token, and is one: other settings end so, too (`add_bos_token`).
fn with_names(config: &Map<String, Json>) -> impl Iterator<Item = (&str, AddedToken)> {
    let own = config.iter().filter(|(name, _)| name.ends_with("_token"));
    let more = config.get(MORE[0]).and_then(Json::as_object).into_iter().flatten();
    own.chain(more).filter_map(|(name, value)| Some((name.as_str(), added(value)?)))
}

/// The names of special tokens, and their texts.
pub(super) fn named(config: &Map<String, Json>) -> impl Iterator<Item = (&str, String)> {
    with_names(config).map(|(name, token)| (name, token.content))
}

/// A special token by its name.
pub(super) fn token(config: &Map<String, Json>, name: &str) -> Result<Option<AddedToken>> {
    let bad = || Error::data("not a token").at(format!("`{name}`"));
    match config.get(name) {
        None | Some(Json::Null) => Ok(None),
        Some(value) => Ok(Some(added(value).ok_or_else(bad)?.special(true))),
    }
}

/// A token that is written as a text, or as an object with its `content` and what sets it apart.
fn added(value: &Json) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, true));
    }
    let flag = |name: &str| value.get(name).and_then(Json::as_bool).unwrap_or(false);
    let token = AddedToken::from(value.get("content")?.as_str()?, flag("special"));
    let token = token.single_word(flag("single_word")).lstrip(flag("lstrip")).rstrip(flag("rstrip"));
    Some(token.normalized(flag("normalized")))
}

/// A token that is an object, or a list of them, as texts alone: an object that does not name its type, as those of old files, is
/// none to transformers in a configuration.
fn as_text((name, value): (String, Json)) -> (String, Json) {
    let text = |token: Json| token.get("content").and_then(Json::as_str).map(Json::from).unwrap_or(token);
    let value = match value {
        Json::Array(tokens) => tokens.into_iter().map(text).collect(),
        token => text(token),
    };
    (name, value)
}

fn eos_ids(settings: &Map<String, Json>) -> Result<Vec<i64>> {
    let ids = match settings.get("eos_token_id") {
        None | Some(Json::Null) => return Ok(Vec::new()),
        Some(Json::Array(ids)) => ids.iter().map(Json::as_i64).collect(),
        Some(id) => id.as_i64().map(|id| vec![id]),
    };
    ids.ok_or_else(|| Error::data("neither an id nor a list of ids").at("`eos_token_id`"))
}

/// The chat template and the one for conversations with tools: of files, or else of the configuration, where there is a text or
/// there are named ones.
fn read_templates(dir: &Path, config: &Map<String, Json>) -> Result<[Option<String>; 2]> {
    let (own, more) = (dir.join("chat_template.jinja"), template_files(dir)?);
    if own.exists() || !more.is_empty() {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|e| Error::io("read the chat template", path, e))
        };
        let named = |name: &str| more.iter().find(|path| path.file_stem().is_some_and(|stem| stem == name));
        let default = named("default").or(Some(&own).filter(|own| own.exists()));
        return Ok([default.map(read).transpose()?, named("tool_use").map(read).transpose()?]);
    }
    let named = |name: &str| match config.get("chat_template")? {
        Json::String(text) if name == "default" => Some(text.as_str()),
        Json::Array(named) => {
            let own = |template: &&Json| template.get("name").and_then(Json::as_str) == Some(name);
            named.iter().find(own)?.get("template")?.as_str()
        }
        Json::Object(named) => named.get(name)?.as_str(),
        _ => None,
    };
    Ok(["default", "tool_use"].map(|name| named(name).map(str::to_owned)))
}

/// The files of named chat templates in a model's folder.
pub(crate) fn template_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let folder = dir.join(TEMPLATES);
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let io = |e| Error::io("read", &folder, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(io)? {
        files.push(entry.map_err(io)?.path());
    }
    files.retain(|path| path.extension().is_some_and(|end| end == "jinja") && path.is_file());
    files.sort();
    Ok(files)
}
