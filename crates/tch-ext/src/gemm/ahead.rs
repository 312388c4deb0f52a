//! Fetching the next panel's numbers into the cache while this one is multiplied: they come from far away, in an order
//! that the machine does not guess.

use super::pack::{Packed, WIDTH};
use super::panels::Slab;

/// The columns of a pass, which are to be packed next.
pub(super) struct Ahead<'a, T> {
    pub(super) pass: &'a [Slab<T>],
    pub(super) column: usize,
    pub(super) columns: usize,
}

const LINE: usize = 64;

impl<T: Packed> Ahead<'_, T> {
    /// Asks for the part `index` of `parts`.
    pub(super) fn fetch(&self, index: usize, parts: usize) {
        let width = WIDTH.min(self.columns - self.column);
        for slab in self.pass {
            let (first, rows, start, length) = if slab.transposed {
                (self.column, width, slab.k, slab.depth)
            } else {
                (slab.k, slab.depth, self.column, width)
            };
            for row in first + rows * index / parts..first + rows * (index + 1) / parts {
                let at = slab.b.data.wrapping_add(row * slab.b.stride + start).cast::<u8>();
                for offset in (0..length * size_of::<T>()).step_by(LINE) {
                    ask(at.wrapping_add(offset));
                }
            }
        }
    }
}

#[inline(always)]
pub(super) fn ask(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing that the program could see, wherever it points.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
