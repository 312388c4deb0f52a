//! The network: its configuration, its weights, what it computes.

use lora_core::{Mode, read_tensors, write_tensors};
use lora_model::{Checkpoint, EMBEDDING, Keep, Llama, Model, ModelConfig, Texts, open};
use serde_json::json;
use tch::{Device, Kind, Tensor};

use crate::{folder_of, written};

/// The bits of an f32 tensor: -0.0 is not 0.0 here.
fn bits(model: &dyn Checkpoint, name: &str) -> Vec<u32> {
    let flat = model.load(name, Kind::Float).unwrap().reshape([-1]);
    Vec::<f32>::try_from(flat).unwrap().into_iter().map(f32::to_bits).collect()
}

fn logits(model: &dyn Checkpoint) -> Tensor {
    let model = Llama::load(model, Kind::Float, Device::Cpu, Keep::DENSE).unwrap();
    let ids = Tensor::arange(100, (Kind::Int64, Device::Cpu)).unsqueeze(0);
    model.logits(Texts::Rows(&ids), None, Mode::Eval).unwrap()
}

#[test]
fn networks_come_back() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    // What llama.cpp stops at by its text is among the ids of what it writes.
    let ids =
        json!({"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 2}).as_object().unwrap().clone();
    for (name, more) in [
        ("llama", json!({})),
        ("untied", json!({"tie_word_embeddings": false, "rope_theta": 1e6})),
        ("linear", json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})),
        ("llama3", json!({"rope_scaling": llama3})),
        (
            "mistral",
            json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}),
        ),
        ("qwen2", json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})),
        ("qwen3", json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})),
    ] {
        let mut more = more;
        more.as_object_mut().unwrap().extend(ids.clone());
        let (dir, _) = folder_of("smollm", 5, &more);
        let (model, to) = written(dir.path(), None).unwrap();
        let again = open(&to).unwrap();
        let (a, b) = (again.config(), model.config());
        let shape = |c: &ModelConfig| {
            (
                (c.vocab_size, c.hidden_size, c.intermediate_size, c.layers, c.heads, c.kv_heads, c.head_dim),
                (c.max_positions, c.tie_word_embeddings, c.qkv_bias, c.qk_norm, c.sliding_window),
                (c.model_type.clone(), c.rope_theta as f32, c.rms_norm_eps as f32),
                (c.bos_token_id, c.eos_token_ids.clone(), c.pad_token_id, c.o_bias, c.mlp_bias),
            )
        };
        assert_eq!(shape(a), shape(b), "{name}");
        assert_eq!(again.names(), model.names(), "{name}");
        for tensor in model.names() {
            assert!(bits(again.as_ref(), &tensor) == bits(model.as_ref(), &tensor), "{name}, {tensor}");
        }
        // The angles of the rotation are those of the folder's, to the rounding of the factors to f32.
        let (ours, theirs) = (logits(again.as_ref()), logits(model.as_ref()));
        let error = (&ours - &theirs).norm().double_value(&[]) / theirs.norm().double_value(&[]);
        assert!(error < 1e-5, "{name}: {error}");
    }
}

/// A configuration may call a head the embedding that is another: it is computed with, and written.
#[test]
fn a_head_that_is_not_the_embedding_comes_along() {
    let (dir, _) = folder_of("smollm", 0, &json!({}));
    let tied = logits(open(dir.path()).unwrap().as_ref());
    let file = dir.path().join("model.safetensors");
    let mut tensors: Vec<_> = read_tensors(&file).unwrap().into_iter().collect();
    let embedding = tensors.iter().find(|(name, _)| name == EMBEDDING).unwrap().1.copy();
    tensors.push(("lm_head.weight".to_owned(), embedding * 2.0));
    write_tensors(&file, &tensors, &[]).unwrap();
    let (model, to) = written(dir.path(), None).unwrap();
    let again = open(&to).unwrap();
    assert!(!model.config().tie_word_embeddings && !again.config().tie_word_embeddings);
    let twice = tied * 2.0;
    for found in [model, again] {
        let error =
            (logits(found.as_ref()) - &twice).norm().double_value(&[]) / twice.norm().double_value(&[]);
        assert!(error < 1e-5, "{error}");
    }
}
