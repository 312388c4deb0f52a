//! Memory of whole lines of the cache: vectors that lie across two of them take twice as long to load.

use super::pack::Packed;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

/// Numbers, of which any bits are valid, from a line's beginning on.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// To hold at least so many; what was there stays, and what is new is zero.
    pub(super) fn resize<T: Packed>(&mut self, count: usize) {
        let lines = (count * size_of::<T>()).div_ceil(size_of::<Line>());
        if lines > self.0.len() {
            self.0.resize(lines, Line([0; 16]));
        }
    }

    pub(super) fn of<T: Packed>(&self) -> &[T] {
        // SAFETY: a line is made of so many numbers, whose alignment is no greater.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.len::<T>()) }
    }

    pub(super) fn of_mut<T: Packed>(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.len::<T>()) }
    }

    fn len<T>(&self) -> usize {
        size_of_val(&self.0[..]) / size_of::<T>()
    }
}
