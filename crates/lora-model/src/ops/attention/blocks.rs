//! Causal attention in blocks, by small products: probabilities exist for one block of queries at a time.

use tch::{Device, Kind, Tensor};
use tch_ext::number::{Number, read, write};
use tch_ext::{Function, Panels, Saved, Small, View, attach, bf16, parallel_rows};

use super::backward::backward;
use super::layout::{BLOCK, Layout, Range, Units};
use super::rows::{soften, store};
use crate::ops::ATTENTION;
use crate::pieces::{Piece, Pieces};

/// Whether this is the way for such queries.
pub(super) fn pay(q: &Tensor) -> bool {
    are_there(q.device(), q.kind()) && q.size()[2] > 1 && q.size()[3] % 2 == 0
}

/// Whether there are such for this dtype there.
pub(super) fn are_there(device: Device, kind: Kind) -> bool {
    let supported = match kind {
        Kind::BFloat16 => bf16::supported(),
        Kind::Float => f32::supported(),
        _ => false,
    };
    device == Device::Cpu && supported
}

/// Of the keys that a text sees so many are worked on, whole blocks: the backward pass holds sums of them for each head.
pub(crate) fn keys(pieces: &[Piece]) -> i64 {
    let starts = Pieces::starts(pieces).zip(pieces);
    starts
        .map(|(start, piece)| (start + piece.len) as u64)
        .map(|n| n.next_multiple_of(BLOCK as u64) as i64)
        .sum()
}

/// Saves its inputs, its output and one number a row.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, layout: Layout) -> Tensor {
    let flat = |t: &Tensor| t.detach().contiguous();
    let (q_now, k_now, v_now) = (flat(q), flat(k), flat(v));
    let (y, lse) = match q.kind() {
        Kind::BFloat16 => forward::<bf16>(&q_now, &k_now, &v_now, &layout),
        _ => forward::<f32>(&q_now, &k_now, &v_now, &layout),
    };
    let [q_kept, k_kept, v_kept, y_kept] = [q_now, k_now, v_now, y.shallow_clone()].map(Saved::new);
    let node = Blocks { q: q_kept, k: k_kept, v: v_kept, y: y_kept, lse, layout };
    attach(&[&y], &[q, k, v], node).expect("the tensors are defined").swap_remove(0)
}

pub(super) struct Blocks {
    pub(super) q: Saved,
    pub(super) k: Saved,
    pub(super) v: Saved,
    pub(super) y: Saved,
    /// The logarithm of each row's sum of exponentials, `[batch * heads, t]`.
    pub(super) lse: Tensor,
    pub(super) layout: Layout,
}

impl Function for Blocks {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = ATTENTION.enter();
        let Some(dy) = &grads[0] else { return vec![None, None, None] };
        let dy = dy.contiguous();
        let all = match dy.kind() {
            Kind::BFloat16 => backward::<bf16>(self, &dy),
            _ => backward::<f32>(self, &dy),
        };
        all.into_iter().map(Some).collect()
    }
}

fn forward<T: Number<Wide = f32> + Small>(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    s: &Layout,
) -> (Tensor, Tensor) {
    let mut y = q.empty_like();
    let mut lse = Tensor::empty([s.rows as i64, s.t as i64], (Kind::Float, Device::Cpu));
    let (q, k, v) = (read::<T>(q), read::<T>(k), read::<T>(v));
    let (y_bounds, lse_bounds) = (s.bounds(|text| text.queries * s.dim), s.bounds(|text| text.queries));
    let work = (
        Units { data: write::<T>(&mut y), bounds: &y_bounds },
        Units { data: write::<f32>(&mut lse), bounds: &lse_bounds },
    );
    parallel_rows(work, s.units(), 1, |first, _, (y, lse)| {
        let mut packed = Packed::<[Panels<T>; 2]>::default();
        let (mut scores, mut p, mut sums) = (Vec::new(), Vec::new(), vec![0f32; BLOCK * s.dim]);
        for (i, (y, lse)) in y.each().zip(lse.each()).enumerate() {
            let (row, text) = ((first + i) / s.texts.len(), (first + i) % s.texts.len());
            let [keys, values] = packed.of(s, row, text, (k, v), |[keys, values], k, v| {
                keys.pack_transposed(k);
                values.pack(v);
            });
            let text = &s.texts[text];
            let q = &q[(row * s.t + text.query) * s.dim..][..text.queries * s.dim];
            for range in s.blocks(text) {
                let Range { start, n, lo, hi, stride } = range;
                grow(&mut scores, BLOCK * stride, 0.0);
                grow(&mut p, BLOCK * stride, T::narrow(0.0));
                score(keys, View::new(&q[start * s.dim..], n, s.dim, s.dim), range, &mut scores);
                for r in 0..n {
                    let (a, b) = s.seen(text, start + r);
                    let (scores, p) = (&mut scores[r * stride..][..stride], &mut p[r * stride..][..stride]);
                    lse[start + r] = soften(scores, p, a - lo..b - lo, s.scale());
                }
                for block in 0..s.dim.div_ceil(BLOCK) {
                    let sums = &mut sums[block * BLOCK..];
                    values.multiply(block, lo, View::new(&p, n, hi - lo, stride), sums, s.dim, false);
                }
                store(&mut y[start * s.dim..(start + n) * s.dim], &sums);
            }
        }
    });
    (y, lse)
}

/// To hold so many at least: what it held is not made anew.
pub(super) fn grow<T: Copy>(numbers: &mut Vec<T>, n: usize, zero: T) {
    if numbers.len() < n {
        numbers.resize(n, zero);
    }
}

/// `scores [n, keys of the range] = q kᵀ`.
pub(super) fn score<T: Small>(keys: &Panels<T>, q: View<'_, T>, range: Range, scores: &mut [f32]) {
    for (i, block) in range.keys().enumerate() {
        keys.multiply(block, 0, q, &mut scores[i * BLOCK..], range.stride, false);
    }
}

/// What a thread has packed of a key head, text by text: query heads that share it come one after another.
#[derive(Default)]
pub(super) struct Packed<P> {
    key_row: Option<usize>,
    texts: Vec<Option<P>>,
}

impl<P: Default> Packed<P> {
    /// For a text of query head `row`; `pack` gets its keys and its values.
    pub(super) fn of<T: Copy>(
        &mut self,
        s: &Layout,
        row: usize,
        text: usize,
        (k, v): (&[T], &[T]),
        pack: impl FnOnce(&mut P, View<'_, T>, View<'_, T>),
    ) -> &P {
        let key_row = s.key_row(row);
        if self.key_row != Some(key_row) {
            (self.key_row, self.texts) = (Some(key_row), s.texts.iter().map(|_| None).collect());
        }
        self.texts[text].get_or_insert_with(|| {
            let (mut packed, text, mut room) = (P::default(), &s.texts[text], [Vec::new(), Vec::new()]);
            let [k_room, v_room] = &mut room;
            pack(&mut packed, s.rows_of(k, key_row, text, k_room), s.rows_of(v, key_row, text, v_room));
            packed
        })
    }
}
