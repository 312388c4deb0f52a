//! `x W'ᵀ` for a `W'` that an adapter makes by its definition.

use tch::Tensor;
use tch_ext::{Function, Product, Saved, Sum, attach, gemm};

use super::{flat_of, like};

/// `x wᵀ + bias`, differentiable in both but the bias, by the same sums as every other layer: before the first step an adapter's
/// output is the base's to the last bit.
pub(crate) fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let (flat_x, kept) = (flat_of(x), w.detach().contiguous());
    let y = Tensor::empty([flat_x.size()[0], w.size()[0]], (x.kind(), x.device()));
    gemm(&[Sum { bias, ..Sum::new(vec![Product::transposed(&flat_x, &kept)], &y) }]);
    let node = Linear { x: Saved::new(flat_x), w: Saved::new(kept) };
    attach(&[&like(&y, x)], &[x, w], node).expect("the tensors are defined").swap_remove(0)
}

struct Linear {
    x: Saved,
    w: Saved,
}

impl Function for Linear {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let Some(dy) = &grads[0] else { return vec![None, None] };
        let flat_dy = flat_of(dy);
        let (x, w) = (self.x.get(), self.w.get());
        let (dx, dw) = (x.empty_like(), w.empty_like());
        gemm(&[
            Sum::new(vec![Product::plain(&flat_dy, w)], &dx),
            Sum::new(vec![Product::over_tokens(&flat_dy.tr().contiguous(), x)], &dw),
        ]);
        vec![Some(like(&dx, dy)), Some(dw)]
    }
}
