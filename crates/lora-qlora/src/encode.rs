//! From weights to codes, in every bit as bitsandbytes 0.50 (`backends/default/ops.py`, `quantize_4bit`).

use tch::{Device, Kind, Tensor};
use tch_ext::{Number, Rows, elements, elements_mut, parallel_rows};

use crate::options::Code;

/// Blocks of 64 that are worth a thread of their own.
pub(crate) const GRAIN: usize = 256;

/// The least that a block is divided by.
const LEAST: f32 = 1e-38;

/// Codes, two a byte, and the largest magnitude of every block, by libtorch's operations.
pub(crate) fn encoded_by_definition(weight: &Tensor, code: Code, block: usize) -> (Tensor, Tensor) {
    let flat = weight.to_kind(Kind::Float).reshape(-1);
    let tail = flat.size()[0] % block as i64;
    let blocks = pad_to(&flat, block as i64).view([-1, block as i64]);
    let absmax = blocks.abs().amax([1i64].as_slice(), true);
    let least = absmax.clamp_min(f64::from(LEAST));
    let x = &blocks * least.reciprocal();
    let last = blocks.size()[0] - 1;
    if tail > 0 {
        // A block that is not whole is divided, not multiplied, and its scale is never below the least.
        x.narrow(0, last, 1).copy_(&(blocks.narrow(0, last, 1) / least.narrow(0, last, 1)));
        absmax.narrow(0, last, 1).copy_(&least.narrow(0, last, 1));
    }
    let (borders, order) = borders(code);
    let ranks = x.contiguous().bucketize(&Tensor::from_slice(&borders).to_device(x.device()), false, false);
    let order = Tensor::from_slice(&order.map(|code| code as u8)).to_device(x.device());
    let codes = order.index_select(0, &ranks.reshape(-1)).view([-1, 2]);
    (codes.select(1, 0) * 16 + codes.select(1, 1), absmax.reshape(-1))
}

/// The same in one pass on the CPU; `None` elsewhere.
pub(crate) fn encoded<T: Number<Wide = f32>>(
    weight: &Tensor,
    code: Code,
    block: usize,
) -> Option<(Tensor, Tensor)> {
    let weight = weight.contiguous();
    let w = elements::<T>(&weight)?;
    let blocks = w.len().div_ceil(block);
    let mut packed = Tensor::empty([(blocks * block / 2) as i64], (Kind::Uint8, Device::Cpu));
    let mut absmax = Tensor::empty([blocks as i64], (Kind::Float, Device::Cpu));
    let (borders, order) = borders(code);
    let out = (
        Rows { data: elements_mut::<u8>(&mut packed)?, width: block / 2 },
        Rows { data: elements_mut::<f32>(&mut absmax)?, width: 1 },
    );
    parallel_rows(out, blocks, (GRAIN * 64).div_ceil(block), |first, _, (packed, absmax)| {
        let blocks = w[first * block..].chunks(block);
        for ((bytes, absmax), w) in packed.data.chunks_exact_mut(block / 2).zip(absmax.data).zip(blocks) {
            let most = most(w);
            let least = most.max(LEAST);
            let whole = w.len() == block;
            *absmax = if whole { most } else { least };
            let by = if whole { 1.0 / least } else { least };
            for (i, bytes) in bytes.chunks_mut(32).enumerate() {
                let w = w.get(i * 64..).unwrap_or_default();
                encode(bytes, &w[..w.len().min(64)], by, whole, &borders, &order);
            }
        }
    });
    Some((packed, absmax))
}

tch_ext::simd! {
    fn most<T: Number<Wide = f32>>(w: &[T]) -> f32 {
        let mut lanes = [0f32; 32];
        let (whole, rest) = w.as_chunks::<32>();
        for w in whole {
            for (most, w) in lanes.iter_mut().zip(w) {
                let x = w.wide().abs();
                *most = if x > *most { x } else { *most };
            }
        }
        let rest = rest.iter().map(|w| w.wide().abs());
        lanes.into_iter().chain(rest).fold(0.0, f32::max)
    }
}

tch_ext::simd! {
    /// The codes of up to 64 weights, divided or multiplied; what lies behind them is zero.
    fn encode<T: Number<Wide = f32>>(
        bytes: &mut [u8], w: &[T], by: f32, times: bool, borders: &[f32; 15], order: &[i32; 16]
    ) {
        let mut x = [0f32; 64];
        for (x, w) in x.iter_mut().zip(w) {
            *x = w.wide();
        }
        if times {
            x.iter_mut().for_each(|x| *x *= by);
        } else {
            x.iter_mut().for_each(|x| *x /= by);
        }
        // How many borders lie below: a tie goes to the lower number.
        let mut ranks = [0i32; 64];
        for border in borders {
            for (rank, x) in ranks.iter_mut().zip(&x) {
                *rank += i32::from(x > border);
            }
        }
        for (byte, pair) in bytes.iter_mut().zip(ranks.chunks_exact(2)) {
            *byte = (order[pair[0] as usize & 15] << 4 | order[pair[1] as usize & 15]) as u8;
        }
    }
}

/// The borders between neighbours of a book, ascending, and the codes in that order.
pub(crate) fn borders(code: Code) -> ([f32; 15], [i32; 16]) {
    let book = code.book();
    let mut order: [i32; 16] = std::array::from_fn(|i| i as i32);
    // Stable: -0 stays behind 0.
    order.sort_by(|&a, &b| {
        book[a as usize].partial_cmp(&book[b as usize]).unwrap_or(std::cmp::Ordering::Equal)
    });
    (std::array::from_fn(|i| (book[order[i] as usize] + book[order[i + 1] as usize]) / 2.0), order)
}

/// `flat [n]` with zeros behind it, up to a multiple of `block`.
pub(crate) fn pad_to(flat: &Tensor, block: i64) -> Tensor {
    let n = flat.size()[0];
    flat.constant_pad_nd([0, (block - n % block) % block])
}
