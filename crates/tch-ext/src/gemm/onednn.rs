//! The small product by oneDNN, which compiles one for each shape that it meets, and keeps it on each thread for ever: attention
//! over texts of any length would have thousands. So rows and depth are cut into whole blocks and steps, then powers of two,
//! and columns are filled up to one.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ops::Range;

use half::bf16;

use super::lines::Lines;
use super::pack::{Packed, WIDTH};
use super::product::{Block, Term};

/// Rows of a whole block, and a step of its depth, which fills a tile.
pub(super) const ROWS: usize = 64;
const STEP: usize = 32;

unsafe extern "C" {
    fn tch_ext_brgemm(
        half: bool,
        m: i64,
        n: i64,
        k: i64,
        lda: i64,
        ldb: i64,
        ldc: i64,
        add: bool,
        a: *const c_void,
        b: *const c_void,
        c: *mut f32,
    ) -> bool;
    fn tch_ext_brgemm_release();
}

thread_local! {
    /// Loops that this thread is in, and whether a product has set up the processor's tiles (AMX) for itself: they stay
    /// for the next one.
    static LOOPS: Cell<usize> = const { Cell::new(0) };
    static TILES: Cell<bool> = const { Cell::new(false) };
    /// Sums of more columns than there are.
    static SUMS: RefCell<Lines> = RefCell::default();
}

/// A thread's part of a loop. At its end the tiles are given back: an operator of libtorch's that comes next may use
/// them. Within the loop there must be none beside products.
pub(crate) struct InLoop;

impl InLoop {
    pub(crate) fn new() -> Self {
        LOOPS.set(LOOPS.get() + 1);
        Self
    }
}

impl Drop for InLoop {
    fn drop(&mut self) {
        LOOPS.set(LOOPS.get() - 1);
        release();
    }
}

fn release() {
    if TILES.take() {
        // SAFETY: changes what products of this thread alone set up; the next one does so anew.
        unsafe { tch_ext_brgemm_release() };
    }
}

/// Whether it runs here.
pub(super) fn works(half: bool) -> bool {
    let (a, b, mut c) = ([0u32; 2 * WIDTH], [0u32; 2 * WIDTH], [1f32; WIDTH]);
    let (block, c) = (Block { m: 1, n: WIDTH, ldc: WIDTH, add: false }, c.as_mut_ptr());
    // SAFETY: all three are large enough, in either dtype.
    unsafe {
        if half {
            product(block, Term { a: a.as_ptr().cast::<bf16>(), lda: 2, b: b.as_ptr().cast(), k: 2 }, c)
        } else {
            product(block, Term { a: a.as_ptr().cast::<f32>(), lda: 2, b: b.as_ptr().cast(), k: 2 }, c)
        }
    }
}

/// See [`super::product::products`]. False: not on this machine.
///
/// # Safety
/// As [`super::product::products`].
pub(super) unsafe fn product<T: Packed>(block: Block, term: Term<T>, c: *mut f32) -> bool {
    let n = block.n.next_power_of_two();
    if n == block.n {
        return parts(block.m, ROWS).all(|rows| {
            parts(term.k, STEP).all(|steps| {
                let block = Block { m: rows.len(), add: block.add || steps.start > 0, ..block };
                // SAFETY: these rows and this depth are parts of what is there.
                unsafe {
                    let a = term.a.add(rows.start * term.lda + steps.start);
                    let b = term.b.add(steps.start * WIDTH);
                    compiled(block, Term { a, b, k: steps.len(), ..term }, c.add(rows.start * block.ldc))
                }
            })
        });
    }
    SUMS.with_borrow_mut(|sums| {
        sums.resize::<f32>(block.m * WIDTH);
        let sums = sums.of_mut::<f32>();
        // SAFETY: a panel's rows are whole, whatever lies right of the matrix, and so are those of the sums.
        let done = unsafe { product(Block { n, ldc: WIDTH, add: false, ..block }, term, sums.as_mut_ptr()) };
        for (row, sums) in sums.chunks_exact(WIDTH).take(block.m).enumerate() {
            // SAFETY: `n` columns of this row are there.
            let c = unsafe { std::slice::from_raw_parts_mut(c.add(row * block.ldc), block.n) };
            c.iter_mut().zip(sums).for_each(|(c, sum)| *c = if block.add { *c + sum } else { *sum });
        }
        done
    })
}

/// Parts of `0..n`: all that are whole at once, then ever smaller powers of two.
fn parts(n: usize, whole: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = n - start;
        let part = if left < whole { 1 << left.checked_ilog2()? } else { left / whole * whole };
        start += part;
        Some(start - part..start)
    })
}

/// # Safety
/// As [`product`].
unsafe fn compiled<T: Packed>(block: Block, term: Term<T>, c: *mut f32) -> bool {
    let [m, n, k, lda, ldc] = [block.m, block.n, term.k, term.lda, block.ldc].map(|x| x as i64);
    #[cfg(test)]
    tests::SHAPES.with_borrow_mut(|shapes| shapes.insert([m, n, k, lda, ldc, i64::from(block.add)]));
    let (a, b) = (term.a.cast(), term.b.cast());
    // SAFETY: the caller's promise.
    let done = unsafe { tch_ext_brgemm(T::HALF, m, n, k, lda, WIDTH as i64, ldc, block.add, a, b, c) };
    // f32 has no tiles.
    TILES.set(TILES.get() || T::HALF);
    if LOOPS.get() == 0 {
        release();
    }
    done
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::pack::Matrix;
    use super::*;
    use crate::{Simd, parallel};

    thread_local! {
        /// What oneDNN was asked for on this thread.
        pub(super) static SHAPES: RefCell<BTreeSet<[i64; 6]>> = RefCell::default();
        /// The last loop that this thread had a part in.
        static LAST: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn tiles_do_not_outlast_a_loop() {
        let left = AtomicUsize::new(0);
        // By this thread alone, and by all.
        for (number, n) in [1, 1, 64, 64, 64].into_iter().enumerate() {
            parallel(n, 1, |_| {
                assert_eq!(LOOPS.get(), 1);
                if LAST.replace(number + 1) != number + 1 {
                    left.fetch_add(usize::from(TILES.get()), Ordering::Relaxed);
                }
                TILES.set(true);
            });
            assert!(!TILES.get(), "{n} parts");
        }
        assert_eq!(left.into_inner(), 0, "threads began a loop with another's tiles");
    }

    #[test]
    fn tiles_are_given_back_at_once_outside_of_a_loop() {
        let (a, b, mut c) = ([0u32; 2 * WIDTH], [0u32; 2 * WIDTH], [1f32; WIDTH]);
        let block = Block { m: 1, n: WIDTH, ldc: WIDTH, add: false };
        let term = Term { a: a.as_ptr().cast::<bf16>(), lda: 2, b: b.as_ptr().cast(), k: 2 };
        let mut once = || {
            // SAFETY: all three are large enough.
            unsafe { product(block, term, c.as_mut_ptr()) };
            TILES.get()
        };
        assert!(!once());
        let within = InLoop::new();
        assert!(once());
        drop(within);
        assert!(!TILES.get());
    }

    /// Of every size, with whole numbers, whose sums are exact, beside what is no number.
    #[test]
    fn products_by_onednn_are_of_few_shapes() {
        if Simd::best() != Simd::Avx512 || !works(true) {
            return;
        }
        const DEEP: usize = 96;
        let number = |n: usize| bf16::from_f32((n % 5) as f32 - 2.0);
        let a: Vec<bf16> = (0..64 * DEEP).map(|n| number(n / 7)).collect();
        let b: Vec<bf16> = (0..DEEP * WIDTH).map(|n| number(n / 3)).collect();
        let mut panel = vec![0u32; DEEP * WIDTH / 2];
        for (m, k) in (1..=64).flat_map(|m| (1..=DEEP / 2).map(move |half| (m, 2 * half))) {
            let (n, ldc, add) = ((m * k) % 64 + 1, WIDTH + 1, k % 4 == 0);
            panel.fill(!0);
            // SAFETY: so many rows and columns are there, and room for whole rows of a panel.
            let done = unsafe {
                let into = std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast(), 2 * panel.len());
                bf16::pack(Matrix { data: b.as_ptr(), stride: WIDTH }, 0, k, 0, n, into);
                let term = Term { a: a.as_ptr(), lda: DEEP, b: panel.as_ptr().cast(), k };
                let mut c = vec![3f32; 64 * ldc];
                product(Block { m, n, ldc, add }, term, c.as_mut_ptr()).then_some(c)
            };
            for (at, got) in done.expect("it works").into_iter().enumerate() {
                let (row, column) = (at / ldc, at % ldc);
                let there = row < m && column < n;
                let term = |k: usize| a[row * DEEP + k].to_f32() * b[k * WIDTH + column].to_f32();
                let sum: f32 = if there { (0..k).map(term).sum() } else { 0.0 };
                assert_eq!(got, sum + if there && !add { 0.0 } else { 3.0 }, "{m} {n} {k}: {row} {column}");
            }
        }
        // Powers of two to 64 of rows and of columns, and to 16 of the depth, or steps of it; added or not.
        let (kinds, asked) = (7 * 7 * (4 + 3) * 2, SHAPES.take().len());
        assert!(asked <= kinds, "{asked} shapes");
    }
}
