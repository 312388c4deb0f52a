//! Clipped vectors as integers, so that sums are exact and noise is too.

use rand::Rng;

use super::error::{PrivacyError, Result, require};
use super::noise::DiscreteGaussian;

/// Tries of random rounding: two would do for a lifetime.
const TRIES: usize = 8;

/// The least deviation of noise in lattice units.
const LEAST_NOISE: f64 = 1024.0;

/// Coordinates whose random bits are made at once.
const BLOCK: usize = 1024;

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
        let mut rounded = Vec::new();
        self.quantise_into(values, 1.0, random, &mut rounded)?;
        Ok(rounded.into_iter().map(i64::from).collect())
    }

    /// The same of `values * scale`, into a vector that is used again and again. Returns the norm before clipping.
    pub(super) fn quantise_into<T: Copy + Into<f64>>(
        &self,
        values: &[T],
        scale: f64,
        random: &mut impl Rng,
        rounded: &mut Vec<i32>,
    ) -> Result<f64> {
        self.fits(values)?;
        let length = norm(values)?;
        let factor = self.per_clip() * f64::min(scale / self.clip, 1.0 / length);
        rounded.resize(values.len(), 0);
        if !(0..TRIES).any(|_| round(values, factor, random, rounded) <= self.norm_squared) {
            rounded.fill(0); // for numbers at the very ends of the floats
        }
        Ok(length * scale)
    }

    /// Refuses a vector of another length.
    pub(super) fn fits<T>(&self, values: &[T]) -> Result<()> {
        let (got, want) = (values.len(), self.dimension);
        if got == want { Ok(()) } else { Err(PrivacyError::Length { what: "a vector", got, want }) }
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
pub fn add_integers<T: Copy + Into<i64>>(to: &mut [i64], from: &[T]) -> Result<()> {
    if to.len() != from.len() {
        return Err(PrivacyError::Length { what: "a vector", got: from.len(), want: to.len() });
    }
    to.iter_mut().zip(from).for_each(|(a, &b)| *a = a.wrapping_add(b.into()));
    Ok(())
}

/// One of the two integers around each `value * factor`, with that mean to within 2^-32. Returns the sum of squares.
///
/// `floor(x + u)`, u uniform on multiples of 2^-32 below 1, is the upper one with the chance of x's fraction. Up to
/// 2^30, `x * 2^32` is an i64; what is beyond ends up at a square that no vector may have.
fn round<T: Copy + Into<f64>>(values: &[T], factor: f64, random: &mut impl Rng, rounded: &mut [i32]) -> u128 {
    let (factor, mut squares) = (factor * 2f64.powi(32), 0u128);
    let mut bits = [[0u8; 4]; BLOCK];
    for (values, rounded) in values.chunks(BLOCK).zip(rounded.chunks_mut(BLOCK)) {
        random.fill_bytes(bits[..values.len()].as_flattened_mut());
        for ((&value, to), &bits) in values.iter().zip(rounded).zip(&bits) {
            let fixed = (value.into() * factor) as i64;
            let k = fixed.saturating_add(i64::from(u32::from_le_bytes(bits))) >> 32;
            squares += u128::from(k.unsigned_abs().pow(2));
            *to = k as i32;
        }
    }
    squares
}

/// The L2 norm. Refuses NaN and infinity.
pub(super) fn norm<T: Copy + Into<f64>>(values: &[T]) -> Result<f64> {
    let plain = squares(values, |x| x);
    if (1e-250..1e250).contains(&plain) {
        return Ok(plain.sqrt());
    }
    // All zero, not finite, or of squares that are no floats.
    if let Some(index) = values.iter().position(|&v| !v.into().is_finite()) {
        return Err(PrivacyError::NonFinite { index });
    }
    let largest = values.iter().fold(0.0, |most, &v| f64::max(most, v.into().abs()));
    Ok(if largest == 0.0 { 0.0 } else { largest * squares(values, |x| x / largest).sqrt() })
}

/// The sum of squares. In eight sums, always the same ones, so that it is quick and yet a replay gets every bit of it.
fn squares<T: Copy + Into<f64>>(values: &[T], of: impl Fn(f64) -> f64) -> f64 {
    let mut sums = [0.0; 8];
    for part in values.chunks(8) {
        for (sum, &v) in sums.iter_mut().zip(part) {
            let x = of(v.into());
            *sum += x * x;
        }
    }
    sums.iter().sum()
}
