//! The gated activation.

use lora_core::Input;
use tch::Tensor;
use tch_ext::number::{Number, Wide, read, write};
use tch_ext::{Function, Rows, Saved, attach, kernel, parallel_rows, simd};

use super::{ELEMENTWISE, cuda, one};

/// `silu(gate) * up` (Shazeer 2020). Saves its two inputs; a layer that reads it need not keep it.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Input {
    let flat = |t: &Tensor| Saved::new(t.detach().contiguous());
    let node = SwiGlu { gate: flat(gate), up: flat(up) };
    let (y, kept) = (node.value(), node.share());
    let y = one(attach(&[&y], &[gate, up], node));
    Input::remade(&y, move || kept.value())
}

/// Elements that are worth a thread of their own.
const GRAIN: usize = 8192;

fn forward<T: Number>(gate: &Tensor, up: &Tensor) -> Tensor {
    let mut y = gate.empty_like();
    let (gate, up) = (read::<T>(gate), read::<T>(up));
    let out = Rows { data: write::<T>(&mut y), width: 1 };
    parallel_rows(out, gate.len(), GRAIN, |first, n, out| {
        let (gate, up) = (&gate[first..first + n], &up[first..first + n]);
        values(out.data, gate, up);
    });
    y
}

simd! {
    fn values<T: Number>(y: &mut [T], gate: &[T], up: &[T]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = T::narrow(g.wide() * sigmoid(g.wide()) * u.wide());
        }
    }
}

#[inline(always)]
fn sigmoid<W: Wide>(x: W) -> W {
    W::of(1.0) / (W::of(1.0) + (-x).exp())
}

struct SwiGlu {
    gate: Saved,
    up: Saved,
}

impl Function for SwiGlu {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        let _inside = ELEMENTWISE.enter();
        let Some(g) = grads[0].as_ref().map(Tensor::contiguous) else { return vec![None, None] };
        let (gate, up) = (self.gate.get(), self.up.get());
        let both = cuda::swiglu_gradient(&g, gate, up);
        let both = both.or_else(|| kernel!(&g, gradient(&g, gate, up)));
        let [d_gate, d_up] = both.unwrap_or_else(|| [gate.silu_backward(&(&g * up)), &g * gate.silu()]);
        vec![Some(d_gate), Some(d_up)]
    }
}

impl SwiGlu {
    fn share(&self) -> Self {
        Self { gate: self.gate.share(), up: self.up.share() }
    }

    fn value(&self) -> Tensor {
        let (_inside, _guard) = (ELEMENTWISE.enter(), tch::no_grad_guard());
        let (gate, up) = (self.gate.get(), self.up.get());
        let y = cuda::swiglu(gate, up).or_else(|| kernel!(gate, forward(gate, up)));
        y.unwrap_or_else(|| gate.silu() * up)
    }
}

fn gradient<T: Number>(dy: &Tensor, gate: &Tensor, up: &Tensor) -> [Tensor; 2] {
    let (mut d_gate, mut d_up) = (dy.empty_like(), dy.empty_like());
    let (dy, gate, up) = (read::<T>(dy), read::<T>(gate), read::<T>(up));
    let out =
        (Rows { data: write::<T>(&mut d_gate), width: 1 }, Rows { data: write::<T>(&mut d_up), width: 1 });
    parallel_rows(out, dy.len(), GRAIN, |first, n, (d_gate, d_up)| {
        let (dy, gate, up) = (&dy[first..first + n], &gate[first..first + n], &up[first..first + n]);
        gradients(d_gate.data, d_up.data, dy, gate, up);
    });
    [d_gate, d_up]
}

simd! {
    fn gradients<T: Number>(d_gate: &mut [T], d_up: &mut [T], dy: &[T], gate: &[T], up: &[T]) {
        let one = T::Wide::of(1.0);
        let out = d_gate.iter_mut().zip(d_up);
        for ((((d_gate, d_up), dy), g), up) in out.zip(dy).zip(gate).zip(up) {
            let (dy, g) = (dy.wide(), g.wide());
            let s = sigmoid(g);
            *d_up = T::narrow(dy * g * s);
            *d_gate = T::narrow(dy * up.wide() * s * (one + g * (one - s)));
        }
    }
}
