//! The small product that sums are made of: oneDNN's, or on a machine where it has none our own for AVX2.

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
    unsafe { tch_ext_brgemm(half, m, n, k, lda, WIDTH as i64, ldc, add, a, b, c) }
}
