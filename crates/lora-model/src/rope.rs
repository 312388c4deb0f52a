//! The angles of rotary positions (Su et al. 2021).

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::config::{ModelConfig, RopeScaling};
use crate::ops::Angles;

/// The frequencies of a model.
#[derive(Debug)]
pub(crate) struct Rope {
    inverse: Tensor,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig, device: Device) -> Self {
        let inverse: Vec<f32> = frequencies(config).into_iter().map(|f| f as f32).collect();
        Self { inverse: Tensor::from_slice(&inverse).to_device(device) }
    }

    /// For these positions, f32 `[n]`, of a model in `kind`; the angles themselves are f32, as in transformers.
    pub(crate) fn angles(&self, positions: &Tensor, kind: Kind) -> Angles {
        let angles = positions.unsqueeze(1) * self.inverse.unsqueeze(0);
        let kind = lora_core::master_kind(kind);
        Angles { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }
}

/// Inverse frequencies, `head_dim / 2` of them.
fn frequencies(config: &ModelConfig) -> Vec<f64> {
    let dim = config.head_dim;
    let plain = (0..dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / dim as f64));
    match &config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::Factors(factors) => plain.zip(factors).map(|(f, factor)| f / factor).collect(),
        // transformers' `_compute_llama3_parameters`: slow waves are stretched, fast ones kept, between blended.
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => plain
            .map(|f| {
                let length = 2.0 * PI / f;
                let original = original_max_positions as f64;
                if length < original / high_freq_factor {
                    f
                } else if length > original / low_freq_factor {
                    f / factor
                } else {
                    let blend = (original / length - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - blend) * f / factor + blend * f
                }
            })
            .collect(),
    }
}
