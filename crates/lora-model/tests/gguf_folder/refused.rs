//! What llama.cpp has no match for: an error that says what to do.

use std::fs;

use lora_core::{Error, ErrorKind};
use lora_model::{Gguf, GgufValue};
use serde_json::{Value, json};

use crate::{edit, folder, folder_of, written};

/// Nothing is written that llama.cpp would not open.
#[test]
fn networks_of_more_than_llama_cpp_makes_them_of() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    let table = json!({"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.0,
        "short_factor": [1.0, 1.0, 2.0, 4.0], "long_factor": [1.0, 1.0, 2.0, 4.0]});
    for (more, said) in [
        (json!({"model_type": "qwen2", "rope_scaling": llama3}), "qwen2 has no table of rotary"),
        (json!({"model_type": "qwen3", "rope_scaling": llama3}), "qwen3 has no table of rotary"),
        (json!({"model_type": "qwen2", "rope_scaling": table}), "qwen2 has no table of rotary"),
        (json!({"model_type": "qwen3", "attention_bias": true}), "qwen3 has no biases"),
    ] {
        let (dir, _) = folder_of("smollm", 0, &more);
        let error = written(dir.path(), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(said) && error.hint_text().is_some(), "{error}");
        assert!(!dir.path().join("out.gguf").exists());
    }
    for more in [json!({"rope_scaling": table}), json!({"model_type": "mistral", "rope_scaling": llama3})] {
        let (dir, _) = folder_of("smollm", 0, &more);
        written(dir.path(), None).unwrap();
    }
}

/// The error for a tokenizer that is changed so; it has a hint.
fn refused(kind: &str, change: impl FnOnce(&mut Value)) -> Error {
    let (dir, _) = folder_of(kind, 0, &json!({}));
    edit(dir.path(), change);
    let error = written(dir.path(), None).unwrap_err();
    assert!(error.hint_text().is_some() && error.kind() == ErrorKind::Unsupported, "{error}");
    assert!(!dir.path().join("out.gguf").exists());
    error
}

#[test]
fn a_split_without_a_name() {
    let whitespace = json!({"type": "Whitespace"});
    let error = refused("smollm", |json| json["pre_tokenizer"] = whitespace.clone());
    assert!(error.to_string().contains("name in llama.cpp is not known"), "{error}");
    assert!(error.hint_text().unwrap().contains("--pre"), "{error}");
    let error = refused("smollm", |json| json["normalizer"] = json!({"type": "Lowercase"}));
    assert!(error.to_string().contains("`normalizer`"), "{error}");

    let (dir, _) = folder_of("smollm", 0, &json!({}));
    edit(dir.path(), |json| json["pre_tokenizer"] = whitespace);
    let (_, to) = written(dir.path(), Some("mine")).unwrap();
    let pre = Gguf::open(&to).unwrap().meta("tokenizer.ggml.pre").cloned();
    assert_eq!(pre, Some(GgufValue::Str("mine".into())), "a name said by hand is taken");
    let (dir, _) = folder_of("spm", 0, &json!({}));
    let error = written(dir.path(), Some("mine")).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.hint_text().unwrap().contains("--pre"), "{error}");
}

#[test]
fn other_vocabularies() {
    let error = refused("smollm", |json| json["model"]["end_of_word_suffix"] = json!("</w>"));
    assert!(error.to_string().contains("where in a word"), "{error}");
    let error = refused("spm", |json| json["pre_tokenizer"] = json!({"type": "Whitespace"}));
    assert!(error.to_string().contains("in a way of its own"), "{error}");
    let error = refused("spm", |json| {
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("<0x41>").unwrap();
        vocab.insert("<0x_41>".into(), id);
    });
    assert!(error.to_string().contains("255 of 256 bytes"), "{error}");
    // llama.cpp merges whatever makes a token.
    let error = refused("spm", |json| {
        json["model"]["merges"].as_array_mut().unwrap().remove(0);
    });
    assert!(error.to_string().contains("make a token, and no merge"), "{error}");
}

/// Blanks beside a token would have ids of their own in llama.cpp.
#[test]
fn tokens_that_look_beside_them() {
    for flag in ["lstrip", "rstrip", "single_word"] {
        let error = refused("smollm", |json| {
            json["added_tokens"][3][flag] = json!(true);
            json["added_tokens"][3]["special"] = json!(false);
        });
        assert!(error.to_string().contains("\"<think>\" takes the blanks"), "{flag}: {error}");
        assert!(error.hint_text().unwrap().contains(flag), "{error}");
    }
}

#[test]
fn more_around_a_text_than_two_tokens() {
    let error = refused("smollm", |json| {
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let ids = |token: &str, id: u32| json!({"id": token, "ids": [id], "tokens": [token]});
        json["post_processor"] = json!({
            "type": "TemplateProcessing", "pair": [text, {"Sequence": {"id": "B", "type_id": 0}}],
            "single": [special("<|im_start|>"), special("<|im_end|>"), text],
            "special_tokens": {"<|im_start|>": ids("<|im_start|>", 1), "<|im_end|>": ids("<|im_end|>", 2)}
        });
    });
    assert!(error.to_string().contains("[1, 2] before every text"), "{error}");
}

#[test]
fn files_that_do_not_belong_together() {
    let (dir, tokenizer) = folder_of("smollm", 0, &json!({}));
    let rows = tokenizer.vocab_size() as i64 - 7;
    folder(dir.path(), rows, &json!({}));
    let error = written(dir.path(), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.to_string().contains(&format!("the model has {rows}")), "{error}");
    assert!(error.hint_text().unwrap().contains("belong together"), "{error}");

    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    let error = written(dir.path(), None).unwrap_err();
    assert!(error.to_string().contains("tokenizer.json"), "{error}");
    assert!(error.hint_text().unwrap().contains("tokenizer.json"), "{error}");
}
