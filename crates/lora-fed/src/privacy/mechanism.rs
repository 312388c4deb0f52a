//! What one step does, and how often.

use super::error::{Result, require};

/// One step's mechanism: the sampled Gaussian, by its noise multiplier and its sampling rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mechanism {
    sigma: f64,
    q: f64,
}

impl Mechanism {
    /// Noise of `sigma` clipping norms; every record drawn independently with rate `q`, or all of them if that is 1.
    pub fn new(sigma: f64, q: f64) -> Result<Self> {
        let sensible = sigma > 0.0 && sigma.is_finite();
        require(sensible, "the noise multiplier", sigma, "above 0, and finite")?;
        require((0.0..=1.0).contains(&q), "the sampling rate", q, "from 0 to 1")?;
        Ok(Self { sigma, q })
    }

    /// The noise multiplier: the noise's deviation over the clipping norm.
    pub fn sigma(&self) -> f64 {
        self.sigma
    }

    /// The chance of a record to be drawn.
    pub fn q(&self) -> f64 {
        self.q
    }
}

/// Equal steps one after another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// What each does.
    pub mechanism: Mechanism,
    /// How many.
    pub count: u64,
}
