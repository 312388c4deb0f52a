//! The game that an audit plays, and its arithmetic.

mod copy;
mod honest;

pub(crate) use copy::{Bug, Copy};
pub(crate) use honest::Honest;
use lora_fed::privacy::Accountant;

pub(crate) const DELTA: f64 = 0.01;
pub(crate) const CLIP: f64 = 1.5;
/// Numbers trained.
pub(crate) const DIMENSION: usize = 24;
pub(crate) const CANARY: usize = 0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting {
    pub(crate) sigma: f64,
    pub(crate) q: f64,
    pub(crate) steps: u64,
    /// The canary, and the others.
    pub(crate) records: usize,
    /// Whether a record always pulls against the canary (only where all are drawn).
    pub(crate) opponent: bool,
}

impl Setting {
    pub(crate) fn divisor(&self) -> f64 {
        self.q * self.records as f64
    }
}

pub(crate) fn stated(setting: Setting) -> f64 {
    let mut spent = Accountant::pld();
    spent.steps(setting.sigma, setting.q, setting.steps).unwrap();
    spent.epsilon(DELTA).unwrap()
}

/// The canary's direction: half of it in each half of the numbers, as in two factors. It turns round every step.
const CANARY_AT: [usize; 2] = [0, DIMENSION / 2];

fn sign(step: u64) -> f64 {
    if step.is_multiple_of(2) { 1.0 } else { -1.0 }
}

/// A record's gradient. The canary's is ten clipping norms long or, absent, zero; the others' are those of a linear
/// regression whose features leave the canary's coordinates alone.
pub(crate) fn gradient(
    setting: Setting,
    weights: &[f64],
    record: usize,
    step: u64,
    present: bool,
) -> Vec<f32> {
    let mut gradient = vec![0.0; DIMENSION];
    let along = |gradient: &mut [f64], length: f64| {
        CANARY_AT.iter().for_each(|&i| gradient[i] = length * sign(step) / 2f64.sqrt());
    };
    if record == CANARY {
        along(&mut gradient, if present { 10.0 * CLIP } else { 0.0 });
    } else if record == 1 && setting.opponent {
        along(&mut gradient, -5.0 * CLIP);
    } else {
        let feature =
            |i: usize| if CANARY_AT.contains(&i) { 0.0 } else { ((i * 7 + record * 13) as f64).sin() };
        let error = (0..DIMENSION).map(|i| weights[i] * feature(i)).sum::<f64>() - record as f64;
        (0..DIMENSION).for_each(|i| gradient[i] = 2.0 * error * feature(i));
    }
    gradient.into_iter().map(|x| x as f32).collect()
}

/// Trains, and says how much it looks as if the canary was there: the likelihood ratio of the releases' lengths along
/// its direction.
pub(crate) fn train(setting: Setting, mut release: impl FnMut(u64, &[f64]) -> Vec<f64>) -> f64 {
    let mut weights = vec![0.0; DIMENSION];
    let mut looks = 0.0;
    for step in 0..setting.steps {
        let mean = release(step, &weights);
        weights.iter_mut().zip(&mean).for_each(|(w, g)| *w -= 0.1 * g);
        looks += likelihood(setting, along(setting, &mean, step));
    }
    looks
}

/// The sum's length along the canary's direction, in clipping norms; an opponent's share is known.
pub(crate) fn along(setting: Setting, mean: &[f64], step: u64) -> f64 {
    let length = CANARY_AT.iter().map(|&i| mean[i]).sum::<f64>() / 2f64.sqrt();
    length * sign(step) * setting.divisor() / CLIP + f64::from(u8::from(setting.opponent))
}

pub(crate) fn likelihood(Setting { sigma, q, .. }: Setting, x: f64) -> f64 {
    let t = (x - 0.5) / (sigma * sigma);
    if t > 500.0 { t + q.ln() } else { (1.0 - q + q * t.exp()).ln() }
}

/// The epsilon that `runs` games with the record and as many without prove, with a confidence of 99.9 per cent.
///
/// The guess is a threshold: chosen by one half of the games, and judged by the other.
pub(crate) fn bound(runs: u64, mut game: impl FnMut(bool, u64) -> f64) -> f64 {
    let [with, without] =
        [true, false].map(|present| (0..runs).map(|run| game(present, run)).collect::<Vec<_>>());
    let middle = runs as usize / 2;
    let proved = |half: std::ops::Range<usize>, threshold: f64, above: bool| {
        let guess = |x: &&f64| if above { **x > threshold } else { **x <= threshold };
        let [hits, alarms] = if above { [&with, &without] } else { [&without, &with] }
            .map(|w| w[half.clone()].iter().filter(guess).count());
        let (least, most) = (lower(hits, middle, 0.0005), 1.0 - lower(middle - alarms, middle, 0.0005));
        ((least - DELTA) / most).max(1e-300).ln()
    };
    let mut thresholds: Vec<f64> = with[..middle].iter().chain(&without[..middle]).copied().collect();
    thresholds.sort_by(f64::total_cmp);
    let candidates = thresholds.into_iter().step_by(middle / 40).flat_map(|t| [(t, true), (t, false)]);
    let (_, threshold, above) = candidates
        .map(|(t, above)| (proved(0..middle, t, above), t, above))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap();
    proved(middle..2 * middle, threshold, above).max(0.0)
}

/// Clopper and Pearson: the chance below which `hits` or more of `n` are rarer than `alpha`.
fn lower(hits: usize, n: usize, alpha: f64) -> f64 {
    let (mut low, mut high) = (0.0, hits as f64 / n as f64);
    for _ in 0..40 {
        let middle = 0.5 * (low + high);
        if at_least(hits, n, middle) < alpha { low = middle } else { high = middle }
    }
    low
}

/// The chance of `hits` or more of `n`.
fn at_least(hits: usize, n: usize, p: f64) -> f64 {
    if p <= 0.0 {
        return f64::from(u8::from(hits == 0));
    }
    let (k, m) = (hits as f64, n as f64);
    let choose = libm::lgamma(m + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(m - k + 1.0);
    let rest = if n == hits { 0.0 } else { (m - k) * (-p).ln_1p() };
    let (mut term, mut sum) = ((choose + k * p.ln() + rest).exp(), 0.0);
    for i in hits..=n {
        sum += term;
        term *= (n - i) as f64 / (i + 1) as f64 * p / (1.0 - p);
        if term < 1e-17 * sum {
            break;
        }
    }
    sum
}

#[test]
fn clopper_and_pearson() {
    // By mpmath: where the regularised incomplete beta function of (k, n - k + 1) is 0.0005.
    for (k, n, want) in [
        (1, 2000, 2.500_624_895_755_2e-7),
        (37, 2000, 0.010_134_082_272_571),
        (1500, 2000, 0.716_977_349_557_61),
        (2000, 2000, 0.996_206_761_345_1),
    ] {
        let got = lower(k, n, 0.0005);
        assert!((got - want).abs() < 1e-9, "{k} of {n}: {got}, not {want}");
    }
}
