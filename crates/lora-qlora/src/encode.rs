//! From weights to codes.

use tch::{Device, Kind, Tensor};
use tch_ext::{Number, Rows, elements, elements_mut, parallel_rows};

use crate::nf4::{BLOCK, GRAIN};
use crate::tables::{NF4, floats};

/// Codes, two a byte, and the largest magnitude of every block, by libtorch's operations.
pub(crate) fn encoded_by_definition(weight: &Tensor) -> (Tensor, Tensor) {
    let blocks = pad_to(&weight.to_kind(Kind::Float).reshape(-1), BLOCK).view([-1, BLOCK]);
    let absmax = blocks.abs().amax([1i64].as_slice(), true);
    // As bitsandbytes: a block of zeros has scale 0, and the code of 0 everywhere.
    let inverse = absmax.reciprocal().masked_fill(&absmax.eq(0.0), 0.0);
    let codes = nearest(&(blocks * inverse), &floats(NF4)).to_kind(Kind::Uint8).view([-1, 2]);
    (codes.select(1, 0) * 16 + codes.select(1, 1), absmax.reshape(-1))
}

/// The same in one pass on the CPU; `None` elsewhere.
pub(crate) fn encoded<T: Number<Wide = f32>>(weight: &Tensor) -> Option<(Tensor, Tensor)> {
    const BYTES: usize = BLOCK as usize / 2;
    let weight = weight.contiguous();
    let w = elements::<T>(&weight)?;
    let blocks = w.len().div_ceil(BLOCK as usize);
    let mut packed = Tensor::empty([(blocks * BYTES) as i64], (Kind::Uint8, Device::Cpu));
    let mut absmax = Tensor::empty([blocks as i64], (Kind::Float, Device::Cpu));
    let middles: [f32; 15] = middles(&floats(NF4)).try_into().ok()?;
    let out = (
        Rows { data: elements_mut::<u8>(&mut packed)?, width: BYTES },
        Rows { data: elements_mut::<f32>(&mut absmax)?, width: 1 },
    );
    parallel_rows(out, blocks, GRAIN, |first, _, (packed, absmax)| {
        let blocks = w[first * BLOCK as usize..].chunks(BLOCK as usize);
        for ((bytes, most), w) in packed.data.chunks_exact_mut(BYTES).zip(absmax.data).zip(blocks) {
            *most = encode(bytes, w, &middles);
        }
    });
    Some((packed, absmax))
}

tch_ext::simd! {
    /// The codes of a block, and its largest magnitude.
    fn encode<T: Number<Wide = f32>>(bytes: &mut [u8], w: &[T], middles: &[f32; 15]) -> f32 {
        let mut x = [0f32; BLOCK as usize];
        for (x, w) in x.iter_mut().zip(w) {
            *x = w.wide();
        }
        let mut most = 0f32;
        for x in &x {
            most = if x.abs() > most { x.abs() } else { most };
        }
        let inverse = if most == 0.0 { 0.0 } else { 1.0 / most };
        // How many middles lie below: a tie goes to the lower code.
        let mut codes = [0i32; BLOCK as usize];
        for x in x.iter_mut() {
            *x *= inverse;
        }
        for middle in middles {
            for (code, x) in codes.iter_mut().zip(&x) {
                *code += i32::from(x > middle);
            }
        }
        for (byte, pair) in bytes.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = (pair[0] << 4 | pair[1]) as u8;
        }
        most
    }
}

/// The borders between neighbours of a book.
pub(crate) fn middles(book: &[f32]) -> Vec<f32> {
    book.windows(2).map(|w| ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32).collect()
}

/// The indices (i64) of the codes nearest to `x`; a tie goes to the lower code.
pub(crate) fn nearest(x: &Tensor, book: &[f32]) -> Tensor {
    x.contiguous().bucketize(&Tensor::from_slice(&middles(book)).to_device(x.device()), false, false)
}

/// `flat [n]` with zeros behind it, up to a multiple of `block`.
pub(crate) fn pad_to(flat: &Tensor, block: i64) -> Tensor {
    let n = flat.size()[0];
    flat.constant_pad_nd([0, (block - n % block) % block])
}
