//! Gradients against central differences.

use tch::{Kind, Tensor};

/// The largest difference, relative to `1 + |numeric|`, between the gradients that autograd gives for
/// `sum(f(inputs) * c)`, with a fixed pseudo-random `c`, and central differences. `inputs` are f64 tensors.
pub fn check_gradients(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Tensor) -> f64 {
    let leaves: Vec<_> =
        inputs.iter().map(|t| t.detach().to_kind(Kind::Double).set_requires_grad(true)).collect();
    let weights = |y: &Tensor| {
        let n = y.numel() as i64;
        (Tensor::arange(n, (Kind::Double, y.device())) * 0.7).sin().view_as(y) + 0.3
    };
    let value = |x: &[Tensor]| {
        let y = f(x);
        (weights(&y) * y).sum(Kind::Double)
    };
    value(&leaves).backward();

    let step = 1e-6;
    let mut worst = 0f64;
    for (k, leaf) in leaves.iter().enumerate() {
        let grad = leaf.grad();
        for i in 0..leaf.numel() as i64 {
            let at = |delta: f64| {
                let moved: Vec<_> = leaves.iter().map(|t| t.detach().copy()).collect();
                let _ = moved[k].view(-1).narrow(0, i, 1).g_add_scalar_(delta);
                let _guard = tch::no_grad_guard();
                value(&moved).double_value(&[])
            };
            let numeric = (at(step) - at(-step)) / (2.0 * step);
            let exact = if grad.defined() { grad.reshape(-1).double_value(&[i]) } else { 0.0 };
            worst = worst.max((numeric - exact).abs() / (1.0 + numeric.abs()));
        }
    }
    worst
}
