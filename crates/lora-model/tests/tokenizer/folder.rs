//! What the files beside a `tokenizer.json` say.

use std::fs;

use lora_model::Tokenizer;
use serde_json::{Value, json};

use super::data;

/// Base models have a chat template and another end: what the template teaches as one is one.
#[test]
fn a_folder_ends_turns_where_its_chat_template_does() {
    let dir = tempfile::tempdir().unwrap();
    let json = fs::read_to_string(data("smollm/tokenizer.json")).unwrap();
    let ends = |json: &str, template: &str| {
        fs::write(dir.path().join("tokenizer.json"), json).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
        fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
        Tokenizer::open(dir.path()).unwrap().eos_ids().to_vec()
    };
    let chatml = fs::read_to_string(data("../templates/chatml.jinja")).unwrap();
    assert_eq!(ends(&json, &chatml), [0, 2], "the tokenizer's own stays the first");
    assert_eq!(ends(&json, "{{ messages[0].content }}"), [0], "a token that the template does not write");
    // Within a turn.
    let harmony = [("<|im_end|>", "<|end|>"), ("<|im_start|>", "<|call|>"), ("<think>", "<|return|>")];
    let mut json: Value = serde_json::from_str(&json).unwrap();
    // What makes a token of that old name.
    json["model"]["merges"].as_array_mut().unwrap().retain(|pair| *pair != json!(["<|im_", "end|>"]));
    let json = harmony.into_iter().fold(json.to_string(), |json, (from, to)| json.replace(from, to));
    assert_eq!(ends(&json, "<|end|><|return|><|call|>"), [0, 3, 1]);
}

/// The small `tokenizer.json`, with these files beside it.
fn beside(files: &[(&str, Value)]) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(data("smollm/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    files.iter().for_each(|(name, json)| fs::write(dir.path().join(name), json.to_string()).unwrap());
    Tokenizer::open(dir.path()).unwrap()
}

/// An entry of `added_tokens_decoder`.
fn token(content: &str, rstrip: bool, special: bool) -> Value {
    json!({"content": content, "single_word": false, "lstrip": false, "rstrip": rstrip, "normalized": false,
        "special": special})
}

/// What the configuration says of a token goes before what `tokenizer.json` says, as in transformers 5 (5.23).
#[test]
fn a_configuration_has_the_last_word_on_added_tokens() {
    let open = |eos: &str, think: Value| {
        let config = json!({"eos_token": eos, "added_tokens_decoder": {"3": think}});
        beside(&[("tokenizer_config.json", config)])
    };
    for (eos, rstrip, special, skipped) in [
        ("<|im_end|>", false, false, false),
        ("<|im_end|>", true, false, false),
        ("<|im_end|>", true, true, true),
        // Named, it is special whatever its entry says, and takes the white space all the same.
        ("<think>", true, false, true),
    ] {
        let place = format!("{eos}, {rstrip}, {special}");
        let tokenizer = open(eos, token("<think>", rstrip, special));
        let behind = tokenizer.encode(if rstrip { "a" } else { " a" }, false).unwrap();
        assert_eq!(tokenizer.encode("<think> a", false).unwrap(), [&[3][..], &behind].concat(), "{place}");
        assert_eq!(tokenizer.decode(&[3], true).unwrap().is_empty(), skipped, "{place}");
    }
}

/// The old file of special tokens goes before a configuration without a list of added tokens; beside one with such a list it is
/// not read.
#[test]
fn an_old_map_of_special_tokens_is_read_for_old_configurations() {
    let map = ("special_tokens_map.json", json!({"eos_token": {"content": "<|endoftext|>"}}));
    let config = |config: Value| ("tokenizer_config.json", config);
    let old = json!({"eos_token": "<|im_end|>"});
    assert_eq!(beside(&[config(old.clone())]).eos_ids(), [2]);
    assert_eq!(beside(&[config(old), map.clone()]).eos_ids(), [0]);
    let listed = json!({"2": token("<|im_end|>", false, true)});
    let new = json!({"eos_token": "<|im_end|>", "added_tokens_decoder": listed});
    assert_eq!(beside(&[config(new), map.clone()]).eos_ids(), [2]);
    // It is written as transformers takes it: not as an object without a type.
    let mut typed = token("<|im_end|>", false, true);
    typed["__type"] = json!("AddedToken");
    let dir = tempfile::tempdir().unwrap();
    beside(&[config(json!({"eos_token": typed})), map]).save(dir.path()).unwrap();
    let written = fs::read(dir.path().join("tokenizer_config.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["eos_token"], "<|endoftext|>");
}
