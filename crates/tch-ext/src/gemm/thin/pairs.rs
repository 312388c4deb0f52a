//! The loops, by AVX-512's products of pairs of bf16.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::{COLUMNS, Matrix, Thin};
use crate::gemm::ahead::ask;
use crate::round_bf16;

/// Wide rows that are multiplied with one vector of a thin one.
const TOGETHER: usize = 3;
/// Wide rows that are asked for ahead of time.
const AHEAD: usize = 32;
/// Where the sums of 16 columns lie in two vectors, low and high; those of the next 16 lie 8 further.
const ORDER: [i32; 16] = [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23];

fn mask(left: usize) -> __mmask32 {
    if left >= 32 { !0 } else { (1 << left) - 1 }
}

/// Wide rows by thin ones, number by number.
///
/// # Safety
/// The rows are there, and nobody else writes these rows of the result; the machine multiplies pairs of bf16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn right(thin: &Thin, rows: Range<usize>) {
    for row in rows.clone().step_by(TOGETHER) {
        let mut column = 0;
        while column < thin.columns {
            let left = thin.columns - column;
            // SAFETY: the caller's promise.
            column += unsafe {
                match rows.end - row {
                    1 => dots_of::<1>(thin, row, column, left),
                    2 => dots_of::<2>(thin, row, column, left),
                    _ => dots_of::<TOGETHER>(thin, row, column, left),
                }
            };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn dots_of<const R: usize>(thin: &Thin, row: usize, column: usize, left: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match left {
            8.. => dots::<R, 8>(thin, row, column),
            4.. => dots::<R, 4>(thin, row, column),
            2.. => dots::<R, 2>(thin, row, column),
            _ => dots::<R, 1>(thin, row, column),
        }
    }
}

/// Says how many thin rows it did.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn dots<const R: usize, const C: usize>(thin: &Thin, row: usize, column: usize) -> usize {
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    let a = thin.wide.data.wrapping_add(row * thin.wide.stride);
    let b = thin.thin.data.wrapping_add(column * thin.thin.stride);
    for k in (0..thin.depth).step_by(32) {
        let mask = mask(thin.depth - k);
        // SAFETY: of each row so many numbers are there.
        let load = |row: *const bf16| unsafe { _mm512_maskz_loadu_epi16(mask, row.add(k).cast()) };
        let mut x = [_mm512_setzero_si512(); R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = load(a.wrapping_add(r * thin.wide.stride));
        }
        for c in 0..C {
            let y = as_pairs(load(b.wrapping_add(c * thin.thin.stride)));
            for (sums, &x) in sums.iter_mut().zip(&x) {
                sums[c] = _mm512_dpbf16_ps(sums[c], as_pairs(x), y);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            let (sum, at) = (_mm512_reduce_add_ps(*sum), (row + r) * thin.stride + column + c);
            // SAFETY: this place is the caller's own.
            unsafe {
                if thin.half {
                    *thin.out.cast::<bf16>().add(at) = round_bf16(sum);
                } else {
                    *thin.out.cast::<f32>().add(at) = sum;
                }
            }
        }
    }
    C
}

/// Columns of the wide matrix by thin rows.
///
/// # Safety
/// As [`right`], of columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn left(thin: &Thin, columns: Range<usize>) {
    for column in columns.step_by(COLUMNS) {
        let mut row = 0;
        while row < thin.rows {
            // SAFETY: the caller's promise.
            row += unsafe {
                match thin.rows - row {
                    16 => outer::<8>(thin, row, column),
                    12.. => outer::<12>(thin, row, column),
                    8.. => outer::<8>(thin, row, column),
                    4.. => outer::<4>(thin, row, column),
                    2.. => outer::<2>(thin, row, column),
                    _ => outer::<1>(thin, row, column),
                }
            };
        }
    }
}

/// Two wide rows interleaved are 32 pairs; each quarter of a vector has eight columns, whose first four go to the low sums.
/// Says how many thin rows it did.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn outer<const R: usize>(thin: &Thin, row: usize, column: usize) -> usize {
    let (mut low, mut high) = ([_mm512_setzero_ps(); R], [_mm512_setzero_ps(); R]);
    let (a, b) = (thin.thin, Matrix { data: thin.wide.data.wrapping_add(column), ..thin.wide });
    let mask = mask(thin.columns - column);
    // SAFETY: this row is there.
    let load = |k: usize| unsafe { _mm512_maskz_loadu_epi16(mask, b.row(k, 0, 0).as_ptr().cast()) };
    for k in (0..thin.depth).step_by(2) {
        for ahead in [AHEAD, AHEAD + 1] {
            ask(b.data.wrapping_add((k + ahead) * b.stride).cast());
        }
        let (first, odd) = (load(k), k + 1 == thin.depth);
        let second = if odd { _mm512_setzero_si512() } else { load(k + 1) };
        let x = as_pairs(_mm512_unpacklo_epi16(first, second));
        let y = as_pairs(_mm512_unpackhi_epi16(first, second));
        for r in 0..R {
            // SAFETY: a pair of this row, whose depth is even.
            let pair = unsafe { a.row(row + r, k, 2).as_ptr().cast::<i32>().read_unaligned() };
            let pair = as_pairs(_mm512_set1_epi32(pair));
            low[r] = _mm512_dpbf16_ps(low[r], pair, x);
            high[r] = _mm512_dpbf16_ps(high[r], pair, y);
        }
    }
    // SAFETY: as many as a vector holds.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    let scale = _mm512_set1_ps(thin.scale);
    for r in 0..R {
        for (half, first) in [0, 8].into_iter().enumerate() {
            let order = _mm512_add_epi32(order, _mm512_set1_epi32(first));
            let sum = _mm512_mul_ps(_mm512_permutex2var_ps(low[r], order, high[r]), scale);
            let mask = (mask >> (16 * half)) as __mmask16;
            // SAFETY: these columns are the caller's own.
            unsafe {
                let out = thin.out.cast::<f32>().wrapping_add((row + r) * thin.stride + column + 16 * half);
                let sum = if thin.add { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out)) } else { sum };
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
    R
}

#[target_feature(enable = "avx512f")]
fn as_pairs(words: __m512i) -> __m512bh {
    // SAFETY: the same bits.
    unsafe { std::mem::transmute(words) }
}
