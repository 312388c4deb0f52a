//! The small product that sums are made of: oneDNN's, or on a machine where it has none our own for AVX2.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;

use super::avx2;
use super::pack::{Packed, WIDTH};
use crate::Simd;

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

/// `c [m, n] (+)= a [m, k] b`, where b is a panel of `k` rows; n is at most its width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    /// Elements from a row of a to the next.
    pub(super) lda: usize,
    /// The same of c.
    pub(super) ldc: usize,
    /// Whether to add to c instead of replacing it.
    pub(super) add: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    OneDnn,
    Avx2,
}

/// Which one runs here; tried once.
fn way(half: bool) -> Option<Way> {
    static TRIED: [OnceLock<Option<Way>>; 2] = [OnceLock::new(), OnceLock::new()];
    *TRIED[usize::from(half)].get_or_init(|| {
        let (a, b, mut c) = ([0u32; 2 * WIDTH], [0u32; 2 * WIDTH], [1f32; WIDTH]);
        let shape = Shape { m: 1, n: WIDTH, k: 2, lda: 2, ldc: WIDTH, add: false };
        match Simd::best() {
            // SAFETY: all three are large enough, in either dtype.
            Simd::Avx512
                if unsafe { onednn(half, shape, a.as_ptr().cast(), b.as_ptr().cast(), c.as_mut_ptr()) } =>
            {
                Some(Way::OneDnn)
            }
            Simd::Avx512 | Simd::Avx2 => Some(Way::Avx2),
            Simd::Plain => None,
        }
    })
}

/// Whether there is one.
pub(super) fn supported(half: bool) -> bool {
    way(half).is_some()
}

/// Whether it is compiled for each shape that it meets, and kept for ever.
pub(super) fn compiled(half: bool) -> bool {
    // Tests take the shapes of one that is, on any machine.
    cfg!(test) || way(half) == Some(Way::OneDnn)
}

/// So many rows at a time are best: with their f32 sums they fit a cache.
pub(super) fn rows(half: bool) -> usize {
    if way(half) == Some(Way::Avx2) { avx2::ROWS } else { 64 }
}

/// Computes it.
///
/// # Safety
/// `m` rows of a, `k` rows of the panel (for bf16 in pairs) and `m` rows of c are there, and nobody else writes c's.
pub(super) unsafe fn product<T: Packed>(shape: Shape, a: *const T, b: *const T, c: *mut f32) {
    // SAFETY: the caller's promise; the machine has been asked.
    unsafe {
        match way(T::HALF) {
            Some(Way::OneDnn) => {
                assert!(onednn(T::HALF, shape, a.cast(), b.cast(), c), "the small product failed")
            }
            Some(Way::Avx2) => avx2::product(shape, a, b, c),
            None => panic!("no small product on this machine"),
        }
    }
}

/// # Safety
/// As [`product`].
unsafe fn onednn(half: bool, shape: Shape, a: *const c_void, b: *const c_void, c: *mut f32) -> bool {
    let Shape { m, n, k, lda, ldc, add } = shape;
    let [m, n, k, lda, ldc] = [m, n, k, lda, ldc].map(|x| x as i64);
    // SAFETY: the caller's promise.
    let done = unsafe { tch_ext_brgemm(half, m, n, k, lda, WIDTH as i64, ldc, add, a, b, c) };
    // f32 has no tiles.
    TILES.set(TILES.get() || half);
    if LOOPS.get() == 0 {
        release();
    }
    done
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::parallel;

    thread_local! {
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
        let shape = Shape { m: 1, n: WIDTH, k: 2, lda: 2, ldc: WIDTH, add: false };
        let mut product = || {
            // SAFETY: all three are large enough.
            unsafe { onednn(true, shape, a.as_ptr().cast(), b.as_ptr().cast(), c.as_mut_ptr()) };
            TILES.get()
        };
        assert!(!product());
        let within = InLoop::new();
        assert!(product());
        drop(within);
        assert!(!TILES.get());
    }
}
