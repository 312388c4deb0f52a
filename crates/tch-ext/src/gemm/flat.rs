//! What a sum's matrices are, asked once and at little cost: a generated token has hundreds of small sums.

use std::ffi::c_void;

use tch::Tensor;

use super::{Lie, Sum};

/// A matrix; `rows` and `columns` lie `stride` and `inner` elements apart. A vector is one row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flat {
    pub(super) data: *mut c_void,
    pub(super) rows: i64,
    pub(super) columns: i64,
    pub(super) stride: i64,
    pub(super) inner: i64,
    /// Of an element.
    pub(super) bytes: i64,
    kind: i32,
    cpu: bool,
}

unsafe extern "C" {
    fn tch_ext_flat(tensor: *const c_void, out: *mut Flat) -> i64;
}

impl Flat {
    pub(super) const SINGLE: i32 = 0;
    pub(super) const HALF: i32 = 1;

    fn matrix(t: &Tensor) -> Self {
        Self::of(t, 2).unwrap_or_else(|| panic!("a sum's operands are matrices, not {:?}", t.size()))
    }

    /// If it has so many dimensions.
    fn of(t: &Tensor, dimensions: i64) -> Option<Self> {
        let mut flat = Self {
            data: std::ptr::null_mut(),
            rows: 0,
            columns: 0,
            stride: 0,
            inner: 0,
            bytes: 0,
            kind: 2,
            cpu: false,
        };
        // SAFETY: a live tensor, and a place of that layout.
        let there = unsafe { tch_ext_flat(t.as_ptr().cast(), &mut flat) };
        (there == dimensions).then_some(flat)
    }

    /// Whether both are one view: of a single row or column there is no step, whatever is said.
    pub(super) fn same(&self, other: &Self) -> bool {
        let plain = |flat: &Self| {
            let step = |n: i64, step: i64| if n > 1 { step } else { 0 };
            Self { stride: step(flat.rows, flat.stride), inner: step(flat.columns, flat.inner), ..*flat }
        };
        plain(self) == plain(other)
    }

    /// On the CPU, of that kind, with rows of neighbours.
    pub(super) fn dense(&self, kind: i32) -> bool {
        self.kind == kind && self.cpu && (self.inner == 1 || self.columns == 1)
    }

    pub(super) fn is_half(&self) -> bool {
        self.kind == Self::HALF
    }
}

/// A [`Sum`] and its matrices.
pub(super) struct Flats<'a> {
    pub(super) sum: &'a Sum<'a>,
    pub(super) products: Vec<(Flat, Flat)>,
    pub(super) out: Flat,
    pub(super) onto: Option<Flat>,
    /// The gain and the bias.
    pub(super) vectors: [Option<Flat>; 2],
}

impl<'a> Flats<'a> {
    /// Panics where shapes do not fit.
    pub(super) fn of(sum: &'a Sum<'_>) -> Self {
        let out = Flat::matrix(sum.out);
        let both = |p: &super::Product<'_>| {
            let (a, b) = (Flat::matrix(p.a), Flat::matrix(p.b));
            let (rows, deep) =
                if p.lie == Lie::OverTokens { (a.columns, a.rows) } else { (a.rows, a.columns) };
            let (depth, width) =
                if p.lie == Lie::Transposed { (b.columns, b.rows) } else { (b.rows, b.columns) };
            assert!(
                (rows, width) == (out.rows, out.columns) && deep == depth,
                "{:?} times {:?} ({:?}) into {:?}",
                p.a.size(),
                p.b.size(),
                p.lie,
                sum.out.size()
            );
            (a, b)
        };
        let onto = sum.onto.map(|t| {
            let onto = Flat::matrix(t);
            let same = (onto.rows, onto.columns) == (out.rows, out.columns);
            assert!(same, "a sum of {:?} onto {:?}", sum.out.size(), t.size());
            onto
        });
        let vector = |t: &Tensor| {
            let (flat, columns) = (Flat::of(t, 1), out.columns);
            let fits = flat.filter(|flat| flat.columns == columns);
            fits.unwrap_or_else(|| panic!("a gain or a bias of {:?} for {columns} columns", t.size()))
        };
        let vectors = [sum.gain, sum.bias].map(|t| t.map(vector));
        Self { sum, products: sum.products.iter().map(both).collect(), out, onto, vectors }
    }

    /// Whether there is nothing to write: then libtorch has no memory for it.
    pub(super) fn is_empty(&self) -> bool {
        self.out.rows == 0 || self.out.columns == 0
    }
}
