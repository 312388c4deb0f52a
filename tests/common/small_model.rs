//! A model of the llama family with random weights, large enough for memory to be worth counting.

use std::path::Path;

use tch::{Device, Kind, Tensor};

pub(crate) const HIDDEN: i64 = 128;
pub(crate) const INNER: i64 = 384;
const LAYERS: i64 = 6;

pub(crate) fn write_model(folder: &Path) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 256, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let random =
        |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16) * 0.05;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), random(&[256, HIDDEN])),
        ("model.norm.weight".to_owned(), random(&[HIDDEN])),
    ];
    for i in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![64, HIDDEN]),
            ("self_attn.v_proj", vec![64, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.push((format!("model.layers.{i}.{name}.weight"), random(&shape)));
        }
    }
    lora::write_tensors(&folder.join("model.safetensors"), &tensors, &[]).unwrap();
}
