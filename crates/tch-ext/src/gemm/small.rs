//! Products of small blocks, for kernels that have many of them in a row: attention.

use std::marker::PhantomData;

use half::bf16;

use super::lines::Lines;
use super::pack::{Matrix, Packed, WIDTH};
use super::product::{Block, Term, products, supported};
use super::turn;
use crate::slice::Element;

/// An element type with a small product: f32 and bf16.
#[allow(private_bounds)]
pub trait Small: Element + Packed {
    /// Whether this machine has it.
    fn supported() -> bool {
        supported(Self::HALF)
    }
}

impl Small for f32 {}
impl Small for bf16 {}

/// `rows x columns` numbers, rows `stride` apart.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a, T> View<'a, T> {
    /// Panics if the slice does not hold them.
    pub fn new(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            columns <= stride && (rows == 0 || (rows - 1) * stride + columns <= data.len()),
            "a view in bounds"
        );
        Self { data, rows, columns, stride }
    }

    fn matrix(&self) -> Matrix<T> {
        Matrix { data: self.data.as_ptr(), stride: self.stride }
    }
}

/// A right-hand matrix `[depth, width]`, packed in blocks of [`Panels::BLOCK`] columns. To be used again and again.
#[derive(Debug)]
pub struct Panels<T> {
    lines: Lines,
    depth: usize,
    width: usize,
    of: PhantomData<T>,
}

impl<T> Default for Panels<T> {
    fn default() -> Self {
        Self { lines: Lines::default(), depth: 0, width: 0, of: PhantomData }
    }
}

impl<T: Small> Panels<T> {
    /// Columns of a block.
    pub const BLOCK: usize = WIDTH;

    /// Packs `b [depth, width]`.
    pub fn pack(&mut self, b: View<'_, T>) {
        self.resize(b.rows, b.columns);
        self.each(|width, n, panel| {
            // SAFETY: the block lies in the view, and the panel is of the padded depth.
            unsafe { T::pack(b.matrix(), 0, b.rows, n, width, panel) };
        });
    }

    /// Packs `bᵀ` of `b [width, depth]`.
    pub fn pack_transposed(&mut self, b: View<'_, T>) {
        self.resize(b.columns, b.rows);
        self.each(|width, n, panel| {
            // SAFETY: as above.
            unsafe { T::pack_transposed(b.matrix(), 0, b.columns, n, width, panel) };
        });
    }

    fn resize(&mut self, depth: usize, width: usize) {
        (self.depth, self.width) = (depth.next_multiple_of(T::PAIR), width);
        self.lines.resize::<T>(self.panel() * width.div_ceil(WIDTH));
    }

    /// Elements of a block.
    fn panel(&self) -> usize {
        self.depth * WIDTH
    }

    fn each(&mut self, mut fill: impl FnMut(usize, usize, &mut [T])) {
        let (panel, width) = (self.panel(), self.width);
        let all = &mut self.lines.of_mut::<T>()[..panel * width.div_ceil(WIDTH)];
        for (i, block) in all.chunks_exact_mut(panel.max(1)).enumerate() {
            fill(WIDTH.min(width - i * WIDTH), i * WIDTH, block);
        }
    }

    /// `c [m, columns of the block] (+)= a [m, k] b[from..from + k]`, with c's rows `stride` apart. In bf16 `from` is
    /// even, and where k is odd a must hold a zero behind each row. In a loop of [`crate::parallel`] the processor is set
    /// up once for all products: do not use libtorch's operators between them.
    pub fn multiply(
        &self,
        block: usize,
        from: usize,
        a: View<'_, T>,
        c: &mut [f32],
        stride: usize,
        add: bool,
    ) {
        assert!(block < self.width.div_ceil(WIDTH), "a block of the panels");
        let width = WIDTH.min(self.width - block * WIDTH);
        let k = a.columns.next_multiple_of(T::PAIR);
        assert!(from.is_multiple_of(T::PAIR), "a depth from a pair on");
        assert!(from + k <= self.depth && k <= a.stride, "a depth within the panel");
        assert!(a.rows > 0 && width <= stride && (a.rows - 1) * stride + width <= c.len(), "sums in bounds");
        assert!((a.rows - 1) * a.stride + k <= a.data.len(), "a padded row in bounds");
        if k == 0 {
            // Each way would make of it what it likes.
            let rows = c.chunks_mut(stride).take(if add { 0 } else { a.rows });
            return rows.for_each(|row| row[..width].fill(0.0));
        }
        let block_of_c = Block { m: a.rows, n: width, ldc: stride, add };
        // SAFETY: all three were just checked.
        unsafe {
            let b = self.lines.of::<T>().as_ptr().add(block * self.panel() + from * WIDTH);
            let term = Term { a: a.data.as_ptr(), lda: a.stride, b, k };
            products(block_of_c, std::iter::once(term), c.as_mut_ptr());
        }
    }
}

/// `to[j * stride + i] = from(i, j)`: the transpose, its rows `stride` apart. Panics if `to` does not hold it.
pub fn transpose<T: Small>(from: View<'_, T>, to: &mut [T], stride: usize) {
    let fits = from.columns == 0 || (from.columns - 1) * stride + from.rows <= to.len();
    assert!(from.rows <= stride && fits, "a transpose in bounds");
    // SAFETY: just checked.
    unsafe {
        turn::transpose(from.matrix(), (0, from.rows), (0, from.columns), to.as_mut_ptr(), stride);
    }
}
