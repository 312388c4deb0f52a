//! ggml's k-quants: blocks of 256 values in groups of 16 or 32, whose scales are small whole numbers times an f16.

use tch_ext::Number;

use super::blocks::{each, half_at, part};

/// 256 values of 2 bits: of every 32 bytes the lowest two bits come first, as 32 values, then the next two.
/// `value(v, q)` for value v.
#[inline(always)]
fn twos(q: &[u8; 64], out: &mut [f32; 256], value: impl Fn(usize, u8) -> f32) {
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let q = part::<32>(q, g / 4 * 32);
        for (l, (out, q)) in out.iter_mut().zip(q).enumerate() {
            *out = value(g * 32 + l, q >> (g % 4 * 2) & 3);
        }
    }
}

tch_ext::simd! {
    /// 16 bytes of scales (low half) and minima (high half), codes of 2 bits, `d`, `dmin`: `d s q - dmin m`.
    pub(super) fn q2<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 84], out| {
            let (d, least) = (half_at(b, 80), half_at(b, 82));
            let scales: [f32; 16] = part::<16>(b, 0).map(|s| d * f32::from(s & 15));
            let minima: [f32; 16] = part::<16>(b, 0).map(|s| least * f32::from(s >> 4));
            twos(part(b, 16), out, |v, q| scales[v / 16] * f32::from(q) - minima[v / 16]);
        });
    }
}

tch_ext::simd! {
    /// 32 bytes of third bits (bit g of byte l for value 32 g + l), codes of 2 bits, 16 scales of 6 bits, `d`:
    /// `d (s - 32) (q - 4)`, or q where the third bit is set.
    pub(super) fn q3<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 110], out| {
            let (third, s, d) = (part::<32>(b, 0), part::<12>(b, 96), half_at(b, 108));
            // The low halves of the first eight bytes, then their high halves; two bits more from the last four.
            let scales: [f32; 16] = std::array::from_fn(|i| {
                let low = s[i % 8] >> (i / 8 * 4) & 15;
                let high = s[8 + i % 4] >> (i / 4 * 2) & 3;
                d * f32::from((low | high << 4) as i8 - 32)
            });
            twos(part(b, 32), out, |v, q| {
                let q = (q | (third[v % 32] >> (v / 32) & 1) << 2) as i8 - 4;
                scales[v / 16] * f32::from(q)
            });
        });
    }
}

/// The eight scales and minima of Q4_K and Q5_K, 6 bits each, times `d` and `dmin` of the block.
#[inline(always)]
fn scales(b: &[u8]) -> ([f32; 8], [f32; 8]) {
    let (d, least, s) = (half_at(b, 0), half_at(b, 2), part::<12>(b, 4));
    let six = |i: usize, first: usize, low: u8| match i {
        0..4 => s[first + i] & 63,
        _ => low & 15 | s[first + i - 4] >> 2 & 48,
    };
    let scales = std::array::from_fn(|i| d * f32::from(six(i, 0, s[8 + i % 4])));
    let minima = std::array::from_fn(|i| least * f32::from(six(i, 4, s[8 + i % 4] >> 4)));
    (scales, minima)
}

/// 256 nibbles: of every 32 bytes first the low halves, as 32 values, then the high ones. `value(g, l, q)` for value
/// 32 g + l.
#[inline(always)]
fn nibbles(q: &[u8; 128], out: &mut [f32; 256], value: impl Fn(usize, usize, u8) -> f32) {
    for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let q = part::<32>(q, g / 2 * 32);
        for (l, (out, q)) in out.iter_mut().zip(q).enumerate() {
            *out = value(g, l, q >> (g % 2 * 4) & 15);
        }
    }
}

tch_ext::simd! {
    /// `d`, `dmin`, scales and minima, nibbles: `d s q - dmin m`.
    pub(super) fn q4<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 144], out| {
            let (scales, minima) = scales(b);
            nibbles(part(b, 16), out, |g, _, q| scales[g] * f32::from(q) - minima[g]);
        });
    }
}

tch_ext::simd! {
    /// As Q4_K, with 32 bytes of fifth bits (bit g of byte l for value 32 g + l) before the nibbles.
    pub(super) fn q5<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 176], out| {
            let ((scales, minima), fifth) = (scales(b), part::<32>(b, 16));
            nibbles(part(b, 48), out, |g, l, q| {
                scales[g] * f32::from(q | (fifth[l] >> g & 1) << 4) - minima[g]
            });
        });
    }
}

tch_ext::simd! {
    /// 128 bytes of nibbles (of every 64 first the low halves, as 64 values), 64 bytes of two more bits, 16 signed
    /// scales, `d`: `d s (q - 32)`.
    pub(super) fn q6<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 210], out: &mut [f32; 256]| {
            let d = half_at(b, 208);
            let scales: [f32; 16] = part::<16>(b, 192).map(|s| d * f32::from(s as i8));
            for (g, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let low = part::<32>(b, g / 4 * 64 + g % 2 * 32);
                let high = part::<32>(b, 128 + g / 4 * 32);
                for (l, out) in out.iter_mut().enumerate() {
                    let q = low[l] >> (g % 4 / 2 * 4) & 15 | (high[l] >> (g % 4 * 2) & 3) << 4;
                    *out = scales[g * 2 + l / 16] * f32::from(q as i8 - 32);
                }
            }
        });
    }
}
