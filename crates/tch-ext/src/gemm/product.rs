//! The small product that sums are made of: ours for AVX-512 and AVX2, or in bf16 oneDNN's, where an AVX-512
//! processor has tiles or no products of bf16.

use std::sync::OnceLock;

use super::pack::Packed;
use super::{avx2, avx512, onednn};
use crate::Simd;

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
            Simd::Avx512 if onednn::works(half) => Some(Way::OneDnn),
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
    if way(half) == Some(Way::Avx2) { avx2::ROWS } else { onednn::ROWS }
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
                Some(Way::OneDnn) => assert!(onednn::product(block, term, c), "the small product failed"),
                Some(_) => avx2::product(block, term, c),
                None => panic!("no small product on this machine"),
            }
        }
    }
}
