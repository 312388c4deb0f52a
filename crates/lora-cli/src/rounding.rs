//! What rounding weights to 4 bits loses.

use std::cell::Cell;
use std::fmt;

use lora::BaseWeight;
use tch::{Kind, Tensor};

/// Sums of squares over all weights seen.
#[derive(Debug, Default)]
pub(crate) struct Rounding {
    weights: Cell<f64>,
    errors: Cell<f64>,
    updates: Cell<f64>,
    count: Cell<u64>,
    bytes: Cell<u64>,
}

impl Rounding {
    /// Adds a weight as it was, as it is kept, and what training had added to it.
    pub(crate) fn add(&self, weight: &Tensor, kept: &dyn BaseWeight, update: Option<&Tensor>) {
        let square = |t: &Tensor| t.to_kind(Kind::Float).norm().double_value(&[]).powi(2);
        let more = |sum: &Cell<f64>, t: &Tensor| sum.set(sum.get() + square(t));
        more(&self.weights, weight);
        more(&self.errors, &(kept.dense(Kind::Float) - weight));
        if let Some(update) = update {
            more(&self.updates, update);
        }
        self.count.set(self.count.get() + weight.numel() as u64);
        self.bytes.set(self.bytes.get() + kept.bytes());
    }

    /// The error's norm over another.
    fn share(&self, of: &Cell<f64>) -> f64 {
        (self.errors.get() / of.get().max(f64::MIN_POSITIVE)).sqrt()
    }

    fn bits(&self) -> f64 {
        8.0 * self.bytes.get() as f64 / self.count.get().max(1) as f64
    }

    /// The same as Display says, as shares.
    pub(crate) fn json(&self) -> serde_json::Value {
        let of_update = (self.updates.get() > 0.0).then(|| self.share(&self.updates));
        serde_json::json!({ "weights": self.count.get(), "bits": self.bits(), "error": self.share(&self.weights),
            "error_of_update": of_update })
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rounded   {} weights to {:.3} bits each: an error of ", self.count.get(), self.bits())?;
        write!(f, "{:.1} % of their norm", 100.0 * self.share(&self.weights))?;
        if self.updates.get() > 0.0 {
            write!(f, ", which is {:.0} % of what training had added", 100.0 * self.share(&self.updates))?;
        }
        Ok(())
    }
}
