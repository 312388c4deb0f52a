//! Ids, offsets and texts against transformers (see data/make_text.py), and malformed files.

#[path = "tokenizer/ends.rs"]
mod ends;
#[path = "tokenizer/folder.rs"]
mod folder;

use std::fs;
use std::path::{Path, PathBuf};

use lora_core::ErrorKind;
use lora_model::Tokenizer;
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(name)
}

fn golden() -> Value {
    serde_json::from_slice(&fs::read(data("tokens.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn check(tokenizer: &Tokenizer, kind: &str, golden: &Value) {
    let expected = &golden["kinds"][kind];
    let inputs = texts(&golden["texts"]);
    for (i, text) in inputs.iter().enumerate() {
        let want = ids(&expected["ids"][i]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{kind}: {text:?}");
        assert_eq!(
            tokenizer.decode(&want, false).unwrap(),
            texts(&expected["decoded"])[i],
            "{kind}: {text:?}"
        );
        let plain = texts(&expected["decoded_plain"])[i];
        assert_eq!(tokenizer.decode(&want, true).unwrap(), plain, "{kind}: {text:?}");
        for (skip, whole) in [(false, texts(&expected["decoded"])[i]), (true, plain)] {
            let mut stream = tokenizer.stream(skip);
            let mut streamed: String = want.iter().map(|&id| stream.push(id).unwrap()).collect();
            streamed += &stream.finish().unwrap();
            assert_eq!(streamed, whole, "{kind}, streamed: {text:?}");
        }
    }
    assert_eq!(tokenizer.encode(inputs[2], true).unwrap(), ids(&expected["with_special"]), "{kind}");
}

#[test]
fn gguf_vocabularies_give_the_ids_of_the_original_tokenizers() {
    let golden = golden();
    for kind in golden["kinds"].as_object().unwrap().keys() {
        let tokenizer = Tokenizer::open(&data(&format!("{kind}.gguf"))).unwrap();
        check(&tokenizer, kind, &golden);
    }
}

#[test]
fn folder_gives_the_same_ids_and_knows_its_special_tokens() {
    let golden = golden();
    let tokenizer = Tokenizer::open(&data("smollm")).unwrap();
    check(&tokenizer, "smollm", &golden);
    assert_eq!((tokenizer.bos_id(), tokenizer.pad_id()), (Some(1), Some(2)));
    assert_eq!(tokenizer.eos_ids(), [2, 0], "the tokenizer's own, then generation_config.json's");
    assert!(tokenizer.chat_template().is_some());
    let gguf = Tokenizer::open(&data("smollm.gguf")).unwrap();
    assert_eq!(gguf.eos_ids(), [2, 0], "the file's own, then what llama.cpp stops at");
    assert_eq!(gguf.vocab_size(), tokenizer.vocab_size());
    assert_eq!(gguf.chat_template().unwrap().source(), tokenizer.chat_template().unwrap().source());
}

/// What goes on a text is encoded as within it, in either spelling of SentencePiece's blank.
#[test]
fn no_blank_is_put_before_what_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        Tokenizer::open(&data("spm.gguf")).unwrap().save(dir.path()).unwrap();
        let file = dir.path().join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut json);
        fs::write(file, json.to_string()).unwrap();
        Tokenizer::open(dir.path()).unwrap()
    };
    let metaspace = |scheme: &str| {
        changed(&|json: &mut Value| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        })
    };
    let gguf = |kind: &str| Tokenizer::open(&data(&format!("{kind}.gguf"))).unwrap();
    let first = gguf("spm").encode("q", false).unwrap();
    for tokenizer in [gguf("spm"), metaspace("always"), metaspace("first")] {
        for text in ["hello", " hello", "  x", "\n\nx", "\t|~^", "éa 😀", "", "a<think>b"] {
            let ids = tokenizer.encode_after(text).unwrap();
            let decoded = tokenizer.decode(&[&first[..], &ids].concat(), false).unwrap();
            assert_eq!(decoded.strip_prefix('q').map(|t| t.replace("<think> ", "<think>")).unwrap(), text);
        }
        let plain = tokenizer.encode("hello", false).unwrap();
        assert_eq!(tokenizer.encode_after("hello").unwrap(), plain[1..], "all but the blank");
        // A token that is found before the text is cut up has no blank.
        let special = tokenizer.encode("<think>", false).unwrap();
        assert_eq!(tokenizer.encode_after("<think>").unwrap(), special);
    }
    // Nor has the first of the marks that would do for this vocabulary, where it is such a token: another one is taken.
    let id = gguf("spm").vocab_size();
    let token = json!({"id": id, "content": "~", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": false});
    let added = changed(&|json: &mut Value| json["added_tokens"].as_array_mut().unwrap().push(token.clone()));
    assert_eq!(added.encode("~", false).unwrap(), [id as i64], "no blank before it");
    let plain = added.encode("hello", false).unwrap();
    assert_eq!(added.encode_after("hello").unwrap(), plain[1..], "all but the blank");
    for kind in ["spm-plain", "smollm", "tekken"] {
        let tokenizer = gguf(kind);
        for text in texts(&golden()["texts"]) {
            assert_eq!(
                tokenizer.encode_after(text).unwrap(),
                tokenizer.encode(text, false).unwrap(),
                "{kind}"
            );
        }
    }
}

#[test]
fn offsets_are_byte_ranges_of_the_text() {
    let golden = golden();
    let tokenizer = Tokenizer::open(&data("smollm")).unwrap();
    for (text, expected) in texts(&golden["texts"]).iter().zip(golden["offsets"].as_array().unwrap()) {
        let encoded = tokenizer.encode_with_offsets(text, false).unwrap();
        let offsets: Vec<Vec<i64>> = expected.as_array().unwrap().iter().map(ids).collect();
        let got: Vec<Vec<i64>> = encoded.offsets.iter().map(|r| vec![r.start as i64, r.end as i64]).collect();
        assert_eq!(got, offsets, "{text:?}");
    }
}

#[test]
fn saved_gguf_tokenizer_opens_as_a_folder() {
    let golden = golden();
    for kind in golden["kinds"].as_object().unwrap().keys() {
        let dir = tempfile::tempdir().unwrap();
        let gguf = Tokenizer::open(&data(&format!("{kind}.gguf"))).unwrap();
        gguf.save(dir.path()).unwrap();
        let saved = Tokenizer::open(dir.path()).unwrap();
        check(&saved, kind, &golden);
        // More that ends a text is in the model's config.json.
        assert_eq!((saved.bos_id(), saved.eos_ids()), (gguf.bos_id(), &gguf.eos_ids()[..1]), "{kind}");
    }
}

#[test]
fn stream_holds_an_incomplete_character_back() {
    let tokenizer = Tokenizer::open(&data("smollm")).unwrap();
    let bytes: Vec<i64> = tokenizer.encode("\u{10ffff}", false).unwrap();
    assert!(bytes.len() > 1, "the character must take several tokens");
    let mut stream = tokenizer.stream(true);
    for &id in &bytes[..bytes.len() - 1] {
        assert_eq!(stream.push(id).unwrap(), "");
    }
    assert!(stream.push(-1).is_err(), "no id");
    assert_eq!(stream.push(1 << 20).unwrap(), "", "no such token");
    assert_eq!(stream.push(bytes[bytes.len() - 1]).unwrap(), "\u{10ffff}");
    let mut cut = tokenizer.stream(true);
    assert_eq!(cut.push(bytes[0]).unwrap(), "");
    assert_eq!(cut.finish().unwrap(), "\u{FFFD}");
}

/// An embedding may have more rows than there are tokens, and a model may say one of them.
#[test]
fn ids_without_a_token_have_no_text() {
    let tokenizer = Tokenizer::open(&data("smollm")).unwrap();
    let ids = tokenizer.encode("Hello, world!", false).unwrap();
    let padded: Vec<i64> = ids.iter().flat_map(|&id| [tokenizer.vocab_size() as i64, id, 1 << 20]).collect();
    for skip in [false, true] {
        assert_eq!(tokenizer.decode(&padded, skip).unwrap(), "Hello, world!");
        let mut stream = tokenizer.stream(skip);
        let mut streamed: String = padded.iter().map(|&id| stream.push(id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, "Hello, world!");
    }
    for id in [-1, i64::MAX] {
        let error = tokenizer.decode(&[5, id], false).unwrap_err();
        assert!(error.to_string().contains(&id.to_string()), "{error}");
    }
}

/// What goes around a text is what `tokenizer.json` puts there, whatever `tokenizer_config.json` says: as in transformers 5.
#[test]
fn flags_beside_a_tokenizer_json_are_not_obeyed() {
    // The one file has BOS, the other nothing.
    for (kind, before) in [("llama-bpe", vec![0_i64]), ("smollm", vec![])] {
        let dir = tempfile::tempdir().unwrap();
        Tokenizer::open(&data(&format!("{kind}.gguf"))).unwrap().save(dir.path()).unwrap();
        for class in ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "PreTrainedTokenizerFast"]
        {
            for flags in [[true, true], [true, false], [false, true], [false, false]] {
                let config = json!({"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>",
                    "tokenizer_class": class, "add_bos_token": flags[0], "add_eos_token": flags[1]});
                fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
                let tokenizer = Tokenizer::open(dir.path()).unwrap();
                let bare = tokenizer.encode("Hi", false).unwrap();
                let ids = tokenizer.encode("Hi", true).unwrap();
                assert_eq!(ids, [&before[..], &bare].concat(), "{kind}, {class}, {flags:?}");
            }
        }
    }
}

/// The folder with one file replaced.
fn broken(file: &str, contents: &[u8]) -> lora_core::Error {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(data("smollm/tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join(file), contents).unwrap();
    let error = Tokenizer::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains(file), "names the file: {error}");
    assert_eq!(error.kind(), ErrorKind::Data, "{error}");
    error
}

#[test]
fn malformed_folders_are_refused() {
    let whole = fs::read(data("smollm/tokenizer.json")).unwrap();
    for cut in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        broken("tokenizer.json", &whole[..cut]);
    }
    let mut json: Value = serde_json::from_slice(&whole).unwrap();
    json["model"].as_object_mut().unwrap().remove("vocab");
    broken("tokenizer.json", json.to_string().as_bytes());
    // The library panics on a merge longer than every token.
    json["model"]["vocab"] = json!({"aa": 0, "bb": 1});
    json["model"]["merges"] = json!([["aa", "bb"]]);
    broken("tokenizer.json", json.to_string().as_bytes());
    broken("tokenizer_config.json", b"[]");
    broken("tokenizer_config.json", br#"{"eos_token": 3}"#);
    broken("tokenizer_config.json", br#"{"added_tokens_decoder": {"7": {"content": "<other>"}}}"#);
    broken("generation_config.json", br#"{"eos_token_id": ["a"]}"#);
    let error = Tokenizer::open(tempfile::tempdir().unwrap().path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.hint_text().unwrap().contains("tokenizer.json"), "{error}");
}

#[test]
fn huge_padding_is_not_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    let mut json: Value = serde_json::from_slice(&fs::read(data("smollm/tokenizer.json")).unwrap()).unwrap();
    json["padding"] = json!({"strategy": {"Fixed": 4_000_000_000u32}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    json["truncation"] =
        json!({"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0});
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    assert_eq!(
        tokenizer.encode("Hello, world!", true).unwrap(),
        Tokenizer::open(&data("smollm")).unwrap().encode("Hello, world!", true).unwrap()
    );
}

/// `file`, which holds no tensors, with the bytes `from` replaced where they first are.
fn patched(file: &str, from: &[u8], to: &[u8]) -> lora_core::Result<Tokenizer> {
    patched_all(file, &[(from.to_vec(), to.to_vec())])
}

/// As [`patched`], one replacement behind the other.
fn patched_all(file: &str, changes: &[(Vec<u8>, Vec<u8>)]) -> lora_core::Result<Tokenizer> {
    let mut bytes = fs::read(data(file)).unwrap();
    for (from, to) in changes {
        let at = bytes.windows(from.len()).position(|window| window == from).expect("the bytes to replace");
        bytes.splice(at..at + from.len(), to.iter().copied());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    Tokenizer::open(&path)
}

/// A text of a GGUF file: its length, then its bytes.
fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// Old files of Llama 3 and Qwen say nothing of their expressions, which are not GPT-2's.
#[test]
fn gguf_files_that_do_not_say_how_text_is_split_are_refused() {
    for (from, to) in [("tokenizer.ggml.pre", "tokenizer.gone.pre"), ("llama-bpe", "default")] {
        let error = patched("llama-bpe.gguf", &text(from), &text(to)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("tokenizer.ggml.pre"), "{error}");
        assert!(error.hint_text().unwrap().contains("a newer file"), "{error}");
    }
}

#[test]
fn padding_that_is_no_token_is_none() {
    let bos =
        |id: u32| [&text("tokenizer.ggml.bos_token_id")[..], &4u32.to_le_bytes(), &id.to_le_bytes()].concat();
    let pad = |id: u32| {
        [&text("tokenizer.ggml.padding_token_id")[..], &4u32.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    for (id, found) in [(2, Some(2)), (462, None), (u32::MAX, None)] {
        let tokenizer = patched("gpt-2.gguf", &bos(0), &pad(id)).unwrap();
        assert_eq!((tokenizer.pad_id(), tokenizer.bos_id()), (found, None), "{id}");
    }
}

/// As llama.cpp finds it, and the original's `tokenizer.json`.
#[test]
fn the_unknown_token_is_found_in_a_text() {
    for kind in ["spm", "spm-plain"] {
        let tokenizer = Tokenizer::open(&data(&format!("{kind}.gguf"))).unwrap();
        assert_eq!(tokenizer.encode("<unk>", false).unwrap(), [0], "{kind}");
        let [hello, world] = ["hello", "world"].map(|text| tokenizer.encode(text, false).unwrap());
        let between = tokenizer.encode("hello<unk>world", false).unwrap();
        assert_eq!(between, [&hello[..], &[0], &world].concat(), "{kind}");
        assert_eq!(tokenizer.decode(&[0], true).unwrap(), "", "{kind}");
    }
}

/// At the tokens that llama.cpp stops at, of any type, wherever the file's keys do not name them.
#[test]
fn gguf_files_end_texts_at_more_than_their_keys_say() {
    let ends = |changes: &[(&str, &str)]| {
        let changes: Vec<_> = changes.iter().map(|(from, to)| (text(from), text(to))).collect();
        patched_all("qwen2.gguf", &changes).unwrap().eos_ids().to_vec()
    };
    for end in ["<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>", "[EOS]", "<turn|>", "<｜end▁of▁sentence｜>"]
    {
        assert_eq!(ends(&[("<|im_start|>", end)]), [2, 0, 1], "{end}");
    }
    for around_code in ["<|fim_pad|>", "<reponame>", "<|file_sep|>"] {
        assert_eq!(ends(&[("<|im_start|>", around_code)]), [2, 0, 1], "{around_code}");
    }
    assert_eq!(ends(&[("<|im_start|>", "<|start|>")]), [2, 0]);
    assert_eq!(ends(&[("<think>", "</s>")]), [2, 0, 3], "a token that a user may write");
    // Within a turn.
    let end = ("<|endoftext|>", "<|end|>");
    assert_eq!(ends(&[end, ("<|im_start|>", "<|call|>")]), [2, 0, 1]);
    for last in ["<|return|>", "<|flush|>"] {
        assert_eq!(ends(&[end, ("<|im_start|>", "<|call|>"), ("<think>", last)]), [2, 1, 3], "{last}");
    }
    assert_eq!(ends(&[("<|im_start|>", "</s>"), ("<think>", "<|tool_response>")]), [2, 0, 3]);
}

#[test]
fn malformed_gguf_vocabularies_are_refused() {
    let error = patched("qwen2.gguf", b"\x05\0\0\0\0\0\0\0qwen2", b"\x05\0\0\0\0\0\0\0qwenX").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("qwenX") && error.to_string().contains("llama-bpe"), "{error}");
    let error = patched("qwen2.gguf", b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0bert").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for key in ["ggml.tokens", "ggml.merges", "ggml.model"] {
        let error =
            patched("qwen2.gguf", key.as_bytes(), &key.replace("ggml", "gone").into_bytes()).unwrap_err();
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    let error = patched("spm.gguf", b"ggml.scores", b"gone.scores").unwrap_err();
    assert!(error.to_string().contains("ggml.scores"), "{error}");
    let id = b"ggml.bos_token_id\x04\0\0\0";
    let error = patched("spm.gguf", &[&id[..], &[1, 0, 0, 0]].concat(), &[&id[..], &[1, 0, 0, 9]].concat())
        .unwrap_err();
    assert!(error.to_string().contains("bos_token_id"), "{error}");
    let error = patched("gpt-2.gguf", b"<|im_start|>", b"<|im_endxx|>");
    assert!(error.is_ok(), "another token text is fine");
    let error = patched("spm.gguf", b"<0x01>", b"<0x02>").unwrap_err();
    assert!(error.to_string().contains("two ids"), "{error}");
}
