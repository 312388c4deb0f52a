//! 4-bit NormalFloat blocks.

use std::cell::OnceCell;

use lora_core::{BaseWeight, Error, Result, all_finite, row_norms_sq};
use tch::{Device, Kind, Tensor};
use tch_ext::bf16;

use crate::double_quant::Scales;
use crate::encode::{encoded, encoded_by_definition};

/// Weights that share one scale.
pub(crate) const BLOCK: i64 = 64;

/// Blocks that are worth a thread of their own.
pub(crate) const GRAIN: usize = 256;

/// `W [out, in]` as NF4 codes in blocks of 64 along the flattened weight (two a byte, the first in the high
/// nibble, as in bitsandbytes), their largest magnitudes quantised once more.
#[derive(Debug)]
pub struct Nf4 {
    pub(crate) packed: Tensor,
    pub(crate) scales: Scales,
    shape: (i64, i64),
    kind: Kind,
    norms_sq: OnceCell<Tensor>,
    /// The code books, where the weight lies.
    pub(crate) tables: OnceCell<Tensor>,
}

impl Nf4 {
    /// Quantises `weight [out, in]` (f32, bf16, f16 or f64).
    ///
    /// # Errors
    /// [`Error::non_finite`] for a weight that is not finite.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let shape = weight.size2()?;
        // An f64 may be too large for the f32 that it is quantised from.
        let finite = match weight.kind() {
            Kind::Double => all_finite(&weight.to_kind(Kind::Float)),
            _ => all_finite(weight),
        };
        if !finite {
            return Err(Error::non_finite("a weight to quantise is not finite")
                .hint("the checkpoint is damaged; fetch it again"));
        }
        let (packed, absmax) = match weight.kind() {
            Kind::Float => encoded::<f32>(weight),
            Kind::BFloat16 => encoded::<bf16>(weight),
            _ => None,
        }
        .unwrap_or_else(|| encoded_by_definition(weight));
        let scales = Scales::new(&absmax);
        let kind = weight.kind();
        Ok(Self { packed, scales, shape, kind, norms_sq: OnceCell::new(), tables: OnceCell::new() })
    }
}

impl BaseWeight for Nf4 {
    fn shape(&self) -> (i64, i64) {
        self.shape
    }

    fn device(&self) -> Device {
        self.packed.device()
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn bytes(&self) -> u64 {
        self.packed.numel() as u64 + self.scales.bytes()
    }

    fn dense(&self, kind: Kind) -> Tensor {
        let _guard = tch::no_grad_guard();
        let (out, inp) = self.shape;
        let w = self.on_cuda(kind).or_else(|| match kind {
            Kind::Float => self.dequantised::<f32>(),
            Kind::BFloat16 => self.dequantised::<bf16>(),
            _ => None,
        });
        let w = w.unwrap_or_else(|| self.definition().to_kind(kind));
        w.narrow(0, 0, out * inp).view([out, inp])
    }

    fn share(&self) -> Box<dyn BaseWeight> {
        Box::new(Self {
            packed: self.packed.shallow_clone(),
            scales: self.scales.share(),
            shape: self.shape,
            kind: self.kind,
            norms_sq: OnceCell::new(),
            tables: self.tables.get().map(|t| t.shallow_clone().into()).unwrap_or_default(),
        })
    }

    fn row_norms_sq(&self) -> Tensor {
        let exact = if self.kind == Kind::Double { Kind::Double } else { Kind::Float };
        self.norms_sq.get_or_init(|| row_norms_sq(&self.dense(exact))).shallow_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::middles;
    use crate::tables::{NF4, floats};

    /// Odd tails, a block of zeros, one huge weight.
    #[test]
    fn every_way_gives_the_same_bits() {
        for (out, inp) in [(1, 1), (3, 43), (64, 64), (130, 257), (600, 64)] {
            let w = Tensor::randn([out, inp], (Kind::Float, Device::Cpu));
            if out == 130 {
                let _ = w.narrow(0, 2, 1).zero_();
                let _ = w.narrow(0, 9, 1).narrow(1, 3, 1).fill_(1e30);
                let _ = w.narrow(0, 20, 1).fill_(1e-41);
                // Ties: the middles themselves, beside a 1.
                let ties = Tensor::from_slice(&middles(&floats(NF4)));
                w.narrow(0, 40, 1).narrow(1, 0, 15).copy_(&ties);
                let _ = w.narrow(0, 40, 1).narrow(1, 15, 242).fill_(1.0);
            }
            for w in [w.shallow_clone(), w.to_kind(Kind::BFloat16)] {
                let stored = Nf4::new(&w).unwrap();
                let (packed, absmax) = encoded_by_definition(&w);
                assert_eq!(stored.packed, packed, "{out} x {inp}, {:?}", w.kind());
                assert_eq!(stored.scales.dense(), Scales::new(&absmax).dense());
            }
            let stored = Nf4::new(&w).unwrap();
            for kind in [Kind::Float, Kind::BFloat16] {
                let want = stored.definition().to_kind(kind).narrow(0, 0, out * inp).view([out, inp]);
                assert_eq!(stored.dense(kind), want, "{out} x {inp}");
                assert_eq!(tch_ext::cuda::emulated(|| stored.dense(kind)), want, "{out} x {inp}, CUDA");
            }
        }
    }
    #[test]
    fn what_is_not_finite_is_refused() {
        for (kind, value) in [(Kind::Float, f64::NAN), (Kind::BFloat16, f64::INFINITY), (Kind::Double, 1e300)]
        {
            let w = Tensor::zeros([2, 70], (kind, Device::Cpu));
            let _ = w.narrow(1, 66, 1).fill_(value);
            assert!(Nf4::new(&w).unwrap_err().to_string().contains("not finite"), "{value}");
        }
    }
}
