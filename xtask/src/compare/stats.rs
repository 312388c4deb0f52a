//! Means, deviations, and bootstrap intervals.

use super::resample::{self, RESAMPLES};
use super::results::{Interval, Values};
use std::collections::BTreeMap;

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

/// A mean difference, and what it is made of.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Difference {
    mean: f64,
    /// By seed and row: 1 where one side alone was right, -1 where the other was.
    each: Vec<Vec<i8>>,
}

impl Difference {
    /// The mean of `a` less that of `b`, the right answers of each by seed and row: seeds and rows are resampled together, each
    /// pair kept (Efron and Tibshirani 1993, chapter 13). Rows without a partner do not count; a side with one seed (no
    /// training) stands beside every seed of the other. None where nothing is paired. Differences of as many seeds and rows
    /// are resampled alike.
    pub(crate) fn of(a: &[Vec<bool>], b: &[Vec<bool>]) -> Option<Self> {
        let seeds = if a.len() == 1 || b.len() == 1 { a.len().max(b.len()) } else { a.len().min(b.len()) };
        let side = |side: &[Vec<bool>], seed: usize| side.get(seed.min(side.len().checked_sub(1)?)).cloned();
        let less = |(a, b): (&bool, &bool)| i8::from(*a) - i8::from(*b);
        let pairs: Option<Vec<Vec<i8>>> = (0..seeds)
            .map(|seed| Some(side(a, seed)?.iter().zip(&side(b, seed)?).map(less).collect()))
            .collect();
        let mut each = pairs?;
        let rows = each.iter().map(Vec::len).min().filter(|n| *n > 0)?;
        each.iter_mut().for_each(|seed| seed.truncate(rows));
        let all: i64 = each.iter().flatten().map(|d| i64::from(*d)).sum();
        Some(Self { mean: all as f64 / (seeds * rows) as f64, each })
    }

    /// Its 95 % percentile interval.
    pub(crate) fn interval(&self) -> Interval {
        self.interval_by(RESAMPLES)
    }

    /// How far the mean is off in a resample: over all that there are, not over those that were drawn.
    fn deviation(&self) -> f64 {
        let (seeds, rows) = (self.each.len() as f64, self.each[0].len() as f64);
        // What the square of the drawn seeds' mean comes to, of the square of their sum and the sum of their squares.
        let square = |of_sum: f64, of_each: f64| ((1.0 - 1.0 / seeds) * of_sum + of_each) / (seeds * seeds);
        let sum = |row: usize| self.each.iter().map(|seed| i64::from(seed[row])).sum::<i64>();
        let of_sums: i64 = (0..self.each[0].len()).map(|row| sum(row).pow(2)).sum();
        let of_each: i64 = self.each.iter().flatten().map(|d| i64::from(*d).pow(2)).sum();
        let mean = |seed: &Vec<i8>| seed.iter().map(|d| i64::from(*d)).sum::<i64>() as f64 / rows;
        let means: Vec<f64> = self.each.iter().map(mean).collect();
        let squares: f64 = means.iter().map(|mean| mean * mean).sum();
        let off: f64 = means.iter().map(|mean| (mean - self.mean).powi(2)).sum();
        // What the rows do once the seeds are drawn, and what the seeds do.
        let of_rows = square(of_sums as f64, of_each as f64) / rows;
        let by_rows = (of_rows - square((seeds * self.mean).powi(2), squares)) / rows;
        (by_rows + off / (seeds * seeds)).max(0.0).sqrt()
    }

    fn interval_by(&self, resamples: usize) -> Interval {
        let mut drawn = resampled(std::slice::from_ref(self), resamples).remove(0);
        let (low, high) = (quantile(&mut drawn, 0.025), quantile(&mut drawn, 0.975));
        Interval { mean: self.mean, low, high, seeds: self.each.len() }
    }
}

/// Each one's mean in each resample; those of one shape are drawn alike.
fn resampled(all: &[Difference], resamples: usize) -> Vec<Vec<f64>> {
    let mut shapes = BTreeMap::<(usize, usize), Vec<usize>>::new();
    for (i, d) in all.iter().enumerate() {
        shapes.entry((d.each.len(), d.each[0].len())).or_default().push(i);
    }
    let mut means = vec![Vec::new(); all.len()];
    for alike in shapes.into_values() {
        let each: Vec<&[Vec<i8>]> = alike.iter().map(|i| all[*i].each.as_slice()).collect();
        for (i, drawn) in alike.into_iter().zip(resample::means(&each, resamples)) {
            means[i] = drawn;
        }
    }
    means
}

/// Intervals of differences to one and the same, which hold with all differences among them at once, 95 times of a hundred as
/// far as rows go (a handful of seeds is too few to promise it of them):
/// so many deviations to either side as the largest of all is off in 95 % of the resamples (Tukey's range test by Romano and
/// Wolf's resampling, 2005). So it may be the best of all, picked from the same data.
pub(crate) fn together(all: &[Difference]) -> Vec<Interval> {
    together_by(all, RESAMPLES)
}

fn together_by(all: &[Difference], resamples: usize) -> Vec<Interval> {
    // What is off, resample by resample; of the one itself nothing is.
    let mut off = resampled(all, resamples);
    for (off, d) in off.iter_mut().zip(all) {
        off.iter_mut().for_each(|x| *x -= d.mean);
    }
    let mut largest = vec![0.0; resamples];
    off.push(largest.clone());
    for (i, a) in off.iter().enumerate() {
        for b in &off[..i] {
            let deviation = deviation(a, b);
            // Equal answers are never off.
            if deviation > 1e-12 {
                take_larger(&mut largest, a, b, deviation);
            }
        }
    }
    let reach = quantile(&mut largest, 0.95);
    let interval = |d: &Difference| {
        let width = reach * d.deviation();
        Interval { mean: d.mean, low: d.mean - width, high: d.mean + width, seeds: d.each.len() }
    };
    all.iter().map(interval).collect()
}

/// As in `resample.rs`, loops without iterators: both are gone through for each two methods.
fn deviation(a: &[f64], b: &[f64]) -> f64 {
    let (mut squares, mut i, n) = (0.0, 0, a.len());
    while i < n {
        let off = a[i] - b[i];
        squares += off * off;
        i += 1;
    }
    (squares / n as f64).sqrt()
}

fn take_larger(largest: &mut [f64], a: &[f64], b: &[f64], deviation: f64) {
    let (mut i, n) = (0, largest.len());
    while i < n {
        let off = (a[i] - b[i]).abs() / deviation;
        if off > largest[i] {
            largest[i] = off;
        }
        i += 1;
    }
}

/// Puts the values into another order.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    let at = ((values.len() - 1) as f64 * share).round() as usize;
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::seq::SliceRandom;
    use rand::{RngExt as _, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn means_medians_deviations() {
        let v = values(vec![1.0, 2.0, 4.0]);
        assert!((v.mean - 7.0 / 3.0).abs() < 1e-15 && (v.sd.unwrap() - 1.527525231651947).abs() < 1e-12);
        assert_eq!(values(vec![3.0]).sd, None);
        assert_eq!(median(vec![4.0, 1.0, f64::NAN, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    /// Right answers with this chance, of so many rows and seeds.
    fn answers(p: f64, seeds: usize, rows: usize, stream: u64) -> Vec<Vec<bool>> {
        let mut random = ChaCha8Rng::seed_from_u64(stream);
        (0..seeds).map(|_| (0..rows).map(|_| random.random_bool(p)).collect()).collect()
    }

    /// A binomial distribution, whose quantiles are known: of fewer resamples they would be so by luck.
    #[test]
    fn bounds_are_not_those_of_the_draw() {
        let some = [(0..100).map(|row| row % 10 < 3).collect::<Vec<_>>()];
        let d = Difference::of(&some, &[vec![false; 100]]).unwrap();
        assert_eq!(d.interval(), Interval { mean: 0.3, low: 0.21, high: 0.39, seeds: 1 });
    }

    #[test]
    fn deviations_are_those_of_many_resamples() {
        for seeds in [1, 2, 3, 5] {
            let (a, b) = (answers(0.8, seeds, 60, 1), answers(0.5, seeds, 60, 2));
            let d = Difference::of(&a, &b).unwrap();
            let drawn = resampled(std::slice::from_ref(&d), 20_000).remove(0);
            let squares: f64 = drawn.iter().map(|mean| (mean - d.mean).powi(2)).sum();
            let found = (squares / 20_000.0).sqrt();
            assert!((d.deviation() / found - 1.0).abs() < 0.03, "{seeds}: {} {found}", d.deviation());
        }
    }

    #[test]
    fn the_order_of_rows_decides_nothing() {
        let all: Vec<_> = (0..6).map(|i| answers(0.7, 3, 60, i)).collect();
        let mut order: Vec<usize> = (0..60).collect();
        let mut found = Vec::new();
        for _ in 0..3 {
            let seed = |seed: &Vec<bool>| order.iter().map(|row| seed[*row]).collect::<Vec<_>>();
            let all: Vec<Vec<_>> = all.iter().map(|run| run.iter().map(seed).collect()).collect();
            let others: Vec<_> = all[1..].iter().filter_map(|run| Difference::of(run, &all[0])).collect();
            let alone: Vec<_> = others.iter().map(|d| d.interval_by(500)).collect();
            found.push((alone, together_by(&others, 500)));
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(9));
        }
        assert!(found.iter().all(|of| *of == found[0]), "{found:?}");
    }

    #[test]
    fn the_interval_covers_what_is_true() {
        // Independent answers, 0.75 and 0.7 right: the interval must hold 0.05 about 95 times of a hundred.
        let mut covered = 0;
        for trial in 0..100 {
            let (a, b) = (answers(0.75, 3, 150, 2 * trial), answers(0.7, 3, 150, 2 * trial + 1));
            let d = Difference::of(&a, &b).unwrap().interval_by(2000);
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
        let floor = Difference::of(&worse[..1], &a).unwrap().interval();
        assert!(floor.high < 0.0 && floor.seeds == 3);
        // One seed on both sides: what another would change is not known.
        let one = Difference::of(&a[..1], &a[..1]).unwrap().interval();
        assert!(one.is_of_rows_alone() && !one.is_tie(), "{one:?}");
        assert_eq!(Difference::of(&[], &a), None);
        assert_eq!(Difference::of(&[vec![]], &[vec![]]), None);
    }

    /// Methods that are equally good: one by one some fall behind the best of them, at once hardly ever.
    #[test]
    fn equals_are_ties_at_once() {
        let (mut alone, mut at_once) = (0, 0);
        for trial in 0..8 {
            let all: Vec<_> = (0..10).map(|i| answers(0.7, 1, 60, 100 * trial + i)).collect();
            let right = |a: &Vec<Vec<bool>>| a.iter().flatten().filter(|right| **right).count();
            let best = (0..10).max_by_key(|i| right(&all[*i])).unwrap();
            let others = (0..10).filter(|&i| i != best);
            let others: Vec<_> = others.filter_map(|i| Difference::of(&all[i], &all[best])).collect();
            let behind = |d: &Interval| d.high < 0.0;
            alone += i32::from(others.iter().any(|d| behind(&d.interval_by(2000))));
            at_once += i32::from(together_by(&others, 2000).iter().any(behind));
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
        assert_eq!(
            together(&[same, others[0].clone()])[0],
            Interval { mean: 0.0, low: 0.0, high: 0.0, seeds: 3 }
        );
        assert_eq!(together(&[]), []);
    }
}
