//! By the allocator's count: at no moment of a training step are more dequantised weights alive than those of the layers
//! that read one input, whatever is recomputed.

use std::path::Path;

use lora::AdapterConfig;
use lora::model::{Keep, Llama, Model, Texts};
use lora::tch_ext::memory;
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 128;
const INNER: i64 = 384;
const LAYERS: i64 = 6;

fn write_model(folder: &Path) {
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 256, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
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

/// One test, since the allocator is the process's own.
#[test]
fn no_more_is_dequantised_at_a_time_than_what_one_input_meets() {
    assert!(memory::manage());
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path());
    let ids = Tensor::arange(128, (Kind::Int64, Device::Cpu)).view([2, 64]);
    let largest = (2 * INNER * HIDDEN * 2) as u64;
    for spec in ["qlora", "qlora:fp4:128:single", "qlora+dora"] {
        let recipe = lora::recipe(spec).unwrap();
        let checkpoint = lora::open(folder.path()).unwrap();
        let keep = Keep { storage: recipe.storage(), packed: None, skip: &[] };
        let mut model = Llama::load(checkpoint.as_ref(), Kind::BFloat16, Device::Cpu, keep).unwrap();
        lora::attach(&mut model, "a", &recipe, &AdapterConfig { r: 4, ..Default::default() }).unwrap();
        for recompute in [0, 3, usize::MAX] {
            // DoRA takes the norms of the weights once, at first.
            for first in [true, false] {
                memory::reset_peak();
                model.backward(Texts::Rows(&ids), &ids, 1.0, recompute).unwrap();
                let most = memory::most_alive();
                let most = most.iter().find(|part| part.name == "dequantised").map_or(0, |part| part.bytes);
                if !first {
                    assert_eq!(most, largest, "{spec}, recompute {recompute}");
                }
            }
        }
    }
}
