//! Clipped vectors as integers, so that sums are exact and noise is too.

use rand::Rng;

use super::error::{PrivacyError, Result, require};
use super::noise::DiscreteGaussian;

/// Tries of random rounding before it is done without.
const TRIES: usize = 8;

/// The least deviation of noise in lattice units.
const LEAST_NOISE: f64 = 1024.0;

/// The integers that contributions are rounded to: `2^bits` of them to a clipping norm.
///
/// *Sensitivity.* Every vector that [`quantise`](Self::quantise) returns has an L2 norm of at most
/// [`norm`](Self::norm), checked in integers: no rounding of floats can exceed it. Random rounding adds up to a
/// quarter to a coordinate's square, so the bound on squares is `4^bits + d / 4` and eight deviations; a vector beyond
/// (one in 10^13) is rounded again (Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism",
/// proposition 22). [`noise`](Self::noise) is made for this norm: its deviation over it is the noise multiplier.
///
/// *Accounting.* For noise on integers the Rényi divergences of integer orders are those of the continuous Gaussian
/// or less (a Gaussian sum shifted by an integer is itself), and at a deviation of 1024 or more, which is asked for,
/// its whole loss distribution is the continuous one's to some 1e-6 of delta; a test compares them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lattice {
    clip: f64,
    dimension: usize,
    bits: u32,
    norm_squared: u128,
}

impl Lattice {
    /// A lattice for vectors of `dimension` that are clipped to `clip`; `bits` from 8 to 30 (20 is a good choice).
    pub fn new(clip: f64, dimension: usize, bits: u32) -> Result<Self> {
        require(clip > 0.0 && clip.is_normal(), "the clipping norm", clip, "above 0, and finite")?;
        require((8..=30).contains(&bits), "the lattice's bits", f64::from(bits), "from 8 to 30")?;
        let (norm, d) = (1u128 << bits, dimension as u128);
        let norm_squared = norm * norm + d.div_ceil(4) + 8 * (norm + d.isqrt() / 2 + 1);
        Ok(Self { clip, dimension, bits, norm_squared })
    }

    /// What an integer stands for: a public constant.
    pub fn unit(&self) -> f64 {
        self.clip / self.per_clip()
    }

    /// The largest norm of a contribution, in lattice units.
    pub fn norm(&self) -> f64 {
        (self.norm_squared as f64).sqrt()
    }

    /// Noise of multiplier `sigma`, rounded up.
    pub fn noise(&self, sigma: f64) -> Result<DiscreteGaussian> {
        let deviation = (sigma * self.norm() * (1.0 + 1e-12)).ceil();
        if !(deviation >= LEAST_NOISE) {
            return Err(PrivacyError::Parameter {
                name: "the noise's deviation in lattice units",
                value: deviation.to_string(),
                must: "1024 or more; use a larger multiplier or more bits",
            });
        }
        DiscreteGaussian::new(deviation as u64)
    }

    /// Clips a contribution to the clipping norm and rounds it, at random and without bias.
    ///
    /// `random` is the record's own: records that share randomness are not independent. Refuses NaN and infinity,
    /// which clipping would let through.
    pub fn quantise<T: Copy + Into<f64>>(&self, values: &[T], random: &mut impl Rng) -> Result<Vec<i64>> {
        if values.len() != self.dimension {
            return Err(PrivacyError::Length { what: "a vector", got: values.len(), want: self.dimension });
        }
        if let Some(index) = values.iter().position(|&v| !v.into().is_finite()) {
            return Err(PrivacyError::NonFinite { index });
        }
        // By the largest first, so that no square overflows.
        let largest = values.iter().fold(0.0, |m, &v| f64::max(m, v.into().abs()));
        if largest == 0.0 {
            return Ok(vec![0; values.len()]);
        }
        let squares: f64 = values.iter().map(|&v| (v.into() / largest).powi(2)).sum();
        let norm = squares.sqrt();
        let mut factor = self.per_clip() * f64::min(1.0 / norm, largest / self.clip);
        for attempt in 0.. {
            let scaled = values.iter().map(|&v| v.into() / largest * factor);
            let rounded: Vec<i64> = match attempt < TRIES {
                true => scaled.map(|x| round(x, random)).collect(),
                false => scaled.map(|x| x as i64).collect(), // towards zero
            };
            let squares: u128 = rounded.iter().map(|&k| u128::from(k.unsigned_abs()).pow(2)).sum();
            if squares <= self.norm_squared {
                return Ok(rounded);
            }
            if attempt >= TRIES {
                factor *= 0.999; // only if the floats above were off
            }
        }
        Ok(vec![0; values.len()])
    }

    /// The values that integers stand for, over a public divisor: the expected number of contributions.
    pub fn dequantise(&self, sums: &[i64], divisor: f64) -> Result<Vec<f64>> {
        require(divisor > 0.0 && divisor.is_finite(), "the divisor", divisor, "above 0, and finite")?;
        let unit = self.unit() / divisor;
        Ok(sums.iter().map(|&k| k as f64 * unit).collect())
    }

    fn per_clip(&self) -> f64 {
        (1u64 << self.bits) as f64
    }
}

/// Adds integers modulo 2^64, in which no order of adding matters.
pub fn add_integers(to: &mut [i64], from: &[i64]) -> Result<()> {
    if to.len() != from.len() {
        return Err(PrivacyError::Length { what: "a vector", got: from.len(), want: to.len() });
    }
    to.iter_mut().zip(from).for_each(|(a, &b)| *a = a.wrapping_add(b));
    Ok(())
}

/// One of the two integers around `x`, with a mean of `x` to within 2^-32.
fn round(x: f64, random: &mut impl Rng) -> i64 {
    let floor = x.floor();
    let up = f64::from(random.next_u32()) < (x - floor) * 2f64.powi(32);
    floor as i64 + i64::from(up)
}
