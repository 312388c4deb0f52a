//! Root-mean-square norm.

use lora_core::Input;
use tch::Tensor;
use tch_ext::number::{Number, Wide, dot, read, sum, write};
use tch_ext::{Function, Rows, Saved, attach, kernel, parallel_rows, simd};

use super::{ELEMENTWISE, cuda, wide};

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in f32, in x's dtype
/// (Zhang and Sennrich 2019; transformers' `LlamaRMSNorm`). Saves x and one number a row; a layer that reads it need
/// not keep it. The weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Input {
    rms_norm_beside(x, weight, eps).1
}

/// x once more, and its norm: whoever adds to x later takes it from here, so that both gradients meet in one pass.
pub(crate) fn rms_norm_beside(x: &Tensor, weight: &Tensor, eps: f64) -> (Tensor, Input) {
    let _inside = ELEMENTWISE.enter();
    let guard = tch::no_grad_guard();
    let flat = x.detach().contiguous();
    let weight = weight.to_kind(x.kind()).contiguous();
    let both = cuda::rms_norm(&flat, &weight, eps).or_else(|| kernel!(x, forward(&flat, &weight, eps)));
    let (y, inverse) = both.unwrap_or_else(|| definition(&flat, &weight, eps));
    drop(guard);
    let node = RmsNorm { x: Saved::new(flat.shallow_clone()), weight: Saved::new(weight), inverse };
    let kept = node.share();
    let both = attach(&[&y, &flat], &[x], node).expect("the tensors are defined");
    (both[1].shallow_clone(), Input::remade(&both[0], move || kept.again()))
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
    x: Saved,
    weight: Saved,
    inverse: Tensor,
}

impl Function for RmsNorm {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = ELEMENTWISE.enter();
        let beside = grads[1].as_ref().map(Tensor::contiguous);
        let Some(g) = grads[0].as_ref().map(Tensor::contiguous) else { return vec![beside] };
        let (x, weight) = (self.x.get(), self.weight.get());
        let dx = cuda::rms_norm_gradient(&g, beside.as_ref(), x, weight, &self.inverse);
        let dx = dx.or_else(|| kernel!(&g, gradient(&g, beside.as_ref(), self)));
        vec![Some(dx.unwrap_or_else(|| self.definition(&g, beside.as_ref())))]
    }
}

impl RmsNorm {
    fn share(&self) -> Self {
        let Self { x, weight, inverse } = self;
        Self { x: x.share(), weight: weight.share(), inverse: inverse.shallow_clone() }
    }

    /// The norm again.
    fn again(&self) -> Tensor {
        let _inside = ELEMENTWISE.enter();
        let (x, weight, inverse) = (self.x.get(), self.weight.get(), &self.inverse);
        cuda::rms_norm_again(x, weight, inverse)
            .or_else(|| kernel!(x, again(x, weight, inverse)))
            .unwrap_or_else(|| scaled(x, weight, inverse))
    }

    fn definition(&self, g: &Tensor, beside: Option<&Tensor>) -> Tensor {
        let x = self.x.get();
        let g = wide(g) * self.weight.get();
        let unit = wide(x) * &self.inverse;
        let along = (&g * &unit).mean_dim(Some([-1i64].as_slice()), true, None);
        let dx = (g - unit * along) * &self.inverse;
        beside.map_or(dx.shallow_clone(), |beside| &dx + beside).to_kind(x.kind())
    }
}

fn gradient<T: Number>(g: &Tensor, beside: Option<&Tensor>, node: &RmsNorm) -> Tensor {
    let mut dx = g.empty_like();
    let (g, x, w) = (read::<T>(g), read::<T>(node.x.get()), read::<T>(node.weight.get()));
    let (inverse, beside) = (read::<T::Wide>(&node.inverse), beside.map(read::<T>));
    let width = w.len();
    let out = Rows { data: write::<T>(&mut dx), width };
    parallel_rows(out, inverse.len(), GRAIN, |first, n, out| {
        let mine = first * width..(first + n) * width;
        let beside = beside.map(|beside| &beside[mine.clone()]);
        gradients(out.data, &g[mine.clone()], &x[mine], w, &inverse[first..first + n], beside);
    });
    dx
}

simd! {
    fn gradients<T: Number>(
        dx: &mut [T], g: &[T], x: &[T], w: &[T], inverse: &[T::Wide], beside: Option<&[T]>,
    ) {
        let width = w.len();
        let rows = dx.chunks_exact_mut(width).zip(g.chunks_exact(width)).zip(x.chunks_exact(width));
        for (i, (((dx, g), x), &inverse)) in rows.zip(inverse).enumerate() {
            let along = T::Wide::of(dot(g, w, x) / width as f64) * inverse * inverse;
            let row = dx.iter_mut().zip(g).zip(w).zip(x);
            match beside {
                Some(beside) => {
                    for ((((dx, g), w), x), b) in row.zip(&beside[i * width..]) {
                        *dx = T::narrow((g.wide() * w.wide() - x.wide() * along) * inverse + b.wide());
                    }
                }
                None => {
                    for (((dx, g), w), x) in row {
                        *dx = T::narrow((g.wide() * w.wide() - x.wide() * along) * inverse);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// `x + f(norm(x))`: the gradients of both ways meet.
    #[test]
    fn what_passes_beside_the_norm_has_its_gradient_too() {
        let random = |size: &[i64]| Tensor::randn(size, (Kind::Double, Device::Cpu));
        let (x, w) = (random(&[3, 8]), random(&[8]));
        let worst = tch_ext::check_gradients(&[x], |t| {
            let (beside, y) = rms_norm_beside(&t[0], &w, 1e-5);
            beside * 3.0 + y.tensor().sin()
        });
        assert!(worst < 1e-7, "{worst:e}");
    }
}
