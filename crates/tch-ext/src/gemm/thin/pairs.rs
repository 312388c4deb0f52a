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
    let mut column = columns.start;
    while column < columns.end {
        // Of few rows more columns at a time: one sum waits for itself.
        // SAFETY: the caller's promise.
        column += unsafe {
            match (thin.rows, columns.end - column) {
                (1..=2, 97..) => strip::<4>(thin, column),
                (1..=4, 33..) => strip::<2>(thin, column),
                _ => strip::<1>(thin, column),
            }
        };
    }
}

/// All thin rows by V times 32 columns; says how many columns these are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn strip<const V: usize>(thin: &Thin, column: usize) -> usize {
    let mut row = 0;
    while row < thin.rows {
        // SAFETY: the caller's promise.
        row += unsafe {
            match thin.rows - row {
                16 => outer::<8, V>(thin, row, column),
                12.. => outer::<12, V>(thin, row, column),
                8.. => outer::<8, V>(thin, row, column),
                4.. => outer::<4, V>(thin, row, column),
                2.. => outer::<2, V>(thin, row, column),
                _ => outer::<1, V>(thin, row, column),
            }
        };
    }
    V * COLUMNS
}

/// Two wide rows interleaved are 32 pairs; each quarter of a vector has eight columns, whose first four go to the low sums.
/// Says how many thin rows it did.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn outer<const R: usize, const V: usize>(thin: &Thin, row: usize, column: usize) -> usize {
    let (mut low, mut high) = ([[_mm512_setzero_ps(); V]; R], [[_mm512_setzero_ps(); V]; R]);
    let (a, b) = (thin.thin, Matrix { data: thin.wide.data.wrapping_add(column), ..thin.wide });
    let masks: [__mmask32; V] =
        std::array::from_fn(|v| mask(thin.columns.saturating_sub(column + v * COLUMNS)));
    for k in (0..thin.depth).step_by(2) {
        for ahead in [AHEAD, AHEAD + 1] {
            for v in 0..V {
                ask(b.data.wrapping_add((k + ahead) * b.stride + v * COLUMNS).cast());
            }
        }
        let odd = k + 1 == thin.depth;
        let (mut x, mut y) = ([_mm512_setzero_si512(); V], [_mm512_setzero_si512(); V]);
        for (v, &mask) in masks.iter().enumerate() {
            // SAFETY: where the mask has a bit there is a number of this row.
            let load = |k: usize| unsafe {
                _mm512_maskz_loadu_epi16(mask, b.data.add(k * b.stride).wrapping_add(v * COLUMNS).cast())
            };
            let (first, second) = (load(k), if odd { _mm512_setzero_si512() } else { load(k + 1) });
            x[v] = _mm512_unpacklo_epi16(first, second);
            y[v] = _mm512_unpackhi_epi16(first, second);
        }
        for r in 0..R {
            // SAFETY: a pair of this row, whose depth is even.
            let pair = unsafe { a.row(row + r, k, 2).as_ptr().cast::<i32>().read_unaligned() };
            let pair = as_pairs(_mm512_set1_epi32(pair));
            for v in 0..V {
                low[r][v] = _mm512_dpbf16_ps(low[r][v], pair, as_pairs(x[v]));
                high[r][v] = _mm512_dpbf16_ps(high[r][v], pair, as_pairs(y[v]));
            }
        }
    }
    for r in 0..R {
        for v in 0..V {
            // SAFETY: these columns are the caller's own.
            unsafe { store(thin, (row + r, column + v * COLUMNS), [low[r][v], high[r][v]], masks[v]) };
        }
    }
    R
}

/// 32 sums, in the order of their columns.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn store(thin: &Thin, (row, column): (usize, usize), sums: [__m512; 2], mask: __mmask32) {
    // SAFETY: as many as a vector holds.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    for (half, first) in [0, 8].into_iter().enumerate() {
        let order = _mm512_add_epi32(order, _mm512_set1_epi32(first));
        let sum = _mm512_permutex2var_ps(sums[0], order, sums[1]);
        let sum = _mm512_mul_ps(sum, _mm512_set1_ps(thin.scale));
        let (mask, at) = ((mask >> (16 * half)) as __mmask16, row * thin.stride + column + 16 * half);
        // SAFETY: the caller's promise.
        unsafe {
            if thin.half {
                let (out, mut numbers) = (thin.out.cast::<bf16>().wrapping_add(at), [0f32; 16]);
                _mm512_storeu_ps(numbers.as_mut_ptr(), sum);
                for (i, &sum) in numbers.iter().enumerate().filter(|(i, _)| mask >> i & 1 == 1) {
                    let out = out.add(i);
                    *out = round_bf16(if thin.add { out.read().to_f32() + sum } else { sum });
                }
            } else {
                let out = thin.out.cast::<f32>().wrapping_add(at);
                let sum = if thin.add { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, out)) } else { sum };
                _mm512_mask_storeu_ps(out, mask, sum);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn as_pairs(words: __m512i) -> __m512bh {
    // SAFETY: the same bits.
    unsafe { std::mem::transmute(words) }
}
