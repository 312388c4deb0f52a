//! Blocks of a matrix as the small product wants them: `[k, width]` in f32; in bf16 rows k and k + 1 interleaved.

use half::bf16;

use crate::Number;

use super::turn::{transpose, turn_halves, turn_words};

/// Columns of a panel.
pub(super) const WIDTH: usize = 64;

/// A strided matrix in memory: element (i, j) is `data[i * stride + j]`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<T> {
    pub(super) data: *const T,
    pub(super) stride: usize,
}

// SAFETY: read-only, and whoever makes one keeps the memory alive and still.
unsafe impl<T: Sync> Sync for Matrix<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for Matrix<T> {}

impl<T> Matrix<T> {
    /// `len` elements from (i, j) on.
    ///
    /// # Safety
    /// They must lie in the matrix.
    #[inline(always)]
    pub(super) unsafe fn row(&self, i: usize, j: usize, len: usize) -> &[T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(self.data.add(i * self.stride + j), len) }
    }
}

/// An element type that has a small product.
pub(super) trait Packed: Number<Wide = f32> {
    /// bf16?
    const HALF: bool;
    /// Rows that lie interleaved.
    const PAIR: usize;
    /// Terms that are added up one after another before they join the sum. In f32 longer chains show: of 1536 terms
    /// instead of 1024 they double the error of a gradient. In bf16 its own rounding hides that.
    const CHAIN: usize;
    /// Rows of a tile of `turn`; it has 16 columns.
    const TILE: usize;

    /// `to[j * to_stride + i] = from[i * stride + j]` of a tile.
    ///
    /// # Safety
    /// Both are in bounds, and the machine has AVX-512.
    unsafe fn turn(from: *const Self, stride: usize, to: *mut Self, to_stride: usize);

    /// Packs rows `k..k + depth`, columns `n..n + width` of a `[K, N]` matrix; panel rows are `WIDTH` wide. Where
    /// depth is odd, bf16's last row is paired with zeros.
    ///
    /// # Safety
    /// The block lies in the matrix, and the panel holds `depth` (rounded up to a pair) x `WIDTH` elements.
    unsafe fn pack(b: Matrix<Self>, k: usize, depth: usize, n: usize, width: usize, panel: &mut [Self]);

    /// The same of a matrix that lies transposed, `[N, K]`.
    ///
    /// # Safety
    /// As [`Packed::pack`].
    unsafe fn pack_transposed(
        b: Matrix<Self>,
        k: usize,
        depth: usize,
        n: usize,
        width: usize,
        panel: &mut [Self],
    );
}

// SAFETY of words: f32 and u32, and u32 and a pair of bf16, have one size, and no bits are invalid.
impl Packed for f32 {
    const HALF: bool = false;
    const PAIR: usize = 1;
    const CHAIN: usize = 1024;
    const TILE: usize = 16;

    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { turn_words(from.cast(), stride, to.cast(), to_stride) };
    }

    unsafe fn pack(b: Matrix<f32>, k: usize, depth: usize, n: usize, width: usize, panel: &mut [f32]) {
        for (i, out) in panel.chunks_exact_mut(WIDTH).take(depth).enumerate() {
            // SAFETY: the caller's promise.
            out[..width].copy_from_slice(unsafe { b.row(k + i, n, width) });
        }
    }

    unsafe fn pack_transposed(
        b: Matrix<f32>,
        k: usize,
        depth: usize,
        n: usize,
        width: usize,
        panel: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        unsafe { transpose(b, (n, width), (k, depth), panel.as_mut_ptr(), WIDTH) };
    }
}

impl Packed for bf16 {
    const HALF: bool = true;
    const PAIR: usize = 2;
    const CHAIN: usize = usize::MAX;
    const TILE: usize = 32;

    unsafe fn turn(from: *const bf16, stride: usize, to: *mut bf16, to_stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { turn_halves(from.cast(), stride, to.cast(), to_stride) };
    }

    unsafe fn pack(b: Matrix<bf16>, k: usize, depth: usize, n: usize, width: usize, panel: &mut [bf16]) {
        // SAFETY: a panel row pair is WIDTH words of two bf16.
        let (pairs, odd) = unsafe { as_words(panel) }.split_at_mut(depth / 2 * WIDTH);
        interleave(pairs, b, k, n, width);
        if depth % 2 == 1 {
            // SAFETY: the caller's promise.
            let low = unsafe { b.row(k + depth - 1, n, width) };
            odd.iter_mut().zip(low).for_each(|(out, l)| *out = u32::from(l.to_bits()));
        }
    }

    unsafe fn pack_transposed(
        b: Matrix<bf16>,
        k: usize,
        depth: usize,
        n: usize,
        width: usize,
        panel: &mut [bf16],
    ) {
        // SAFETY: the caller's promise. A word is a pair along K; the odd one at the end is set apart.
        unsafe {
            let words = as_words(panel);
            let (pairs, odd) = (depth / 2, depth % 2 == 1);
            if b.stride.is_multiple_of(2) && k.is_multiple_of(2) && b.data.addr().is_multiple_of(4) {
                let from = Matrix { data: b.data.cast::<f32>(), stride: b.stride / 2 };
                transpose(from, (n, width), (k / 2, pairs), words.as_mut_ptr().cast(), WIDTH);
            } else {
                for j in 0..width {
                    for (i, pair) in b.row(n + j, k, 2 * pairs).chunks_exact(2).enumerate() {
                        words[i * WIDTH + j] =
                            u32::from(pair[0].to_bits()) | u32::from(pair[1].to_bits()) << 16;
                    }
                }
            }
            if odd {
                for j in 0..width {
                    words[pairs * WIDTH + j] = u32::from(b.row(n + j, k + depth - 1, 1)[0].to_bits());
                }
            }
        }
    }
}

crate::simd! {
    /// Pairs of rows from k on, columns `n..n + width`. They lie in b.
    fn interleave(out: &mut [u32], b: Matrix<bf16>, k: usize, n: usize, width: usize) {
        for (i, out) in out.chunks_exact_mut(WIDTH).enumerate() {
            // SAFETY: see above.
            let (low, high) = unsafe { (b.row(k + 2 * i, n, width), b.row(k + 2 * i + 1, n, width)) };
            for ((out, l), h) in out[..width].iter_mut().zip(low).zip(high) {
                *out = u32::from(l.to_bits()) | u32::from(h.to_bits()) << 16;
            }
        }
    }
}

/// # Safety
/// Any bits are a valid word; the slice is a panel, which is allocated as words.
unsafe fn as_words<T>(panel: &mut [T]) -> &mut [u32] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast(), size_of_val(panel) / 4) }
}
