//! ggml's tensor names and their Hugging Face ones, and what conversion did to the rows of q and k.

use lora_core::Result;
use tch::Tensor;

use crate::ModelConfig;

/// What lies outside of the layers: ggml's name, and Hugging Face's.
const WHOLE: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// The parts of a layer.
const PARTS: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The GGUF name of a tensor of the llama family; `None` for one we do not know.
pub(super) fn gguf_name(hf: &str) -> Option<String> {
    if let Some((gguf, _)) = WHOLE.iter().find(|(_, name)| *name == hf) {
        return Some((*gguf).into());
    }
    let (layer, rest) = hf.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, suffix) = rest.rsplit_once('.')?;
    let (part, _) = PARTS.iter().find(|(_, name)| *name == part)?;
    let known = layer.parse::<u32>().is_ok_and(|n| n.to_string() == layer);
    (known && matches!(suffix, "weight" | "bias")).then(|| format!("blk.{layer}.{part}.{suffix}"))
}

/// The Hugging Face name of a GGUF tensor of the llama family; `None` for one we do not know.
pub(super) fn hf_name(gguf: &str) -> Option<String> {
    if let Some((_, hf)) = WHOLE.iter().find(|(name, _)| *name == gguf) {
        return Some((*hf).into());
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let number: u32 = layer.parse().ok()?;
    let (part, suffix) = rest.rsplit_once('.')?;
    if number.to_string() != layer || !matches!(suffix, "weight" | "bias") {
        return None;
    }
    let (_, part) = PARTS.iter().find(|(name, _)| *name == part)?;
    Some(format!("model.layers.{number}.{part}.{suffix}"))
}

/// Tensors that carry no weights: rotary tables, which we compute.
pub(super) fn is_table(gguf: &str) -> bool {
    gguf == "rope_freqs.weight" || gguf.ends_with(".attn_rot_embd.weight")
}

/// Over how many heads conversion to arch `llama` has interleaved the rows of this tensor, if it has.
pub(super) fn permuted_heads(gguf: &str, config: &ModelConfig) -> Option<i64> {
    match gguf.rsplit('.').nth(1)? {
        "attn_q" if arch(config) == "llama" => Some(config.heads),
        "attn_k" if arch(config) == "llama" => Some(config.kv_heads),
        _ => None,
    }
}

/// ggml's name for the architecture.
pub(super) fn arch(config: &ModelConfig) -> &str {
    if config.model_type == "mistral" { "llama" } else { &config.model_type }
}

/// llama.cpp's `permute`: the inverse of [`unpermute`].
pub(super) fn permute(t: &Tensor, heads: i64) -> Result<Tensor> {
    let shape = t.size();
    let halves = t.f_reshape([heads, 2, shape.first().copied().unwrap_or(0) / heads / 2, -1])?;
    Ok(halves.f_transpose(1, 2)?.f_reshape(&shape[..])?)
}

/// Undoes llama.cpp's `permute` (convert_hf_to_gguf.py): each head's rows lie as `[half, 2]`, Hugging Face wants
/// `[2, half]`. `t` is a weight `[heads * dim, in]` or a bias `[heads * dim]`.
pub(super) fn unpermute(t: &Tensor, heads: i64) -> Result<Tensor> {
    let shape = t.size();
    let pairs = t.f_reshape([heads, shape.first().copied().unwrap_or(0) / heads / 2, 2, -1])?;
    Ok(pairs.f_transpose(1, 2)?.f_reshape(&shape[..])?)
}
