//! Rows times one column, the column loaded once.

use super::pack::{Matrix, Packed};

/// One product: the left-hand rows in f32, the right-hand matrix, transposed, as it lies.
pub(super) struct Term<T> {
    pub(super) a: Vec<f32>,
    pub(super) b: Matrix<T>,
    pub(super) depth: usize,
}

impl<T: Packed> Term<T> {
    fn left(&self, row: usize) -> &[f32] {
        &self.a[row * self.depth..][..self.depth]
    }
}

/// Rows `row..row + R` of the terms' sum, in lanes.
///
/// # Safety
/// The terms have these rows and that column.
#[inline]
pub(super) unsafe fn dots<T: Packed, const R: usize>(
    terms: &[Term<T>],
    row: usize,
    column: usize,
) -> [f32; R] {
    #[cfg(target_arch = "x86_64")]
    if crate::Simd::best() == crate::Simd::Avx512 {
        // SAFETY: the caller's promise, and the machine has it.
        return unsafe { avx512::dots(terms, row, column) };
    }
    let mut sums = [0f32; R];
    for term in terms {
        // SAFETY: the caller's promise.
        let b = unsafe { term.b.row(column, 0, term.depth) };
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum += plain(term.left(row + r), b);
        }
    }
    sums
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

    /// Two vectors of a column a turn, each with sums of its own.
    ///
    /// # Safety
    /// As [`super::dots`]; the machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn dots<T: Packed, const R: usize>(
        terms: &[Term<T>],
        row: usize,
        column: usize,
    ) -> [f32; R] {
        let (mut even, mut odd) = ([_mm512_setzero_ps(); R], [_mm512_setzero_ps(); R]);
        for term in terms {
            let (depth, mut k) = (term.depth, 0);
            let mut a = [std::ptr::null::<f32>(); R];
            for (r, a) in a.iter_mut().enumerate() {
                *a = term.left(row + r).as_ptr();
            }
            // SAFETY: the caller's promise: 32 elements, 16, or those that the mask leaves are there.
            unsafe {
                let b = term.b.row(column, 0, depth).as_ptr();
                while k + 32 <= depth {
                    let (b0, b1) = (wide(b.add(k), !0), wide(b.add(k + 16), !0));
                    for r in 0..R {
                        even[r] = _mm512_fmadd_ps(_mm512_loadu_ps(a[r].add(k)), b0, even[r]);
                        odd[r] = _mm512_fmadd_ps(_mm512_loadu_ps(a[r].add(k + 16)), b1, odd[r]);
                    }
                    k += 32;
                }
                while k < depth {
                    let mask = if depth - k >= 16 { !0 } else { (1u16 << (depth - k)) - 1 };
                    let b0 = wide(b.add(k), mask);
                    for r in 0..R {
                        even[r] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a[r].add(k)), b0, even[r]);
                    }
                    k += 16;
                }
            }
        }
        let mut sums = [0f32; R];
        for r in 0..R {
            sums[r] = _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r]));
        }
        sums
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
