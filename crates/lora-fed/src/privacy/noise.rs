//! Gaussian noise on the integers, drawn exactly.
//!
//! Floating-point noise leaks: its low bits tell what it was added to (Mironov 2012; Haney et al. 2022). The discrete
//! Gaussian has mass proportional to `exp(-k^2 / 2 sigma^2)` on every integer k, and is drawn here by the rejection
//! sampler of Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", algorithms 1 to 3:
//! every decision compares uniform integers with integers, and no float takes part.
//!
//! What is not hidden is time: how long a draw takes depends on it. Draw the noise before the data is touched.

use rand::Rng;

use super::error::{PrivacyError, Result};
use super::keys::Randomness;

/// Coordinates that share a stream of the generator: parts of a vector can be made anywhere, in any order.
const PART: usize = 1 << 16;

/// More blocks of the Laplace distribution than this are drawn with a chance of exp(-2048), and then not taken.
const MOST_BLOCKS: u64 = 2048;

/// The discrete Gaussian of mean 0: a sampler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscreteGaussian {
    /// The scale of the Laplace distribution that candidates come from: sigma, rounded down.
    scale: u64,
    /// A candidate y is taken with chance `exp(-(y * factor - offset)^2 / divisor)`, which is
    /// `exp(-(y - sigma^2 / scale)^2 / 2 sigma^2)` in integers.
    factor: u64,
    offset: u64,
    divisor: u128,
}

impl DiscreteGaussian {
    /// Noise of parameter `sigma`, an integer (the quickest): from some 1 on, that is its deviation.
    pub fn new(sigma: u64) -> Result<Self> {
        let square = sigma.checked_mul(sigma).filter(|_| sigma < 1 << 31);
        let square = square.ok_or_else(|| refused(sigma.to_string(), "from 1 to 2^31 - 1"))?;
        Self::of_variance(square, 1)
    }

    /// Noise of parameter `sigma^2 = over / under`.
    pub fn of_variance(over: u64, under: u64) -> Result<Self> {
        let bad =
            || refused(format!("the root of {over}/{under}"), "above 0, of small numbers, and below 2^31");
        if over == 0 || under == 0 {
            return Err(bad());
        }
        let scale = (over / under).isqrt().max(1);
        let product = scale.checked_mul(under).ok_or_else(bad)?;
        let common = gcd(product, over);
        let (factor, offset) = (product / common, over / common);
        if scale >= 1 << 31 || u128::from(scale) * u128::from(factor) >= 1 << 51 || offset >= 1 << 62 {
            return Err(bad());
        }
        let divisor = (u128::from(factor) * u128::from(scale)).checked_mul(2 * u128::from(offset));
        Ok(Self { scale, factor, offset, divisor: divisor.ok_or_else(bad)? })
    }

    /// One draw.
    pub fn sample(&self, random: &mut impl Rng) -> i64 {
        loop {
            let part = below(random, self.scale);
            if !exp_minus_fraction(random, part, self.scale) {
                continue;
            }
            let mut blocks = 0;
            while blocks < MOST_BLOCKS && exp_minus_one(random) {
                blocks += 1;
            }
            let size = part + self.scale * blocks;
            let negative = random.next_u32() & 1 == 1;
            if blocks == MOST_BLOCKS || (negative && size == 0) {
                continue;
            }
            let off = u128::from((size * self.factor).abs_diff(self.offset));
            if exp_minus(random, off * off, self.divisor) {
                return if negative { -(size as i64) } else { size as i64 };
            }
        }
    }

    /// Fills a vector. The same randomness gives the same values, and a longer vector begins with a shorter one's.
    pub fn fill(&self, randomness: &Randomness, to: &mut [i64]) {
        for (number, part) in to.chunks_mut(PART).enumerate() {
            let mut random = randomness.stream(number as u64);
            part.iter_mut().for_each(|value| *value = self.sample(&mut random));
        }
    }
}

fn refused(value: String, must: &'static str) -> PrivacyError {
    PrivacyError::Parameter { name: "the noise's deviation in lattice units", value, must }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A uniform integer below `n`, which is not 0 (Lemire 2019, exact).
fn below(random: &mut impl Rng, n: u64) -> u64 {
    let mut wide = u128::from(random.next_u64()) * u128::from(n);
    if (wide as u64) < n {
        let biased = n.wrapping_neg() % n;
        while (wide as u64) < biased {
            wide = u128::from(random.next_u64()) * u128::from(n);
        }
    }
    (wide >> 64) as u64
}

/// The same of 32 bits.
fn below_32(random: &mut impl Rng, n: u32) -> u32 {
    let mut wide = u64::from(random.next_u32()) * u64::from(n);
    if (wide as u32) < n {
        let biased = n.wrapping_neg() % n;
        while (wide as u32) < biased {
            wide = u64::from(random.next_u32()) * u64::from(n);
        }
    }
    (wide >> 32) as u32
}

/// The same of 128 bits.
fn below_128(random: &mut impl Rng, n: u128) -> u128 {
    let mask = u128::MAX >> (n - 1).leading_zeros().min(127);
    loop {
        let draw = (u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())) & mask;
        if draw < n {
            return draw;
        }
    }
}

/// True with chance `exp(-x)`, where `hit` is true with chance x, at most 1: the number of successes in a row, the
/// k-th with chance x / k, is even.
fn exp_minus_chance<R: Rng>(random: &mut R, hit: impl Fn(&mut R) -> bool) -> bool {
    let mut k = 1;
    while (k == 1 || below_32(random, k) == 0) && hit(random) {
        k += 1;
    }
    k % 2 == 1
}

fn exp_minus_one(random: &mut impl Rng) -> bool {
    exp_minus_chance(random, |_| true)
}

/// True with chance `exp(-a / b)`, a at most b.
fn exp_minus_fraction(random: &mut impl Rng, a: u64, b: u64) -> bool {
    exp_minus_chance(random, |random| below(random, b) < a)
}

/// True with chance `exp(-a / b)`.
fn exp_minus(random: &mut impl Rng, a: u128, b: u128) -> bool {
    let (whole, rest) = match (u64::try_from(a), u64::try_from(b)) {
        (Ok(a), Ok(b)) => (u128::from(a / b), u128::from(a % b)),
        _ => (a / b, a % b),
    };
    for _ in 0..whole {
        if !exp_minus_one(random) {
            return false;
        }
    }
    match u64::try_from(b) {
        Ok(b) => exp_minus_fraction(random, rest as u64, b),
        Err(_) => exp_minus_chance(random, |random| below_128(random, b) < rest),
    }
}
