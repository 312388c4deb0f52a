//! `x W'ᵀ` for a `W'` that an adapter makes by its definition, but for what lies beside the weight.

use tch::Tensor;
use tch_ext::{Function, Product, Saved, Sum, attach, gemm};

use super::part::Side;
use super::{flat_of, like};
use crate::weight::BaseWeight;

/// `x (w + what lies beside base)ᵀ + bias`, differentiable in x and w, by the same sums as every other layer: before the first
/// step an adapter's output is the base's to the last bit, if nothing lies beside. What does may turn last bits: `w` had it added
/// and taken out again.
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, base: &dyn BaseWeight) -> Tensor {
    let (flat_x, kept) = (flat_of(x), w.detach().contiguous());
    let y = Tensor::empty([flat_x.size()[0], w.size()[0]], (x.kind(), x.device()));
    let side = Side::of(base, x.kind());
    let through = side.as_ref().map(|side| (side, side.through(&flat_x)));
    let mut products = vec![Product::transposed(&flat_x, &kept)];
    products.extend(through.as_ref().map(|(side, h)| Product::transposed(h, &side.b)));
    gemm(&[Sum { bias, ..Sum::new(products, &y) }]);
    drop(through);
    let node = Linear { x: Saved::new(flat_x), w: Saved::new(kept), side };
    attach(&[&like(&y, x)], &[x, w], node).expect("the tensors are defined").swap_remove(0)
}

struct Linear {
    x: Saved,
    w: Saved,
    side: Option<Side>,
}

impl Function for Linear {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let Some(dy) = &grads[0] else { return vec![None, None] };
        let flat_dy = flat_of(dy);
        let (x, w) = (self.x.get(), self.w.get());
        let (dx, dw) = (x.empty_like(), w.empty_like());
        let back = self.side.as_ref().map(|side| (side, side.back(&flat_dy)));
        let mut products = vec![Product::plain(&flat_dy, w)];
        products.extend(back.as_ref().map(|(side, dh)| Product::plain(dh, &side.a)));
        gemm(&[Sum::new(products, &dx), Sum::new(vec![Product::over_tokens(&flat_dy, x)], &dw)]);
        vec![Some(like(&dx, dy)), Some(dw)]
    }
}
