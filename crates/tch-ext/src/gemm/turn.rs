//! Blocks of a matrix, transposed.

use super::pack::{Matrix, Packed};

/// `out[j * stride + i] = from(i0 + i, j0 + j)` for i below `rows`, j below `columns`.
///
/// # Safety
/// The block lies in the matrix, and all of `out` is in bounds.
pub(super) unsafe fn transpose<T: Packed>(
    from: Matrix<T>,
    (i0, rows): (usize, usize),
    (j0, columns): (usize, usize),
    out: *mut T,
    stride: usize,
) {
    let tiled = if fast() { (rows / T::TILE * T::TILE, columns / 16 * 16) } else { (0, 0) };
    // SAFETY: the caller's promise, in tiles and in what is left to their right and below.
    unsafe {
        for i in (0..tiled.0).step_by(T::TILE) {
            for j in (0..tiled.1).step_by(16) {
                T::turn(
                    from.data.add((i0 + i) * from.stride + j0 + j),
                    from.stride,
                    out.add(j * stride + i),
                    stride,
                );
            }
        }
        for i in 0..rows {
            let row = from.row(i0 + i, j0, columns);
            let done = if i < tiled.0 { tiled.1 } else { 0 };
            for (j, x) in row.iter().enumerate().skip(done) {
                *out.add(j * stride + i) = *x;
            }
        }
    }
}

fn fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// A tile of 16 x 16 words: `to[j][i] = from[i][j]`, rows of either `stride` apart.
///
/// # Safety
/// Both are in bounds, and the machine has AVX-512.
pub(super) unsafe fn turn_words(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        avx512::words(from, stride, to, to_stride);
    }
}

/// A tile of 32 x 16 half words, likewise.
///
/// # Safety
/// As [`turn_words`].
pub(super) unsafe fn turn_halves(from: *const u16, stride: usize, to: *mut u16, to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        avx512::halves(from, stride, to, to_stride);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    /// # Safety
    /// As `turn_words`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn words(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) {
        // SAFETY: the caller's promise.
        let rows = std::array::from_fn(|i| unsafe { _mm512_loadu_si512(from.add(i * stride).cast()) });
        for (j, row) in turned(rows).into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(to.add(j * to_stride).cast(), row) };
        }
    }

    /// # Safety
    /// As `turn_halves`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn halves(from: *const u16, stride: usize, to: *mut u16, to_stride: usize) {
        // SAFETY: the caller's promise.
        let row =
            |i: usize| unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(i * stride).cast())) };
        // A word is a pair of rows.
        let pairs =
            std::array::from_fn(|i| _mm512_or_si512(row(2 * i), _mm512_slli_epi32(row(2 * i + 1), 16)));
        for (j, row) in turned(pairs).into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { _mm512_storeu_si512(to.add(j * to_stride).cast(), row) };
        }
    }

    #[target_feature(enable = "avx512f")]
    fn turned(mut r: [__m512i; 16]) -> [__m512i; 16] {
        // Within each group of four lanes: 2 x 2 words, then 2 x 2 pairs; then the groups themselves, twice.
        let mut t = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        }
        for i in 0..4 {
            r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
            r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
            r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
        }
        // r[4 i + c] holds, in group g, column 4 g + c of rows 4 i .. 4 i + 4.
        for c in 0..4 {
            let a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
            let b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
            let d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
            let e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
            t[c] = _mm512_shuffle_i32x4(a, d, 0x88);
            t[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
            t[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
            t[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
        }
        t
    }
}
