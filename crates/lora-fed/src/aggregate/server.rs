//! Server optimisers: the mean of the clients is a direction, not the next model.

use lora_core::{Error, Result};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// How the server moves (Reddi et al. 2021, algorithm 2).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ServerRule {
    /// `v = β v + Δ`, `x += η v` (FedAvgM; Hsu et al. 2019).
    Momentum {
        /// η.
        rate: f64,
        /// β.
        momentum: f64,
    },
    /// `m = β₁ m + (1-β₁) Δ`, `v = β₂ v + (1-β₂) Δ²`, `x += η m / (√v + τ)`, without bias correction (FedAdam).
    Adam {
        /// η.
        rate: f64,
        /// β₁ and β₂.
        betas: (f64, f64),
        /// τ.
        tau: f64,
    },
}

/// The rule and what it remembers, in f64: to be saved with the model.
#[derive(Debug)]
pub struct ServerOptimiser {
    rule: ServerRule,
    /// First and second moments, by name.
    pub moments: BTreeMap<String, (Tensor, Tensor)>,
}

impl ServerOptimiser {
    /// With nothing to remember yet.
    pub fn new(rule: ServerRule) -> Self {
        Self { rule, moments: BTreeMap::new() }
    }

    /// Other handles on what it remembers: what it does later leaves them alone.
    #[cfg(feature = "engine")]
    pub(crate) fn share(&self) -> BTreeMap<String, (Tensor, Tensor)> {
        let both = |(m, v): &(Tensor, Tensor)| (m.shallow_clone(), v.shallow_clone());
        self.moments.iter().map(|(name, pair)| (name.clone(), both(pair))).collect()
    }

    /// The next values of `name`, from those before the round and the clients' mean.
    ///
    /// # Errors
    /// [`Error::data`] for other shapes than before.
    pub fn step(&mut self, name: &str, before: &Tensor, mean: &Tensor) -> Result<Tensor> {
        let wide = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let (x, delta) = (wide(before), wide(mean) - wide(before));
        let fresh = || (x.zeros_like(), x.zeros_like());
        let (m, v) = self.moments.entry(name.to_owned()).or_insert_with(fresh);
        if before.size() != mean.size() || m.size() != x.size() {
            return Err(Error::data("another shape than before").at(name));
        }
        let next = match self.rule {
            ServerRule::Momentum { rate, momentum } => {
                *m = &*m * momentum + &delta;
                x + &*m * rate
            }
            ServerRule::Adam { rate, betas: (first, second), tau } => {
                *m = &*m * first + &delta * (1.0 - first);
                *v = &*v * second + delta.square() * (1.0 - second);
                x + &*m * rate / (v.sqrt() + tau)
            }
        };
        Ok(next.to_kind(before.kind()))
    }

    /// Takes the momentum `[out, r]` of `name`, a factor of `old [r, in]`, over to another A with orthonormal rows, which spans
    /// what the old one does: what it stands for, `m A`, stays.
    pub fn turn(&mut self, name: &str, old: &Tensor, new: &Tensor) {
        if let Some((m, _)) = self.moments.get_mut(name) {
            let wide = |t: &Tensor| t.detach().to_kind(Kind::Double);
            *m = m.matmul(&wide(old).matmul(&wide(new).tr()));
        }
    }
}
