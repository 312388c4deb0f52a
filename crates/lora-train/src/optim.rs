//! AdamW over named parameters, with a state that can be seen (libtorch's own cannot).

use lora_core::{Error, Param, Result};
use tch::{Kind, Tensor};
use tch_ext::{Region, elements, elements_mut};

static OPTIMISER: Region = Region::new("optimiser");

/// AdamW's constants (Loshchilov and Hutter 2019), torch's defaults but for the weight decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser: two moments a parameter, in the parameter's dtype.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: i32,
    moments: Vec<(Tensor, Tensor)>,
}

impl AdamW {
    /// Moments of zero.
    pub fn new(params: &[Param], config: AdamWConfig) -> Self {
        let _inside = OPTIMISER.enter();
        let moments = params.iter().map(|p| (p.tensor.zeros_like(), p.tensor.zeros_like()));
        Self { config, step: 0, moments: moments.map(|(m, v)| (m.detach(), v.detach())).collect() }
    }

    /// One step along the gradients of `params`, the same in the same order as at the start; then they are
    /// zeroed. The arithmetic is that of `torch.optim.AdamW`.
    pub fn step(&mut self, params: &[Param], lr: f64) {
        let _inside = OPTIMISER.enter();
        let _guard = tch::no_grad_guard();
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        self.step += 1;
        let (bias1, bias2) = (1.0 - beta1.powi(self.step), 1.0 - beta2.powi(self.step));
        let rates = Rates {
            decay: (1.0 - lr * weight_decay) as f32,
            first: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            second: (1.0 - beta2) as f32,
            root: bias2.sqrt() as f32,
            eps: eps as f32,
            step: (lr / bias1) as f32,
        };
        for (param, (m, v)) in params.iter().zip(&mut self.moments) {
            let (mut p, mut g) = (param.tensor.detach(), param.tensor.grad());
            if !g.defined() {
                continue;
            }
            let g_read = g.shallow_clone();
            let slices = (elements_mut(&mut p), elements(&g_read), elements_mut(m), elements_mut(v));
            if let (Some(p), Some(g), Some(m), Some(v)) = slices {
                step(p, g, m, v, rates);
            } else {
                // On another device, or f64: the same in torch's operations.
                if weight_decay != 0.0 {
                    let _ = p.g_mul_scalar_(1.0 - lr * weight_decay);
                }
                let _ = m.lerp_(&g, 1.0 - beta1);
                let _ = v.g_mul_scalar_(beta2).addcmul_(&(&g * (1.0 - beta2)), &g);
                let denominator = (v.sqrt() / bias2.sqrt()).g_add_scalar_(eps);
                let _ = p.g_sub_(&(&*m / denominator).g_mul_scalar_(lr / bias1));
            }
            let _ = g.zero_();
        }
    }
}

#[derive(Clone, Copy)]
struct Rates {
    decay: f32,
    first: f32,
    beta2: f32,
    second: f32,
    root: f32,
    eps: f32,
    step: f32,
}

tch_ext::simd! {
    fn step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], r: Rates) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            *m += (g - *m) * r.first;
            *v = *v * r.beta2 + r.second * g * g;
            *p = *p * r.decay - r.step * (*m / (v.sqrt() / r.root + r.eps));
        }
    }
}

/// Scales the gradients down to a joint norm of at most `limit` (`torch.nn.utils.clip_grad_norm_`); the norm
/// before.
///
/// # Errors
/// [`Error::non_finite`], naming the parameters, if the norm is not finite. No gradient is changed then.
pub fn clip_grad_norm(params: &[Param], limit: Option<f64>) -> Result<f64> {
    let _inside = OPTIMISER.enter();
    let grads: Vec<_> = params.iter().map(|p| p.tensor.grad()).filter(Tensor::defined).collect();
    if grads.is_empty() {
        return Ok(0.0);
    }
    let norms: Vec<_> = grads.iter().map(Tensor::norm).collect();
    let norm = Tensor::stack(&norms, 0).to_kind(Kind::Double).norm().double_value(&[]);
    if !norm.is_finite() {
        let bad: Vec<_> = params
            .iter()
            .filter(|p| p.tensor.grad().defined() && !p.tensor.grad().norm().double_value(&[]).is_finite())
            .map(Param::key)
            .take(5)
            .collect();
        return Err(Error::faults(lora_core::ErrorKind::NonFinite, "these gradients are not finite", bad)
            .hint("lower the learning rate; with bf16, try --dtype f32"));
    }
    if let Some(limit) = limit {
        let factor = limit / (norm + 1e-6);
        if factor < 1.0 {
            for mut g in grads {
                let _ = g.g_mul_scalar_(factor);
            }
        }
    }
    Ok(norm)
}
