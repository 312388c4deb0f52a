//! Rows times one column, the column loaded once.

use std::ops::Range;
use std::sync::Arc;

use super::pack::{Matrix, Packed};

/// One product: the left-hand rows in f32, the right-hand matrix, transposed, as it lies.
pub(super) struct Term<T> {
    /// One row behind another.
    pub(super) a: Arc<[f32]>,
    pub(super) b: Matrix<T>,
    pub(super) depth: usize,
}

/// The terms' sums of R rows for each of these columns.
///
/// # Safety
/// The terms have these rows and columns.
#[inline]
pub(super) unsafe fn dots<T: Packed, const R: usize>(
    terms: &[Term<T>],
    columns: Range<usize>,
    each: impl Fn(usize, [f32; R]),
) {
    match crate::Simd::best() {
        // SAFETY: the caller's promise, and the machine has it.
        #[cfg(target_arch = "x86_64")]
        crate::Simd::Avx512 => return unsafe { avx512::dots(terms, columns, each) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        crate::Simd::Avx2 => return unsafe { avx2::dots(terms, columns, each) },
        _ => {}
    }
    for column in columns {
        let mut sums = [0f32; R];
        for term in terms {
            // SAFETY: the caller's promise.
            let b = unsafe { term.b.row(column, 0, term.depth) };
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum += plain(&term.a[r * term.depth..][..term.depth], b);
            }
        }
        each(column, sums);
    }
}

crate::simd! {
    fn plain<T: Packed>(a: &[f32], b: &[T]) -> f32 {
        let mut lanes = [0f32; 16];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
        for (a, b) in a.iter().zip(b) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane = a.mul_add(b.wide(), *lane);
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b.wide()).sum();
        lanes.iter().sum::<f32>() + rest
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{Packed, Term};
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// Two vectors of a column a turn, each with sums of its own.
    ///
    /// # Safety
    /// As [`super::dots`]; the machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn dots<T: Packed, const R: usize>(
        terms: &[Term<T>],
        columns: Range<usize>,
        each: impl Fn(usize, [f32; R]),
    ) {
        // A low-rank term, behind a deep one, stays in registers. It is added first: one more term behind it, of zeros even,
        // may turn last bits.
        let (terms, short) = match terms {
            [terms @ .., short] if short.depth <= 16 && !terms.is_empty() => (terms, Some(short)),
            terms => (terms, None),
        };
        let mask = |left: usize| if left >= 16 { !0 } else { (1u16 << left) - 1 };
        let mut kept = [_mm512_setzero_ps(); R];
        if let Some(short) = short {
            for (r, kept) in kept.iter_mut().enumerate() {
                // SAFETY: R rows of that depth.
                *kept = unsafe {
                    _mm512_maskz_loadu_ps(mask(short.depth), short.a.as_ptr().add(r * short.depth))
                };
            }
        }
        for column in columns {
            let (mut even, mut odd) = ([_mm512_setzero_ps(); R], [_mm512_setzero_ps(); R]);
            if let Some(short) = short {
                // SAFETY: as above.
                let b = unsafe { wide(short.b.row(column, 0, short.depth).as_ptr(), mask(short.depth)) };
                for r in 0..R {
                    odd[r] = _mm512_mul_ps(kept[r], b);
                }
            }
            for term in terms {
                let (depth, a, mut k) = (term.depth, term.a.as_ptr(), 0);
                // SAFETY: the caller's promise: 32 elements, 16, or those that the mask leaves are there.
                unsafe {
                    let b = term.b.row(column, 0, depth).as_ptr();
                    while k + 32 <= depth {
                        let (b0, b1) = (wide(b.add(k), !0), wide(b.add(k + 16), !0));
                        for r in 0..R {
                            let a = a.add(r * depth + k);
                            even[r] = _mm512_fmadd_ps(_mm512_loadu_ps(a), b0, even[r]);
                            odd[r] = _mm512_fmadd_ps(_mm512_loadu_ps(a.add(16)), b1, odd[r]);
                        }
                        k += 32;
                    }
                    while k < depth {
                        let mask = mask(depth - k);
                        let b0 = wide(b.add(k), mask);
                        for (r, even) in even.iter_mut().enumerate() {
                            let a = _mm512_maskz_loadu_ps(mask, a.add(r * depth + k));
                            *even = _mm512_fmadd_ps(a, b0, *even);
                        }
                        k += 16;
                    }
                }
            }
            let mut sums = [0f32; R];
            for r in 0..R {
                sums[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
            }
            each(column, sums);
        }
    }

    /// # Safety
    /// Where the mask has a bit there is an element.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn wide<T: Packed>(x: *const T, mask: u16) -> __m512 {
        // SAFETY: the caller's promise; bf16 are the upper halves of f32.
        unsafe {
            if T::HALF {
                let halves = _mm256_maskz_loadu_epi16(mask, x.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
            } else {
                _mm512_maskz_loadu_ps(mask, x.cast())
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Packed, Term};
    use std::arch::x86_64::*;
    use std::ops::Range;

    /// Two vectors of a column a turn, each with sums of its own.
    ///
    /// # Safety
    /// As [`super::dots`]; the machine has AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dots<T: Packed, const R: usize>(
        terms: &[Term<T>],
        columns: Range<usize>,
        each: impl Fn(usize, [f32; R]),
    ) {
        for column in columns {
            let (mut even, mut odd) = ([_mm256_setzero_ps(); R], [_mm256_setzero_ps(); R]);
            let mut sums = [0f32; R];
            for term in terms {
                let (depth, a, mut k) = (term.depth, term.a.as_ptr(), 0);
                // SAFETY: the caller's promise: 16 elements, 8, or the rest of a row are there.
                unsafe {
                    let b = term.b.row(column, 0, depth);
                    while k + 16 <= depth {
                        let (b0, b1) = (wide(b.as_ptr().add(k)), wide(b.as_ptr().add(k + 8)));
                        for r in 0..R {
                            let a = a.add(r * depth + k);
                            even[r] = _mm256_fmadd_ps(_mm256_loadu_ps(a), b0, even[r]);
                            odd[r] = _mm256_fmadd_ps(_mm256_loadu_ps(a.add(8)), b1, odd[r]);
                        }
                        k += 16;
                    }
                    if k + 8 <= depth {
                        let b0 = wide(b.as_ptr().add(k));
                        for (r, even) in even.iter_mut().enumerate() {
                            *even = _mm256_fmadd_ps(_mm256_loadu_ps(a.add(r * depth + k)), b0, *even);
                        }
                        k += 8;
                    }
                    for (i, b) in b.iter().enumerate().skip(k) {
                        for (r, sum) in sums.iter_mut().enumerate() {
                            *sum += *a.add(r * depth + i) * b.wide();
                        }
                    }
                }
            }
            for r in 0..R {
                sums[r] += total(_mm256_add_ps(even[r], odd[r]));
            }
            each(column, sums);
        }
    }

    #[target_feature(enable = "avx2,fma")]
    fn total(x: __m256) -> f32 {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }

    /// # Safety
    /// 8 elements are there.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn wide<T: Packed>(x: *const T) -> __m256 {
        // SAFETY: the caller's promise; bf16 are the upper halves of f32.
        unsafe {
            if T::HALF {
                let halves = _mm_loadu_si128(x.cast());
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))
            } else {
                _mm256_loadu_ps(x.cast())
            }
        }
    }
}
