//! Who sees whom.

use std::sync::Arc;

use tch::Tensor;

/// Queries in a block, and keys in a block.
pub(super) const BLOCK: usize = 64;

/// Sizes of `q [batch, heads, t, dim]` and `k, v [batch, kv_heads, s, dim]`; the queries are the last t of the s
/// positions. A query sees its own position and the ones before it in its text, `window` of them at the most.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) heads: usize,
    pub(super) group: usize,
    pub(super) t: usize,
    pub(super) s: usize,
    pub(super) dim: usize,
    window: usize,
    /// Of each position the first of its text; none: 0.
    first: Option<Arc<[usize]>>,
}

impl Layout {
    pub(super) fn new(q: &Tensor, k: &Tensor, window: Option<i64>, texts: Option<&[i64]>) -> Self {
        let (q, k) = (q.size(), k.size());
        let first = texts.map(|lengths| {
            let mut start = 0;
            let starts = lengths.iter().flat_map(|&n| {
                let text = std::iter::repeat_n(start, n as usize);
                start += n as usize;
                text
            });
            starts.collect::<Arc<[usize]>>()
        });
        assert!(
            first.as_ref().is_none_or(|f| f.len() == k[2] as usize),
            "the texts' lengths are those of the row"
        );
        Self {
            heads: q[1] as usize,
            group: (q[1] / k[1]) as usize,
            t: q[2] as usize,
            s: k[2] as usize,
            dim: q[3] as usize,
            window: window.map_or(usize::MAX, |w| w as usize),
            first,
        }
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// The key head of query head `row` (both counted over the batch).
    pub(super) fn key_row(&self, row: usize) -> usize {
        let &Self { heads, group, .. } = self;
        row / heads * (heads / group) + row % heads / group
    }

    /// The keys `lo..hi` that query i sees; lo never falls from one query to the next.
    pub(super) fn seen(&self, i: usize) -> (usize, usize) {
        let position = self.s - self.t + i;
        let first = self.first.as_ref().map_or(0, |first| first[position]);
        ((position + 1).saturating_sub(self.window).max(first), position + 1)
    }

    /// Blocks of queries: the first, how many, and the keys `lo..hi` that any of them sees, lo at the start of a
    /// block of keys.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range> + '_ {
        (0..self.t).step_by(BLOCK).map(move |start| {
            let n = BLOCK.min(self.t - start);
            let (lo, hi) = (self.seen(start).0 / BLOCK * BLOCK, self.seen(start + n - 1).1);
            Range { start, n, lo, hi, stride: (hi - lo).next_multiple_of(BLOCK) }
        })
    }
}

/// A block of queries, the keys that any of them sees, and how far its rows of scores are apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) n: usize,
    pub(super) lo: usize,
    pub(super) hi: usize,
    pub(super) stride: usize,
}

impl Range {
    /// Blocks of keys.
    pub(super) fn keys(&self) -> std::ops::Range<usize> {
        self.lo / BLOCK..self.hi.div_ceil(BLOCK)
    }
}
