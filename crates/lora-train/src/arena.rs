//! All trainable parameters in one flat tensor, and their gradients in another, so that what is done to all of them
//! is done in one pass.

use lora_core::{Error, ErrorKind, Param, Result};
use tch::{Kind, Tensor};
use tch_ext::{Region, changed, elements, elements_mut, number, parallel_rows, set_grad};

use crate::optim::OPTIMISER;

static ADAPTERS: Region = Region::new("adapters");

/// The parameters, from now on views of `values`, with gradients that are views of `grads`: backward passes add to
/// them. What is done to a flat tensor is done to its views, and the other way round; the leaves stay the leaves that
/// they were.
#[derive(Debug)]
pub struct Arena {
    values: Tensor,
    grads: Tensor,
    params: Vec<Param>,
    /// How many numbers each layer has.
    layers: Vec<usize>,
}

/// Norms of gradients.
#[derive(Debug, Clone, PartialEq)]
pub struct Norms {
    /// Of all together.
    pub joint: f64,
    /// Of each layer that trains, lowest first; a module that lies in no numbered layer counts as one.
    pub layers: Vec<f64>,
}

/// Elements that are worth a thread of their own.
pub(crate) const GRAIN: usize = 16_384;

impl Arena {
    /// Moves `params` together; gradients of zero.
    ///
    /// # Errors
    /// [`Error::usage`] if there are none, or they differ in dtype or device.
    pub fn new(params: Vec<Param>) -> Result<Self> {
        let _inside = ADAPTERS.enter();
        let _guard = tch::no_grad_guard();
        let of = |p: &Param| (p.tensor.kind(), p.tensor.device());
        let Some(first) = params.first() else {
            return Err(Error::usage("nothing trains").hint("attach an adapter first"));
        };
        if let Some(other) = params.iter().find(|p| of(p) != of(first)) {
            let text = format!("{:?}, where {} is {:?}", of(other), first.key(), of(first));
            return Err(Error::usage(text)
                .at(other.key())
                .hint("train parameters of one dtype on one device"));
        }
        let flat: Vec<Tensor> = params.iter().map(|p| p.tensor.detach().reshape(-1)).collect();
        let values = Tensor::cat(&flat, 0);
        drop(flat);
        let grads = values.zeros_like();
        let mut start = 0;
        for p in &params {
            let view = |t: &Tensor| t.narrow(0, start, p.tensor.numel() as i64).view(&p.tensor.size()[..]);
            let (value, grad) = (view(&values), view(&grads));
            p.tensor.shallow_clone().set_data(&value);
            changed(&p.tensor);
            set_grad(&p.tensor, Some(&grad));
            start += p.tensor.numel() as i64;
        }
        let layers = layers(&params);
        Ok(Self { values, grads, params, layers })
    }

    /// The parameters, in the order of their numbers.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Their names and sizes, a line each, in that order.
    pub(crate) fn names(&self) -> String {
        self.params.iter().map(|p| format!("{} {:?}\n", p.key(), p.tensor.size())).collect()
    }

    /// All numbers `[n]`, to be read: copies that were made of a parameter would not see a change that goes past it.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// All gradients `[n]`.
    pub fn grads(&self) -> &Tensor {
        &self.grads
    }

    /// Values to be changed, and gradients to be read or cleared, together; the parameters count as changed.
    pub(crate) fn both_mut(&mut self) -> (&mut Tensor, &mut Tensor) {
        self.params.iter().for_each(|p| changed(&p.tensor));
        (&mut self.values, &mut self.grads)
    }

    /// Gradients of zero.
    pub fn zero_grads(&mut self) {
        let _ = self.grads.zero_();
    }

    /// Room for the gradients of `texts` texts `[texts, n]`, and each parameter's part of it `[texts, ..its sizes]`.
    pub(crate) fn each(&self, texts: usize) -> (Tensor, Vec<Tensor>) {
        let _inside = ADAPTERS.enter();
        let rows = Tensor::zeros(
            [texts as i64, self.grads.numel() as i64],
            (self.grads.kind(), self.grads.device()),
        );
        let mut start = 0;
        let part = |p: &Param| {
            let len = p.tensor.numel() as i64;
            let sizes = [&[texts as i64], &p.tensor.size()[..]].concat();
            start += len;
            rows.narrow(1, start - len, len).view(sizes.as_slice())
        };
        let parts = self.params.iter().map(part).collect();
        (rows, parts)
    }

    /// Replaces the gradients by `numbers`, in the parameters' order.
    ///
    /// # Errors
    /// [`Error::internal`] for another length.
    pub(crate) fn set_grads(&mut self, numbers: &[f32]) -> Result<()> {
        let _guard = tch::no_grad_guard();
        if numbers.len() != self.grads.numel() {
            let what = format!("{} gradients for {} parameters", numbers.len(), self.grads.numel());
            return Err(Error::internal(what));
        }
        self.grads.copy_(&Tensor::from_slice(numbers));
        Ok(())
    }

    /// Multiplies the gradients.
    pub(crate) fn scale_grads(&mut self, factor: f64) {
        let _guard = tch::no_grad_guard();
        let _ = self.grads.g_mul_scalar_(factor);
    }

    /// Adds the gradient of `mu/2 ‖values - to‖²`.
    pub(crate) fn pull(&mut self, mu: f64, to: &Tensor) {
        let _guard = tch::no_grad_guard();
        let _ = self.grads.g_add_(&((&self.values - to) * mu));
    }

    /// Scales the gradients down to a joint norm of at most `limit` (`torch.nn.utils.clip_grad_norm_`); the norms
    /// before.
    ///
    /// # Errors
    /// [`Error::non_finite`], naming parameters, if the norm is not finite. No gradient is changed then.
    pub fn clip(&mut self, limit: Option<f64>) -> Result<Norms> {
        let _inside = OPTIMISER.enter();
        let squares = squares_of(&self.grads, &self.layers);
        let joint = squares.iter().sum::<f64>().sqrt();
        if !joint.is_finite() {
            let bad = self.params.iter().filter(|p| !lora_core::all_finite(&p.tensor.grad()));
            let bad: Vec<_> = bad.map(Param::key).take(5).collect();
            return Err(Error::faults(ErrorKind::NonFinite, "these gradients are not finite", bad)
                .hint("lower the learning rate; with bf16, try --dtype f32"));
        }
        let factor = limit.map_or(1.0, |limit| limit / (joint + 1e-6));
        if factor < 1.0 {
            let _ = self.grads.g_mul_scalar_(factor);
        }
        Ok(Norms { joint, layers: squares.into_iter().map(f64::sqrt).collect() })
    }
}

impl Drop for Arena {
    /// The parameters keep their memory together; the gradients go.
    fn drop(&mut self) {
        self.params.iter().for_each(|p| set_grad(&p.tensor, None));
    }
}

/// How many numbers the parameters of one layer have, layer after layer.
fn layers(params: &[Param]) -> Vec<usize> {
    let mut layers: Vec<(&str, usize)> = Vec::new();
    for p in params {
        let number = |part: &&str| part.bytes().all(|b| b.is_ascii_digit());
        let layer = p.module.split('.').find(number).unwrap_or(&p.module);
        match layers.last_mut().filter(|(last, _)| *last == layer) {
            Some((_, len)) => *len += p.tensor.numel(),
            None => layers.push((layer, p.tensor.numel())),
        }
    }
    layers.into_iter().map(|(_, len)| len).collect()
}

/// The sum of the squares of each stretch of `lens` numbers, in f64.
fn squares_of(flat: &Tensor, lens: &[usize]) -> Vec<f64> {
    let Some(numbers) = elements::<f32>(flat) else {
        // Elsewhere than on a CPU each call costs; layers are mostly of one size.
        if let Some(&len) = lens.first().filter(|&len| lens.iter().all(|l| l == len)) {
            let rows = flat.view([lens.len() as i64, len as i64]);
            let norms = rows.norm_scalaropt_dim_dtype(2.0, [1i64].as_slice(), false, Kind::Double);
            return Vec::try_from(norms.square()).unwrap_or_default();
        }
        let lens: Vec<i64> = lens.iter().map(|&len| len as i64).collect();
        let each = flat.split_with_sizes(lens, 0).into_iter();
        let sums: Vec<_> = each.map(|t| t.norm_scalaropt_dtype(2.0, Kind::Double).square()).collect();
        return Vec::try_from(Tensor::stack(&sums, 0)).unwrap_or_default();
    };
    let (mut parts, mut rest) = (Vec::new(), numbers);
    for &len in lens {
        let (mine, others) = rest.split_at(len);
        parts.extend(mine.chunks(GRAIN));
        rest = others;
    }
    // A sum a part, added in their order: the same bits, however many threads there are.
    let mut sums = Tensor::zeros([parts.len() as i64], (Kind::Double, flat.device()));
    let rows = tch_ext::Rows { data: elements_mut::<f64>(&mut sums).unwrap_or_default(), width: 1 };
    parallel_rows(rows, parts.len(), 1, |first, _, out| {
        out.data.iter_mut().zip(&parts[first..]).for_each(|(sum, part)| *sum = squares(part));
    });
    let mut sums = elements::<f64>(&sums).unwrap_or_default().iter();
    lens.iter().map(|len| sums.by_ref().take(len.div_ceil(GRAIN)).sum()).collect()
}

tch_ext::simd! {
    fn squares(part: &[f32]) -> f64 {
        number::sum(part, |x| x * x)
    }
}
