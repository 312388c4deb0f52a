//! The small product that sums are made of: ours for AVX-512 and AVX2, or in bf16 oneDNN's, where an AVX-512
//! processor has tiles or no products of bf16.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::OnceLock;

use super::pack::{Packed, WIDTH};
use super::{avx2, avx512};
use crate::Simd;
use half::bf16;

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

/// `c [m, n] (+)=` a sum of [`Term`]s; n is at most a panel's width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block {
    pub(super) m: usize,
    pub(super) n: usize,
    /// Elements from a row of c to the next.
    pub(super) ldc: usize,
    /// Whether to add to c instead of replacing it.
    pub(super) add: bool,
}

/// `a [m, k] b`, where b is a panel of `k` rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term<T> {
    pub(super) a: *const T,
    /// Elements from a row of a to the next.
    pub(super) lda: usize,
    pub(super) b: *const T,
    pub(super) k: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    OneDnn,
    Avx512,
    Avx2,
}

/// Which one runs here; tried once.
fn way(half: bool) -> Option<Way> {
    static TRIED: [OnceLock<Option<Way>>; 2] = [OnceLock::new(), OnceLock::new()];
    *TRIED[usize::from(half)].get_or_init(|| {
        let best = Simd::best();
        if avx512::supported(half) && !(half && has_tiles()) && !tests_want_onednn() {
            return Some(Way::Avx512);
        }
        match best {
            Simd::Avx512 if onednn_works(half) => Some(Way::OneDnn),
            Simd::Avx512 | Simd::Avx2 => Some(Way::Avx2),
            Simd::Plain => None,
        }
    })
}

/// Whether the processor multiplies tiles of bf16 (AMX).
fn has_tiles() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: whoever has AVX-512 has this leaf. Newer compilers know.
        #[allow(unused_unsafe)]
        let leaf = unsafe { std::arch::x86_64::__cpuid_count(7, 0) };
        leaf.edx >> 22 & 1 == 1
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// So that what is there for tiles is tried where there are none.
fn tests_want_onednn() -> bool {
    cfg!(test) && std::env::var_os(ONEDNN).is_some()
}

pub(super) const ONEDNN: &str = "TCH_EXT_TESTS_BY_ONEDNN";

fn onednn_works(half: bool) -> bool {
    let (a, b, mut c) = ([0u32; 2 * WIDTH], [0u32; 2 * WIDTH], [1f32; WIDTH]);
    let (block, c) = (Block { m: 1, n: WIDTH, ldc: WIDTH, add: false }, c.as_mut_ptr());
    // SAFETY: all three are large enough, in either dtype.
    unsafe {
        if half {
            onednn(block, Term { a: a.as_ptr().cast::<bf16>(), lda: 2, b: b.as_ptr().cast(), k: 2 }, c)
        } else {
            onednn(block, Term { a: a.as_ptr().cast::<f32>(), lda: 2, b: b.as_ptr().cast(), k: 2 }, c)
        }
    }
}

/// Whether ours multiplies pairs of bf16 here.
pub(super) fn multiplies_pairs() -> bool {
    way(true) == Some(Way::Avx512)
}

/// Whether there is one.
pub(super) fn supported(half: bool) -> bool {
    way(half).is_some()
}

/// So many rows at a time are best: with their f32 sums they fit a cache.
pub(super) fn rows(half: bool) -> usize {
    if way(half) == Some(Way::Avx2) { avx2::ROWS } else { 64 }
}

/// Computes it.
///
/// # Safety
/// `m` rows of each a, `k` rows of its panel (for bf16 in pairs) and `m` rows of c are there, and nobody else writes c's.
pub(super) unsafe fn products<T: Packed>(
    block: Block,
    terms: impl Iterator<Item = Term<T>> + Clone,
    c: *mut f32,
) {
    let way = way(T::HALF);
    if way == Some(Way::Avx512) {
        // SAFETY: the caller's promise; the machine has been asked.
        return unsafe { avx512::products(block, terms, c) };
    }
    for (i, term) in terms.enumerate() {
        let block = Block { add: block.add || i > 0, ..block };
        // SAFETY: as above.
        unsafe {
            match way {
                Some(Way::OneDnn) => assert!(onednn(block, term, c), "the small product failed"),
                Some(_) => avx2::product(block, term, c),
                None => panic!("no small product on this machine"),
            }
        }
    }
}

/// # Safety
/// As [`products`].
unsafe fn onednn<T: Packed>(block: Block, term: Term<T>, c: *mut f32) -> bool {
    let [m, n, k, lda, ldc] = [block.m, block.n, term.k, term.lda, block.ldc].map(|x| x as i64);
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
        let block = Block { m: 1, n: WIDTH, ldc: WIDTH, add: false };
        let term = Term { a: a.as_ptr().cast::<bf16>(), lda: 2, b: b.as_ptr().cast(), k: 2 };
        let mut product = || {
            // SAFETY: all three are large enough.
            unsafe { onednn(block, term, c.as_mut_ptr()) };
            TILES.get()
        };
        assert!(!product());
        let within = InLoop::new();
        assert!(product());
        drop(within);
        assert!(!TILES.get());
    }
}
