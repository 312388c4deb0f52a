//! A model folder written as a GGUF file, and read again: configuration, weights, tokenizer, chat template.

mod networks;
mod refused;
mod tokenizers;

use std::fs;
use std::path::{Path, PathBuf};

use lora_core::write_tensors;
use lora_model::{Checkpoint, GgufKind, GgufOut, Tokenizer, open};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A folder with random weights of that vocabulary; `more` goes over its config.json.
fn folder(dir: &Path, vocabulary: i64, more: &Value) {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "vocab_size": vocabulary, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 50000.0, "tie_word_embeddings": true
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    tch::manual_seed(1);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), random(&[vocabulary, 32])),
        ("model.norm.weight".to_owned(), random(&[32])),
    ];
    if config["tie_word_embeddings"] == false {
        tensors.push(("lm_head.weight".to_owned(), random(&[vocabulary, 32])));
    }
    for layer in 0..2 {
        let (q, kv, inner) = (vec![32, 32], vec![16, 32], vec![48, 32]);
        let mut parts = vec![
            ("self_attn.q_proj.weight", q.clone()),
            ("self_attn.k_proj.weight", kv.clone()),
            ("self_attn.v_proj.weight", kv),
            ("self_attn.o_proj.weight", q),
            ("mlp.gate_proj.weight", inner.clone()),
            ("mlp.up_proj.weight", inner),
            ("mlp.down_proj.weight", vec![32, 48]),
            ("input_layernorm.weight", vec![32]),
            ("post_attention_layernorm.weight", vec![32]),
        ];
        let family = config["model_type"].as_str().unwrap();
        if family == "qwen2" {
            let bias = |n| vec![n];
            parts.extend([
                ("self_attn.q_proj.bias", bias(32)),
                ("self_attn.k_proj.bias", bias(16)),
                ("self_attn.v_proj.bias", bias(16)),
            ]);
        }
        if family == "qwen3" {
            parts.extend([("self_attn.q_norm.weight", vec![8]), ("self_attn.k_norm.weight", vec![8])]);
        }
        tensors.extend(
            parts.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), random(&shape))),
        );
    }
    write_tensors(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
}

/// The folder's model as a GGUF file beside it.
fn written(dir: &Path, pre: Option<&str>) -> lora_core::Result<(Box<dyn Checkpoint>, PathBuf)> {
    let (model, to) = (open(dir)?, dir.join("out.gguf"));
    let mut out = GgufOut::of_folder(model.as_ref(), GgufKind::F32, pre)?;
    for name in model.names() {
        let (model, key) = (model.as_ref(), name.clone());
        out.tensor(&name, "", &model.shape(&name).unwrap(), true, move || model.read(&key, Kind::Float))?;
    }
    out.write(&to)?;
    Ok((model, to))
}

/// A folder with the tokenizer of one of the GGUF files, and a model for it with `spare` rows more than tokens.
fn folder_of(kind: &str, spare: i64, more: &Value) -> (tempfile::TempDir, Tokenizer) {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::open(&data(&format!("text/{kind}.gguf"))).unwrap();
    tokenizer.save(dir.path()).unwrap();
    folder(dir.path(), tokenizer.vocab_size() as i64 + spare, more);
    (dir, tokenizer)
}

/// Changes the folder's tokenizer.json.
fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let file = dir.join("tokenizer.json");
    let mut json = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, json.to_string()).unwrap();
}
