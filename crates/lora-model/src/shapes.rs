//! What a checkpoint must hold, checked before anything is loaded.

use std::collections::BTreeMap;

use lora_core::{Error, Result};
use tch::Kind;

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::llama::linear_names;

/// The embedding, and the output head of a model that ties them.
pub const EMBEDDING: &str = "model.embed_tokens.weight";

/// Every tensor is there and has the shape that the configuration says.
pub(crate) fn check(checkpoint: &dyn Checkpoint) -> Result<()> {
    let (layers, tensors) = (checkpoint.config().layers, checkpoint.names().len());
    if usize::try_from(layers).is_ok_and(|layers| layers > tensors) {
        let what = format!("the configuration has {layers} layers, and the checkpoint {tensors} tensors");
        return Err(Error::data(what).at(checkpoint.source().display()));
    }
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

/// The linear layers of a model, in its order, the output head last, and their `(out, in)`.
///
/// # Errors
/// Tensors that are missing or of another shape than the configuration says.
pub fn linear_shapes(checkpoint: &dyn Checkpoint) -> Result<Vec<(String, (i64, i64))>> {
    check(checkpoint)?;
    let config = checkpoint.config();
    let shapes: BTreeMap<_, _> = expected(config).into_iter().collect();
    let shape = |path: String| {
        let shape = shapes.get(&format!("{path}.weight")).or(shapes.get(EMBEDDING));
        match shape.map(Vec::as_slice) {
            Some(&[out, inp]) => Ok((path, (out, inp))),
            _ => Err(Error::internal("no matrix").at(path)),
        }
    };
    linear_names(config).map(shape).collect()
}

/// All tensors of a model and their shapes; a head that is the embedding is none of them.
///
/// # Errors
/// Tensors that are missing or of another shape than the configuration says.
pub fn tensor_shapes(checkpoint: &dyn Checkpoint) -> Result<Vec<(String, Vec<i64>)>> {
    check(checkpoint)?;
    Ok(expected(checkpoint.config()))
}

/// Whether the linear layer at `path` has a bias.
pub fn has_bias(config: &ModelConfig, path: &str) -> bool {
    match path.rsplit('.').next() {
        Some("q_proj" | "k_proj" | "v_proj") => config.qkv_bias,
        Some("o_proj") => config.o_bias,
        Some("gate_proj" | "up_proj" | "down_proj") => config.mlp_bias,
        _ => false,
    }
}

/// Bytes of norms and biases in `kind`.
pub fn vectors_bytes(config: &ModelConfig, kind: Kind) -> u64 {
    let vectors = expected(config).into_iter().filter(|(_, shape)| shape.len() == 1);
    vectors.map(|(_, shape)| shape[0].unsigned_abs()).sum::<u64>() * kind.elt_size_in_bytes() as u64
}

/// Numbers in all tensors of such a model; a head that is the embedding counts once.
pub fn parameters(config: &ModelConfig) -> usize {
    let sizes = expected(config).into_iter().map(|(_, shape)| shape.iter().product::<i64>());
    usize::try_from(sizes.sum::<i64>()).unwrap_or(0)
}

/// Names and shapes of all tensors of a llama-family model.
fn expected(c: &ModelConfig) -> Vec<(String, Vec<i64>)> {
    let (h, i, hd) = (c.hidden_size, c.intermediate_size, c.head_dim);
    let mut all =
        vec![(EMBEDDING.to_owned(), vec![c.vocab_size, h]), ("model.norm.weight".to_owned(), vec![h])];
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
