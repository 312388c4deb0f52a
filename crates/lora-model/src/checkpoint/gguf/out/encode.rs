//! From f32 to the types that files are written in.

use half::f16;
use lora_core::{Error, Result};
use tch::{Kind, Tensor};
use tch_ext::{Rows, elements, parallel_rows};

use crate::checkpoint::all_finite;
use crate::checkpoint::gguf::blocks::BlockType;

/// Values in a block of Q8_0, and its bytes.
const VALUES: usize = 32;
const BYTES: usize = 34;
/// Blocks a thread takes at least.
const GRAIN: usize = 1 << 11;

/// `floats`, finite f32 on the CPU, in `block`: F32, F16, BF16 or, for whole blocks of 32, Q8_0.
///
/// # Errors
/// `NonFinite` for values that are too large; `Internal` for another type.
pub(super) fn encode(floats: &Tensor, block: BlockType) -> Result<Vec<u8>> {
    let kind = match block {
        BlockType::F32 => Kind::Float,
        BlockType::F16 => Kind::Half,
        BlockType::BF16 => Kind::BFloat16,
        BlockType::Q8_0 => {
            return q8_0(floats).filter(|bytes| scales_are_finite(bytes)).ok_or_else(|| too_large(block));
        }
        other => return Err(Error::internal(format!("{other} is not written"))),
    };
    let cast = floats.f_to_kind(kind)?.f_contiguous()?;
    if !all_finite(&cast)? {
        return Err(too_large(block));
    }
    let mut bytes = vec![0; cast.numel() * kind.elt_size_in_bytes()];
    cast.f_copy_data_u8(&mut bytes, cast.numel())?;
    Ok(bytes)
}

fn too_large(block: BlockType) -> Error {
    Error::non_finite(format!("holds values too large for {block}")).hint("write it as bf16 or f32")
}

fn scales_are_finite(bytes: &[u8]) -> bool {
    bytes.as_chunks::<BYTES>().0.iter().all(|b| f16::from_le_bytes([b[0], b[1]]).is_finite())
}

/// `gguf.quants.quantize`, bit for bit, which is ggml's `quantize_row_q8_0_ref`.
fn q8_0(floats: &Tensor) -> Option<Vec<u8>> {
    let floats = floats.contiguous();
    let floats = elements::<f32>(&floats)?;
    let blocks = floats.len() / VALUES;
    let mut out = vec![0; blocks * BYTES];
    parallel_rows(Rows { data: &mut out, width: BYTES }, blocks, GRAIN, |first, n, out| {
        quantise(&floats[first * VALUES..(first + n) * VALUES], out.data);
    });
    Some(out)
}

tch_ext::simd! {
    /// `d` is the largest magnitude over 127, `q` is `x / d` to the nearest, halves away from 0.
    fn quantise(floats: &[f32], out: &mut [u8]) {
        for (x, out) in floats.as_chunks::<VALUES>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
            let d = x.iter().fold(0f32, |most, x| most.max(x.abs())) / 127.0;
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            let (scale, codes) = out.split_at_mut(2);
            scale.copy_from_slice(&f16::from_f32(d).to_le_bytes());
            codes.iter_mut().zip(x).for_each(|(q, x)| *q = (x * inverse).round() as i8 as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    /// `tests/data/make_gguf_blocks.py`: floats of many sizes, blocks of zeros, halves, and the gguf package's blocks.
    #[test]
    fn q8_0_is_bit_equal_to_the_gguf_package() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf_blocks.safetensors");
        let file = std::fs::read(file).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        let floats = file.tensor("quantize.floats").unwrap();
        let n = floats.shape()[0];
        let floats = Tensor::from_data_size(floats.data(), &[n as i64], Kind::Float);
        let want = file.tensor("quantize.Q8_0").unwrap();
        assert!(encode(&floats, BlockType::Q8_0).unwrap() == want.data());
        let many = 3 * GRAIN * VALUES / n + 1;
        let repeated = encode(&floats.repeat([many as i64]), BlockType::Q8_0).unwrap();
        assert!(repeated == want.data().repeat(many));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (x, block) in [(7e4, BlockType::F16), (3.4e38, BlockType::BF16), (9e6, BlockType::Q8_0)] {
            let floats = Tensor::from_slice(&[0f32; 64]);
            let _ = floats.narrow(0, 40, 1).fill_(x);
            let e = encode(&floats, block).unwrap_err().to_string();
            assert!(e.contains(&format!("too large for {block}")), "{e}");
            let _ = floats.narrow(0, 40, 1).fill_(x * 0.9);
            assert!(encode(&floats, block).is_ok());
        }
    }
}
