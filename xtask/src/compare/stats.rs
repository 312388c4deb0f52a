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

/// A mean difference, and what it is in each resample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    mean: f64,
    resampled: Vec<f64>,
}

impl Difference {
    /// The mean of `a` less that of `b`, each `[seed][example]`: seeds and examples are resampled together, each pair kept
    /// (Efron and Tibshirani 1993, chapter 13). Rows without a partner do not count; a side with one seed (no training)
    /// stands beside every seed of the other. None where nothing is paired. Differences of as many seeds and examples are
    /// resampled alike.
    pub(crate) fn of(a: &[Vec<f64>], b: &[Vec<f64>]) -> Option<Self> {
        let seeds = if a.len() == 1 || b.len() == 1 { a.len().max(b.len()) } else { a.len().min(b.len()) };
        let row = |side: &[Vec<f64>], seed: usize| side.get(seed.min(side.len().checked_sub(1)?)).cloned();
        let pairs: Option<Vec<Vec<f64>>> = (0..seeds)
            .map(|seed| Some(row(a, seed)?.iter().zip(&row(b, seed)?).map(|(x, y)| x - y).collect()))
            .collect();
        let pairs = pairs?;
        let examples = pairs.iter().map(Vec::len).min().filter(|n| *n > 0)?;
        // By example, then seed: a drawn example is read for all drawn seeds.
        let mut random = ChaCha8Rng::seed_from_u64(0x1ed5);
        let mut resampled = Vec::with_capacity(RESAMPLES);
        for _ in 0..RESAMPLES {
            let drawn: Vec<usize> = (0..seeds).map(|_| random.random_range(0..seeds)).collect();
            let mut sum = 0.0;
            for _ in 0..examples {
                let example = random.random_range(0..examples);
                sum += drawn.iter().map(|&seed| pairs[seed][example]).sum::<f64>();
            }
            resampled.push(sum / (seeds * examples) as f64);
        }
        let all: f64 = pairs.iter().map(|p| p[..examples].iter().sum::<f64>()).sum();
        Some(Self { mean: all / (seeds * examples) as f64, resampled })
    }

    /// Its 95 % percentile interval.
    pub(crate) fn interval(&self) -> Interval {
        Interval {
            mean: self.mean,
            low: quantile(&self.resampled, 0.025),
            high: quantile(&self.resampled, 0.975),
        }
    }
}

/// Intervals of differences to one and the same, which hold with all differences among them at once, 95 times of a hundred as
/// far as examples go (a handful of seeds is too few to promise it of them):
/// so many deviations to either side as the largest of all is off in 95 % of the resamples (Tukey's range test by Romano and
/// Wolf's resampling, 2005). So it may be the best of all, picked from the same data.
pub(crate) fn together(all: &[Difference]) -> Vec<Interval> {
    // What is off, resample by resample; of the one itself nothing is.
    let mut off: Vec<Vec<f64>> =
        all.iter().map(|d| d.resampled.iter().map(|x| x - d.mean).collect()).collect();
    off.push(vec![0.0; RESAMPLES]);
    let deviation = |a: &[f64], b: &[f64]| {
        let squares = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        (squares / RESAMPLES as f64).sqrt()
    };
    let mut largest = vec![0f64; RESAMPLES];
    for (i, a) in off.iter().enumerate() {
        for b in &off[..i] {
            let deviation = deviation(a, b);
            // Equal answers are never off.
            let pairs = largest.iter_mut().zip(a.iter().zip(b)).filter(|_| deviation > 1e-12);
            pairs.for_each(|(largest, (a, b))| *largest = largest.max((a - b).abs() / deviation));
        }
    }
    let reach = quantile(&largest, 0.95);
    let interval = |(d, off): (&Difference, &Vec<f64>)| {
        let width = reach * deviation(off, &[0.0; RESAMPLES]);
        Interval { mean: d.mean, low: d.mean - width, high: d.mean + width }
    };
    all.iter().zip(&off).map(interval).collect()
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
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
            let d = Difference::of(&a, &b).unwrap().interval();
            covered += i32::from(d.low <= 0.05 && 0.05 <= d.high);
        }
        assert!((88..=100).contains(&covered), "{covered}");
    }

    #[test]
    fn the_same_answers_are_a_tie_and_others_are_not() {
        let a = answers(0.7, 3, 270, 1);
        let same = Difference::of(&a, &a).unwrap().interval();
        assert_eq!((same.mean, same.low, same.high), (0.0, 0.0, 0.0));
        assert!(same.is_tie());
        let worse = answers(0.4, 3, 270, 2);
        let d = Difference::of(&worse, &a).unwrap().interval();
        assert!(!d.is_tie() && d.high < 0.0 && d.low < d.mean && d.mean < d.high, "{d:?}");
        // No training: one row of answers beside three.
        assert!(Difference::of(&worse[..1], &a).unwrap().interval().high < 0.0);
        assert_eq!(Difference::of(&[], &a), None);
        assert_eq!(Difference::of(&[vec![]], &[vec![]]), None);
    }

    /// Methods that are equally good: one by one some fall behind the best of them, at once hardly ever.
    #[test]
    fn equals_are_ties_at_once() {
        let (mut alone, mut at_once) = (0, 0);
        for trial in 0..8 {
            let all: Vec<_> = (0..10).map(|i| answers(0.7, 1, 60, 100 * trial + i)).collect();
            let right = |a: &Vec<Vec<f64>>| a.iter().flatten().sum::<f64>();
            let best = (0..10).max_by(|&a, &b| right(&all[a]).total_cmp(&right(&all[b]))).unwrap();
            let others = (0..10).filter(|&i| i != best);
            let others: Vec<_> = others.filter_map(|i| Difference::of(&all[i], &all[best])).collect();
            alone += i32::from(others.iter().any(|d| !d.interval().is_tie()));
            at_once += i32::from(together(&others).iter().any(|d| !d.is_tie()));
        }
        assert!(alone >= 3 && at_once <= 1, "of 8: one by one {alone}, at once {at_once}");
    }

    #[test]
    fn what_is_worse_stays_behind_at_once() {
        let best = answers(0.8, 3, 150, 1);
        let others: Vec<_> = (0..6)
            .map(|i| Difference::of(&answers(if i == 0 { 0.5 } else { 0.79 }, 3, 150, 7 + i), &best).unwrap())
            .collect();
        let all = together(&others);
        assert!(all[0].high < 0.0, "{:?}", all[0]);
        let single = together(&others[..1])[0];
        assert!(single.high < all[0].high && all[0].low < single.low, "{single:?} {:?}", all[0]);
        // Equal answers have no deviation.
        let same = Difference::of(&best, &best).unwrap();
        assert_eq!(together(&[same, others[0].clone()])[0], Interval { mean: 0.0, low: 0.0, high: 0.0 });
        assert_eq!(together(&[]), []);
    }
}
