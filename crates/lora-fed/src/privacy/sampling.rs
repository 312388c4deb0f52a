//! Poisson sampling: every record by its own coin.

use rand::Rng;

use super::error::{Result, require};
use super::keys::Randomness;

/// Draws every record independently with the same rate, as the accountants assume.
///
/// A batch's size is therefore random, and may be 0: such a step still adds noise, and is charged. Nothing public may
/// depend on the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoissonSampler {
    /// A record is drawn if 64 random bits are below; none: always.
    threshold: Option<u64>,
}

impl PoissonSampler {
    /// A sampler of rate `floor(q 2^64) / 2^64`: exactly `q` where that is 2^-11 or more, and never above it.
    pub fn new(q: f64) -> Result<Self> {
        require((0.0..=1.0).contains(&q), "the sampling rate", q, "from 0 to 1")?;
        // A product with a power of two is exact, and `as` rounds down.
        Ok(Self { threshold: (q < 1.0).then_some((q * 2f64.powi(64)) as u64) })
    }

    /// The records drawn of `0..count`, in order.
    pub fn draw(&self, count: usize, randomness: &Randomness) -> Vec<usize> {
        match self.threshold {
            None => (0..count).collect(),
            Some(threshold) => {
                let mut random = randomness.stream(0);
                (0..count).filter(|_| random.next_u64() < threshold).collect()
            }
        }
    }
}
