//! Causal attention in blocks, by small products: probabilities exist for one block of queries at a time.

use tch::{Device, Kind, Tensor};
use tch_ext::number::{Number, read, write};
use tch_ext::{Function, Panels, Rows, Small, View, attach, parallel_rows, transpose};

use super::rows::{add, gradients, inner, probabilities, soften, store};
use crate::ops::ATTENTION;

/// Queries in a block.
const BLOCK: usize = 64;

/// Sizes of `q [batch, heads, t, dim]` and `k, v [batch, kv_heads, s, dim]`; the queries are the last t of the s
/// positions, and see `window` positions, themselves included.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    heads: usize,
    group: usize,
    t: usize,
    s: usize,
    dim: usize,
    window: usize,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor, window: Option<i64>) -> Self {
        let (q, k) = (q.size(), k.size());
        let window = window.map_or(usize::MAX, |w| w as usize);
        Self {
            heads: q[1] as usize,
            group: (q[1] / k[1]) as usize,
            t: q[2] as usize,
            s: k[2] as usize,
            dim: q[3] as usize,
            window,
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    /// The key head of query head `row` (both counted over the batch).
    fn key_row(&self, row: usize) -> usize {
        let &Self { heads, group, .. } = self;
        row / heads * (heads / group) + row % heads / group
    }

    /// The keys `lo..hi` that query i sees.
    fn seen(&self, i: usize) -> (usize, usize) {
        let position = self.s - self.t + i;
        ((position + 1).saturating_sub(self.window), position + 1)
    }

    /// Blocks of queries: the first, how many, and the keys `lo..hi` that any of them sees, lo at the start of a
    /// block of keys.
    fn blocks(self) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        (0..self.t).step_by(BLOCK).map(move |i| {
            let n = BLOCK.min(self.t - i);
            (i, n, self.seen(i).0 / BLOCK * BLOCK, self.seen(i + n - 1).1)
        })
    }
}

/// Whether this is the way for such queries.
pub(super) fn pay(q: &Tensor) -> bool {
    let supported = match q.kind() {
        Kind::BFloat16 => tch_ext::bf16::supported(),
        Kind::Float => f32::supported(),
        _ => false,
    };
    q.device() == Device::Cpu && supported && q.size()[2] > 1 && q.size()[3] % 2 == 0
}

/// Saves its inputs, its output and one number a row.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Tensor {
    let flat = |t: &Tensor| t.detach().contiguous();
    let sizes = Sizes::new(q, k, window);
    let mut node =
        Blocks { q: flat(q), k: flat(k), v: flat(v), y: flat(q).empty_like(), lse: Tensor::new(), sizes };
    match q.kind() {
        Kind::BFloat16 => forward::<tch_ext::bf16>(&mut node),
        _ => forward::<f32>(&mut node),
    }
    let y = node.y.shallow_clone();
    attach(&[&y], &[q, k, v], node).expect("the tensors are defined").swap_remove(0)
}

struct Blocks {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    lse: Tensor,
    sizes: Sizes,
}

fn forward<T: Number<Wide = f32> + Small>(node: &mut Blocks) {
    let size = node.q.size();
    let rows = (size[0] * size[1]) as usize;
    let mut y = node.q.empty_like();
    let mut lse = Tensor::empty([size[0] * size[1], size[2]], (Kind::Float, Device::Cpu));
    let s = node.sizes;
    let (q, k, v) = (read::<T>(&node.q), read::<T>(&node.k), read::<T>(&node.v));
    let work = (
        Rows { data: write::<T>(&mut y), width: s.t * s.dim },
        Rows { data: write::<f32>(&mut lse), width: s.t },
    );
    let key_row = |row| s.key_row(row);
    parallel_rows(work, rows, 1, |first, _, (y, lse)| {
        let (mut keys, mut values) = (Panels::<T>::default(), Panels::<T>::default());
        let (mut scores, mut p, mut sums) = (Vec::new(), Vec::new(), vec![0f32; BLOCK * s.dim]);
        let out = y.data.chunks_exact_mut(s.t * s.dim).zip(lse.data.chunks_exact_mut(s.t));
        for (i, (y, lse)) in out.enumerate() {
            let of = |row: usize, n: usize| row * n * s.dim..(row + 1) * n * s.dim;
            let q = &q[of(first + i, s.t)];
            let (k, v) = (&k[of(key_row(first + i), s.s)], &v[of(key_row(first + i), s.s)]);
            if i == 0 || key_row(first + i) != key_row(first + i - 1) {
                keys.pack_transposed(View::new(k, s.s, s.dim, s.dim));
            }
            for (start, n, lo, hi) in s.blocks() {
                let stride = (hi - lo).next_multiple_of(BLOCK);
                scores.resize(BLOCK * stride, 0.0);
                p.resize(BLOCK * stride, T::narrow(0.0));
                score(&keys, View::new(&q[start * s.dim..], n, s.dim, s.dim), lo, hi, &mut scores, stride);
                for r in 0..n {
                    let (a, b) = s.seen(start + r);
                    let (scores, p) = (&mut scores[r * stride..][..stride], &mut p[r * stride..][..stride]);
                    lse[start + r] = soften(scores, p, a - lo..b - lo, s.scale());
                }
                // Values are packed for the keys of a block alone where a window leaves most of them out.
                if lo == 0 && start == 0 || lo > 0 {
                    values.pack(View::new(&v[lo * s.dim..], s.s - lo, s.dim, s.dim));
                }
                for block in 0..s.dim.div_ceil(BLOCK) {
                    let sums = &mut sums[block * BLOCK..];
                    values.multiply(block, View::new(&p, n, hi - lo, stride), sums, s.dim, false);
                }
                store(&mut y[start * s.dim..(start + n) * s.dim], &sums);
            }
        }
    });
    (node.y, node.lse) = (y, lse);
}

/// `scores [n, hi - lo] = q kᵀ`, keys from lo on.
fn score<T: Small>(
    keys: &Panels<T>,
    q: View<'_, T>,
    lo: usize,
    hi: usize,
    scores: &mut [f32],
    stride: usize,
) {
    for (i, block) in (lo / BLOCK..hi.div_ceil(BLOCK)).enumerate() {
        keys.multiply(block, q, &mut scores[i * BLOCK..], stride, false);
    }
}

impl Function for Blocks {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = ATTENTION.enter();
        let Some(dy) = &grads[0] else { return vec![None, None, None] };
        let dy = dy.contiguous();
        let all = match dy.kind() {
            Kind::BFloat16 => backward::<tch_ext::bf16>(self, &dy),
            _ => backward::<f32>(self, &dy),
        };
        all.into_iter().map(Some).collect()
    }
}

fn backward<T: Number<Wide = f32> + Small>(node: &Blocks, dy: &Tensor) -> [Tensor; 3] {
    let s = node.sizes;
    let size = node.q.size();
    let rows = (size[0] * size[1]) as usize;
    let padded = s.s.next_multiple_of(BLOCK);
    let mut dq = node.q.empty_like();
    // Of each query head: dKᵀ and dVᵀ [dim, keys], summed in f32. All keys are written, if queries see them all.
    let size = [rows as i64, (s.dim * padded) as i64];
    let options = (Kind::Float, Device::Cpu);
    let wide = || if s.t == s.s { Tensor::empty(size, options) } else { Tensor::zeros(size, options) };
    let (mut dkt, mut dvt) = (wide(), wide());
    let (q, k, v, y) = (read::<T>(&node.q), read::<T>(&node.k), read::<T>(&node.v), read::<T>(&node.y));
    let (dy, lse) = (read::<T>(dy), read::<f32>(&node.lse));
    let work = (
        Rows { data: write::<T>(&mut dq), width: s.t * s.dim },
        Rows { data: write::<f32>(&mut dkt), width: s.dim * padded },
        Rows { data: write::<f32>(&mut dvt), width: s.dim * padded },
    );
    parallel_rows(work, rows, 1, |first, _, (dq, dkt, dvt)| {
        let (mut kt, mut vt, mut keys) = (Panels::<T>::default(), Panels::default(), Panels::default());
        let (mut ds_panel, mut p_panel) = (Panels::<T>::default(), Panels::default());
        let (mut scores, mut dp) = (Vec::new(), Vec::new());
        let (mut p, mut ds) = (Vec::new(), Vec::new());
        let (mut qt, mut dyt) = (vec![T::narrow(0.0); BLOCK * s.dim], vec![T::narrow(0.0); BLOCK * s.dim]);
        let mut sums = vec![0f32; BLOCK * s.dim];
        let out = dq.data.chunks_exact_mut(s.t * s.dim);
        let sums_of_keys =
            dkt.data.chunks_exact_mut(s.dim * padded).zip(dvt.data.chunks_exact_mut(s.dim * padded));
        for (i, (dq, (dkt, dvt))) in out.zip(sums_of_keys).enumerate() {
            let row = first + i;
            let mine = row * s.t * s.dim..(row + 1) * s.t * s.dim;
            let (q, y, dy) = (&q[mine.clone()], &y[mine.clone()], &dy[mine]);
            let theirs = s.key_row(row) * s.s * s.dim..(s.key_row(row) + 1) * s.s * s.dim;
            let (k, v) =
                (View::new(&k[theirs.clone()], s.s, s.dim, s.dim), View::new(&v[theirs], s.s, s.dim, s.dim));
            if i == 0 || s.key_row(row) != s.key_row(row - 1) {
                kt.pack_transposed(k);
                vt.pack_transposed(v);
                keys.pack(k);
            }
            let mut known = 0;
            for (start, n, lo, hi) in s.blocks() {
                // From the first key on: the panel of keys has one origin.
                let (stride, origin) = (hi.next_multiple_of(BLOCK), lo);
                let at = start * s.dim..(start + n) * s.dim;
                scores.resize(BLOCK * stride, 0.0);
                dp.resize(BLOCK * stride, 0.0);
                p.resize(BLOCK * stride, T::narrow(0.0));
                ds.resize(BLOCK * stride, T::narrow(0.0));
                score(
                    &kt,
                    View::new(&q[at.clone()], n, s.dim, s.dim),
                    origin,
                    hi,
                    &mut scores[origin..],
                    stride,
                );
                score(
                    &vt,
                    View::new(&dy[at.clone()], n, s.dim, s.dim),
                    origin,
                    hi,
                    &mut dp[origin..],
                    stride,
                );
                for r in 0..n {
                    let (a, b) = s.seen(start + r);
                    let line = r * stride..(r + 1) * stride;
                    let this = (start + r) * s.dim..(start + r + 1) * s.dim;
                    let lse = lse[row * s.t + start + r];
                    probabilities(&mut scores[line.clone()], &mut p[line.clone()], a..b, s.scale(), lse);
                    let (p, dp) = (&scores[line.clone()], &dp[line.clone()]);
                    gradients(p, dp, &mut ds[line], a..b, s.scale(), inner(&y[this.clone()], &dy[this]));
                }
                for block in 0..s.dim.div_ceil(BLOCK) {
                    let sums = &mut sums[block * BLOCK..];
                    keys.multiply(block, View::new(&ds, n, hi, stride), sums, s.dim, false);
                }
                store(&mut dq[at.clone()], &sums);
                turn(&q[at.clone()], &mut qt, s.dim);
                turn(&dy[at], &mut dyt, s.dim);
                ds_panel.pack(View::new(&ds, n, stride, stride));
                p_panel.pack(View::new(&p, n, stride, stride));
                for block in origin / BLOCK..hi.div_ceil(BLOCK) {
                    let left = |t| View::new(t, s.dim, n, BLOCK);
                    let more = block < known;
                    ds_panel.multiply(block, left(&qt), &mut dkt[block * BLOCK..], padded, more);
                    p_panel.multiply(block, left(&dyt), &mut dvt[block * BLOCK..], padded, more);
                }
                known = hi.div_ceil(BLOCK);
            }
        }
    });
    [dq, gathered::<T>(node, &dkt, padded), gathered::<T>(node, &dvt, padded)]
}

/// `[n, dim]` to `[dim, BLOCK]`, zeros behind.
fn turn<T: Number<Wide = f32> + Small>(from: &[T], to: &mut [T], dim: usize) {
    let n = from.len() / dim;
    transpose(View::new(from, n, dim, dim), to, BLOCK);
    if n < BLOCK {
        to.chunks_exact_mut(BLOCK).for_each(|row| row[n..].fill(T::narrow(0.0)));
    }
}

/// The sums of the query heads that share a key head, transposed back: `[batch, kv_heads, s, dim]`.
fn gathered<T: Number<Wide = f32>>(node: &Blocks, sums: &Tensor, padded: usize) -> Tensor {
    let s = node.sizes;
    let mut out = node.k.empty_like();
    let sums = read::<f32>(sums);
    let rows = out.numel() / (s.s * s.dim);
    parallel_rows(Rows { data: write::<T>(&mut out), width: s.s * s.dim }, rows, 1, |first, _, out| {
        let (mut total, mut turned) = (vec![0f32; s.dim * padded], vec![0f32; padded * s.dim]);
        for (i, out) in out.data.chunks_exact_mut(s.s * s.dim).enumerate() {
            // Key heads and query heads lie in one order over batch and heads.
            let mut heads = sums[(first + i) * s.group * s.dim * padded..].chunks_exact(s.dim * padded);
            total.copy_from_slice(heads.next().unwrap_or_default());
            heads.take(s.group - 1).for_each(|head| add(&mut total, head));
            transpose(View::new(&total, s.dim, padded, padded), &mut turned, s.dim);
            store(out, &turned);
        }
    });
    out
}
