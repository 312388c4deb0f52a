//! Numbers of 4 bits: codes into a book of 16.

use crate::Simd;

/// `out[2 i] = book[bytes[i] >> 4]`, `out[2 i + 1] = book[bytes[i] & 15]`: two codes a byte, the first in the high half.
///
/// # Panics
/// If `out` is not twice as long as `bytes`.
pub fn nibbles(out: &mut [f32], bytes: &[u8], book: &[f32; 16]) {
    assert_eq!(out.len(), 2 * bytes.len(), "two numbers a byte");
    match Simd::best() {
        // SAFETY: the machine has it.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 => unsafe { avx512(out, bytes, book) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => unsafe { avx2(out, bytes, book) },
        _ => plain(out, bytes, book),
    }
}

fn plain(out: &mut [f32], bytes: &[u8], book: &[f32; 16]) {
    for (out, byte) in out.chunks_exact_mut(2).zip(bytes) {
        out[0] = book[usize::from(byte >> 4)];
        out[1] = book[usize::from(byte & 15)];
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(out: &mut [f32], bytes: &[u8], book: &[f32; 16]) {
    use std::arch::x86_64::*;
    // SAFETY: 16 floats.
    let book_now = unsafe { _mm512_loadu_ps(book.as_ptr()) };
    let (eights, rest) = bytes.as_chunks::<8>();
    let (sixteens, out_rest) = out.as_chunks_mut::<16>();
    for (out, eight) in sixteens.iter_mut().zip(eights) {
        // SAFETY: 8 bytes are read and 16 floats are written. Of an index, the lowest 4 bits count.
        unsafe {
            let x = _mm512_cvtepu8_epi64(_mm_loadl_epi64(eight.as_ptr().cast()));
            let index = _mm512_or_si512(_mm512_srli_epi64(x, 4), _mm512_slli_epi64(x, 32));
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutexvar_ps(index, book_now));
        }
    }
    plain(out_rest, rest, book);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(out: &mut [f32], bytes: &[u8], book: &[f32; 16]) {
    use std::arch::x86_64::*;
    // SAFETY: 16 floats.
    let (low, high) = unsafe { (_mm256_loadu_ps(book.as_ptr()), _mm256_loadu_ps(book.as_ptr().add(8))) };
    let (fours, rest) = bytes.as_chunks::<4>();
    let (eights, out_rest) = out.as_chunks_mut::<8>();
    for (out, four) in eights.iter_mut().zip(fours) {
        // Each byte twice: its high half in the even lane, its low half in the odd one.
        let x = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*four)));
        let index = _mm256_or_si256(_mm256_srli_epi64(x, 4), _mm256_slli_epi64(x, 32));
        // Of an index the lowest 3 bits count, and the fourth chooses the half of the book: as a sign.
        let upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
        let (l, h) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
        // SAFETY: 8 floats are written.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(l, h, upper)) };
    }
    plain(out_rest, rest, book);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_length() {
        let book = std::array::from_fn(|i| i as f32 - 7.5);
        for n in [0, 1, 7, 8, 9, 16, 31, 256] {
            let bytes: Vec<u8> = (0..n).map(|i| (i * 37 % 256) as u8).collect();
            let (mut fast, mut slow) = (vec![0.0; 2 * n], vec![1.0; 2 * n]);
            nibbles(&mut fast, &bytes, &book);
            plain(&mut slow, &bytes, &book);
            assert_eq!(fast, slow);
            assert!(bytes.first().is_none_or(|&b| slow[1] == f32::from(b & 15) - 7.5));
        }
        nibbles(&mut [], &[], &book);
    }
}
