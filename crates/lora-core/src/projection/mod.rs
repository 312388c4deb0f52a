//! Linear layers that read one input, forward and backward.
//!
//! All storages and all methods of the normal form `W' = diag(g) (W + s B A)` go through one function:
//! `y = g ∘ (x Wᵀ + h Bᵀ) + b`, `h = x (sA)ᵀ`, every sum in f32 and rounded once. Nothing of size `[out, in]` is
//! made but the dense weight of a packed storage, and that is not kept: backward makes it again. What lies beside a weight
//! ([`crate::beside()`]) is one product more in the same sum.

mod backward;
mod definition;
mod each;
mod gain;
mod held;
mod part;

use tch::Tensor;
use tch_ext::{Product, Region, Saved, Sum, attach, gemm, grad_enabled};

use crate::adapter::Mode;
use crate::factors::Factors;
use crate::linear::Linear;
use crate::weight::master_kind;
pub use each::each_text;
pub(crate) use gain::CUDA_SOURCE;
pub use held::{Held, LayerSize};

use backward::Backward;
pub(crate) use definition::linear;
use each::Each;
use part::{Low, Part, Side, gain, hidden};

/// What layers read: a tensor, and perhaps a cheap way to make it again, so that backward need not keep it.
pub struct Input {
    x: Tensor,
    remake: Remake,
}

type Remake = Box<dyn Fn() -> Tensor + Send>;

impl Input {
    /// `x [.., in]`, and how to make it again, bit for bit.
    pub fn remade(x: &Tensor, remake: impl Fn() -> Tensor + Send + 'static) -> Self {
        Self { x: x.shallow_clone(), remake: Box::new(remake) }
    }

    /// The tensor, for readers of another kind.
    pub fn tensor(self) -> Tensor {
        self.x
    }
}

impl From<&Tensor> for Input {
    fn from(x: &Tensor) -> Self {
        let kept = Saved::new(x.detach());
        Self::remade(x, move || kept.get().shallow_clone())
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.x.fmt(f)
    }
}

/// The outputs `[.., out]` of `layers`, which read one input: one product for them all.
pub fn project(layers: &[&Linear], input: Input, mode: Mode) -> Vec<Tensor> {
    compute(layers, input, None, mode)
}

/// `residual + layer(input)`, rounded once if the layer has no gain, where [`gemm`] has a way of its own.
pub fn project_onto(residual: &Tensor, layer: &Linear, input: Input, mode: Mode) -> Tensor {
    compute(&[layer], input, Some(residual), mode).swap_remove(0)
}

static LAYERS: Region = Region::new("layers");

fn compute(layers: &[&Linear], input: Input, residual: Option<&Tensor>, mode: Mode) -> Vec<Tensor> {
    let _inside = LAYERS.enter();
    let (flat, kind) = (flat_of(&input.x), input.x.kind());
    let dense: Vec<Tensor> = layers.iter().map(|layer| layer.weight().bare(kind)).collect();
    let factors: Option<Vec<Option<Factors<'_>>>> =
        layers.iter().zip(&dense).map(|(layer, w)| layer.factors(w)).collect();
    let Some(factors) = factors else {
        // Each layer makes its own again.
        drop(dense);
        return match (layers, residual) {
            ([one], None) => vec![one.forward_by_definition(&input.x)],
            ([one], Some(residual)) => vec![residual + one.forward_by_definition(&input.x)],
            _ => layers.iter().map(|layer| layer.forward(&input.x, mode)).collect(),
        };
    };
    let trains = grad_enabled();
    // A gain's gradient needs the output by itself; without gradient it is rounded as often, so that what recompute
    // makes again is what was there.
    if let (Some(residual), true) = (residual, factors.iter().flatten().any(|f| f.gain.is_some())) {
        return vec![residual + compute(layers, input, None, mode).swap_remove(0)];
    }
    let guard = tch::no_grad_guard();
    let mut rank = 0;
    let lows = factors.iter().zip(layers).map(|(factors, layer)| {
        factors.as_ref().map(|f| Low::new(f, &flat, layer.bias(), &mut rank, (mode, trains)))
    });
    let mut lows: Vec<Option<Low>> = lows.collect();
    let (h, columns) = hidden(&flat, &lows, rank, trains);
    let side = |layer: &&Linear| {
        let side = Side::of(layer.weight(), kind)?;
        let through = side.through(&flat);
        Some((side, through))
    };
    let sides: Vec<Option<(Side, Tensor)>> = layers.iter().map(side).collect();
    // Where backward needs the sum itself, what is done to it comes after.
    let later: Vec<bool> = lows.iter().map(|low| gain(low).is_some_and(|g| g.before)).collect();
    let outs = dense.iter().zip(&later).map(|(w, &later)| {
        let kind = if later { master_kind(kind) } else { kind };
        Tensor::empty([flat.size()[0], w.size()[0]], (kind, flat.device()))
    });
    let outs: Vec<Tensor> = outs.collect();
    let mut columns = columns.iter();
    let onto = residual.map(flat_of);
    let mut sums = Vec::new();
    for (i, layer) in layers.iter().enumerate() {
        let mut products = vec![Product::transposed(&flat, &dense[i])];
        products.extend(sides[i].as_ref().map(|(side, through)| Product::transposed(through, &side.b)));
        let low = lows[i].as_ref();
        products.extend(
            low.and_then(|low| Some((low, columns.next()?))).map(|(low, h)| Product::transposed(h, &low.b)),
        );
        let gain = gain(&lows[i]).map(|g| &g.value).filter(|_| !later[i]);
        let bias = layer.bias().filter(|_| !later[i]);
        sums.push(Sum { gain, bias, onto: onto.as_ref(), ..Sum::new(products, &outs[i]) });
    }
    gemm(&sums);
    drop(sums);
    let outputs: Vec<Tensor> = layers
        .iter()
        .zip(outs)
        .zip(&mut lows)
        .map(|((layer, out), low)| {
            let gain = low.as_mut().and_then(|low| low.gain.as_mut());
            like(&gain.map_or(out.shallow_clone(), |gain| gain.finish(out, layer.bias(), kind)), &input.x)
        })
        .collect();
    drop(guard);
    let Some(h) = h.filter(|_| trains) else { return outputs };
    let mut leaves = vec![input.x.shallow_clone()];
    leaves.extend(factors.iter().flatten().flat_map(Factors::leaves).map(Tensor::shallow_clone));
    let parts = layers.iter().zip(lows).map(|(layer, low)| Part { weight: layer.weight().share(), low });
    let parts = parts.collect();
    let wants_dx = input.x.requires_grad();
    let each = Each::of(leaves.iter().skip(1), flat.size()[0]);
    leaves.extend(residual.map(Tensor::shallow_clone));
    let node = Backward { wants_dx, remake: input.remake, parts, h, each, residual: residual.is_some() };
    let (outputs, inputs): (Vec<_>, Vec<_>) = (outputs.iter().collect(), leaves.iter().collect());
    attach(&outputs, &inputs, node).expect("the tensors are defined")
}

/// `[.., width]` as `[n, width]`.
fn flat_of(t: &Tensor) -> Tensor {
    t.detach().reshape([-1, last(t)]).contiguous()
}

/// `[n, width]` with the leading sizes of `t`.
fn like(flat: &Tensor, t: &Tensor) -> Tensor {
    let mut shape = t.size();
    shape.pop();
    shape.push(last(flat));
    flat.view(shape.as_slice())
}

fn last(t: &Tensor) -> i64 {
    t.size().last().copied().unwrap_or(1)
}
