//! Products with a thin matrix of bf16, as the low-rank ones of an adapter are. Panels would be packed to be used once or
//! twice, or be filled to an eighth; here the wide matrix is read as it lies, once.

#[cfg(target_arch = "x86_64")]
mod pairs;

use std::ffi::c_void;
use std::ops::Range;

use half::bf16;

use super::Lie;
use super::flat::{Flat, Flats};
use super::pack::Matrix;
use super::panels::DEPTH;
use super::product::multiplies_pairs;
use super::turn::transpose;

/// Rows or columns of what is thin.
const MOST: i64 = 32;
/// Rows of a plain product: for more, panels are faster.
const FEW: i64 = 4;
/// Rows of an item, and columns of one.
const ROWS: usize = 96;
const COLUMNS: usize = 32;
/// Bytes of a number.
const HALF: usize = size_of::<bf16>();

/// A sum of one product.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Thin {
    wide: Matrix<bf16>,
    /// Transposed, if need be, so that what is summed over lies in a row; a zero stands behind an odd depth.
    thin: Matrix<bf16>,
    _turned: Vec<bf16>,
    rows: usize,
    columns: usize,
    depth: usize,
    side: Side,
    scale: f32,
    add: bool,
    out: *mut c_void,
    stride: usize,
    half: bool,
}

/// Which matrix is thin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

// SAFETY: matrices are only read, and each item writes a block of `out` of its own.
unsafe impl Sync for Thin {}

impl Thin {
    /// If this is the way for it; its layout is one that panels would take.
    pub(super) fn of(flats: &Flats<'_>) -> Option<Self> {
        let sum = flats.sum;
        let ([product], [(a, b)]) = (&sum.products[..], &flats.products[..]) else { return None };
        let out = &flats.out;
        let plain = sum.gain.is_none() && sum.bias.is_none() && sum.onto.is_none();
        if !plain || !a.is_half() || !multiplies_pairs() {
            return None;
        }
        let fits_right = out.columns <= MOST && sum.scale == 1.0 && !sum.add;
        let matrix = |m: &Flat| Matrix { data: m.data.cast_const().cast(), stride: m.stride as usize };
        let (a_now, b_now) = (matrix(a), matrix(b));
        let (side, depth, wide, (thin, turned)) = match product.lie {
            Lie::OverTokens if out.rows <= MOST && !out.is_half() => {
                (Side::Left, a.rows, b_now, turned(a, a_now))
            }
            // Deeper, panels add up in parts: a row would hang on how many are with it.
            Lie::Plain if out.rows <= FEW && out.columns > MOST && a.columns as usize <= DEPTH / HALF => {
                (Side::Left, a.columns, b_now, even(a, a_now))
            }
            Lie::Plain if fits_right => (Side::Right, a.columns, a_now, turned(b, b_now)),
            Lie::Transposed if fits_right => (Side::Right, a.columns, a_now, (b_now, Vec::new())),
            _ => return None,
        };
        Some(Self {
            wide,
            thin,
            _turned: turned,
            rows: out.rows as usize,
            columns: out.columns as usize,
            depth: depth as usize,
            side,
            scale: sum.scale as f32,
            add: sum.add,
            out: out.data,
            stride: out.stride as usize,
            half: out.is_half(),
        })
    }

    /// How many parts it has, each to be run once.
    pub(super) fn parts(&self) -> usize {
        match self.side {
            Side::Left => self.columns.div_ceil(COLUMNS),
            Side::Right => self.rows.div_ceil(ROWS),
        }
    }

    /// # Safety
    /// Each part has one thread.
    pub(super) unsafe fn run(&self, parts: Range<usize>) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the machine has been asked; the parts lie in the matrices.
        unsafe {
            match self.side {
                Side::Left => pairs::left(self, parts.start * COLUMNS..self.columns.min(parts.end * COLUMNS)),
                Side::Right => pairs::right(self, parts.start * ROWS..self.rows.min(parts.end * ROWS)),
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = parts;
    }
}

/// A zero behind an odd depth.
fn even(flat: &Flat, from: Matrix<bf16>) -> (Matrix<bf16>, Vec<bf16>) {
    let (rows, depth) = (flat.rows as usize, flat.columns as usize);
    if depth % 2 == 0 {
        return (from, Vec::new());
    }
    let mut memory = vec![bf16::ZERO; rows * (depth + 1)];
    for (row, to) in memory.chunks_exact_mut(depth + 1).enumerate() {
        // SAFETY: so many rows and columns are there.
        to[..depth].copy_from_slice(unsafe { from.row(row, 0, depth) });
    }
    (Matrix { data: memory.as_ptr(), stride: depth + 1 }, memory)
}

/// The transpose, and the memory that it lies in.
fn turned(flat: &Flat, from: Matrix<bf16>) -> (Matrix<bf16>, Vec<bf16>) {
    let (rows, columns) = (flat.rows as usize, flat.columns as usize);
    let stride = (rows + 1).next_multiple_of(COLUMNS);
    let mut memory = vec![bf16::ZERO; stride * columns];
    // SAFETY: so many rows and columns are there, and as many in the memory.
    unsafe { transpose(from, (0, rows), (0, columns), memory.as_mut_ptr(), stride) };
    (Matrix { data: memory.as_ptr(), stride }, memory)
}
