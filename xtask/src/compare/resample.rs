//! Bootstrap draws of seeds and rows, for many differences at once.

use std::collections::BTreeMap;

/// So many that a bound's own error, some hundredths of a point, is below what is printed.
pub(super) const RESAMPLES: usize = 100_000;

/// Differences in one word, and the bits of each: a sum over all rows and seeds must have room.
const LANES: usize = 4;
const BITS: usize = 32;

/// The mean of each of `all` in each resample. Each is `[seed][row]`, from -1 to 1, and all are of one shape, so that one
/// draw of seeds and rows counts for all of them. The order of the rows makes no difference.
pub(super) fn means(all: &[&[Vec<i8>]], resamples: usize) -> Vec<Vec<f64>> {
    let mut means: Vec<Vec<f64>> = vec![vec![0.0; resamples]; all.len()];
    let (Some(seeds), Some(rows)) = (all.first().map(|d| d.len()), all.first().and_then(|d| d.first()))
    else {
        return means;
    };
    let rows = rows.len();
    let packed = packed(all, seeds, rows);
    let mut random = Random(0x1ed5);
    // Which seeds, and how often: what is drawn of them is summed up but once.
    let mut drawn = BTreeMap::<Vec<usize>, Vec<usize>>::new();
    for draw in 0..resamples {
        let mut some: Vec<usize> = (0..seeds).map(|_| random.below(seeds)).collect();
        some.sort_unstable();
        drawn.entry(some).or_default().push(draw);
    }
    let ones = (seeds * rows) as f64;
    let mut at = vec![0u32; rows];
    for (some, draws) in drawn {
        let columns = columns(&packed, &some);
        for draw in draws {
            random.fill(&mut at);
            for (column, means) in columns.iter().zip(means.chunks_mut(LANES)) {
                let mut sum = sum(column, &at);
                for means in means {
                    means[draw] = (f64::from(sum as u32) - ones) / ones;
                    sum >>= BITS;
                }
            }
        }
    }
    means
}

/// By seed and word, row by row: so many differences in a word, one added to each so that none is negative.
fn packed(all: &[&[Vec<i8>]], seeds: usize, rows: usize) -> Vec<Vec<Vec<u128>>> {
    // Rows that are alike are one to a draw; in a file they may stand in any order.
    let key = |row: usize| -> Vec<i8> { all.iter().flat_map(|d| d.iter().map(move |s| s[row])).collect() };
    let mut order: Vec<usize> = (0..rows).collect();
    order.sort_by_cached_key(|row| key(*row));
    let word = |some: &[&[Vec<i8>]], seed: usize, row: usize| -> u128 {
        some.iter().rev().fold(0u128, |word, d| (word << BITS) | (d[seed][row] + 1) as u128)
    };
    let column = |some: &[&[Vec<i8>]], seed: usize| -> Vec<u128> {
        order.iter().map(|row| word(some, seed, *row)).collect()
    };
    (0..seeds).map(|seed| all.chunks(LANES).map(|some| column(some, seed)).collect()).collect()
}

/// The sums of the seeds that were drawn.
fn columns(packed: &[Vec<Vec<u128>>], drawn: &[usize]) -> Vec<Vec<u128>> {
    let mut sums = packed[drawn[0]].clone();
    for seed in &drawn[1..] {
        for (sums, values) in sums.iter_mut().zip(&packed[*seed]) {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value);
        }
    }
    sums
}

/// Here and in [`Random::fill`] nearly all of the time goes, and xtask is built without optimisation, where iterators take
/// several times as long as this.
fn sum(column: &[u128], at: &[u32]) -> u128 {
    let (mut sum, mut i, n) = (0, 0, at.len());
    while i < n {
        sum += column[at[i] as usize];
        i += 1;
    }
    sum
}

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (((self.draw() >> 32) * n as u64) >> 32) as usize
    }

    /// Places among as many rows.
    fn fill(&mut self, at: &mut [u32]) {
        let (mut i, n) = (0, at.len());
        while i < n {
            at[i] = (((self.draw() >> 32) * n as u64) >> 32) as u32;
            i += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_those_of_each_one() {
        // Five of one shape, so that there is a second word; of 4 rows and 2 seeds, constant ones and one that is not.
        let constant = |d: i8| vec![vec![d; 4]; 2];
        let all = [constant(1), constant(-1), constant(0), vec![vec![1, 0, 0, 0], vec![-1; 4]], constant(1)];
        let all: Vec<&[Vec<i8>]> = all.iter().map(Vec::as_slice).collect();
        let found = means(&all, 4000);
        for (means, want) in found.iter().zip([Some(1.0), Some(-1.0), Some(0.0), None, Some(1.0)]) {
            assert_eq!(means.len(), 4000);
            assert!(want.is_none_or(|want| means.iter().all(|mean| *mean == want)), "{want:?}");
        }
        let mean = found[3].iter().sum::<f64>() / 4000.0;
        assert!((mean + 0.375).abs() < 0.03, "{mean}");
        assert!(found[3].contains(&-1.0), "the second seed twice");
        assert_eq!(means(&[], 10), Vec::<Vec<f64>>::new());
        // Alone it is drawn as beside the others.
        assert_eq!(means(&all[..1], 10), [[1.0; 10]]);
    }
}
