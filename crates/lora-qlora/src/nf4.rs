//! 4-bit NormalFloat blocks.

use std::cell::OnceCell;

use lora_core::{BaseWeight, Error, Result, all_finite, row_norms_sq};
use tch::{Device, Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::{Number, Rows, bf16, elements, elements_mut, nibbles, parallel_rows};

use crate::double_quant::Scales;
use crate::tables::{DYNAMIC, NF4, floats};

/// Weights that share one scale.
const BLOCK: i64 = 64;

/// `W [out, in]` as NF4 codes in blocks of 64 along the flattened weight (two a byte, the first in the high
/// nibble, as in bitsandbytes), their largest magnitudes quantised once more.
#[derive(Debug)]
pub struct Nf4 {
    packed: Tensor,
    scales: Scales,
    shape: (i64, i64),
    kind: Kind,
    norms_sq: OnceCell<Tensor>,
    /// The code books, where the weight lies.
    tables: OnceCell<Tensor>,
}

impl Nf4 {
    /// Quantises `weight [out, in]` (f32, bf16, f16 or f64).
    ///
    /// # Errors
    /// [`Error::non_finite`] for a weight that is not finite.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let _guard = tch::no_grad_guard();
        let shape = weight.size2()?;
        let flat = weight.to_kind(Kind::Float).reshape(-1);
        if !all_finite(&flat) {
            return Err(Error::non_finite("a weight to quantise is not finite")
                .hint("the checkpoint is damaged; fetch it again"));
        }
        let blocks = pad_to(&flat, BLOCK).view([-1, BLOCK]);
        let absmax = blocks.abs().amax([1i64].as_slice(), true);
        // As bitsandbytes: a block of zeros has scale 0, and the code of 0 everywhere.
        let inverse = absmax.reciprocal().masked_fill(&absmax.eq(0.0), 0.0);
        let codes = nearest(&(blocks * inverse), &floats(NF4)).to_kind(Kind::Uint8).view([-1, 2]);
        let packed = codes.select(1, 0) * 16 + codes.select(1, 1);
        let scales = Scales::new(&absmax.reshape(-1));
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

impl Nf4 {
    /// All blocks in f32, by libtorch's operations.
    fn definition(&self) -> Tensor {
        // A byte is looked up whole: both of its codes at once.
        let book = floats(NF4);
        let pairs: Vec<f32> = (0..256usize).flat_map(|byte| [book[byte >> 4], book[byte & 15]]).collect();
        let table = Tensor::from_slice(&pairs).view([256, 2]).to_device(self.device());
        let codes = table.index_select(0, &self.packed.to_kind(Kind::Int)).view([-1, BLOCK]);
        (codes * self.scales.dense().unsqueeze(1)).view(-1)
    }

    /// The same by one kernel; `None` elsewhere than on CUDA.
    fn on_cuda(&self, kind: Kind) -> Option<Tensor> {
        let n = 2 * self.packed.numel();
        let device = self.packed.device();
        let out = Tensor::empty([0], (kind, device));
        let ready = SOURCE.on(&[&out], n)?;
        let out = Tensor::empty([n as i64], (kind, device));
        let tables = self.tables.get_or_init(|| {
            let both: Vec<f32> = floats(NF4).into_iter().chain(floats(DYNAMIC)).collect();
            Tensor::from_slice(&both).to_device(device)
        });
        let [codes, nested, offset] = self.scales.parts();
        let blocks = n / BLOCK as usize;
        let args = [
            Arg::Of(&out, kind, n),
            Arg::Of(&self.packed, Kind::Uint8, n / 2),
            Arg::Of(codes, Kind::Uint8, blocks),
            Arg::Of(nested, Kind::Float, blocks.div_ceil(256)),
            Arg::Of(offset, Kind::Float, 1),
            Arg::Of(tables, Kind::Float, 272),
            Arg::Int(n),
        ];
        ready.run("dequantise", n.div_ceil(256 * ready.vec()).min(1 << 14), 256, &args);
        Some(out)
    }

    /// The same in one pass on the CPU, rounded to T; `None` elsewhere.
    fn dequantised<T: Number<Wide = f32>>(&self) -> Option<Tensor> {
        let (packed, scales) = (elements::<u8>(&self.packed)?, self.scales.on_cpu()?);
        let mut out = Tensor::empty([2 * packed.len() as i64], (T::KIND, Device::Cpu));
        let book = floats(NF4);
        let rows = Rows { data: elements_mut::<T>(&mut out)?, width: BLOCK as usize };
        parallel_rows(rows, packed.len() * 2 / BLOCK as usize, GRAIN, |first, _, out| {
            let mut codes = [0f32; BLOCK as usize];
            let bytes = packed[first * BLOCK as usize / 2..].chunks_exact(BLOCK as usize / 2);
            for (i, (out, bytes)) in out.data.chunks_exact_mut(BLOCK as usize).zip(bytes).enumerate() {
                nibbles(&mut codes, bytes, &book);
                scaled(out, &codes, scales.of(first + i));
            }
        });
        Some(out)
    }
}

// The kernel writes n weights, and reads n / 2 bytes, a scale for 64 weights, 272 table entries.
static SOURCE: Source = tch_ext::cuda_source!("nf4", include_str!("nf4.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

/// Blocks that are worth a thread of their own.
const GRAIN: usize = 256;

tch_ext::simd! {
    fn scaled<T: Number<Wide = f32>>(out: &mut [T], codes: &[f32], scale: f32) {
        out.iter_mut().zip(codes).for_each(|(out, code)| *out = T::narrow(code * scale));
    }
}

/// The indices (i64) of the codes nearest to `x`; a tie goes to the lower code.
pub(crate) fn nearest(x: &Tensor, book: &[f32]) -> Tensor {
    let middle: Vec<f32> =
        book.windows(2).map(|w| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32).collect();
    x.contiguous().bucketize(&Tensor::from_slice(&middle).to_device(x.device()), false, false)
}

/// `flat [n]` with zeros behind it, up to a multiple of `block`.
pub(crate) fn pad_to(flat: &Tensor, block: i64) -> Tensor {
    let n = flat.size()[0];
    flat.constant_pad_nd([0, (block - n % block) % block])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Odd tails, a block of zeros, one huge weight.
    #[test]
    fn every_way_gives_the_same_bits() {
        for (out, inp) in [(1, 1), (3, 43), (64, 64), (130, 257), (600, 64)] {
            let w = Tensor::randn([out, inp], (Kind::Float, Device::Cpu));
            if out == 130 {
                let _ = w.narrow(0, 2, 1).zero_();
                let _ = w.narrow(0, 9, 1).narrow(1, 3, 1).fill_(1e30);
            }
            let stored = Nf4::new(&w).unwrap();
            for kind in [Kind::Float, Kind::BFloat16] {
                let want = stored.definition().to_kind(kind).narrow(0, 0, out * inp).view([out, inp]);
                assert_eq!(stored.dense(kind), want, "{out} x {inp}");
                assert_eq!(tch_ext::cuda::emulated(|| stored.dense(kind)), want, "{out} x {inp}, CUDA");
            }
        }
    }
}
