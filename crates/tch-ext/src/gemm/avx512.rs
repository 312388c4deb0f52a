//! The small product by AVX-512: in f32, and in bf16 where the processor multiplies pairs of it. A tile's sums stay in
//! registers over all terms (in f32 over one: see [`Packed::CHAIN`]).

use super::pack::{Packed, WIDTH};
use super::product::{Block, Term};
use crate::Simd;

/// Whether the machine has it.
pub(super) fn supported(half: bool) -> bool {
    #[cfg(target_arch = "x86_64")]
    let pairs = {
        let most = std::env::var("ONEDNN_MAX_CPU_ISA").unwrap_or_default().to_uppercase();
        !matches!(most.as_str(), "AVX512_CORE" | "AVX512_CORE_VNNI") && is_x86_feature_detected!("avx512bf16")
    };
    #[cfg(not(target_arch = "x86_64"))]
    let pairs = false;
    Simd::best() == Simd::Avx512 && (pairs || !half)
}

/// See [`super::product::products`].
///
/// # Safety
/// As there; [`supported`].
pub(super) unsafe fn products<T: Packed>(
    block: Block,
    terms: impl Iterator<Item = Term<T>> + Clone,
    c: *mut f32,
) {
    if T::HALF {
        // SAFETY: the caller's promise.
        return unsafe { columns(block, terms, c) };
    }
    for (i, term) in terms.enumerate() {
        // SAFETY: as above.
        unsafe { columns(Block { add: block.add || i > 0, ..block }, std::iter::once(term), c) };
    }
}

/// Tiles of as many vectors as there are columns, and as many rows as keep their sums in 24 registers of 32.
unsafe fn columns<T: Packed>(block: Block, terms: impl Iterator<Item = Term<T>> + Clone, c: *mut f32) {
    debug_assert!(block.n <= WIDTH);
    // SAFETY: the caller's promise.
    unsafe {
        match block.n.div_ceil(16) {
            0 => {}
            1 => rows::<T, 12, 1>(block, terms, c),
            2 => rows::<T, 12, 2>(block, terms, c),
            3 => rows::<T, 8, 3>(block, terms, c),
            _ => rows::<T, 6, 4>(block, terms, c),
        }
    }
}

unsafe fn rows<T: Packed, const R: usize, const V: usize>(
    block: Block,
    terms: impl Iterator<Item = Term<T>> + Clone,
    c: *mut f32,
) {
    let mut row = 0;
    // SAFETY: the caller's promise: so many rows are there.
    unsafe {
        while row < block.m {
            let left = block.m - row;
            let (terms, c) = (terms.clone(), c.add(row * block.ldc));
            let terms = terms.map(|term| Term { a: term.a.add(row * term.lda), ..term });
            row += match left {
                _ if left >= R => tile::<T, R, V>(block, terms, c),
                4.. => tile::<T, 4, V>(block, terms, c),
                2.. => tile::<T, 2, V>(block, terms, c),
                _ => tile::<T, 1, V>(block, terms, c),
            };
        }
    }
}

/// Says how many rows it did.
#[cfg(target_arch = "x86_64")]
unsafe fn tile<T: Packed, const R: usize, const V: usize>(
    block: Block,
    terms: impl Iterator<Item = Term<T>>,
    c: *mut f32,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        if T::HALF {
            pairs::tile::<T, R, V>(block, terms, c)
        } else {
            singles::tile::<T, R, V>(block, terms, c)
        }
    }
    R
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn tile<T: Packed, const R: usize, const V: usize>(
    _: Block,
    _: impl Iterator<Item = Term<T>>,
    _: *mut f32,
) -> usize {
    unreachable!("no machine without AVX-512 comes here");
}

/// A word is an f32, or a pair of bf16 along k.
macro_rules! kernel {
    ($name:ident, $features:literal, |$sum:ident, $x:ident, $b:ident| $multiply:expr) => {
        #[cfg(target_arch = "x86_64")]
        mod $name {
            use super::{Block, Packed, Term, WIDTH};
            use std::arch::x86_64::*;

            /// # Safety
            /// R rows of each a, the panels, and R rows of c are there; the machine has these features.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn tile<T: Packed, const R: usize, const V: usize>(
                block: Block,
                terms: impl Iterator<Item = Term<T>>,
                c: *mut f32,
            ) {
                let mut sums = [[_mm512_setzero_ps(); V]; R];
                for term in terms {
                    let (a, b) = (term.a.cast::<u8>(), term.b.cast::<f32>());
                    let lda = term.lda * size_of::<T>();
                    for k in 0..term.k / T::PAIR {
                        // SAFETY: the caller's promise; a panel's rows are whole.
                        unsafe {
                            let mut columns = [_mm512_setzero_ps(); V];
                            for (v, column) in columns.iter_mut().enumerate() {
                                *column = _mm512_loadu_ps(b.add(k * WIDTH + 16 * v));
                            }
                            for (r, sums) in sums.iter_mut().enumerate() {
                                let $x =
                                    _mm512_set1_ps(a.add(r * lda + 4 * k).cast::<f32>().read_unaligned());
                                for ($sum, &$b) in sums.iter_mut().zip(&columns) {
                                    *$sum = $multiply;
                                }
                            }
                        }
                    }
                }
                let mask = (!0u16) >> (16 * V - block.n);
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: `n` columns of this row are there.
                        unsafe {
                            let c = c.add(r * block.ldc + 16 * v);
                            if v + 1 < V || mask == !0 {
                                if block.add {
                                    *sum = _mm512_add_ps(*sum, _mm512_loadu_ps(c));
                                }
                                _mm512_storeu_ps(c, *sum);
                            } else {
                                if block.add {
                                    *sum = _mm512_add_ps(*sum, _mm512_maskz_loadu_ps(mask, c));
                                }
                                _mm512_mask_storeu_ps(c, mask, *sum);
                            }
                        }
                    }
                }
            }
        }
    };
}

kernel!(singles, "avx512f,avx512bw,avx512vl", |sum, x, b| _mm512_fmadd_ps(x, b, *sum));
kernel!(pairs, "avx512f,avx512bw,avx512vl,avx512bf16", |sum, x, b| _mm512_dpbf16_ps(
    *sum,
    // SAFETY: the same bits.
    std::mem::transmute::<__m512, __m512bh>(x),
    std::mem::transmute::<__m512, __m512bh>(b)
));
