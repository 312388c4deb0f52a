//! From tokens to heads, turning by rotary positions on the way (Su et al. 2021), in Hugging Face's half-split
//! layout.

use lora_core::Input;
use tch::Tensor;
use tch_ext::number::{Number, read, write};
use tch_ext::{Function, Rows, Saved, attach, kernel, parallel_rows, simd};

use super::{ELEMENTWISE, cuda, one, wide};

/// Cosines and sines of a run of positions, `[T, head_dim / 2]`, f32 (f64 for an f64 model).
pub(crate) struct Angles {
    pub(crate) cos: Tensor,
    pub(crate) sin: Tensor,
}

impl Angles {
    fn share(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Turns `x [B, heads, T, head_dim]`.
    fn turn(&self, x: &Tensor) -> Tensor {
        let (kind, x) = (x.kind(), wide(x));
        let halves = x.chunk(2, -1);
        let (a, b) = (&halves[0], &halves[1]);
        Tensor::cat(&[a * &self.cos - b * &self.sin, b * &self.cos + a * &self.sin], -1).to_kind(kind)
    }

    fn back(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: -&self.sin }
    }
}

/// `[B, T, count * head_dim]` as `[B, count, T, head_dim]`, turned if there are angles.
pub(crate) fn heads(x: &Tensor, count: i64, angles: Option<&Angles>) -> Tensor {
    let _inside = ELEMENTWISE.enter();
    let guard = tch::no_grad_guard();
    let flat = x.detach().contiguous();
    let size = flat.size();
    let fused = on_cuda(&flat, &[size[0], count, size[1], size[2] / count], angles, false);
    let y = fused.or_else(|| kernel!(&flat, gather(&flat, count, angles))).unwrap_or_else(|| {
        let y = flat.view([size[0], size[1], count, size[2] / count]).transpose(1, 2);
        angles.map_or(y.contiguous(), |angles| angles.turn(&y))
    });
    drop(guard);
    one(attach(&[&y], &[x], Heads(angles.map(Angles::share))))
}

struct Heads(Option<Angles>);

impl Function for Heads {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = ELEMENTWISE.enter();
        vec![grads[0].as_ref().map(|g| {
            let (g, back) = (g.contiguous(), self.0.as_ref().map(Angles::back));
            let fused = on_cuda(&g, &g.size(), back.as_ref(), true);
            fused.or_else(|| kernel!(&g, scatter(&g, back.as_ref()))).unwrap_or_else(|| {
                let g = back.as_ref().map_or(g.shallow_clone(), |back| back.turn(&g)).transpose(1, 2);
                let size = g.size();
                g.reshape([size[0], size[1], size[2] * size[3]])
            })
        })]
    }
}

/// `size` is that of the heads, `[B, count, T, dim]`.
fn on_cuda(x: &Tensor, size: &[i64], angles: Option<&Angles>, back: bool) -> Option<Tensor> {
    let &[batch, count, t, dim] = size else { return None };
    let tokens = [batch, t, count * dim];
    let size = if back { &tokens[..] } else { size };
    cuda::heads(x, size, (t as usize, count as usize, dim as usize), angles, back)
}

/// The way back, `[B, heads, T, head_dim]` to `[B, T, heads * head_dim]`; a layer that reads it need not keep it.
pub(crate) fn tokens(x: &Tensor) -> Input {
    let again = |x: &Tensor| {
        let _inside = ELEMENTWISE.enter();
        x.transpose(1, 2).flatten(2, 3)
    };
    let (y, kept) = (again(x), Saved::new(x.detach()));
    Input::remade(&y, move || again(kept.get()))
}

/// Heads of one token that are worth a thread of their own.
const GRAIN: usize = 64;

fn gather<T: Number>(x: &Tensor, count: i64, angles: Option<&Angles>) -> Tensor {
    let size = x.size();
    let (t, dim) = (size[1] as usize, (size[2] / count) as usize);
    let mut y = Tensor::empty([size[0], count, size[1], dim as i64], (x.kind(), x.device()));
    let (source, count) = (read::<T>(x), count as usize);
    // Row (b, head, t) comes from (b, t, head).
    let from = |row: usize| (row / (count * t) * t + row % t) * count + row / t % count;
    turned(source, write(&mut y), dim, from, |row| row % t, angles);
    y
}

fn scatter<T: Number>(g: &Tensor, angles: Option<&Angles>) -> Tensor {
    let size = g.size();
    let (count, t, dim) = (size[1] as usize, size[2] as usize, size[3] as usize);
    let mut dx = Tensor::empty([size[0], size[2], size[1] * size[3]], (g.kind(), g.device()));
    // Row (b, t, head) comes from (b, head, t).
    let from = |row: usize| (row / (count * t) * count + row % count) * t + row / count % t;
    turned(read::<T>(g), write(&mut dx), dim, from, |row| row / count % t, angles);
    dx
}

/// Row i of `out` is row `from(i)` of `source`, turned by the angles of `position(i)`.
fn turned<T: Number>(
    source: &[T],
    out: &mut [T],
    dim: usize,
    from: impl Fn(usize) -> usize + Sync,
    position: impl Fn(usize) -> usize + Sync,
    angles: Option<&Angles>,
) {
    let half = dim / 2;
    let angles = angles.map(|a| (read::<T::Wide>(&a.cos), read::<T::Wide>(&a.sin)));
    let rows = out.len() / dim.max(1);
    parallel_rows(Rows { data: out, width: dim }, rows, GRAIN, |first, _, out| {
        for (i, out) in out.data.chunks_exact_mut(dim).enumerate() {
            let x = &source[from(first + i) * dim..][..dim];
            let at = position(first + i) * half;
            match angles {
                Some((cos, sin)) => turn(out, x, &cos[at..at + half], &sin[at..at + half]),
                None => out.copy_from_slice(x),
            }
        }
    });
}

simd! {
    fn turn<T: Number>(out: &mut [T], x: &[T], cos: &[T::Wide], sin: &[T::Wide]) {
        let ((a, b), (out_a, out_b)) = (x.split_at(cos.len()), out.split_at_mut(cos.len()));
        let angles = cos.iter().zip(sin);
        for ((((out_a, out_b), a), b), (&cos, &sin)) in out_a.iter_mut().zip(out_b).zip(a).zip(b).zip(angles) {
            let (p, q) = (a.wide(), b.wide());
            *out_a = T::narrow(p * cos - q * sin);
            *out_b = T::narrow(q * cos + p * sin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lora_core::{Linear, Mode, project};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use tch::{Device, Kind};

    #[test]
    fn heads_changed_before_they_are_read_again_are_an_error() {
        let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu));
        let layer = Linear::dense(random(&[4, 6]), None);
        let mut x = random(&[1, 2, 5, 3]).set_requires_grad(true) * 2.0;
        let y = project(&[&layer], tokens(&x), Mode::Train).swap_remove(0);
        let _ = x.g_add_scalar_(3.0);
        let error = y.sum(Kind::Float).f_backward().unwrap_err().to_string();
        assert!(error.contains("modified by an inplace operation"), "{error}");
    }

    #[test]
    fn a_panic_leaves_the_thread_its_gradients() {
        let zeros = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
        let [cos, sin] = [(); 2].map(|()| zeros(&[5, 1], Kind::Double));
        let (x, of_another_kind) = (zeros(&[1, 5, 6], Kind::Float), Angles { cos, sin });
        assert!(catch_unwind(AssertUnwindSafe(|| heads(&x, 3, Some(&of_another_kind)))).is_err());
        assert!(tch_ext::grad_enabled());
    }
}
