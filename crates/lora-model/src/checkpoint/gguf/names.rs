//! ggml's tensor names and their Hugging Face ones, and what conversion did to the rows of q and k.

use lora_core::Result;
use tch::Tensor;

use crate::ModelConfig;

/// The Hugging Face name of a GGUF tensor of the llama family; `None` for one we do not know.
pub(super) fn hf_name(gguf: &str) -> Option<String> {
    match gguf {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let number: u32 = layer.parse().ok()?;
    let (part, suffix) = rest.rsplit_once('.')?;
    if number.to_string() != layer || !matches!(suffix, "weight" | "bias") {
        return None;
    }
    let part = match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
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

/// Undoes llama.cpp's `permute` (convert_hf_to_gguf.py): each head's rows lie as `[half, 2]`, Hugging Face wants
/// `[2, half]`. `t` is a weight `[heads * dim, in]` or a bias `[heads * dim]`.
pub(super) fn unpermute(t: &Tensor, heads: i64) -> Result<Tensor> {
    let shape = t.size();
    let pairs = t.f_reshape([heads, shape.first().copied().unwrap_or(0) / heads / 2, 2, -1])?;
    Ok(pairs.f_transpose(1, 2)?.f_reshape(&shape[..])?)
}
