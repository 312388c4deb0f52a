//! The seeds of the fuzz targets (`fuzz/`) are read: what fuzzing starts from must reach the parts that lie deepest.

#[path = "../fuzz/src/parts.rs"]
mod parts;

use std::fs;
use std::path::Path;

use lora_model::{ModelConfig, fuzz};
use lora_qlora::Bitsandbytes;
use serde_json::json;
use tch::Kind;

fn seeds(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(folder);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.display().to_string(), fs::read(&path).unwrap())).collect()
}

#[test]
fn gguf() {
    for (name, bytes) in seeds("gguf") {
        let model = fuzz::gguf(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(model.names().iter().all(|n| model.load(n, Kind::Float).is_ok()), "{name}");
    }
}

#[test]
fn gguf_tokenizers() {
    for (name, bytes) in seeds("gguf_tokenizer") {
        let tokenizer = fuzz::gguf_tokenizer(&bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(tokenizer.vocab_size() > 5, "{name}");
    }
}

#[test]
fn bitsandbytes() {
    let raw = json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2});
    let config = ModelConfig::from_json(raw, "config.json").unwrap();
    let mut packed = 0;
    let listed = seeds("bitsandbytes_parts").into_iter().map(|(name, list)| (name, parts::file(&list)));
    for (name, file) in seeds("bitsandbytes").into_iter().chain(listed) {
        let model = fuzz::safetensors(&file, config.clone(), &[&Bitsandbytes])
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for weight in model.names() {
            match model.packed(&weight, Kind::Float) {
                Ok(Some(weight)) => {
                    let (out, inp) = weight.shape();
                    assert_eq!(weight.dense(Kind::Float).size(), [out, inp]);
                    packed += 1;
                }
                Ok(None) => {
                    assert!(model.load(&weight, Kind::Float).is_ok() || model.kind(&weight).is_none())
                }
                Err(e) => panic!("{name}, {weight}: {e}"),
            }
        }
    }
    assert_eq!(packed, 14);
}
