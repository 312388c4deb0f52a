//! Who sees whom.

use tch::Tensor;
use tch_ext::{Split, View};

use crate::pieces::Piece;

/// Queries in a block, and keys in a block.
pub(super) const BLOCK: usize = 64;

/// Sizes of `q [batch, heads, t, dim]` and `k, v [batch, kv_heads, s, dim]`, and the texts that lie in a row. A query
/// sees its own position and the ones before it in its text, `window` of them at the most.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    heads: usize,
    pub(super) group: usize,
    pub(super) rows: usize,
    pub(super) t: usize,
    pub(super) s: usize,
    pub(super) dim: usize,
    window: usize,
    pub(super) texts: Vec<Text>,
}

/// A text of a row: its keys, and its queries, which are the last of its positions.
#[derive(Debug, Clone)]
pub(super) struct Text {
    /// Keys that it shares with others, in front of its own.
    pub(super) leads: Vec<Run>,
    pub(super) own: Run,
    pub(super) query: usize,
    pub(super) queries: usize,
}

/// Positions of a row, one behind another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Text {
    pub(super) fn keys(&self) -> usize {
        self.runs().map(|run| run.len).sum()
    }

    /// All that it sees.
    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.leads.iter().copied().chain([self.own])
    }
}

impl Layout {
    pub(super) fn new(q: &Tensor, k: &Tensor, window: Option<i64>, pieces: Option<&[Piece]>) -> Self {
        let (q, k) = (q.size(), k.size());
        let (t, s) = (q[2] as usize, k[2] as usize);
        let texts = match pieces {
            None => vec![Text { leads: Vec::new(), own: Run { start: 0, len: s }, query: 0, queries: t }],
            Some(pieces) => {
                let mut texts: Vec<Text> = Vec::new();
                let mut start = 0;
                for piece in pieces {
                    let leads = piece.behind.map_or(Vec::new(), |at| texts[at].runs().collect());
                    let own = Run { start, len: piece.len as usize };
                    texts.push(Text { leads, own, query: start, queries: own.len });
                    start += own.len;
                }
                assert!(start == s && t == s, "the texts' lengths are those of the row");
                texts
            }
        };
        Self {
            heads: q[1] as usize,
            group: (q[1] / k[1]) as usize,
            rows: (q[0] * q[1]) as usize,
            t,
            s,
            dim: q[3] as usize,
            window: window.map_or(usize::MAX, |w| w as usize),
            texts,
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

    /// A text's rows of `x [key rows, s, dim]` at a key head, one behind another; `room` is for what is not so.
    pub(super) fn rows_of<'a, T: Copy>(
        &self,
        x: &'a [T],
        key_row: usize,
        text: &Text,
        room: &'a mut Vec<T>,
    ) -> View<'a, T> {
        let of = |run: Run| &x[(key_row * self.s + run.start) * self.dim..][..run.len * self.dim];
        let rows = if text.leads.is_empty() {
            of(text.own)
        } else {
            room.clear();
            text.runs().for_each(|run| room.extend_from_slice(of(run)));
            room
        };
        View::new(rows, text.keys(), self.dim, self.dim)
    }

    /// Texts of all query heads.
    pub(super) fn units(&self) -> usize {
        self.rows * self.texts.len()
    }

    /// Where each unit begins, and the last ends, if a text takes so much.
    pub(super) fn bounds(&self, size: impl Fn(&Text) -> usize) -> Vec<usize> {
        let mut at = 0;
        let mut bounds = vec![0];
        for text in (0..self.rows).flat_map(|_| &self.texts) {
            at += size(text);
            bounds.push(at);
        }
        bounds
    }

    /// The keys `lo..hi` of its text that its query i sees; lo never falls from one query to the next.
    pub(super) fn seen(&self, text: &Text, i: usize) -> (usize, usize) {
        let position = text.keys() - text.queries + i;
        ((position + 1).saturating_sub(self.window), position + 1)
    }

    /// A text's blocks of queries.
    pub(super) fn blocks<'a>(&'a self, text: &'a Text) -> impl Iterator<Item = Range> + 'a {
        (0..text.queries).step_by(BLOCK).map(move |start| {
            let n = BLOCK.min(text.queries - start);
            let (lo, hi) = (self.seen(text, start).0 / BLOCK * BLOCK, self.seen(text, start + n - 1).1);
            Range { start, n, lo, hi, stride: (hi - lo).next_multiple_of(BLOCK) }
        })
    }
}

/// A block of queries: the first, how many, the keys `lo..hi` that any of them sees (lo at the start of a block of
/// keys), and how far its rows of scores are apart.
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

/// Numbers of units, one behind another.
pub(super) struct Units<'a, T> {
    pub(super) data: &'a mut [T],
    pub(super) bounds: &'a [usize],
}

impl<'a, T> Units<'a, T> {
    /// Each unit's own.
    pub(super) fn each(self) -> impl Iterator<Item = &'a mut [T]> {
        let mut rest = self.data;
        self.bounds.windows(2).map(move |pair| {
            let (unit, others) = std::mem::take(&mut rest).split_at_mut(pair[1] - pair[0]);
            rest = others;
            unit
        })
    }
}

impl<T: Send> Split for Units<'_, T> {
    fn split(self, units: usize) -> (Self, Self) {
        let (a, b) = self.data.split_at_mut(self.bounds[units] - self.bounds[0]);
        (Self { data: a, bounds: &self.bounds[..=units] }, Self { data: b, bounds: &self.bounds[units..] })
    }
}
