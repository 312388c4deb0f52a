//! Double quantisation: the scales of the blocks, in 8 bits.

use tch::{Kind, Tensor};
use tch_ext::elements;

use crate::encode::{nearest, pad_to};
use crate::tables::{DYNAMIC, floats};

/// Scales that share one scale of their own.
const NESTED: i64 = 256;

/// The `absmax` of every block: minus their mean, in blocks of 256, as codes of the signed dynamic map.
#[derive(Debug)]
pub(crate) struct Scales {
    codes: Tensor,
    nested: Tensor,
    offset: Tensor,
}

impl Scales {
    /// From `absmax [blocks]`, f32.
    pub(crate) fn new(absmax: &Tensor) -> Self {
        let count = absmax.size()[0];
        let offset = absmax.mean(Kind::Float);
        let blocks = pad_to(&(absmax - &offset), NESTED).view([-1, NESTED]);
        let nested = blocks.abs().amax([1i64].as_slice(), true);
        let inverse = nested.reciprocal().masked_fill(&nested.eq(0.0), 0.0);
        let codes = nearest(&(blocks * inverse), &floats(DYNAMIC)).to_kind(Kind::Uint8);
        Self { codes: codes.reshape(-1).narrow(0, 0, count).copy(), nested: nested.reshape(-1), offset }
    }

    /// `absmax [blocks]`, f32: `map[code] * nested + offset`, in two roundings as in bitsandbytes.
    pub(crate) fn dense(&self) -> Tensor {
        let map = Tensor::from_slice(&floats(DYNAMIC)).to_device(self.codes.device());
        let count = self.codes.size()[0];
        let values = pad_to(&map.index_select(0, &self.codes.to_kind(Kind::Int)), NESTED).view([-1, NESTED]);
        (values * self.nested.unsqueeze(1)).view(-1).narrow(0, 0, count) + &self.offset
    }

    /// Codes, their scales, and what is added.
    pub(crate) fn parts(&self) -> [&Tensor; 3] {
        [&self.codes, &self.nested, &self.offset]
    }

    /// To be asked one by one; `None` if they lie elsewhere.
    pub(crate) fn on_cpu(&self) -> Option<OnCpu<'_>> {
        let offset = *elements::<f32>(&self.offset)?.first()?;
        Some(OnCpu {
            codes: elements(&self.codes)?,
            nested: elements(&self.nested)?,
            offset,
            map: floats(DYNAMIC),
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.codes.numel() + 4 * self.nested.numel() + 4) as u64
    }

    pub(crate) fn share(&self) -> Self {
        Self {
            codes: self.codes.shallow_clone(),
            nested: self.nested.shallow_clone(),
            offset: self.offset.shallow_clone(),
        }
    }
}

/// Scales on the CPU.
pub(crate) struct OnCpu<'a> {
    codes: &'a [u8],
    nested: &'a [f32],
    offset: f32,
    map: [f32; 256],
}

impl OnCpu<'_> {
    /// The scale of a block, in the two roundings of [`Scales::dense`].
    pub(crate) fn of(&self, block: usize) -> f32 {
        self.map[usize::from(self.codes[block])] * self.nested[block / NESTED as usize] + self.offset
    }
}
