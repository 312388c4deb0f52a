//! Blocks of a matrix, transposed.

use super::pack::{Matrix, Packed};
use crate::Simd;

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
    // A matrix without elements may have no memory.
    if columns == 0 {
        return;
    }
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
    Simd::best() != Simd::Plain
}

/// A tile of 16 x 16 words: `to[j][i] = from[i][j]`, rows of either `stride` apart.
///
/// # Safety
/// Both are in bounds, and the machine has AVX2 or AVX-512.
pub(super) unsafe fn turn_words(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise.
    unsafe {
        match Simd::best() {
            Simd::Avx512 => avx512::words(from, stride, to, to_stride),
            _ => avx2::words(from, stride, to, to_stride),
        }
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
        match Simd::best() {
            Simd::Avx512 => avx512::halves(from, stride, to, to_stride),
            _ => avx2::halves(from, stride, to, to_stride),
        }
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

/// In quarters of 8 x 8 words.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    const QUARTERS: [(usize, usize); 4] = [(0, 0), (0, 8), (8, 0), (8, 8)];

    /// # Safety
    /// As `turn_words`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn words(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) {
        for (i, j) in QUARTERS {
            // SAFETY: the caller's promise.
            unsafe {
                let row = |r: usize| _mm256_loadu_si256(from.add((i + r) * stride + j).cast());
                let rows = [row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)];
                store(turned(rows), to.add(j * to_stride + i).cast(), 4 * to_stride);
            }
        }
    }

    /// # Safety
    /// As `turn_halves`.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn halves(from: *const u16, stride: usize, to: *mut u16, to_stride: usize) {
        for (i, j) in QUARTERS {
            // SAFETY: the caller's promise. A word is a pair of rows.
            unsafe {
                let row = |r: usize| {
                    _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add((2 * i + r) * stride + j).cast()))
                };
                let pair = |r: usize| _mm256_or_si256(row(2 * r), _mm256_slli_epi32(row(2 * r + 1), 16));
                let rows = [pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7)];
                store(turned(rows), to.add(j * to_stride + 2 * i).cast(), 2 * to_stride);
            }
        }
    }

    /// # Safety
    /// Eight rows of eight words are there, so many bytes apart.
    #[target_feature(enable = "avx2")]
    unsafe fn store(rows: [__m256i; 8], to: *mut u8, bytes: usize) {
        for (j, row) in rows.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { _mm256_storeu_si256(to.add(j * bytes).cast(), row) };
        }
    }

    #[target_feature(enable = "avx2")]
    fn turned(r: [__m256i; 8]) -> [__m256i; 8] {
        // Within each half of four lanes: 2 x 2 words, then 2 x 2 pairs; then the halves themselves.
        let low = |i: usize| _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        let high = |i: usize| _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
        let (a, b) = ([low(0), low(1), low(2), low(3)], [high(0), high(1), high(2), high(3)]);
        // Column c, and c + 4 in the upper half, of rows 0 to 4 and of rows 4 to 8.
        let column = |c: usize| {
            let x = if c < 2 { &a } else { &b };
            match c % 2 {
                0 => (_mm256_unpacklo_epi64(x[0], x[1]), _mm256_unpacklo_epi64(x[2], x[3])),
                _ => (_mm256_unpackhi_epi64(x[0], x[1]), _mm256_unpackhi_epi64(x[2], x[3])),
            }
        };
        let whole = |c: usize| {
            let (upper, lower) = column(c % 4);
            match c / 4 {
                0 => _mm256_permute2x128_si256(upper, lower, 0x20),
                _ => _mm256_permute2x128_si256(upper, lower, 0x31),
            }
        };
        [whole(0), whole(1), whole(2), whole(3), whole(4), whole(5), whole(6), whole(7)]
    }
}
