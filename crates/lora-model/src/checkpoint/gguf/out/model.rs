//! What a GGUF file says of a model that comes from a folder: the inverse of the reader's `config.rs`. Keys and types
//! are those of llama.cpp's convert_hf_to_gguf.py.

use std::f32::consts::PI;
use std::path::Path;

use lora_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::file::Metadata;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::names;
use crate::config::read_json;
use crate::{ModelConfig, RopeScaling};

/// `general.*`: what it is, its name, its size, and how its makers sample.
pub(super) fn general(checkpoint: &dyn Checkpoint, to: &mut Metadata) -> Result<()> {
    let folder = checkpoint.source();
    to.put("general.type", "model");
    if let Some(name) = folder.canonicalize().ok().as_deref().and_then(Path::file_name) {
        to.put("general.name", &*name.to_string_lossy());
    }
    let sizes = checkpoint.names().into_iter().filter_map(|name| checkpoint.shape(&name));
    let parameters: f64 = sizes.map(|shape| shape.iter().product::<i64>() as f64).sum();
    to.put("general.size_label", &*size_label(parameters));
    let path = folder.join("generation_config.json");
    if path.exists() {
        let settings = read_json(&path)?;
        if let Some(k) = settings["top_k"].as_i64() {
            to.put("general.sampling.top_k", k as i32);
        }
        let numbers = [
            ("top_p", "top_p"),
            ("min_p", "min_p"),
            ("temperature", "temp"),
            ("repetition_penalty", "penalty_repeat"),
        ];
        for (theirs, key) in numbers {
            if let Some(x) = settings[theirs].as_f64() {
                to.put(format!("general.sampling.{key}"), x as f32);
            }
        }
    }
    Ok(())
}

/// `135M`, `1.2B`: two digits at least.
fn size_label(parameters: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M")];
    let (unit, letter) = units.into_iter().find(|(unit, _)| parameters > *unit).unwrap_or((1e3, "K"));
    let scaled = parameters / unit;
    let digits = format!("{scaled:.0}").trim_start_matches('0').len();
    format!("{scaled:.*}{letter}", 2usize.saturating_sub(digits))
}

/// llama.cpp makes each architecture of its own tensors, and opens no file that has others.
///
/// # Errors
/// [`Error::unsupported`] for a network that is of more than these.
pub(super) fn check(config: &ModelConfig) -> Result<()> {
    let arch = names::arch(config);
    let what = match &config.rope_scaling {
        RopeScaling::Llama3 { .. } | RopeScaling::Factors(_) if arch != "llama" => {
            "table of rotary factors (`rope_type` llama3 or longrope)"
        }
        _ if arch == "qwen3" && config.qkv_bias => "biases of attention (`attention_bias`)",
        _ => return Ok(()),
    };
    Err(Error::unsupported(format!("llama.cpp's {arch} has no {what}, and would refuse the file"))
        .hint("llama.cpp does not run this model; transformers does: `lora merge` writes a folder for it"))
}

/// `ARCH.*`: the shape of the network.
pub(super) fn network(config: &ModelConfig, to: &mut Metadata) {
    let arch = names::arch(config);
    let key = |name: &str| format!("{arch}.{name}");
    let sizes = [
        ("block_count", config.layers),
        ("context_length", config.max_positions),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("vocab_size", config.vocab_size),
        ("rope.dimension_count", config.head_dim),
    ];
    for (name, size) in sizes {
        to.put(key(name), size as u32);
    }
    if let Some(window) = config.sliding_window {
        to.put(key("attention.sliding_window"), window as u32);
    }
    to.put(key("attention.layer_norm_rms_epsilon"), config.rms_norm_eps as f32);
    to.put(key("rope.freq_base"), config.rope_theta as f32);
    if let RopeScaling::Linear { factor } = config.rope_scaling {
        to.put(key("rope.scaling.type"), "linear");
        to.put(key("rope.scaling.factor"), factor as f32);
    }
}

/// `rope_freqs.weight`: what each inverse frequency is divided by, where a number does not say it.
pub(super) fn factors(config: &ModelConfig) -> Result<Option<Tensor>> {
    let factors = match &config.rope_scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => return Ok(None),
        RopeScaling::Factors(factors) => factors.iter().map(|&f| f as f32).collect(),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            // In f32, step for step as the converter has it (a number over a tensor is a product with the reciprocal),
            // so that the same bits come out.
            let dims = Tensor::f_arange_start_step(0, config.head_dim, 2, (Kind::Float, Device::Cpu))?;
            let exponents = dims.f_div_scalar(config.head_dim)?;
            let waves = Tensor::f_pow_scalar(config.rope_theta, &exponents)?.f_reciprocal()?;
            let (original, range) = (original_max_positions as f64, high_freq_factor - low_freq_factor);
            let of = |frequency: f32| {
                let length = frequency.recip() * (2.0 * PI);
                if length < (original / high_freq_factor) as f32 {
                    1.0
                } else if length > (original / low_freq_factor) as f32 {
                    factor as f32
                } else {
                    let smooth = (length.recip() * original as f32 - low_freq_factor as f32) / range as f32;
                    ((1.0 - smooth) / factor as f32 + smooth).recip()
                }
            };
            Vec::<f32>::try_from(waves)?.into_iter().map(of).collect::<Vec<f32>>()
        }
    };
    Ok(Some(Tensor::f_from_slice(&factors)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `gguf.size_label` has them.
    #[test]
    fn sizes_have_two_digits() {
        let cases = [(134_515_008.0, "135M"), (1_235_814_400.0, "1.2B"), (8.03e9, "8.0B"), (7.2e10, "72B")];
        for (parameters, label) in cases.into_iter().chain([(23_456.0, "23K"), (432.0, "0.43K")]) {
            assert_eq!(size_label(parameters), label);
        }
    }
}
