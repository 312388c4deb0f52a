//! The scales of the blocks, in f32 or quantised once more.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};
use tch_ext::{elements, elements_mut};

use crate::tables::{DYNAMIC, floats};

/// Scales that share one scale of their own.
pub(crate) const NEST: usize = 256;

/// The largest magnitude of every block.
#[derive(Debug)]
pub(crate) enum Scales {
    /// As they are: `absmax [blocks]`, f32.
    Plain(Tensor),
    /// Minus their mean, in blocks of 256, as codes of 8 bits.
    Nested(Nested),
}

#[derive(Debug)]
pub(crate) struct Nested {
    /// u8 `[blocks]`.
    pub(crate) codes: Tensor,
    /// f32 `[⌈blocks / 256⌉]`.
    pub(crate) absmax: Tensor,
    /// The mean, f32 `[]`.
    pub(crate) offset: Tensor,
    /// What the codes stand for.
    pub(crate) map: Arc<[f32; 256]>,
}

impl Scales {
    /// From `absmax [blocks]`, f32.
    pub(crate) fn nested(absmax: &Tensor) -> Self {
        let (device, offset) = (absmax.device(), mean(absmax));
        let shifted = (absmax - &offset).to_device(Device::Cpu);
        let count = shifted.numel();
        let shifted: Vec<f32> = elements(&shifted).unwrap_or_default().to_vec();
        let map = Arc::new(floats(DYNAMIC));
        let table = nearest(&map);
        let mut codes = Tensor::empty([count as i64], (Kind::Uint8, Device::Cpu));
        let mut most = Vec::new();
        for (codes, x) in
            elements_mut::<u8>(&mut codes).unwrap_or_default().chunks_mut(NEST).zip(shifted.chunks(NEST))
        {
            let absmax = x.iter().fold(0f32, |most, x| most.max(x.abs()));
            most.push(absmax);
            for (code, x) in codes.iter_mut().zip(x) {
                // As bitsandbytes: where all are 0, the code is, whatever it stands for.
                *code = if absmax == 0.0 { 0 } else { table[bin(x * (1.0 / absmax))] };
            }
        }
        let (codes, absmax) = (codes.to_device(device), Tensor::from_slice(&most).to_device(device));
        Self::Nested(Nested { codes, absmax, offset, map })
    }

    /// `absmax [blocks]`, f32; nested: `map[code] * absmax + offset`, in two roundings as in bitsandbytes.
    pub(crate) fn dense(&self) -> Tensor {
        let Nested { codes, absmax, offset, map } = match self {
            Self::Plain(absmax) => return absmax.shallow_clone(),
            Self::Nested(nested) => nested,
        };
        let map = Tensor::from_slice(&map[..]).to_device(codes.device());
        let values = map.index_select(0, &codes.to_kind(Kind::Int));
        let each = Tensor::arange(codes.numel() as i64, (Kind::Int64, codes.device()));
        values * absmax.index_select(0, &each.floor_divide_scalar(NEST as i64)) + offset
    }

    /// What nested codes stand for.
    pub(crate) fn map(&self) -> Option<&[f32; 256]> {
        match self {
            Self::Plain(_) => None,
            Self::Nested(nested) => Some(&nested.map),
        }
    }

    /// To be asked one by one; `None` if they lie elsewhere.
    pub(crate) fn on_cpu(&self) -> Option<OnCpu<'_>> {
        Some(match self {
            Self::Plain(absmax) => OnCpu::Plain(elements(absmax)?),
            Self::Nested(n) => OnCpu::Nested {
                codes: elements(&n.codes)?,
                absmax: elements(&n.absmax)?,
                offset: *elements::<f32>(&n.offset)?.first()?,
                map: &n.map,
            },
        })
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Plain(absmax) => 4 * absmax.numel() as u64,
            Self::Nested(n) => (n.codes.numel() + 4 * n.absmax.numel() + 4) as u64,
        }
    }

    pub(crate) fn to_device(&self, device: Device) -> Self {
        match self {
            Self::Plain(absmax) => Self::Plain(absmax.to_device(device)),
            Self::Nested(n) => Self::Nested(Nested {
                codes: n.codes.to_device(device),
                absmax: n.absmax.to_device(device),
                offset: n.offset.to_device(device),
                map: Arc::clone(&n.map),
            }),
        }
    }
}

/// The mean, f32 `[]`. libtorch's, which for more numbers than these depends on the number of threads; from there on
/// theirs in f64.
fn mean(x: &Tensor) -> Tensor {
    const ONE_THREAD: i64 = 32768;
    if x.size()[0] < ONE_THREAD {
        return x.mean(Kind::Float);
    }
    let sums: f64 = x.split(ONE_THREAD - 1, 0).iter().map(|x| x.sum(Kind::Float).double_value(&[])).sum();
    Tensor::from((sums / x.size()[0] as f64) as f32).to_device(x.device())
}

const BINS: usize = 65536;

/// The code of every one of 65536 numbers from -1 to 1 (bitsandbytes' `build_quantize_lut`).
fn nearest(map: &[f32; 256]) -> Vec<u8> {
    let mut code = 0;
    let value = |i: usize| -1.0 + (2.0 * i as f32) / (BINS - 1) as f32;
    (0..BINS)
        .map(|i| {
            while code < 255 && 0.5 * (map[code] + map[code + 1]) < value(i) {
                code += 1;
            }
            code as u8
        })
        .collect()
}

/// The bin of a number (bitsandbytes' `norm_to_lut_index`).
fn bin(x: f32) -> usize {
    ((x.clamp(-1.0, 1.0) + 1.0) * 0.5).mul_add((BINS - 1) as f32, 0.5) as usize
}

/// Scales on the CPU.
pub(crate) enum OnCpu<'a> {
    Plain(&'a [f32]),
    Nested { codes: &'a [u8], absmax: &'a [f32], offset: f32, map: &'a [f32; 256] },
}

impl OnCpu<'_> {
    /// The scale of a block, in the two roundings of [`Scales::dense`].
    #[inline(always)]
    pub(crate) fn of(&self, block: usize) -> f32 {
        match self {
            Self::Plain(absmax) => absmax[block],
            Self::Nested { codes, absmax, offset, map } => {
                map[usize::from(codes[block])] * absmax[block / NEST] + offset
            }
        }
    }
}
