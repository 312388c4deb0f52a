//! The position encoding's part of a configuration, old spelling (`rope_theta`, `rope_scaling`) and new
//! (`rope_parameters`), with the precedence of transformers' `convert_rope_params_to_dict`.

use lora_core::{Error, Result};

use super::json::Object;

/// How rotary frequencies are stretched for contexts longer than those of pretraining.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every inverse frequency is divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1's rule: long wavelengths are divided by `factor`, short ones kept, those between interpolated
    /// (transformers' `_compute_llama3_parameters`).
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context length of pretraining.
        original_max_positions: i64,
    },
    /// One divisor for each of the `head_dim / 2` inverse frequencies (GGUF's `rope_freqs.weight`).
    Factors(Vec<f64>),
}

const SUPPORTED: &str =
    "supported are default, linear, llama3, and longrope whose factors are the same at every length";

/// Base and scaling.
pub(super) fn parse(cfg: &Object<'_>, head_dim: i64, max_positions: i64) -> Result<(f64, RopeScaling)> {
    let scaling = cfg.object("rope_scaling")?.filter(|o| o.values().next().is_some());
    let params = match scaling {
        Some(found) => found,
        None => cfg.object("rope_parameters")?.unwrap_or(Object::empty(cfg.place())),
    };
    if params.values().any(|(_, v)| v.is_object()) {
        return Err(Error::unsupported("position encodings that differ by layer type").at(params.place()));
    }
    for holder in [cfg, &params] {
        if let Some(part) = holder.positive("partial_rotary_factor")?.filter(|&p| p != 1.0) {
            let what = format!("rotary encoding of a part ({part}) of each head");
            return Err(holder.fault("partial_rotary_factor", Error::unsupported(what)));
        }
    }
    let theta = match params.positive("rope_theta")? {
        Some(theta) => theta,
        None => cfg.positive("rope_theta")?.unwrap_or(10_000.0),
    };
    let kind = match params.text("rope_type")? {
        Some(kind) => kind,
        None => params.text("type")?.unwrap_or("default"),
    };
    let number = |key: &str| params.needed(key, params.positive(key)?);
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => {
            let original = match cfg.size("original_max_position_embeddings")? {
                Some(n) => n,
                None => params.size("original_max_position_embeddings")?.unwrap_or(max_positions),
            };
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if high <= low {
                let what = format!("is {high}, should be above `low_freq_factor`, {low}");
                return Err(params.fault("high_freq_factor", Error::data(what)));
            }
            RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_positions: original,
            }
        }
        "longrope" => factors(&params, head_dim)?,
        other => {
            let what = format!("position scaling `{other}`");
            return Err(params.fault("rope_type", Error::unsupported(what)).hint(SUPPORTED));
        }
    };
    Ok((theta, scaling))
}

/// The one sort of longrope we have: the same factors for short and long contexts, attention not rescaled.
/// It is how factors read from a GGUF file are written so that transformers understands them.
fn factors(params: &Object<'_>, head_dim: i64) -> Result<RopeScaling> {
    let short = params.needed("short_factor", params.positives("short_factor")?)?;
    let long = params.needed("long_factor", params.positives("long_factor")?)?;
    if short != long || params.positive("attention_factor")? != Some(1.0) {
        let what = "position scaling `longrope` with factors that depend on the length";
        return Err(params.fault("rope_type", Error::unsupported(what)).hint(SUPPORTED));
    }
    if long.len() as i64 * 2 != head_dim {
        let what = format!("has {} factors, should have {}: half of head_dim", long.len(), head_dim / 2);
        return Err(params.fault("long_factor", Error::data(what)));
    }
    Ok(RopeScaling::Factors(long))
}
