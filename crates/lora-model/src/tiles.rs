//! Causal attention as plain products over tiles of queries: for half precision on a CPU, where libtorch's fused
//! kernel is no faster than in f32, and this is.

use lora_core::master_kind;
use tch::{Device, Kind, Tensor};
use tch_ext::Function;

/// Queries in a tile. Each sees the keys up to its tile's end: less than this many too many.
const TILE: i64 = 64;

/// Whether tiles are the faster way for such queries.
pub(crate) fn pay(q: &Tensor) -> bool {
    q.device() == Device::Cpu && matches!(q.kind(), Kind::BFloat16 | Kind::Half)
}

/// `softmax(q kᵀ / √head_dim) v`, causal, of `q [B, heads, T, head_dim]` and `k, v [B, kv_heads, T, head_dim]`.
/// Saves its inputs: backward computes the probabilities again.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let tiles = Tiles::new(q, k, v);
    let y = tch::no_grad(|| {
        let one = |start| tiles.ungroup(tiles.probabilities(start).0.bmm(&tiles.upto(&tiles.v, start)));
        Tensor::cat(&tiles.starts().map(one).collect::<Vec<_>>(), 2)
    });
    tch_ext::attach(&[&y], &[q, k, v], tiles).expect("the tensors are defined").swap_remove(0)
}

/// The inputs, k and v with batch and heads as one dimension: the query heads that share a key head are rows of
/// one product with it.
struct Tiles {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: f64,
}

impl Tiles {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor) -> Self {
        let size = k.size();
        let flat = |t: &Tensor| t.detach().reshape([size[0] * size[1], size[2], size[3]]);
        Self { q: q.detach(), k: flat(k), v: flat(v), scale: (size[3] as f64).powf(-0.5) }
    }

    fn starts(&self) -> impl Iterator<Item = i64> + use<> {
        (0..self.q.size()[2]).step_by(TILE as usize)
    }

    fn end(&self, start: i64) -> i64 {
        (start + TILE).min(self.q.size()[2])
    }

    /// Keys or values that the tile may see.
    fn upto(&self, t: &Tensor, start: i64) -> Tensor {
        t.narrow(1, 0, self.end(start))
    }

    /// A tile of `t [B, heads, T, head_dim]` as `[B kv_heads, group n, head_dim]`.
    fn group(&self, t: &Tensor, start: i64) -> Tensor {
        let (n, size) = (self.end(start) - start, self.q.size());
        let groups = self.k.size()[0];
        t.narrow(2, start, n).reshape([groups, size[0] * size[1] / groups * n, size[3]])
    }

    /// The way back, `[B, heads, n, head_dim]`.
    fn ungroup(&self, t: Tensor) -> Tensor {
        let size = self.q.size();
        t.view([size[0], size[1], -1, size[3]])
    }

    /// The probabilities of a tile `[B kv_heads, group n, end]`, and its scaled queries.
    fn probabilities(&self, start: i64) -> (Tensor, Tensor) {
        let (size, end) = (self.q.size(), self.end(start));
        let n = end - start;
        let q = self.group(&self.q, start) * self.scale;
        let scores = q.bmm(&self.upto(&self.k, start).transpose(1, 2));
        // Only the last square of a tile holds keys that come after a query.
        let future = Tensor::ones([n, n], (Kind::Bool, q.device())).triu(1);
        let mut square = scores.view([size[0] * size[1], n, end]).narrow(2, start, n);
        let _ = square.masked_fill_(&future, f64::NEG_INFINITY);
        (scores.softmax(-1, None), q)
    }
}

impl Function for Tiles {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let Some(dy) = &grads[0] else { return vec![None, None, None] };
        let kind = self.q.kind();
        // Every tile adds to the keys before it: the sums are kept wider than their terms.
        let sum = || self.k.zeros_like().to_kind(master_kind(kind));
        let (dk, dv, mut dq) = (sum(), sum(), Vec::new());
        for start in self.starts() {
            let (p, q) = self.probabilities(start);
            let dy = self.group(dy, start);
            let dp = dy.bmm(&self.upto(&self.v, start).transpose(1, 2));
            let ds = Tensor::internal_softmax_backward_data(&dp, &p, -1, kind);
            let _ = self.upto(&dv, start).g_add_(&p.transpose(1, 2).bmm(&dy));
            let _ = self.upto(&dk, start).g_add_(&ds.transpose(1, 2).bmm(&q));
            dq.push(self.ungroup(ds.bmm(&self.upto(&self.k, start)) * self.scale));
        }
        let size = self.q.size();
        let heads = |t: Tensor| Some(t.to_kind(kind).view([size[0], -1, size[2], size[3]]));
        vec![Some(Tensor::cat(&dq, 2)), heads(dk), heads(dv)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_the_definition() {
        tch::manual_seed(1);
        let options = (Kind::Double, Device::Cpu);
        let leaf = |heads, t| Tensor::randn([2, heads, t, 8], options).set_requires_grad(true);
        for t in [2, 64, 65, 150] {
            let (q, k, v) = (leaf(6, t), leaf(2, t), leaf(2, t));
            let spread = |x: &Tensor| x.repeat_interleave_self_int(3, 1, None);
            let future = Tensor::ones([t, t], (Kind::Bool, Device::Cpu)).triu(1);
            let scores = q.matmul(&spread(&k).transpose(-1, -2)) / 8f64.sqrt();
            let want = scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, None).matmul(&spread(&v));
            let ours = attention(&q, &k, &v);
            let weights = Tensor::randn(want.size(), options);
            let gradients = |y: &Tensor| {
                Tensor::run_backward(&[(y * &weights).sum(Kind::Double)], &[&q, &k, &v], false, false)
            };
            let far = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            assert!(far(&ours, &want) < 1e-12, "{t}: value");
            for (i, (a, b)) in gradients(&ours).iter().zip(&gradients(&want)).enumerate() {
                assert!(far(a, b) < 1e-10, "{t}: gradient {i}");
            }
        }
    }
}
