//! Norm, activation and loss, each a function that saves little and whose definition stands beside it in the
//! tests.

use lora_core::{Linear, Mode};
use tch::{Reduction, Tensor};
use tch_ext::{Function, attach};

/// Labels with this value are not supervised.
pub const IGNORE: i64 = -100;

/// `x / sqrt(mean(x²) + eps) * weight` over the last dimension, computed in f32, in x's dtype
/// (Zhang and Sennrich 2019; transformers' `LlamaRMSNorm`). Saves x and one number a row. The weight is frozen.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let (y, inverse) = tch::no_grad(|| {
        let x32 = wide(x);
        let inverse = (x32.square().mean_dim(Some([-1i64].as_slice()), true, None) + eps).rsqrt();
        ((x32 * &inverse).to_kind(x.kind()) * weight, inverse)
    });
    one(attach(&[&y], &[x], RmsNorm { x: x.detach(), weight: weight.shallow_clone(), inverse }))
}

struct RmsNorm {
    x: Tensor,
    weight: Tensor,
    inverse: Tensor,
}

impl Function for RmsNorm {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        vec![grads[0].as_ref().map(|g| {
            let g = wide(g) * &self.weight;
            let unit = wide(&self.x) * &self.inverse;
            let along = (&g * &unit).mean_dim(Some([-1i64].as_slice()), true, None);
            ((g - unit * along) * &self.inverse).to_kind(self.x.kind())
        })]
    }
}

/// `silu(gate) * up` (Shazeer 2020). Saves its two inputs and nothing else.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    let y = tch::no_grad(|| gate.silu() * up);
    one(attach(&[&y], &[gate, up], SwiGlu { gate: gate.detach(), up: up.detach() }))
}

struct SwiGlu {
    gate: Tensor,
    up: Tensor,
}

impl Function for SwiGlu {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        match &grads[0] {
            Some(g) => vec![Some(self.gate.silu_backward(&(g * &self.up))), Some(g * self.gate.silu())],
            None => vec![None, None],
        }
    }
}

/// The summed cross-entropy of `hidden [n, d]` through `head` against `labels [n]` (i64, [`IGNORE`]: not
/// supervised), an f32 scalar, and how many labels count.
///
/// Only supervised rows reach the head. A constant head works in chunks and makes the gradient on the way:
/// logits are never kept.
pub fn cross_entropy(hidden: &Tensor, labels: &Tensor, head: &Linear, mode: Mode) -> (Tensor, i64) {
    let rows = labels.not_equal(IGNORE).nonzero().reshape(-1);
    let count = rows.size()[0];
    let (hidden, labels) = (hidden.index_select(0, &rows), labels.index_select(0, &rows));
    let loss = match head.constant() {
        Some(base) if head.bias().is_none() => {
            chunked_cross_entropy(&hidden, &labels, &base.dense(hidden.kind()))
        }
        _ => {
            let logits = wide(&head.forward(&hidden, mode));
            logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, IGNORE, 0.0)
        }
    };
    (loss, count)
}

/// Rows whose logits exist at one time.
const CHUNK: i64 = 256;

fn chunked_cross_entropy(hidden: &Tensor, labels: &Tensor, head: &Tensor) -> Tensor {
    let wanted = hidden.requires_grad();
    let guard = tch::no_grad_guard();
    let total = Tensor::zeros([], (lora_core::master_kind(hidden.kind()), hidden.device()));
    let mut gradient = Vec::new();
    let rows = hidden.size()[0];
    for start in (0..rows).step_by(CHUNK as usize) {
        let n = CHUNK.min(rows - start);
        let (h, label) = (hidden.narrow(0, start, n), labels.narrow(0, start, n).unsqueeze(1));
        // torch's log_softmax adds up a row's 49152 terms one after another in f32, which moves gradients by 3e-4.
        let mut p = h.linear(head, None::<Tensor>).to_kind(total.kind());
        let _ = p.g_sub_(&p.amax([1i64].as_slice(), true));
        let chosen = p.gather(1, &label, false);
        let sum = p.exp_().sum_dim_intlist([1i64].as_slice(), true, None);
        let _ = total.shallow_clone().g_add_(&(sum.log() - chosen).sum(None));
        if wanted {
            let mut d = p.g_div_(&sum);
            let _ = d.scatter_add_(1, &label, &Tensor::full([n, 1], -1.0, (d.kind(), d.device())));
            gradient.push(d.to_kind(h.kind()).matmul(head));
        }
    }
    drop(guard);
    let saved = (!gradient.is_empty()).then(|| Tensor::cat(&gradient, 0));
    one(attach(&[&total], &[hidden], Scaled(saved)))
}

struct Scaled(Option<Tensor>);

impl Function for Scaled {
    fn backward(&mut self, grads: &[Option<Tensor>]) -> Vec<Option<Tensor>> {
        vec![grads[0].as_ref().zip(self.0.as_ref()).map(|(g, d)| d * g.to_kind(d.kind()))]
    }
}

/// f32, or f64 for f64.
pub(crate) fn wide(t: &Tensor) -> Tensor {
    t.to_kind(lora_core::master_kind(t.kind()))
}

fn one(outputs: Result<Vec<Tensor>, tch::TchError>) -> Tensor {
    outputs.expect("the tensors are defined").swap_remove(0)
}
