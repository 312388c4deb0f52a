//! ggml's block formats, and how the ones we read become floats.
//!
//! Bit-equal with the `gguf` Python package's `dequantize` (products and sums in f32, each rounded, never fused). ggml's
//! own layouts are in `ggml-common.h`.

use std::fmt;

use half::f16;
use tch_ext::{Number, Rows, parallel_rows};

use super::{k_quants, legacy};

/// Values a thread takes at least: fewer cost more to hand out than to compute.
const GRAIN: usize = 1 << 16;

/// A tensor type of ggml, by its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    /// One we do not read.
    Other(u32),
}

use BlockType as B;

/// Those we read: the number, ggml's name, values and bytes per block.
const READ: [(BlockType, u32, &str, (u64, u64)); 14] = [
    (B::F32, 0, "F32", (1, 4)),
    (B::F16, 1, "F16", (1, 2)),
    (B::BF16, 30, "BF16", (1, 2)),
    (B::Q4_0, 2, "Q4_0", (32, 18)),
    (B::Q4_1, 3, "Q4_1", (32, 20)),
    (B::Q5_0, 6, "Q5_0", (32, 22)),
    (B::Q5_1, 7, "Q5_1", (32, 24)),
    (B::Q8_0, 8, "Q8_0", (32, 34)),
    (B::Q2K, 10, "Q2_K", (256, 84)),
    (B::Q3K, 11, "Q3_K", (256, 110)),
    (B::Q4K, 12, "Q4_K", (256, 144)),
    (B::Q5K, 13, "Q5_K", (256, 176)),
    (B::Q6K, 14, "Q6_K", (256, 210)),
    (B::Iq4Nl, 20, "IQ4_NL", (32, 18)),
];

/// The others, for messages.
const NOT_READ: [(u32, &str); 18] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl BlockType {
    /// Those whose values share a scale.
    #[cfg(test)]
    pub(super) const PACKED: [Self; 11] =
        [B::Q4_0, B::Q4_1, B::Q5_0, B::Q5_1, B::Q8_0, B::Q2K, B::Q3K, B::Q4K, B::Q5K, B::Q6K, B::Iq4Nl];

    pub(super) fn from_id(id: u32) -> Self {
        READ.iter().find(|read| read.1 == id).map_or(Self::Other(id), |read| read.0)
    }

    pub(super) fn id(self) -> u32 {
        match self {
            Self::Other(id) => id,
            _ => READ.iter().find(|read| read.0 == self).map_or(0, |read| read.1),
        }
    }

    /// Values and bytes per block, where known.
    pub(super) fn layout(self) -> Option<(u64, u64)> {
        READ.iter().find(|read| read.0 == self).map(|read| read.3)
    }

    /// Whether values share a scale: F32, F16 and BF16 are plain numbers.
    pub(super) fn is_packed(self) -> bool {
        self.layout().is_some_and(|(values, _)| values > 1)
    }

    /// The names of all types we read.
    pub(super) fn known() -> String {
        READ.map(|read| read.2).join(", ")
    }

    /// Writes the values of `bytes`, computed in f32 and rounded to T, to `out`; whole blocks only, an incomplete one
    /// at the end is left. Many blocks are shared out among libtorch's threads.
    pub(super) fn dequantize<T: Number<Wide = f32>>(self, bytes: &[u8], out: &mut [T]) {
        let Some((values, size)) = self.layout().map(|(v, b)| (v as usize, b as usize)) else { return };
        let blocks = (bytes.len() / size).min(out.len() / values);
        let rows = Rows { data: &mut out[..blocks * values], width: values };
        parallel_rows(rows, blocks, GRAIN / values, |first, n, out| {
            self.serial(&bytes[first * size..(first + n) * size], out.data);
        });
    }

    fn serial<T: Number<Wide = f32>>(self, bytes: &[u8], out: &mut [T]) {
        match self {
            Self::F32 => legacy::single(bytes, out),
            Self::F16 => legacy::half(bytes, out),
            Self::BF16 => legacy::brain(bytes, out),
            Self::Q4_0 => legacy::q4_0(bytes, out),
            Self::Q4_1 => legacy::q4_1(bytes, out),
            Self::Q5_0 => legacy::q5_0(bytes, out),
            Self::Q5_1 => legacy::q5_1(bytes, out),
            Self::Q8_0 => legacy::q8_0(bytes, out),
            Self::Q2K => k_quants::q2(bytes, out),
            Self::Q3K => k_quants::q3(bytes, out),
            Self::Q4K => k_quants::q4(bytes, out),
            Self::Q5K => k_quants::q5(bytes, out),
            Self::Q6K => k_quants::q6(bytes, out),
            Self::Iq4Nl => legacy::iq4_nl(bytes, out),
            Self::Other(_) => {}
        }
    }
}

/// `f` on every block, its values rounded to T; array lengths known to the compiler make the loops inside vectorise.
#[inline(always)]
pub(super) fn each<const SIZE: usize, const VALUES: usize, T: Number<Wide = f32>>(
    bytes: &[u8],
    out: &mut [T],
    f: impl Fn(&[u8; SIZE], &mut [f32; VALUES]),
) {
    let mut values = [0.0; VALUES];
    for (block, out) in bytes.as_chunks::<SIZE>().0.iter().zip(out.as_chunks_mut::<VALUES>().0) {
        f(block, &mut values);
        out.iter_mut().zip(&values).for_each(|(out, &x)| *out = T::narrow(x));
    }
}

/// N bytes of a block, from `at` on.
#[inline(always)]
pub(super) fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    &block[at..].as_chunks().0[0]
}

#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes(*part(block, at)).to_f32()
}

/// ggml's names, for messages.
impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Other(id) = self else {
            return f.write_str(READ.iter().find(|read| read.0 == *self).map_or("", |read| read.2));
        };
        match NOT_READ.iter().find(|other| other.0 == *id) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "type {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;
    use tch_ext::bf16;

    /// `tests/data/make_gguf_blocks.py` made the file: random blocks, and what the gguf package reads from them.
    #[test]
    fn every_type_is_bit_equal_to_the_gguf_package() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf_blocks.safetensors");
        let file = std::fs::read(file).unwrap();
        let file = SafeTensors::deserialize(&file).unwrap();
        for (block, _, name, (values, bytes)) in READ {
            let packed = file.tensor(&format!("{name}.blocks")).unwrap();
            let want = file.tensor(&format!("{name}.values")).unwrap();
            let want = want.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
            let want: Vec<f32> = want.collect();
            assert_eq!(packed.data().len() as u64 / bytes * values, want.len() as u64, "{name}");

            let mut out = vec![0f32; want.len()];
            block.dequantize(packed.data(), &mut out);
            let off = out.iter().zip(&want).position(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(off.map(|i| (i, out[i], want[i])), None, "{name}");

            let (mut brain, mut half) = (vec![bf16::ZERO; want.len()], vec![f16::ZERO; want.len()]);
            block.dequantize(packed.data(), &mut brain);
            block.dequantize(packed.data(), &mut half);
            assert!(
                brain.iter().zip(&want).all(|(a, b)| a.to_bits() == bf16::from_f32(*b).to_bits()),
                "{name}"
            );
            assert!(
                half.iter().zip(&want).all(|(a, b)| a.to_bits() == f16::from_f32(*b).to_bits()),
                "{name}"
            );

            // An incomplete block is left, and many are the same as few.
            let cut = packed.data().len() - 1;
            let mut short = vec![7f32; want.len()];
            block.dequantize(&packed.data()[..cut], &mut short);
            assert!(short[want.len() - values as usize..].iter().all(|&x| x == 7.0), "{name}");
            let times = 2 * GRAIN / want.len() + 2;
            let mut many = vec![0f32; times * want.len()];
            block.dequantize(&packed.data().repeat(times), &mut many);
            assert!(many.chunks(want.len()).all(|part| part == out), "{name}");
        }
    }

    #[test]
    fn no_byte_makes_it_panic() {
        for (block, id, name, (values, bytes)) in READ {
            assert_eq!((BlockType::from_id(id), block.id(), block.to_string()), (block, id, name.to_owned()));
            let mut out = vec![0f32; values as usize];
            for byte in 0..=255 {
                block.dequantize(&vec![byte; bytes as usize], &mut out);
            }
        }
        assert_eq!(
            (B::from_id(39).to_string(), B::from_id(99).to_string()),
            ("MXFP4".into(), "type 99".into())
        );
    }
}
