//! Numbers as ring elements: integers within a bound, and floats as integers at a public scale.
//!
//! Nothing here depends on the data or on who dropped out: a sum is read back by public constants only.

use super::error::{Result, SecAggError};
use super::plan::Ring;

/// Signed integers in a ring, as residues. No party's integer is beyond `bound`, so that the sum of all parties'
/// integers has one signed reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    ring: Ring,
    bound: i64,
}

impl Grid {
    /// Refuses a bound with which the sum of `parties` integers could leave the ring.
    pub fn new(ring: Ring, parties: usize, bound: i64) -> Result<Self> {
        let most = Self::largest_bound(ring, parties);
        if parties == 0 || bound < 1 || bound > most {
            let bits = ring.bits();
            let what = format!("{parties} parties with integers to ±{bound} in {bits} bits: at most ±{most}");
            return Err(SecAggError::Grid(what));
        }
        Ok(Self { ring, bound })
    }

    /// The largest bound for so many parties.
    pub const fn largest_bound(ring: Ring, parties: usize) -> i64 {
        let most = i64::MAX >> (64 - ring.bits());
        if parties == 0 { most } else { most / parties as i64 }
    }

    /// The bound of one party's integers.
    pub const fn bound(&self) -> i64 {
        self.bound
    }

    /// Integers as residues. An integer beyond the bound is refused, not clipped: noise may have made it, and
    /// clipping noise would change what it promises.
    pub fn encode(&self, values: &[i64]) -> Result<Vec<u64>> {
        let bound = self.bound;
        let residue = |(index, value): (usize, &i64)| {
            if value.unsigned_abs() > bound.unsigned_abs() {
                return Err(SecAggError::OutOfBound { index, value: *value, bound });
            }
            Ok(self.ring.reduce(*value as u64))
        };
        values.iter().enumerate().map(residue).collect()
    }

    /// The signed integers of a sum.
    pub fn decode(&self, sum: &[u64]) -> Vec<i64> {
        let signed = |x: &u64| match self.ring {
            Ring::U32 => i64::from(*x as u32 as i32),
            Ring::U64 => *x as i64,
        };
        sum.iter().map(signed).collect()
    }
}

/// Floats in `[-clip, clip]` as the integers nearest to `x * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lattice {
    grid: Grid,
    clip: f64,
    scale: f64,
}

/// Up to here every integer is an f64.
const EXACT: f64 = (1u64 << 53) as f64;

impl Lattice {
    /// Refuses a clip and a scale with which the sum of all parties could leave the ring.
    pub fn new(ring: Ring, parties: usize, clip: f64, scale: f64) -> Result<Self> {
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if !positive(clip) || !positive(scale) {
            return Err(SecAggError::Grid(format!("clip {clip} and scale {scale} must be above 0")));
        }
        let bound = (clip * scale).ceil();
        if bound > EXACT {
            return Err(SecAggError::Grid(format!("clip {clip} times scale {scale} is beyond 2^53")));
        }
        Ok(Self { grid: Grid::new(ring, parties, bound as i64)?, clip, scale })
    }

    /// The finest lattice whose scale is a power of two, so that scaling rounds nothing.
    pub fn finest(ring: Ring, parties: usize, clip: f64) -> Result<Self> {
        let bound = (Grid::largest_bound(ring, parties) as f64).min(EXACT);
        let scale = (bound / clip).log2().floor().exp2();
        // The bound as f64 may be rounded up, and so may the logarithm: then one bit less fits.
        Self::new(ring, parties, clip, scale).or_else(|_| Self::new(ring, parties, clip, scale / 2.0))
    }

    /// The integers beneath.
    pub const fn grid(&self) -> &Grid {
        &self.grid
    }

    /// How many integers make 1.
    pub const fn scale(&self) -> f64 {
        self.scale
    }

    /// The integers nearest to the clipped values, ties to even. A value that is not finite is refused.
    pub fn quantise<T: Copy + Into<f64>>(&self, values: &[T]) -> Result<Vec<i64>> {
        let integer = |(index, value): (usize, &T)| {
            let value: f64 = (*value).into();
            if !value.is_finite() {
                return Err(SecAggError::NonFinite(index));
            }
            Ok((value.clamp(-self.clip, self.clip) * self.scale).round_ties_even() as i64)
        };
        values.iter().enumerate().map(integer).collect()
    }

    /// Values as residues.
    pub fn encode<T: Copy + Into<f64>>(&self, values: &[T]) -> Result<Vec<u64>> {
        self.grid.encode(&self.quantise(values)?)
    }

    /// The values of a sum. To average, divide by a constant that all know, never by how many took part.
    pub fn decode(&self, sum: &[u64]) -> Vec<f64> {
        self.grid.decode(sum).into_iter().map(|x| x as f64 / self.scale).collect()
    }
}
