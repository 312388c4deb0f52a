//! The sum of many losses, near one epsilon.

use rustfft::FftPlanner;
use rustfft::num_complex::Complex64;

use super::super::mechanism::Steps;
use super::step::Step;
use super::{Sum, least};

/// The tilted distribution of the sum may miss this much of its mass at either end of the window.
const MISSED: f64 = 1e-13;
/// The window's points at most: beyond, the grid gets coarser.
const MOST_POINTS: usize = 1 << 21;
/// And at least, which take no time.
const LEAST_POINTS: f64 = 32768.0;

/// The distribution of a sum of losses on a window of the grid, tilted.
pub(super) struct Composed {
    spacing: f64,
    /// The first grid point.
    low: i64,
    /// Tilted masses, none too small.
    masses: Vec<f64>,
    tilt: f64,
    /// `exp(ln_scale - tilt * l)` turns a tilted mass into a true one.
    ln_scale: f64,
    /// The chance of losses that are infinite or above the window.
    beyond: f64,
    /// More than what rounding takes from a delta, as a factor.
    slack: f64,
}

impl Composed {
    /// Composes such that deltas at epsilons near `epsilon` are off by `allowed` of themselves or so.
    ///
    /// None if no grid of a sensible size would do.
    pub(super) fn new(
        sum: &Sum<'_>,
        tilt: f64,
        epsilon: f64,
        allowed: f64,
        planner: &mut FftPlanner<f64>,
    ) -> Option<Self> {
        let at_tilt = sum.cumulant(tilt);
        let above = least(|s| (sum.cumulant(tilt + s) - at_tilt - MISSED.ln()) / s);
        let below = least(|s| (sum.cumulant(tilt - s) - at_tilt - MISSED.ln()) / s);
        let (lowest, highest) = ((-below.1).min(epsilon), above.1.max(epsilon));
        let width = highest - lowest;
        if !(width.is_finite() && lowest.is_finite() && at_tilt.is_finite()) {
            return None;
        }
        // The tilted variance, by a second difference over a tenth of a deviation or less.
        let h = (0.1 * tilt).max(0.1 / width);
        let variance = (sum.cumulant(tilt + h) + sum.cumulant(tilt - h) - 2.0 * at_tilt) / (h * h);
        let mut spacing = best_spacing(sum.count(), tilt, allowed, variance).min(width / LEAST_POINTS);
        for _ in 0..40 {
            spacing = spacing.max(width / (MOST_POINTS - 2) as f64);
            let step = |s: &Steps| {
                // Losses that are next to nothing when tilted may as well be a little larger.
                let floor = (sum.cumulant_of(s, tilt) - 45.0 - sum.count().ln()) / tilt;
                Step::new(s.mechanism, sum.direction, spacing, sum.tail, floor)
            };
            if let Some(steps) = sum.history.iter().map(step).collect::<Option<Vec<_>>>() {
                // The grid's losses are a little larger than the true ones. Where those have a sharp end, Chernoff's
                // tilt is limited and the window goes on a little, so that they do not seem to lie above it.
                let blur = spacing * sum.count().sqrt();
                let chernoff = tilt + above.0.min(4.0 / blur);
                let width = width + width.min(16.0 * blur);
                return Some(Self::fold(sum, &steps, (tilt, chernoff), spacing, (lowest, width), planner));
            }
            spacing *= 2.0;
        }
        None
    }

    /// `chernoff` is the tilt that bounds what lies above the window.
    fn fold(
        sum: &Sum<'_>,
        steps: &[Step],
        (tilt, chernoff): (f64, f64),
        spacing: f64,
        (lowest, width): (f64, f64),
        planner: &mut FftPlanner<f64>,
    ) -> Self {
        let low = (lowest / spacing).floor() as i64;
        let size = ((width / spacing) as usize + 2).next_power_of_two();
        let high = (low + size as i64) as f64 * spacing;
        let forward = planner.plan_fft_forward(size);
        let error = f64::EPSILON * (8.0 + 4.0 * (size as f64).log2());

        let mut spectrum = vec![Power::ONE; size / 2 + 1];
        let mut wave = vec![Complex64::ZERO; size];
        let (mut ln_scale, mut ln_above, mut infinite, mut rounding) = (0.0, 0.0, 0.0, 0.0);
        for (step, s) in steps.iter().zip(sum.history) {
            let count = s.count as f64;
            let (shift, shift_above) = (sum.cumulant_of(s, tilt), sum.cumulant_of(s, chernoff));
            wave.fill(Complex64::ZERO);
            let (mut weight, mut above) = (0.0, 0.0);
            for (k, &p) in step.masses.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                let index = step.low + k as i64;
                let l = index as f64 * spacing;
                let tilted = p * (tilt * l - shift).exp();
                wave[index.rem_euclid(size as i64) as usize].re += tilted;
                weight += tilted;
                above += p * (chernoff * l - shift_above).exp();
            }
            forward.process(&mut wave);
            spectrum.iter_mut().zip(&wave).for_each(|(power, &z)| power.times(z, count, error * weight));
            ln_scale += count * shift;
            ln_above += count * (shift_above + above.ln());
            infinite += count * step.infinite;
            let ends = step.low.unsigned_abs().max((step.low + step.masses.len() as i64).unsigned_abs());
            rounding += count * (4.0 + 2.0 * tilt * ends as f64 * spacing + 2.0 * shift.abs());
        }
        let (mut missing, mut total) = (0.0, 0.0);
        for (k, power) in spectrum.iter().enumerate() {
            let (z, length, most) = power.value();
            missing += 2.0 * (most - length);
            total += 2.0 * length;
            // The masses are real, so that the way back is the same transform, of the conjugate.
            wave[(size - k) % size] = z;
            wave[k] = z.conj();
        }
        forward.process(&mut wave);
        let off = (missing + error * total) / size as f64;
        let place = |j: usize| (low + j as i64).rem_euclid(size as i64) as usize;
        let masses = (0..size).map(|j| (wave[place(j)].re / size as f64 + off).max(0.0)).collect();
        rounding += 2.0 * ln_scale.abs() + 2.0 * tilt * high.abs().max(lowest.abs()) + 4.0 * size as f64;
        let slack = 1.0 + 4.0 * f64::EPSILON * rounding;
        let beyond = infinite + (ln_above - chernoff * high).exp() * slack;
        Self { spacing, low, masses, tilt, ln_scale, beyond, slack }
    }

    /// The least epsilon at `delta`, infinite if the losses beyond are too many; and whether it lies inside the
    /// window, or is the lowest that this can tell of.
    pub(super) fn epsilon(&self, delta: f64) -> (f64, bool) {
        let wanted = delta / self.slack - self.beyond;
        if !(wanted > 0.0) {
            return (f64::INFINITY, true);
        }
        let mut walk = Walk::new(self);
        loop {
            let before = (walk.point(), walk.delta, walk.lever);
            if walk.down().is_none() {
                return (before.0.max(0.0), false);
            }
            if !(walk.delta <= wanted) {
                // Between two points, delta is linear in exp(epsilon).
                let (point, delta, lever) = before;
                let epsilon = point + (-((wanted - delta) / lever).min(1.0)).ln_1p();
                return ((epsilon.max(walk.point()) * (1.0 + 4.0 * f64::EPSILON)).max(0.0), true);
            }
        }
    }

    /// The least delta at `epsilon`, which must not be below the window.
    pub(super) fn delta(&self, epsilon: f64) -> f64 {
        let mut walk = Walk::new(self);
        while walk.point() - self.spacing > epsilon && walk.down().is_some() {}
        let part = -(epsilon - walk.point()).min(0.0).exp_m1();
        (walk.delta + walk.lever * part) * self.slack + self.beyond
    }
}

/// A product of powers of complex numbers, each of them known but for an error.
#[derive(Debug, Clone, Copy)]
struct Power {
    ln: f64,
    angle: f64,
    /// The logarithm of a bound of the modulus, errors and all.
    ln_most: f64,
}

/// A modulus of `exp(-100)` is as good as none.
const NOTHING: f64 = -100.0;

impl Power {
    const ONE: Self = Self { ln: 0.0, angle: 0.0, ln_most: 0.0 };

    fn times(&mut self, z: Complex64, count: f64, error: f64) {
        let r = z.norm_sqr().sqrt();
        let ln = r.ln();
        // ln(r + e) is at most ln r + e / r.
        self.ln_most += count * if r > 1e3 * error { ln + error / r } else { (r + error).ln() };
        if count * ln < NOTHING {
            self.ln = f64::NEG_INFINITY;
        } else {
            self.ln += count * ln;
            self.angle += count * z.arg();
        }
    }

    /// The product (zero for one that is next to nothing), its modulus, and that with its error.
    fn value(&self) -> (Complex64, f64, f64) {
        let length = if self.ln < NOTHING { 0.0 } else { self.ln.exp() };
        let z = if length > 0.0 { Complex64::from_polar(length, self.angle) } else { Complex64::ZERO };
        (z, length, self.ln_most.exp().max(length))
    }
}

/// Down the grid from its top, with delta at each point; only sums of positive numbers.
struct Walk<'a> {
    of: &'a Composed,
    /// The index of the point, from the window's first.
    at: usize,
    /// Delta of the losses of the window, at the point.
    delta: f64,
    /// `E[exp(l - L)]` of the losses from the point l up.
    lever: f64,
}

impl<'a> Walk<'a> {
    /// At the point above the window.
    fn new(of: &'a Composed) -> Self {
        Self { of, at: of.masses.len(), delta: 0.0, lever: 0.0 }
    }

    fn point(&self) -> f64 {
        (self.of.low + self.at as i64) as f64 * self.of.spacing
    }

    fn down(&mut self) -> Option<()> {
        self.at = self.at.checked_sub(1)?;
        let share = -(-self.of.spacing).exp_m1();
        self.delta += share * self.lever;
        let scale = (self.of.ln_scale - self.of.tilt * self.point()).exp();
        self.lever += self.of.masses[self.at] * scale - share * self.lever;
        Some(())
    }
}

/// A spacing that changes delta by `allowed` of itself or less.
///
/// Dividing masses between neighbouring points leaves `E[1]` and `E[exp(-L)]` as they are, raises a step's
/// `E[exp(t L)]` by `t (t + 1) spacing^2 / 12` of itself at most, and its variance by `spacing^2 / 6`.
fn best_spacing(count: f64, tilt: f64, allowed: f64, variance: f64) -> f64 {
    let by_tilt = 12.0 * allowed / (count * tilt * (tilt + 1.0));
    let by_variance = 12.0 * allowed * variance / count;
    // No variance is left to rounding errors: then the other bound is far the smaller.
    if by_variance > 0.0 { by_tilt.min(by_variance).sqrt() } else { by_tilt.sqrt() }
}
