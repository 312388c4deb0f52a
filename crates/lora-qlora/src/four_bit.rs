//! Weights of 4 bits, in blocks that share a scale.

use std::cell::OnceCell;

use lora_core::{BaseWeight, Error, Result, all_finite, row_norms_sq};
use tch::{Device, Kind, Tensor};
use tch_ext::{Region, bf16, f16};

use crate::encode::{encoded, encoded_by_definition};
use crate::options::{Code, Options};
use crate::scales::Scales;

static DEQUANTISED: Region = Region::new("dequantised");

/// `W [out, in]` as 4-bit codes in blocks along the flattened weight (two codes a byte, the first in the high nibble),
/// and a scale a block: what bitsandbytes calls `Params4bit`.
#[derive(Debug)]
pub struct FourBit {
    /// Whole blocks: zeros lie behind the weight.
    pub(crate) packed: Tensor,
    pub(crate) scales: Scales,
    pub(crate) block: usize,
    pub(crate) code: Code,
    /// What the codes stand for.
    pub(crate) book: [f32; 16],
    /// f32, bf16 or f16, of the weight that was quantised: what a dequantised one is rounded to, whatever it is computed in
    /// then. So training, merging and bitsandbytes have one weight.
    pub(crate) state: Kind,
    shape: (i64, i64),
    kind: Kind,
    norms_sq: OnceCell<Tensor>,
    /// The code books, where the weight lies.
    pub(crate) tables: OnceCell<Tensor>,
}

impl FourBit {
    /// Quantises `weight [out, in]` (f32, bf16, f16 or f64), in every bit as bitsandbytes does on a CPU (f64 as f32).
    ///
    /// # Errors
    /// [`Error::non_finite`] for a weight that is not finite.
    pub fn new(weight: &Tensor, options: Options) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let shape = weight.size2()?;
        let Options { code, block, nested } = options;
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
            Kind::Float => encoded::<f32>(weight, code, block),
            Kind::BFloat16 => encoded::<bf16>(weight, code, block),
            Kind::Half => encoded::<f16>(weight, code, block),
            _ => None,
        }
        .unwrap_or_else(|| encoded_by_definition(weight, code, block));
        let scales = if nested { Scales::nested(&absmax) } else { Scales::Plain(absmax) };
        let state = match weight.kind() {
            kind @ (Kind::BFloat16 | Kind::Half) => kind,
            _ => Kind::Float,
        };
        Ok(Self::of(packed, scales, (block, code, code.book()), shape, (state, weight.kind())))
    }

    /// From parts that fit one another; to be computed in `kind`.
    pub(crate) fn of(
        packed: Tensor,
        scales: Scales,
        (block, code, book): (usize, Code, [f32; 16]),
        shape: (i64, i64),
        (state, kind): (Kind, Kind),
    ) -> Self {
        let (norms_sq, tables) = Default::default();
        Self { packed, scales, block, code, book, state, shape, kind, norms_sq, tables }
    }

    /// How it is quantised.
    pub fn options(&self) -> Options {
        Options { code: self.code, block: self.block, nested: matches!(self.scales, Scales::Nested(_)) }
    }
}

impl BaseWeight for FourBit {
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
        let _inside = DEQUANTISED.enter();
        let (out, inp) = self.shape;
        let w = self.on_cuda(kind).or_else(|| self.on_cpu(kind)).unwrap_or_else(|| self.definition(kind));
        w.narrow(0, 0, out * inp).view([out, inp])
    }

    fn to_device(&self, device: Device) -> Box<dyn BaseWeight> {
        let books = (self.block, self.code, self.book);
        let scales = self.scales.to_device(device);
        let kinds = (self.state, self.kind);
        let mut there = Self::of(self.packed.to_device(device), scales, books, self.shape, kinds);
        if device == self.device() {
            there.tables = self.tables.get().map(|t| t.shallow_clone().into()).unwrap_or_default();
        }
        Box::new(there)
    }

    fn parts(&self) -> Option<Vec<(String, Tensor)>> {
        Some(crate::packing::parts(self))
    }

    fn row_norms_sq(&self) -> Tensor {
        self.norms_sq.get_or_init(|| row_norms_sq(&self.dense(self.kind))).shallow_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::borders;
    use tch_ext::cuda::here;

    /// Odd tails, a block of zeros, one huge weight, denormal ones, ties.
    fn hard(out: i64, inp: i64, code: Code) -> Tensor {
        let w = Tensor::randn([out, inp], (Kind::Float, Device::Cpu));
        if out == 130 {
            let _ = w.narrow(0, 2, 1).zero_();
            let _ = w.narrow(0, 9, 1).narrow(1, 3, 1).fill_(1e30);
            let _ = w.narrow(0, 20, 1).fill_(1e-41);
            // Ties: the borders themselves, beside a 1.
            w.narrow(0, 40, 1).narrow(1, 0, 15).copy_(&Tensor::from_slice(&borders(code).0));
            let _ = w.narrow(0, 40, 1).narrow(1, 15, 242).fill_(1.0);
        }
        w
    }

    #[test]
    fn every_way_gives_the_same_bits() {
        for (options, (out, inp)) in [
            ("", (1, 1)),
            ("32", (3, 43)),
            ("", (64, 64)),
            ("fp4", (130, 257)),
            ("single", (130, 257)),
            ("", (130, 257)),
            ("4096:fp4:single", (600, 64)),
            ("128", (600, 64)),
        ] {
            let options = Options::parse(options).unwrap();
            let w = hard(out, inp, options.code);
            for w in [w.shallow_clone(), w.to_kind(Kind::BFloat16), w.clamp(-1e4, 1e4).to_kind(Kind::Half)] {
                let stored = FourBit::new(&w, options).unwrap();
                let (packed, absmax) = encoded_by_definition(&w, options.code, options.block);
                assert_eq!(stored.packed, packed, "{options:?}, {out} x {inp}, {:?}", w.kind());
                let scales = if options.nested { Scales::nested(&absmax) } else { Scales::Plain(absmax) };
                assert_eq!(stored.scales.dense(), scales.dense());
                for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
                    let about = format!("{options:?}, {out} x {inp}, {:?} in {kind:?}", w.kind());
                    let want = stored.definition(kind).narrow(0, 0, out * inp).view([out, inp]);
                    assert_eq!(stored.dense(kind), want, "{about}");
                    let there = stored.to_device(here());
                    let dense = tch_ext::cuda::emulated(|| there.dense(kind)).to_device(Device::Cpu);
                    assert_eq!(dense, want, "{about}, CUDA");
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        for (kind, value) in [(Kind::Float, f64::NAN), (Kind::BFloat16, f64::INFINITY), (Kind::Double, 1e300)]
        {
            let w = Tensor::zeros([2, 70], (kind, Device::Cpu));
            let _ = w.narrow(1, 66, 1).fill_(value);
            let e = FourBit::new(&w, Options::default()).unwrap_err();
            assert!(e.to_string().contains("not finite"), "{value}");
        }
    }
}
