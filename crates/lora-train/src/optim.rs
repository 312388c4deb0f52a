//! AdamW in one pass over flat memory.

use lora_core::{Error, Result};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::{Region, Rows, elements, elements_mut, parallel_rows};

use crate::arena::{Arena, GRAIN};

pub(crate) static OPTIMISER: Region = Region::new("optimiser");

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

/// The optimiser: two moments of each number of an [`Arena`], in its dtype.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: i32,
    m: Tensor,
    v: Tensor,
}

impl AdamW {
    /// Moments of zero.
    pub fn new(arena: &Arena, config: AdamWConfig) -> Self {
        let _inside = OPTIMISER.enter();
        let zeros = || arena.values().zeros_like();
        Self { config, step: 0, m: zeros(), v: zeros() }
    }

    /// The first and the second.
    pub(crate) fn moments(&self) -> (&Tensor, &Tensor) {
        (&self.m, &self.v)
    }

    /// As it was after so many steps.
    pub(crate) fn restore(&mut self, steps: u64, (m, v): (&Tensor, &Tensor)) {
        let _guard = tch::no_grad_guard();
        self.step = i32::try_from(steps).unwrap_or(i32::MAX);
        self.m.copy_(m);
        self.v.copy_(v);
    }

    /// A SHA-256 of all that the next step starts from: the parameters' names, sizes and numbers, and this state.
    pub(crate) fn fingerprint(&self, arena: &Arena) -> Result<[u8; 32]> {
        let mut hash = Sha256::new();
        hash.update(self.step.to_le_bytes());
        let names = arena.names();
        hash.update((names.len() as u64).to_le_bytes());
        hash.update(names);
        for tensor in [arena.values(), &self.m, &self.v] {
            let bytes = tensor.detach().to_device(Device::Cpu).contiguous().view_dtype(Kind::Uint8);
            let bytes = elements::<u8>(&bytes);
            hash.update(bytes.ok_or_else(|| Error::internal("a tensor's bytes are not at hand"))?);
        }
        Ok(hash.finalize().into())
    }

    /// One step along the gradients of `arena`, the one from the start; then they are zero. The arithmetic is that
    /// of `torch.optim.AdamW`.
    pub fn step(&mut self, arena: &mut Arena, lr: f64) {
        let _inside = OPTIMISER.enter();
        let _guard = tch::no_grad_guard();
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        self.step += 1;
        let (bias1, bias2) = (1.0 - beta1.powi(self.step), 1.0 - beta2.powi(self.step));
        let (m, v) = (&mut self.m, &mut self.v);
        let (p, g) = arena.both_mut();
        if let Some(ready) = SOURCE.on(&[p], 1) {
            let n = p.numel();
            let of = |t| Arg::Of(t, p.kind(), n);
            let constants =
                [1.0 - lr * weight_decay, 1.0 - beta1, beta2, 1.0 - beta2, bias2.sqrt(), eps, lr / bias1];
            let tensors = [of(p), of(g), of(m), of(v), Arg::Int(n)];
            let args: Vec<Arg<'_>> = tensors.into_iter().chain(constants.map(Arg::Float)).collect();
            return ready.run("step", n.div_ceil(256).min(1 << 14), 256, &args);
        }
        if let (Some(p), Some(g)) = (elements_mut(p), elements_mut(g))
            && let (Some(m), Some(v)) = (elements_mut(m), elements_mut(v))
        {
            let rates = Rates {
                decay: (1.0 - lr * weight_decay) as f32,
                first: (1.0 - beta1) as f32,
                beta2: beta2 as f32,
                second: (1.0 - beta2) as f32,
                root: bias2.sqrt() as f32,
                eps: eps as f32,
                step: (lr / bias1) as f32,
            };
            let (n, row) = (p.len(), |data| Rows { data, width: 1 });
            let work = ((row(p), row(g)), (row(m), row(v)));
            return parallel_rows(work, n, GRAIN, |_, _, ((p, g), (m, v))| {
                step(p.data, g.data, m.data, v.data, rates);
            });
        }
        // f64, or elsewhere: the same in torch's operations.
        if weight_decay != 0.0 {
            let _ = p.g_mul_scalar_(1.0 - lr * weight_decay);
        }
        let _ = m.lerp_(g, 1.0 - beta1);
        let _ = v.g_mul_scalar_(beta2).addcmul_(&(&*g * (1.0 - beta2)), g);
        let denominator = (v.sqrt() / bias2.sqrt()).g_add_scalar_(eps);
        let _ = p.g_sub_(&(&*m / denominator).g_mul_scalar_(lr / bias1));
        let _ = g.zero_();
    }
}

// The kernel reads and writes n elements of four tensors.
static SOURCE: Source = tch_ext::cuda_source!("optim", include_str!("optim.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

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
    fn step(p: &mut [f32], g: &mut [f32], m: &mut [f32], v: &mut [f32], r: Rates) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            *m += (*g - *m) * r.first;
            *v = *v * r.beta2 + r.second * *g * *g;
            *g = 0.0;
            *p = *p * r.decay - r.step * (*m / (v.sqrt() / r.root + r.eps));
        }
    }
}

#[cfg(test)]
mod tests {
    use lora_core::Param;

    use super::*;

    /// The same numbers in another factor, or in other rows, are another start.
    #[test]
    fn a_fingerprint_is_of_names_and_sizes_too() {
        let of = |name: &'static str, size: [i64; 2]| {
            let tensor = Tensor::ones(size, (Kind::Float, Device::Cpu)).set_requires_grad(true);
            let arena = Arena::new(vec![Param { module: "m".into(), name, tensor }]).unwrap();
            AdamW::new(&arena, AdamWConfig::default()).fingerprint(&arena).unwrap()
        };
        let one = of("lora_A.weight", [2, 6]);
        assert_eq!(one, of("lora_A.weight", [2, 6]));
        assert_ne!(one, of("lora_B.weight", [2, 6]));
        assert_ne!(one, of("lora_A.weight", [6, 2]));
    }
}
