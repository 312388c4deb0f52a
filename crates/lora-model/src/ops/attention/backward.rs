//! The gradients of attention in blocks: with P made again, `dV = Pᵀ dY`, `dS = scale P ∘ (dY Vᵀ - y·dy)`,
//! `dQ = dS K`, `dK = dSᵀ Q` (Dao et al. 2022, appendix B.2).

use tch::{Device, Kind, Tensor};
use tch_ext::number::{Number, read, write};
use tch_ext::{Panels, Rows, Small, View, parallel_rows, transpose};

use super::blocks::{Blocks, score};
use super::layout::{BLOCK, Layout, Range};
use super::rows::{add, gradients, inner, probabilities, store};

pub(super) fn backward<T: Number<Wide = f32> + Small>(node: &Blocks, dy: &Tensor) -> [Tensor; 3] {
    let s = &node.layout;
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
        let mut buffers = Buffers::new(s.dim);
        let sums = dkt.data.chunks_exact_mut(s.dim * padded).zip(dvt.data.chunks_exact_mut(s.dim * padded));
        for (i, (dq, (dkt, dvt))) in dq.data.chunks_exact_mut(s.t * s.dim).zip(sums).enumerate() {
            let (row, key_row) = (first + i, s.key_row(first + i));
            let mine = row * s.t * s.dim..(row + 1) * s.t * s.dim;
            let theirs = key_row * s.s * s.dim;
            let of = |x| View::new(x, s.s, s.dim, s.dim);
            buffers.pack(key_row, of(&k[theirs..]), of(&v[theirs..]));
            let head =
                Head { q: &q[mine.clone()], y: &y[mine.clone()], dy: &dy[mine], lse: &lse[row * s.t..] };
            let mut known = 0;
            for range in s.blocks() {
                buffers.block(s, &head, range, dq, (&mut *dkt, &mut *dvt, padded), known);
                known = range.keys().end;
            }
        }
    });
    [dq, gathered::<T>(node, &dkt, padded), gathered::<T>(node, &dvt, padded)]
}

/// A query head.
struct Head<'a, T> {
    q: &'a [T],
    y: &'a [T],
    dy: &'a [T],
    lse: &'a [f32],
}

/// What a thread works in.
struct Buffers<T> {
    packed: Option<usize>,
    keys_turned: Panels<T>,
    values_turned: Panels<T>,
    keys: Panels<T>,
    ds_panel: Panels<T>,
    p_panel: Panels<T>,
    scores: Vec<f32>,
    dp: Vec<f32>,
    p: Vec<T>,
    ds: Vec<T>,
    turned: [Vec<T>; 2],
    sums: Vec<f32>,
}

impl<T: Number<Wide = f32> + Small> Buffers<T> {
    fn new(dim: usize) -> Self {
        let half = || vec![T::narrow(0.0); BLOCK * dim];
        Self {
            packed: None,
            keys_turned: Panels::default(),
            values_turned: Panels::default(),
            keys: Panels::default(),
            ds_panel: Panels::default(),
            p_panel: Panels::default(),
            scores: Vec::new(),
            dp: Vec::new(),
            p: Vec::new(),
            ds: Vec::new(),
            turned: [half(), half()],
            sums: vec![0.0; BLOCK * dim],
        }
    }

    fn pack(&mut self, key_row: usize, k: View<'_, T>, v: View<'_, T>) {
        if self.packed != Some(key_row) {
            self.keys_turned.pack_transposed(k);
            self.values_turned.pack_transposed(v);
            self.keys.pack(k);
            self.packed = Some(key_row);
        }
    }

    /// One block of queries: its dq, and what it adds to dkt and dvt. Blocks of keys from `known` on are new.
    fn block(
        &mut self,
        s: &Layout,
        head: &Head<'_, T>,
        range: Range,
        dq: &mut [T],
        (dkt, dvt, padded): (&mut [f32], &mut [f32], usize),
        known: usize,
    ) {
        let Range { start, n, lo, hi, stride } = range;
        let at = start * s.dim..(start + n) * s.dim;
        self.scores.resize(BLOCK * stride, 0.0);
        self.dp.resize(BLOCK * stride, 0.0);
        self.p.resize(BLOCK * stride, T::narrow(0.0));
        self.ds.resize(BLOCK * stride, T::narrow(0.0));
        let block = |x| View::new(x, n, s.dim, s.dim);
        score(&self.keys_turned, block(&head.q[at.clone()]), range, &mut self.scores);
        score(&self.values_turned, block(&head.dy[at.clone()]), range, &mut self.dp);
        for r in 0..n {
            let (a, b) = s.seen(start + r);
            let (seen, line) = (a - lo..b - lo, r * stride..(r + 1) * stride);
            let this = (start + r) * s.dim..(start + r + 1) * s.dim;
            let (scores, p) = (&mut self.scores[line.clone()], &mut self.p[line.clone()]);
            probabilities(scores, p, seen.clone(), s.scale(), head.lse[start + r]);
            let along = inner(&head.y[this.clone()], &head.dy[this]);
            gradients(scores, &self.dp[line.clone()], &mut self.ds[line], seen, s.scale(), along);
        }
        for block in 0..s.dim.div_ceil(BLOCK) {
            let ds = View::new(&self.ds, n, hi - lo, stride);
            self.keys.multiply(block, lo, ds, &mut self.sums[block * BLOCK..], s.dim, false);
        }
        store(&mut dq[at.clone()], &self.sums);
        turn(&head.q[at.clone()], &mut self.turned[0], s.dim);
        turn(&head.dy[at], &mut self.turned[1], s.dim);
        self.ds_panel.pack(View::new(&self.ds, n, stride, stride));
        self.p_panel.pack(View::new(&self.p, n, stride, stride));
        for (i, block) in range.keys().enumerate() {
            let left = |t| View::new(t, s.dim, n, BLOCK);
            let (to, more) = (block * BLOCK, block < known);
            self.ds_panel.multiply(i, 0, left(&self.turned[0]), &mut dkt[to..], padded, more);
            self.p_panel.multiply(i, 0, left(&self.turned[1]), &mut dvt[to..], padded, more);
        }
    }
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
    let s = &node.layout;
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
