//! 4-bit NormalFloat blocks.

use std::cell::OnceCell;

use lora_core::{BaseWeight, Error, Result, all_finite, row_norms_sq};
use tch::{Device, Kind, Tensor};

use crate::double_quant::Scales;
use crate::tables::{NF4, floats};

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
        Ok(Self { packed, scales, shape, kind: weight.kind(), norms_sq: OnceCell::new() })
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
        // A byte is looked up whole: both of its codes at once.
        let book = floats(NF4);
        let pairs: Vec<f32> = (0..256usize).flat_map(|byte| [book[byte >> 4], book[byte & 15]]).collect();
        let table = Tensor::from_slice(&pairs).view([256, 2]).to_device(self.device());
        let codes = table.index_select(0, &self.packed.to_kind(Kind::Int)).view([-1, BLOCK]);
        let w = codes * self.scales.dense().unsqueeze(1);
        w.view(-1).narrow(0, 0, out * inp).to_kind(kind).view([out, inp])
    }

    fn share(&self) -> Box<dyn BaseWeight> {
        Box::new(Self {
            packed: self.packed.shallow_clone(),
            scales: self.scales.share(),
            shape: self.shape,
            kind: self.kind,
            norms_sq: OnceCell::new(),
        })
    }

    fn row_norms_sq(&self) -> Tensor {
        let exact = if self.kind == Kind::Double { Kind::Double } else { Kind::Float };
        self.norms_sq.get_or_init(|| row_norms_sq(&self.dense(exact))).shallow_clone()
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
