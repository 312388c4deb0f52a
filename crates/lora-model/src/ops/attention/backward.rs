//! The gradients of attention in blocks: with P made again, `dV = Pᵀ dY`, `dS = scale P ∘ (dY Vᵀ - y·dy)`,
//! `dQ = dS K`, `dK = dSᵀ Q` (Dao et al. 2022, appendix B.2).

use tch::{Device, Kind, Tensor};
use tch_ext::number::{Number, read, write};
use tch_ext::{Panels, Rows, Saved, Small, View, parallel_rows, transpose};

use super::blocks::{Blocks, Packed, grow, score};
use super::layout::{BLOCK, Layout, Range, Run, Text, Units};
use super::rows::{add, gradients, inner, probabilities, store};

pub(super) fn backward<T: Number<Wide = f32> + Small>(node: &Blocks, dy: &Tensor) -> [Tensor; 3] {
    let s = &node.layout;
    let [q, k, v, y] = [&node.q, &node.k, &node.v, &node.y].map(Saved::get);
    let mut dq = q.empty_like();
    // Of each text of each query head: dKᵀ and dVᵀ [dim, keys], summed in f32. All keys are written, if each has a
    // query, which sees it.
    let (dq_bounds, sums_bounds) =
        (s.bounds(|text| text.queries * s.dim), s.bounds(|text| s.dim * padded(text)));
    let size = [sums_bounds.last().map_or(0, |&n| n as i64)];
    let options = (Kind::Float, Device::Cpu);
    let whole = s.texts.iter().all(|text| text.keys() == text.queries);
    let wide = || if whole { Tensor::empty(size, options) } else { Tensor::zeros(size, options) };
    let (mut dkt, mut dvt) = (wide(), wide());
    let [q, k, v, y] = [q, k, v, y].map(read::<T>);
    let (dy, lse) = (read::<T>(dy), read::<f32>(&node.lse));
    let work = (
        Units { data: write::<T>(&mut dq), bounds: &dq_bounds },
        Units { data: write::<f32>(&mut dkt), bounds: &sums_bounds },
        Units { data: write::<f32>(&mut dvt), bounds: &sums_bounds },
    );
    parallel_rows(work, s.units(), 1, |first, _, (dq, dkt, dvt)| {
        let (mut buffers, mut packed) = (Buffers::new(s.dim), Packed::<Keys<T>>::default());
        for (i, (dq, (dkt, dvt))) in dq.each().zip(dkt.each().zip(dvt.each())).enumerate() {
            let (row, text) = ((first + i) / s.texts.len(), (first + i) % s.texts.len());
            let keys = packed.of(s, row, text, (k, v), |keys, k, v| {
                keys.turned.pack_transposed(k);
                keys.values_turned.pack_transposed(v);
                keys.plain.pack(k);
            });
            let text = &s.texts[text];
            let start = row * s.t + text.query;
            let mine = start * s.dim..(start + text.queries) * s.dim;
            let head = Head { q: &q[mine.clone()], y: &y[mine.clone()], dy: &dy[mine], lse: &lse[start..] };
            let mut known = 0;
            for range in s.blocks(text) {
                buffers.block(s, text, (keys, &head), range, (&mut *dq, &mut *dkt, &mut *dvt), known);
                known = range.keys().end;
            }
        }
    });
    [dq, gathered::<T>(node, &dkt, &sums_bounds), gathered::<T>(node, &dvt, &sums_bounds)]
}

fn padded(text: &Text) -> usize {
    text.keys().next_multiple_of(BLOCK)
}

/// A text's keys and values, as the products want them.
struct Keys<T> {
    turned: Panels<T>,
    values_turned: Panels<T>,
    plain: Panels<T>,
}

impl<T> Default for Keys<T> {
    fn default() -> Self {
        Self { turned: Panels::default(), values_turned: Panels::default(), plain: Panels::default() }
    }
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

    /// One block of queries: its dq, and what it adds to dkt and dvt. Blocks of keys from `known` on are new.
    fn block(
        &mut self,
        s: &Layout,
        text: &Text,
        (keys, head): (&Keys<T>, &Head<'_, T>),
        range: Range,
        (dq, dkt, dvt): (&mut [T], &mut [f32], &mut [f32]),
        known: usize,
    ) {
        let Range { start, n, lo, hi, stride } = range;
        let at = start * s.dim..(start + n) * s.dim;
        grow(&mut self.scores, BLOCK * stride, 0.0);
        grow(&mut self.dp, BLOCK * stride, 0.0);
        grow(&mut self.p, BLOCK * stride, T::narrow(0.0));
        grow(&mut self.ds, BLOCK * stride, T::narrow(0.0));
        let block = |x| View::new(x, n, s.dim, s.dim);
        score(&keys.turned, block(&head.q[at.clone()]), range, &mut self.scores);
        score(&keys.values_turned, block(&head.dy[at.clone()]), range, &mut self.dp);
        for r in 0..n {
            let (a, b) = s.seen(text, start + r);
            let (seen, line) = (a - lo..b - lo, r * stride..(r + 1) * stride);
            let this = (start + r) * s.dim..(start + r + 1) * s.dim;
            let (scores, p) = (&mut self.scores[line.clone()], &mut self.p[line.clone()]);
            probabilities(scores, p, seen.clone(), s.scale(), head.lse[start + r]);
            let along = inner(&head.y[this.clone()], &head.dy[this]);
            gradients(scores, &self.dp[line.clone()], &mut self.ds[line], seen, s.scale(), along);
        }
        for block in 0..s.dim.div_ceil(BLOCK) {
            let ds = View::new(&self.ds, n, hi - lo, stride);
            keys.plain.multiply(block, lo, ds, &mut self.sums[block * BLOCK..], s.dim, false);
        }
        store(&mut dq[at.clone()], &self.sums);
        turn(&head.q[at.clone()], &mut self.turned[0], s.dim);
        turn(&head.dy[at], &mut self.turned[1], s.dim);
        self.ds_panel.pack(View::new(&self.ds, n, stride, stride));
        self.p_panel.pack(View::new(&self.p, n, stride, stride));
        for (i, block) in range.keys().enumerate() {
            let left = |t| View::new(t, s.dim, n, BLOCK);
            let (to, wide, more) = (block * BLOCK, padded(text), block < known);
            self.ds_panel.multiply(i, 0, left(&self.turned[0]), &mut dkt[to..], wide, more);
            self.p_panel.multiply(i, 0, left(&self.turned[1]), &mut dvt[to..], wide, more);
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
fn gathered<T: Number<Wide = f32>>(node: &Blocks, sums: &Tensor, bounds: &[usize]) -> Tensor {
    let s = &node.layout;
    let mut out = node.k.get().empty_like();
    let sums = read::<f32>(sums);
    let (count, key_rows) = (s.texts.len(), s.rows / s.group);
    // What is shared lies in front of this.
    let ends = s.texts.iter().flat_map(|text| &text.leads).map(|run| run.start + run.len);
    let leads = ends.max().unwrap_or(0);
    parallel_rows(Rows { data: write::<T>(&mut out), width: s.s * s.dim }, key_rows, 1, |first, _, out| {
        let (mut total, mut turned, mut shared) = (Vec::new(), Vec::new(), vec![0f32; leads * s.dim]);
        for (i, out) in out.data.chunks_exact_mut(s.s * s.dim).enumerate() {
            shared.fill(0.0);
            // From the last, so that what texts share comes when all that go on from it have been.
            for (j, text) in s.texts.iter().enumerate().rev() {
                // Key heads and query heads lie in one order over batch and heads.
                let unit = |head: usize| {
                    let unit = ((first + i) * s.group + head) * count + j;
                    &sums[bounds[unit]..bounds[unit + 1]]
                };
                total.clear();
                total.extend_from_slice(unit(0));
                (1..s.group).for_each(|head| add(&mut total, unit(head)));
                turned.resize(total.len(), 0.0);
                transpose(View::new(&total, s.dim, padded(text), padded(text)), &mut turned, s.dim);
                let place = |run: Run| run.start * s.dim..(run.start + run.len) * s.dim;
                let mut own = &mut turned[..];
                for &lead in &text.leads {
                    let (of_lead, rest) = own.split_at_mut(lead.len * s.dim);
                    add(&mut shared[place(lead)], of_lead);
                    own = rest;
                }
                if text.own.start < leads {
                    add(own, &shared[place(text.own)]);
                }
                store(&mut out[place(text.own)], own);
            }
        }
    });
    out
}
