//! The small product by AVX2 and FMA, in f32. bf16 is widened on the way into the caches, where each number is used
//! often enough that it costs next to nothing: a block of a for four strips of b, a strip for all rows of a.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::cell::RefCell;

use super::pack::{Packed, WIDTH};
use super::product::{Block, Term};

/// Depth of a block. A strip of it takes half of the first cache; its sums are chains of so many terms.
const DEPTH: usize = 256;
/// Columns of a strip: two vectors.
const STRIP: usize = 16;
/// Rows of a tile: with two vectors each their sums take 12 of the 16 registers.
const TILE: usize = 6;
/// Rows of a block of a, for the second cache.
pub(super) const ROWS: usize = 128;
/// Between a block's rows, so that they do not meet in the same lines of the cache.
const STRIDE: usize = DEPTH + STRIP;

struct Buffers {
    a: Box<[f32; ROWS * STRIDE]>,
    strip: Box<[f32; DEPTH * STRIP]>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> =
        RefCell::new(Buffers { a: Box::new([0.0; ROWS * STRIDE]), strip: Box::new([0.0; DEPTH * STRIP]) });
}

/// See [`super::product::products`].
///
/// # Safety
/// As there; the machine has AVX2 and FMA.
pub(super) unsafe fn product<T: Packed>(shape: Block, term: Term<T>, c: *mut f32) {
    BUFFERS.with_borrow_mut(|Buffers { a: block, strip }| {
        for row in (0..shape.m).step_by(ROWS) {
            let m = ROWS.min(shape.m - row);
            for first in (0..term.k).step_by(DEPTH) {
                let k = DEPTH.min(term.k - first);
                let add = shape.add || first > 0;
                // SAFETY: the caller's promise: these rows, this depth and these columns lie in the matrices.
                unsafe {
                    let from = term.a.add(row * term.lda + first);
                    let left = if T::HALF {
                        rows(block, from, term.lda, m, k);
                        Left { data: block.as_ptr(), stride: STRIDE }
                    } else {
                        Left { data: from.cast(), stride: term.lda }
                    };
                    let next = if first + k < term.k {
                        from.wrapping_add(k)
                    } else {
                        from.wrapping_add(ROWS * term.lda)
                    };
                    for column in (0..shape.n).step_by(STRIP) {
                        columns(strip, term.b.add(first * WIDTH), column, k);
                        let part = Part { m, n: STRIP.min(shape.n - column), k, ldc: shape.ldc, add };
                        let ask =
                            |i| ask(next.wrapping_add(i * term.lda + column * k / WIDTH), k * STRIP / WIDTH);
                        tiles(part, left, strip, c.add(row * shape.ldc + column), ask);
                    }
                }
            }
        }
    });
}

fn ask<T>(from: *const T, n: usize) {
    let from = from.cast::<u8>();
    for i in (0..n * size_of::<T>()).step_by(64) {
        super::ahead::ask(from.wrapping_add(i));
    }
}

/// A block of a, f32.
#[derive(Clone, Copy)]
struct Left {
    data: *const f32,
    stride: usize,
}

/// A block of a by a strip of b.
#[derive(Clone, Copy)]
struct Part {
    m: usize,
    n: usize,
    k: usize,
    ldc: usize,
    add: bool,
}

/// # Safety
/// `m` rows of a, and `m` rows and `n` columns of c are there.
unsafe fn tiles(part: Part, left: Left, strip: &[f32; DEPTH * STRIP], c: *mut f32, ask: impl Fn(usize)) {
    for row in (0..part.m).step_by(TILE) {
        // SAFETY: the caller's promise.
        unsafe {
            let (left, c) = (Left { data: left.data.add(row * left.stride), ..left }, c.add(row * part.ldc));
            (row..row + TILE).for_each(&ask);
            match part.m - row {
                1 => tile::<1>(part, left, strip, c),
                2 => tile::<2>(part, left, strip, c),
                3 => tile::<3>(part, left, strip, c),
                4 => tile::<4>(part, left, strip, c),
                5 => tile::<5>(part, left, strip, c),
                _ => tile::<TILE>(part, left, strip, c),
            }
        }
    }
}

/// R rows of a by a strip.
///
/// # Safety
/// So many rows of a block and of c are there; the machine has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize>(part: Part, a: Left, strip: &[f32; DEPTH * STRIP], c: *mut f32) {
    let (mut low, mut high) = ([_mm256_setzero_ps(); R], [_mm256_setzero_ps(); R]);
    let b = strip.as_ptr();
    for i in 0..part.k {
        // SAFETY: `k` is at most a block's depth, and the rows are there.
        unsafe {
            let (first, second) = (_mm256_loadu_ps(b.add(i * STRIP)), _mm256_loadu_ps(b.add(i * STRIP + 8)));
            for r in 0..R {
                let x = _mm256_broadcast_ss(&*a.data.add(r * a.stride + i));
                low[r] = _mm256_fmadd_ps(x, first, low[r]);
                high[r] = _mm256_fmadd_ps(x, second, high[r]);
            }
        }
    }
    for r in 0..R {
        // SAFETY: `n` columns of this row are there, and the whole strip if it is as wide.
        unsafe {
            let c = c.add(r * part.ldc);
            if part.n == STRIP {
                if part.add {
                    low[r] = _mm256_add_ps(low[r], _mm256_loadu_ps(c));
                    high[r] = _mm256_add_ps(high[r], _mm256_loadu_ps(c.add(8)));
                }
                _mm256_storeu_ps(c, low[r]);
                _mm256_storeu_ps(c.add(8), high[r]);
            } else {
                let mut sums = [0f32; STRIP];
                _mm256_storeu_ps(sums.as_mut_ptr(), low[r]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(8), high[r]);
                let c = std::slice::from_raw_parts_mut(c, part.n);
                for (c, sum) in c.iter_mut().zip(sums) {
                    *c = if part.add { *c + sum } else { sum };
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn tile<const R: usize>(_: Part, _: Left, _: &[f32; DEPTH * STRIP], _: *mut f32) {
    unreachable!("no machine without AVX2 comes here");
}

/// `m` rows of `k` numbers, widened.
///
/// # Safety
/// They are there, `lda` apart.
unsafe fn rows<T: Packed>(block: &mut [f32; ROWS * STRIDE], a: *const T, lda: usize, m: usize, k: usize) {
    for (i, row) in block.chunks_exact_mut(STRIDE).take(m).enumerate() {
        // SAFETY: the caller's promise.
        widen(&mut row[..k], unsafe { std::slice::from_raw_parts(a.add(i * lda), k) });
    }
}

crate::simd! {
    fn widen<T: Packed>(out: &mut [f32], x: &[T]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = x.wide());
    }
}

/// A panel's columns from `column` on, `k` rows of them, widened. What lies right of the matrix is of no consequence.
///
/// # Safety
/// The panel has these rows.
unsafe fn columns<T: Packed>(strip: &mut [f32; DEPTH * STRIP], panel: *const T, column: usize, k: usize) {
    let rows = k.div_ceil(T::PAIR);
    // SAFETY: the caller's promise; a word is an f32, or a pair of bf16 of two rows.
    let words =
        unsafe { std::slice::from_raw_parts(panel.cast::<u32>().add(column), (rows - 1) * WIDTH + STRIP) };
    if T::HALF { pairs(strip, words) } else { singles(strip, words) }
}

crate::simd! {
    fn singles(strip: &mut [f32; DEPTH * STRIP], words: &[u32]) {
        for (row, words) in strip.as_chunks_mut::<STRIP>().0.iter_mut().zip(words.chunks(WIDTH)) {
            row.iter_mut().zip(words).for_each(|(x, word)| *x = f32::from_bits(*word));
        }
    }
}

crate::simd! {
    fn pairs(strip: &mut [f32; DEPTH * STRIP], words: &[u32]) {
        for (two, words) in strip.as_chunks_mut::<{ 2 * STRIP }>().0.iter_mut().zip(words.chunks(WIDTH)) {
            let (even, odd) = two.split_at_mut(STRIP);
            for ((even, odd), word) in even.iter_mut().zip(odd).zip(words) {
                (*even, *odd) = (f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000));
            }
        }
    }
}
