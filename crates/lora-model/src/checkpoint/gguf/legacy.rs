//! Plain numbers, and blocks of 32 values with one f16 scale `d` (and a least value `m`, where there is one).

use half::{bf16, f16};
use tch_ext::Number;

use super::blocks::{each, half_at, part};

tch_ext::simd! {
    pub(super) fn single<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b, out: &mut [f32; 1]| out[0] = f32::from_le_bytes(*b));
    }
}

tch_ext::simd! {
    pub(super) fn half<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b, out: &mut [f32; 1]| out[0] = f16::from_le_bytes(*b).to_f32());
    }
}

tch_ext::simd! {
    pub(super) fn brain<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b, out: &mut [f32; 1]| out[0] = bf16::from_le_bytes(*b).wide());
    }
}

/// `out[j]` from the low half of byte j, `out[j + 16]` from its high half.
#[inline(always)]
fn nibbles(q: &[u8; 16], out: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for (j, ((low, high), q)) in low.iter_mut().zip(high).zip(q).enumerate() {
        *low = value(j, q & 15);
        *high = value(j + 16, q >> 4);
    }
}

/// The fifth bit of value j.
#[inline(always)]
fn fifth(high: u32, j: usize) -> u8 {
    (high >> j & 1) as u8 * 16
}

tch_ext::simd! {
    /// `d`, nibbles: `d (q - 8)`.
    pub(super) fn q4_0<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 18], out| {
            let d = half_at(b, 0);
            nibbles(part(b, 2), out, |_, q| d * f32::from(q as i8 - 8));
        });
    }
}

tch_ext::simd! {
    /// `d`, `m`, nibbles: `d q + m`.
    pub(super) fn q4_1<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 20], out| {
            let (d, m) = (half_at(b, 0), half_at(b, 2));
            nibbles(part(b, 4), out, |_, q| d * f32::from(q) + m);
        });
    }
}

tch_ext::simd! {
    /// `d`, 32 fifth bits, nibbles: `d (q - 16)`.
    pub(super) fn q5_0<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 22], out| {
            let (d, high) = (half_at(b, 0), u32::from_le_bytes(*part(b, 2)));
            nibbles(part(b, 6), out, |j, q| d * f32::from((q | fifth(high, j)) as i8 - 16));
        });
    }
}

tch_ext::simd! {
    /// `d`, `m`, 32 fifth bits, nibbles: `d q + m`.
    pub(super) fn q5_1<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 24], out| {
            let (d, m, high) = (half_at(b, 0), half_at(b, 2), u32::from_le_bytes(*part(b, 4)));
            nibbles(part(b, 8), out, |j, q| d * f32::from(q | fifth(high, j)) + m);
        });
    }
}

tch_ext::simd! {
    /// `d`, 32 signed bytes: `d q`.
    pub(super) fn q8_0<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 34], out: &mut [f32; 32]| {
            let d = half_at(b, 0);
            out.iter_mut().zip(part::<32>(b, 2)).for_each(|(out, &q)| *out = d * f32::from(q as i8));
        });
    }
}

/// What the codes of IQ4_NL stand for (`kvalues_iq4nl` of `ggml-common.h`).
const BOOK: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

tch_ext::simd! {
    /// `d`, nibbles into a book: `d book[q]`.
    pub(super) fn iq4_nl<T: Number<Wide = f32>>(bytes: &[u8], out: &mut [T]) {
        each(bytes, out, |b: &[u8; 18], out| {
            let d = half_at(b, 0);
            nibbles(part(b, 2), out, |_, q| d * BOOK[usize::from(q & 15)]);
        });
    }
}
