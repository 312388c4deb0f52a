//! Means, deviations, and bootstrap intervals.

use super::results::{Interval, Values};
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Resamples of a bootstrap.
const RESAMPLES: usize = 4000;

/// Mean and sample deviation.
pub(crate) fn values(each: Vec<f64>) -> Values {
    let n = each.len() as f64;
    let mean = each.iter().sum::<f64>() / n;
    let squares = each.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
    Values { mean, sd: (each.len() > 1).then(|| (squares / (n - 1.0)).sqrt()), each }
}

/// The middle one; of two, their mean.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let n = values.len();
    let at = |i: usize| values.get(i).copied();
    if n % 2 == 1 { at(n / 2) } else { Some((at((n / 2).checked_sub(1)?)? + at(n / 2)?) / 2.0) }
}

/// The mean of `a` less that of `b`, each `[seed][example]`, and its 95 % percentile interval over seeds and examples,
/// resampled together, each pair kept (Efron and Tibshirani 1993, chapter 13). Rows without a partner do not count; a
/// side with one seed (no training) stands beside every seed of the other. None where nothing is paired.
pub(crate) fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<Interval> {
    let seeds = if a.len() == 1 || b.len() == 1 { a.len().max(b.len()) } else { a.len().min(b.len()) };
    let row = |side: &[Vec<f64>], seed: usize| side.get(seed.min(side.len().checked_sub(1)?)).cloned();
    let pairs: Option<Vec<Vec<f64>>> = (0..seeds)
        .map(|seed| Some(row(a, seed)?.iter().zip(&row(b, seed)?).map(|(x, y)| x - y).collect()))
        .collect();
    let pairs = pairs?;
    let examples = pairs.iter().map(Vec::len).min().filter(|n| *n > 0)?;
    // By example, then seed: a drawn example is read for all drawn seeds.
    let mut random = ChaCha8Rng::seed_from_u64(0x1ed5);
    let mut means = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let drawn: Vec<usize> = (0..seeds).map(|_| random.random_range(0..seeds)).collect();
        let mut sum = 0.0;
        for _ in 0..examples {
            let example = random.random_range(0..examples);
            sum += drawn.iter().map(|&seed| pairs[seed][example]).sum::<f64>();
        }
        means.push(sum / (seeds * examples) as f64);
    }
    means.sort_by(f64::total_cmp);
    let all: f64 = pairs.iter().map(|p| p[..examples].iter().sum::<f64>()).sum();
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share).round() as usize];
    Some(Interval { mean: all / (seeds * examples) as f64, low: at(0.025), high: at(0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_medians_deviations() {
        let v = values(vec![1.0, 2.0, 4.0]);
        assert!((v.mean - 7.0 / 3.0).abs() < 1e-15 && (v.sd.unwrap() - 1.527525231651947).abs() < 1e-12);
        assert_eq!(values(vec![3.0]).sd, None);
        assert_eq!(median(vec![4.0, 1.0, f64::NAN, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    /// Right answers with this chance, of so many rows and seeds.
    fn answers(p: f64, seeds: usize, rows: usize, stream: u64) -> Vec<Vec<f64>> {
        let mut random = ChaCha8Rng::seed_from_u64(stream);
        let answer = |random: &mut ChaCha8Rng| f64::from(u8::from(random.random_bool(p)));
        (0..seeds).map(|_| (0..rows).map(|_| answer(&mut random)).collect()).collect()
    }

    #[test]
    fn the_interval_covers_what_is_true() {
        // Independent answers, 0.75 and 0.7 right: the interval must hold 0.05 about 95 times of a hundred.
        let mut covered = 0;
        for trial in 0..100 {
            let (a, b) = (answers(0.75, 3, 150, 2 * trial), answers(0.7, 3, 150, 2 * trial + 1));
            let d = difference(&a, &b).unwrap();
            covered += i32::from(d.low <= 0.05 && 0.05 <= d.high);
        }
        assert!((88..=100).contains(&covered), "{covered}");
    }

    #[test]
    fn the_same_answers_are_a_tie_and_others_are_not() {
        let a = answers(0.7, 3, 270, 1);
        let same = difference(&a, &a).unwrap();
        assert_eq!((same.mean, same.low, same.high), (0.0, 0.0, 0.0));
        assert!(same.is_tie());
        let worse = answers(0.4, 3, 270, 2);
        let d = difference(&worse, &a).unwrap();
        assert!(!d.is_tie() && d.high < 0.0 && d.low < d.mean && d.mean < d.high, "{d:?}");
        // No training: one row of answers beside three.
        assert!(difference(&worse[..1], &a).unwrap().high < 0.0);
        assert_eq!(difference(&[], &a), None);
        assert_eq!(difference(&[vec![]], &[vec![]]), None);
    }
}
