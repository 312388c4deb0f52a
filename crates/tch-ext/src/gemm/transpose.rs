//! Words of a matrix, transposed into a panel.

use super::pack::{Matrix, WIDTH};

/// `out[j * WIDTH + i] = from(i0 + i, j0 + j)` for i below `rows`, j below `columns`.
///
/// # Safety
/// The block lies in the matrix, and `out` holds `columns` rows of `WIDTH`.
pub(super) unsafe fn transpose(
    from: Matrix<u32>,
    i0: usize,
    rows: usize,
    j0: usize,
    columns: usize,
    out: &mut [u32],
) {
    #[cfg(target_arch = "x86_64")]
    if rows == WIDTH && is_x86_feature_detected!("avx512f") {
        let whole = columns / 16 * 16;
        for i in (0..WIDTH).step_by(16) {
            for j in (0..whole).step_by(16) {
                // SAFETY: 16 x 16 words from (i0 + i, j0 + j) and at out[j * WIDTH + i] are in bounds.
                unsafe {
                    let source = from.data.add((i0 + i) * from.stride + j0 + j);
                    transpose16(source, from.stride, out.as_mut_ptr().add(j * WIDTH + i));
                }
            }
        }
        // SAFETY: the rest of the caller's block.
        return unsafe {
            transpose_plain(from, i0, rows, j0 + whole, columns - whole, &mut out[whole * WIDTH..])
        };
    }
    // SAFETY: the caller's promise.
    unsafe { transpose_plain(from, i0, rows, j0, columns, out) };
}

/// # Safety
/// As [`transpose`].
unsafe fn transpose_plain(
    from: Matrix<u32>,
    i0: usize,
    rows: usize,
    j0: usize,
    columns: usize,
    out: &mut [u32],
) {
    for i in 0..rows {
        // SAFETY: the caller's promise.
        let row = unsafe { from.row(i0 + i, j0, columns) };
        row.iter().enumerate().for_each(|(j, &word)| out[j * WIDTH + i] = word);
    }
}

/// 16 x 16 words; rows of `out` are `WIDTH` apart.
///
/// # Safety
/// Both blocks are in bounds, and the machine has AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose16(from: *const u32, stride: usize, out: *mut u32) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let mut r: [__m512i; 16] =
        std::array::from_fn(|i| unsafe { _mm512_loadu_si512(from.add(i * stride).cast()) });
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
    for (j, row) in t.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(out.add(j * WIDTH).cast(), row) };
    }
}
