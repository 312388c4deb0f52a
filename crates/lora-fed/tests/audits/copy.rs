//! The same arithmetic written down again, in floats, with one thing wrong.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

use super::{CANARY, CANARY_AT, CLIP, DIMENSION, Setting, along, gradient, likelihood, train};

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bug {
    /// Contributions as long as they come.
    NoClip,
    /// Noise of half the deviation.
    HalfSigma,
    /// Noise divided by the batch twice.
    NoiseOverBatch,
    /// None.
    NoNoise,
    /// The sum is clipped, and not what it is of.
    ClippedBatch,
    /// The halves are clipped each for itself.
    ClippedApart,
    /// Divided by the records that are there and drawn.
    TrueBatch,
    /// Every step has the first one's noise.
    SameNoise,
    /// Three more releases of a step, each with noise of its own, and one charge.
    FreeRetry,
    /// The canary takes part in every step, and amplification by sampling is claimed.
    NotDrawn,
}

#[derive(Clone, Copy)]
pub(crate) struct Copy {
    pub(crate) bug: Option<Bug>,
    /// The bug that the attacker hopes for.
    pub(crate) attack: Bug,
    pub(crate) setting: Setting,
}

impl Copy {
    /// One game.
    pub(crate) fn run(self, present: bool, run: u64) -> f64 {
        let mut random = ChaCha20Rng::seed_from_u64(2 * run + u64::from(present));
        let first: Vec<f64> = (0..DIMENSION).map(|_| normal(&mut random)).collect();
        let (mut size, mut more) = (0.0, 0.0);
        let retries = if self.bug == Some(Bug::FreeRetry) { 3 } else { 0 };
        let looks = train(self.setting, |step, weights| {
            let mean = self.step(&mut random, &first, weights, step, present);
            for _ in 0..retries {
                let again = self.step(&mut random, &first, weights, step, present);
                more += likelihood(self.setting, along(self.setting, &again, step));
            }
            size += self.size(&mean, weights, step);
            mean
        });
        if self.attack == Bug::TrueBatch { size } else { looks + more }
    }

    /// The likelihood ratio of one more record in the divisor, away from the canary's coordinates. (There what the
    /// others add is known, if all are drawn.)
    fn size(&self, mean: &[f64], weights: &[f64], step: u64) -> f64 {
        let Setting { sigma, records, .. } = self.setting;
        let mut others = [0.0; DIMENSION];
        for record in CANARY + 1..records {
            let part = self.clipped(weights, record, step, false);
            others.iter_mut().zip(part).for_each(|(o, p)| *o += p);
        }
        let density = |divisor: f64, i: usize| {
            let z = (mean[i] * divisor - others[i]) / (sigma * CLIP);
            divisor.ln() - 0.5 * z * z
        };
        let away = (0..DIMENSION).filter(|i| !CANARY_AT.contains(i));
        away.map(|i| density(records as f64, i) - density(records as f64 - 1.0, i)).sum()
    }

    /// A record's contribution.
    fn clipped(&self, weights: &[f64], record: usize, step: u64, present: bool) -> Vec<f64> {
        let mut part: Vec<f64> =
            gradient(self.setting, weights, record, step, present).into_iter().map(f64::from).collect();
        match self.bug {
            Some(Bug::NoClip | Bug::ClippedBatch) => {}
            Some(Bug::ClippedApart) => part.chunks_mut(DIMENSION / 2).for_each(clip),
            _ => clip(&mut part),
        }
        part
    }

    fn step(
        &self,
        random: &mut ChaCha20Rng,
        first: &[f64],
        weights: &[f64],
        step: u64,
        present: bool,
    ) -> Vec<f64> {
        let Setting { sigma, q, .. } = self.setting;
        let is = |bug| self.bug == Some(bug);
        let (mut sum, mut batch) = (vec![0.0; DIMENSION], 0.0);
        for record in 0..self.setting.records {
            let coin = uniform(random) < q;
            if !(coin || is(Bug::NotDrawn) && record == CANARY) {
                continue;
            }
            let part = self.clipped(weights, record, step, present);
            batch += f64::from(u8::from(record != CANARY || present));
            sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
        }
        if is(Bug::ClippedBatch) {
            clip(&mut sum);
        }
        let divisor = self.setting.divisor();
        let deviation = sigma
            * CLIP
            * match self.bug {
                Some(Bug::HalfSigma) => 0.5,
                Some(Bug::NoiseOverBatch) => 1.0 / divisor,
                Some(Bug::NoNoise) => 0.0,
                _ => 1.0,
            };
        let divisor = if is(Bug::TrueBatch) { f64::max(batch, 1.0) } else { divisor };
        let noise =
            |random: &mut ChaCha20Rng, i: usize| if is(Bug::SameNoise) { first[i] } else { normal(random) };
        (0..DIMENSION).map(|i| (sum[i] + deviation * noise(random, i)) / divisor).collect()
    }
}

fn clip(values: &mut [f64]) {
    let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    let factor = (CLIP / norm).min(1.0);
    values.iter_mut().for_each(|x| *x *= factor);
}

fn uniform(random: &mut impl Rng) -> f64 {
    (random.next_u64() >> 11) as f64 * 2f64.powi(-53)
}

/// By Box and Muller: floats, and good enough for a copy.
fn normal(random: &mut impl Rng) -> f64 {
    let (a, b) = (1.0 - uniform(random), uniform(random));
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}
