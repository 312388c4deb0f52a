//! The tokenizer: ids, texts, special tokens, the chat template.

use std::fs;

use lora_model::{Gguf, GgufValue, Message, Tokenizer};
use serde_json::{Value, json};

use crate::{data, edit, folder, folder_of, written};

fn golden() -> Value {
    serde_json::from_slice(&fs::read(data("text/tokens.json")).unwrap()).unwrap()
}

fn texts(golden: &Value) -> Vec<&str> {
    golden["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Ids as transformers gave them: `data/make_text.py`.
#[test]
fn tokenizers_come_back() {
    let golden = golden();
    for (kind, expected) in golden["kinds"].as_object().unwrap() {
        let (dir, before) = folder_of(kind, 0, &json!({}));
        let (_, to) = written(dir.path(), None).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let after = Tokenizer::open(&to).unwrap();
        for (text, ids) in texts(&golden).into_iter().zip(expected["ids"].as_array().unwrap()) {
            let ids: Vec<i64> = ids.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
            assert_eq!(after.encode(text, false).unwrap(), ids, "{kind}: {text}");
            let decoded = |t: &Tokenizer| [false, true].map(|skip| t.decode(&ids, skip).unwrap());
            assert_eq!(decoded(&after), decoded(&before), "{kind}: {text}");
        }
        let specials = |t: &Tokenizer| (t.bos_id(), t.pad_id(), t.eos_ids().first().copied(), t.vocab_size());
        assert_eq!(specials(&after), specials(&before), "{kind}");
        assert_eq!(after.encode("a b", true).unwrap(), before.encode("a b", true).unwrap(), "{kind}");
        let template = |t: &Tokenizer| t.chat_template().map(|c| c.source().to_owned());
        assert_eq!(template(&after), template(&before), "{kind}");
        // Name and merges are what the original file says.
        let (a, b) = (Gguf::open(&to).unwrap(), Gguf::open(&data(&format!("text/{kind}.gguf"))).unwrap());
        for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
            assert_eq!(a.meta(key), b.meta(key), "{kind}, {key}");
        }
    }
}

/// As gguf-py's `add_chat_template` writes named ones.
#[test]
fn the_template_for_tools_comes_back() {
    let (dir, _) = folder_of("smollm", 0, &json!({}));
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    for (name, text) in
        [("chat_template.jinja", "plain"), ("additional_chat_templates/tool_use.jinja", "{{ tools }}")]
    {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let (_, to) = written(dir.path(), None).unwrap();
    let tokenizer = Tokenizer::open(&to).unwrap();
    let template = |tools: Option<&Value>| tokenizer.chat_template_for(tools).unwrap().source().to_owned();
    assert_eq!((template(None), template(Some(&json!([1])))), ("plain".into(), "{{ tools }}".into()));
    let names = Gguf::open(&to).unwrap().meta("tokenizer.chat_templates").cloned();
    assert!(format!("{names:?}").contains("[\"tool_use\"]"), "{names:?}");
}

/// A folder as transformers wrote it, with every chat template: the same conversation, the same ids.
#[test]
fn conversations_come_back() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(data("text/smollm")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let rows = Tokenizer::open(dir.path()).unwrap().vocab_size() as i64;
    folder(dir.path(), rows, &json!({}));
    let turns = ["Grüße 😀  12345?", "<|im_end|>  ja\n\n", "e\u{301} x", "nein"];
    let roles = ["user", "assistant"].into_iter().cycle();
    let messages: Vec<_> = roles.zip(turns).map(|(role, said)| Message::new(role, said)).collect();
    let mut rendered = 0;
    for entry in fs::read_dir(data("templates")).unwrap() {
        let template = entry.unwrap().path();
        fs::copy(&template, dir.path().join("chat_template.jinja")).unwrap();
        let (_, to) = written(dir.path(), None).unwrap();
        let said = |t: Tokenizer| {
            let template = t.chat_template().unwrap().clone().at_time(1_700_000_000);
            [false, true].map(|prompted| {
                let text = template.render(&messages, prompted).unwrap();
                let ids = t.encode(&text, true).unwrap();
                (text, ids)
            })
        };
        let (before, after) = (Tokenizer::open(dir.path()).unwrap(), Tokenizer::open(&to).unwrap());
        assert_eq!(said(after), said(before), "{}", template.display());
        rendered += 1;
    }
    assert!(rendered >= 9, "{rendered}");
}

/// A turn may end otherwise than a text.
#[test]
fn the_end_of_a_turn_comes_along() {
    let (dir, _) = folder_of("smollm", 0, &json!({}));
    fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    fs::copy(data("templates/chatml.jinja"), dir.path().join("chat_template.jinja")).unwrap();
    let (_, to) = written(dir.path(), None).unwrap();
    let file = Gguf::open(&to).unwrap();
    for (name, id) in [("eos", 0), ("eot", 2)] {
        let key = format!("tokenizer.ggml.{name}_token_id");
        assert_eq!(file.meta(&key), Some(&GgufValue::U64(id)), "{name}");
    }
    assert_eq!(Tokenizer::open(&to).unwrap().eos_ids(), [0, 2]);
}

/// SentencePiece's vocabularies in the newer spelling of `tokenizer.json`.
#[test]
fn metaspace_is_a_prefix_or_none() {
    let golden = golden();
    for (scheme, kind, prefix) in
        [("always", "spm", true), ("first", "spm", true), ("never", "spm-plain", false)]
    {
        let (dir, old) = folder_of(kind, 0, &json!({}));
        edit(dir.path(), |json| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme,
                "split": false});
        });
        let (_, to) = written(dir.path(), None).unwrap();
        let key = "tokenizer.ggml.add_space_prefix";
        assert_eq!(Gguf::open(&to).unwrap().meta(key), Some(&GgufValue::Bool(prefix)), "{scheme}");
        let new = Tokenizer::open(&to).unwrap();
        for text in texts(&golden) {
            assert_eq!(new.encode(text, true).unwrap(), old.encode(text, true).unwrap(), "{scheme}: {text}");
        }
    }
}
