//! What a checkpoint must hold, checked before anything is loaded.

use lora_core::{Error, Result};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;

/// Every tensor is there and has the shape that the configuration says.
pub(crate) fn check(checkpoint: &dyn Checkpoint) -> Result<()> {
    let mut faults = Vec::new();
    for (name, shape) in expected(checkpoint.config()) {
        match checkpoint.shape(&name) {
            None => faults.push(format!("missing: {name} {shape:?}")),
            Some(found) if found != shape => {
                faults.push(format!("shape of {name}: {found:?} in the file, {shape:?} by configuration"));
            }
            Some(_) => {}
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    let (count, shown) = (faults.len(), 12);
    faults.truncate(shown);
    if count > shown {
        faults.push(format!("and {} more", count - shown));
    }
    let what = "the checkpoint's tensors do not fit its configuration";
    Err(Error::faults(lora_core::ErrorKind::Data, what, faults)
        .at(checkpoint.source().display())
        .hint("a shard may be missing or belong to another model; fetch the model again"))
}

/// Names and shapes of all tensors of a llama-family model.
fn expected(c: &ModelConfig) -> Vec<(String, Vec<i64>)> {
    let (h, i, hd) = (c.hidden_size, c.intermediate_size, c.head_dim);
    let mut all = vec![
        ("model.embed_tokens.weight".to_owned(), vec![c.vocab_size, h]),
        ("model.norm.weight".to_owned(), vec![h]),
    ];
    if !c.tie_word_embeddings {
        all.push(("lm_head.weight".to_owned(), vec![c.vocab_size, h]));
    }
    for layer in 0..c.layers {
        let mut add = |part: &str, shape: Vec<i64>| all.push((format!("model.layers.{layer}.{part}"), shape));
        let mut linear = |part: &str, out: i64, inp: i64, bias: bool| {
            add(&format!("{part}.weight"), vec![out, inp]);
            if bias {
                add(&format!("{part}.bias"), vec![out]);
            }
        };
        linear("self_attn.q_proj", c.heads * hd, h, c.qkv_bias);
        linear("self_attn.k_proj", c.kv_heads * hd, h, c.qkv_bias);
        linear("self_attn.v_proj", c.kv_heads * hd, h, c.qkv_bias);
        linear("self_attn.o_proj", h, c.heads * hd, c.o_bias);
        linear("mlp.gate_proj", i, h, c.mlp_bias);
        linear("mlp.up_proj", i, h, c.mlp_bias);
        linear("mlp.down_proj", h, i, c.mlp_bias);
        add("input_layernorm.weight", vec![h]);
        add("post_attention_layernorm.weight", vec![h]);
        if c.qk_norm {
            add("self_attn.q_norm.weight", vec![hd]);
            add("self_attn.k_norm.weight", vec![hd]);
        }
    }
    all
}
