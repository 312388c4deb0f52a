//! What ends a text in a GGUF file that does not call it special.

use lora_model::{Gguf, Tokenizer};

use super::{data, patched_all, text};

/// `qwen2.gguf` with `<|im_start|>`, id 1, called `end` and of this type.
fn ending(end: &str, kind: i32) -> Tokenizer {
    let count = Gguf::open(&data("qwen2.gguf")).unwrap().i64s("tokenizer.ggml.token_type").unwrap().len();
    let types = |kind: i32| {
        let head =
            [&text("tokenizer.ggml.token_type")[..], &9u32.to_le_bytes(), &5u32.to_le_bytes()].concat();
        [&head[..], &(count as u64).to_le_bytes(), &3i32.to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    patched_all("qwen2.gguf", &[(text("<|im_start|>"), text(end)), (types(3), types(kind))]).unwrap()
}

/// Not in pieces: a row of a conversation has the id that generation stops at. 1: normal, 4: of a user, 5: unused.
#[test]
fn ends_are_found_in_a_text_whatever_their_type() {
    for kind in [1, 3, 4, 5] {
        let tokenizer = ending("<|eot_id|>", kind);
        assert_eq!(tokenizer.eos_ids(), [2, 0, 1], "{kind}");
        let [a, b] = ["hello", " world"].map(|text| tokenizer.encode(text, false).unwrap());
        let ids = tokenizer.encode("hello<|eot_id|> world", false).unwrap();
        assert_eq!(ids, [&a[..], &[1], &b].concat(), "{kind}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "hello world", "{kind}: no text");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "hello<|eot_id|> world", "{kind}");

        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let saved = Tokenizer::open(dir.path()).unwrap();
        assert_eq!(saved.encode("hello<|eot_id|> world", false).unwrap(), ids, "{kind}, as a folder");
    }
    // What ends nothing stays text.
    let plain = ending("<|start|>", 1).encode("<|start|>", false).unwrap();
    assert!(plain.len() > 1 && !plain.contains(&1), "{plain:?}");
}
