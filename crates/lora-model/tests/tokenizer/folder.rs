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

/// Tokens that the configuration alone names are special ones, with the ids and the white space that transformers 5 (5.23)
/// gives them.
#[test]
fn a_configuration_may_name_tokens_that_are_nowhere_else() {
    let names = json!({"mask_token": "<mask>", "image_token": "<image>", "unk_token": "<unk>", "add_bos_token": false,
        "eos_token": "<|im_end|>", "pad_token": "<pad>", "sep_token": "<sep>", "cls_token": null, "bos_token": "<bos>"});
    let with = |key: &str, value: Value| {
        let mut config = names.clone();
        config[key] = value;
        beside(&[("tokenizer_config.json", config)])
    };
    let text = "a<bos><unk><sep><pad><mask><image><e1><e2><think>";
    let letter = with("cls_token", Value::Null).encode("a", false).unwrap();
    for (key, extra) in [
        ("additional_special_tokens", json!(["<e1>", "<think>", "<e2>"])),
        ("extra_special_tokens", json!(["<e1>", "<think>", "<e2>"])),
        ("extra_special_tokens", json!({"one_token": "<e1>", "two_token": "<e2>"})),
    ] {
        let tokenizer = with(key, extra);
        let ids = [&letter[..], &[462, 463, 464, 465, 466, 467, 468, 469, 3]].concat();
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{key}");
        // A list makes no token special that is there as a plain one.
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a<think>", "{key}");
        assert_eq!(
            (tokenizer.bos_id(), tokenizer.pad_id(), tokenizer.vocab_size()),
            (Some(462), Some(465), 470)
        );
    }
    // A named one becomes special, and an object says what white space it takes.
    let tokenizer = with("cls_token", json!("<think>"));
    assert_eq!(tokenizer.decode(&[letter[0], 3], true).unwrap(), "a");
    let mut stripped = token("<cls>", true, false);
    stripped["__type"] = json!("AddedToken");
    let ids = with("cls_token", stripped).encode("a<cls> \na", false).unwrap();
    assert_eq!(ids, [letter[0], 466, letter[0]]);
    // Of old folders' files, too.
    let map = json!({"unk_token": {"content": "<unk>"}, "additional_special_tokens": [{"content": "<e1>"}]});
    let tokenizer = beside(&[("special_tokens_map.json", map)]);
    assert_eq!(tokenizer.encode("<e1><unk>", false).unwrap(), [463, 462]);
}

/// As in transformers 5 (5.23).
#[test]
fn a_template_is_given_all_special_tokens_that_have_a_name() {
    let extra = json!({"one": "<e1>"});
    let config = json!({"unk_token": "<unk>", "sep_token": token("<sep>", false, true), "image_token": "<image>",
        "pad_token": "<pad>", "cls_token": null, "add_bos_token": true, "extra_special_tokens": extra,
        "chat_template": "{{ unk_token }}{{ sep_token }}{{ pad_token }}{{ image_token }}{{ one }}|\
                          {{ cls_token is defined }}, {{ add_bos_token is defined }}"});
    let tokenizer = beside(&[("tokenizer_config.json", config)]);
    let text = tokenizer.chat_template().unwrap().render(&[], false).unwrap();
    assert_eq!(text, "<unk><sep><pad><image><e1>|False, False");
}

/// As in transformers 5 (5.23): templates are files, or else in the configuration, and `tool_use` is for conversations with
/// tools.
#[test]
fn conversations_with_tools_have_a_template_of_their_own() {
    let of = |tokenizer: &Tokenizer| {
        let lists = [None, Some(json!(null)), Some(json!([])), Some(json!([{"name": "f"}]))];
        lists.map(|tools| {
            let template = tokenizer.chat_template_for(tools.as_ref());
            template.map_or("none".to_owned(), |template| template.source().to_owned())
        })
    };
    let listed = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    for templates in [listed.clone(), json!({"default": "D", "tool_use": "T"})] {
        let tokenizer = beside(&[("tokenizer_config.json", json!({"chat_template": templates}))]);
        assert_eq!(of(&tokenizer), ["D", "D", "T", "T"]);
    }
    assert_eq!(of(&beside(&[("tokenizer_config.json", json!({"chat_template": "S"}))])), ["S"; 4]);

    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    fs::copy(data("smollm/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    put("tokenizer_config.json", &json!({"chat_template": listed}).to_string());
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    put("additional_chat_templates/tool_use.jinja", "<|im_end|>");
    put("additional_chat_templates/notes.txt", "none");
    // What the configuration has is then not asked.
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(of(&tokenizer), ["none", "none", "<|im_end|>", "<|im_end|>"]);
    assert_eq!(tokenizer.eos_ids(), [2]);
    put("chat_template.jinja", "F");
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save(copy.path()).unwrap();
    for tokenizer in [tokenizer, Tokenizer::open(copy.path()).unwrap()] {
        assert_eq!(of(&tokenizer), ["F", "F", "<|im_end|>", "<|im_end|>"]);
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
