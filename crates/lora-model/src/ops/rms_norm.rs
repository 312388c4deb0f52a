//! Root-mean-square norm.

use lora_core::Input;
use tch::Tensor;
use tch_ext::{Function, Rows, attach, parallel_rows, simd};

use super::number::{Number, Wide, dot, kernel, read, sum, write};
use super::{ELEMENTWISE, one, wide};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in f32, in x's dtype
/// (Zhang and Sennrich 2019; transformers' `LlamaRMSNorm`). Saves x and one number a row; a layer that reads it need
/// not keep it. The weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Input {
    let _inside = ELEMENTWISE.enter();
    let _guard = tch::no_grad_guard();
    let flat = x.detach().contiguous();
    let weight = weight.to_kind(x.kind()).contiguous();
    let (y, inverse) =
        kernel!(x, forward(&flat, &weight, eps)).unwrap_or_else(|| definition(&flat, &weight, eps));
    drop(_guard);
    let (kept, w, inv) = (flat.shallow_clone(), weight.shallow_clone(), inverse.shallow_clone());
    let y = one(attach(&[&y], &[x], RmsNorm { x: flat, weight, inverse }));
    Input::remade(&y, move || {
        let _inside = ELEMENTWISE.enter();
        kernel!(&kept, again(&kept, &w, &inv)).unwrap_or_else(|| scaled(&kept, &w, &inv))
    })
}

fn definition(x: &Tensor, weight: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let inverse = (wide(x).square().mean_dim(Some([-1i64].as_slice()), true, None) + eps).rsqrt();
    (scaled(x, weight, &inverse), inverse)
}

fn scaled(x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Tensor {
    (wide(x) * inverse * weight).to_kind(x.kind())
}

/// Rows that are worth a thread of their own.
const GRAIN: usize = 16;

fn forward<T: Number>(x: &Tensor, weight: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let width = read::<T>(weight).len();
    let mut shape = x.size();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    let mut inverse = Tensor::empty(shape, (<T::Wide as tch_ext::Element>::KIND, x.device()));
    let source = read::<T>(x);
    let rows = source.len() / width.max(1);
    parallel_rows(Rows { data: write::<T::Wide>(&mut inverse), width: 1 }, rows, GRAIN, |first, _, out| {
        inverses(out.data, &source[first * width..], width, eps);
    });
    (again::<T>(x, weight, &inverse), inverse)
}

fn again<T: Number>(x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Tensor {
    let mut y = x.empty_like();
    let (source, w, inverse) = (read::<T>(x), read::<T>(weight), read::<T::Wide>(inverse));
    let width = w.len();
    let out = Rows { data: write::<T>(&mut y), width };
    parallel_rows(out, inverse.len(), GRAIN, |first, _, out| {
        scale(out.data, &source[first * width..], w, &inverse[first..]);
    });
    y
}

simd! {
    fn inverses<T: Number>(out: &mut [T::Wide], x: &[T], width: usize, eps: f64) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(width)) {
            let squares = sum(x, |x| x.wide() * x.wide());
            *out = T::Wide::of(1.0 / (squares / width as f64 + eps).sqrt());
        }
    }
}

simd! {
    fn scale<T: Number>(y: &mut [T], x: &[T], w: &[T], inverse: &[T::Wide]) {
        let rows = y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len()));
        for ((y, x), &inverse) in rows.zip(inverse) {
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = T::narrow(x.wide() * inverse * w.wide());
            }
        }
    }
}

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    inverse: Tensor,
}

impl Function for RmsNorm {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = ELEMENTWISE.enter();
        vec![grads[0].as_ref().map(|g| {
            let g = g.contiguous();
            kernel!(&g, gradient(&g, self)).unwrap_or_else(|| self.definition(&g))
        })]
    }
}

impl RmsNorm {
    fn definition(&self, g: &Tensor) -> Tensor {
        let g = wide(g) * &self.weight;
        let unit = wide(&self.x) * &self.inverse;
        let along = (&g * &unit).mean_dim(Some([-1i64].as_slice()), true, None);
        ((g - unit * along) * &self.inverse).to_kind(self.x.kind())
    }
}

fn gradient<T: Number>(g: &Tensor, node: &RmsNorm) -> Tensor {
    let mut dx = g.empty_like();
    let (g, x, w) = (read::<T>(g), read::<T>(&node.x), read::<T>(&node.weight));
    let inverse = read::<T::Wide>(&node.inverse);
    let width = w.len();
    let out = Rows { data: write::<T>(&mut dx), width };
    parallel_rows(out, inverse.len(), GRAIN, |first, _, out| {
        gradients(out.data, &g[first * width..], &x[first * width..], w, &inverse[first..]);
    });
    dx
}

simd! {
    fn gradients<T: Number>(dx: &mut [T], g: &[T], x: &[T], w: &[T], inverse: &[T::Wide]) {
        let width = w.len();
        let rows = dx.chunks_exact_mut(width).zip(g.chunks_exact(width)).zip(x.chunks_exact(width));
        for (((dx, g), x), &inverse) in rows.zip(inverse) {
            let along = T::Wide::of(dot(g, w, x) / width as f64) * inverse * inverse;
            for (((dx, g), w), x) in dx.iter_mut().zip(g).zip(w).zip(x) {
                *dx = T::narrow((g.wide() * w.wide() - x.wide() * along) * inverse);
            }
        }
    }
}
