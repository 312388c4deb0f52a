//! The sums by packed panels.

use std::cell::RefCell;
use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::Sum;
use super::ahead::Ahead;
use super::flat::{Flat, Flats};
use super::pack::{Matrix, Packed, WIDTH};
use super::product::supported;
use super::tile::block;
use crate::parallel::{parallel, threads};

/// Rows of the last, small blocks.
const LEAST: usize = 64;
/// Rows that a thread takes at a time.
const ITEM: usize = 256;
/// Depth of a panel, in bytes a column: with 64 columns half a megabyte, for the second cache.
pub(super) const DEPTH: usize = 8192;

/// Whether all of this is work for panels.
pub(super) fn fit(sums: &[Sum<'_>], flats: &[Flats], half: bool) -> bool {
    let kind = if half { Flat::HALF } else { Flat::SINGLE };
    let gain = |g: &Tensor| g.kind() == Kind::Float && g.is_contiguous() && g.device() == Device::Cpu;
    let fits = |f: &Flats| {
        let out = if f.out.is_half() { Flat::HALF } else { Flat::SINGLE };
        (out == Flat::SINGLE || half)
            && f.out.dense(out)
            && f.onto.is_none_or(|onto| onto.dense(out))
            && !f.products.is_empty()
            && f.products.iter().all(|(a, b)| a.dense(kind) && b.dense(kind))
    };
    // A product over nothing would leave what lies in the output.
    let deep = |sum: &Sum<'_>| sum.products.iter().all(|p| p.depth() > 0);
    supported(half)
        && flats.iter().all(fits)
        && sums.iter().all(deep)
        && sums.iter().all(|s| s.gain.is_none_or(gain))
}

/// A part of a product's depth, as one panel.
pub(super) struct Slab<T> {
    pub(super) a: Matrix<T>,
    pub(super) b: Matrix<T>,
    pub(super) transposed: bool,
    pub(super) k: usize,
    pub(super) depth: usize,
    /// Elements into the panel buffer.
    pub(super) offset: usize,
}

impl<T: Packed> Slab<T> {
    pub(super) fn padded(&self) -> usize {
        self.depth.next_multiple_of(T::PAIR)
    }
}

/// One sum, cut to passes of slabs that fit the cache together.
pub(super) struct Job<'a, T> {
    pub(super) passes: Vec<Vec<Slab<T>>>,
    pub(super) out: *mut c_void,
    pub(super) out_stride: usize,
    pub(super) out_half: bool,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) scale: f32,
    pub(super) gain: Option<&'a [f32]>,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) onto: Option<(*const c_void, usize)>,
    pub(super) add: bool,
}

impl<T> Job<'_, T> {
    /// Whether sums can go where they belong without a stop on the way.
    pub(super) fn direct(&self) -> bool {
        let plain = self.scale == 1.0 && self.gain.is_none() && self.bias.is_none() && self.onto.is_none();
        plain && !self.out_half
    }
}

/// A block of a job: `rows` rows of one panel's columns.
#[derive(Clone, Copy)]
pub(super) struct Item {
    pub(super) job: usize,
    pub(super) column: usize,
    pub(super) row: usize,
    pub(super) rows: usize,
}

impl Item {
    /// Which panel it multiplies with.
    fn panel(&self) -> (usize, usize) {
        (self.job, self.column)
    }
}

// SAFETY: the matrices are only read, and each item writes a block of `out` of its own.
unsafe impl<T: Sync> Sync for Job<'_, T> {}

thread_local! {
    static BUFFERS: RefCell<(Vec<u32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

pub(super) fn run<T: Packed>(sums: &[Sum<'_>]) {
    // An odd depth of bf16 is read in pairs: the left-hand side needs the zero that the panel has.
    let padded: Vec<Vec<Tensor>> =
        sums.iter().map(|s| s.products.iter().map(|p| even::<T>(p.a)).collect()).collect();
    let jobs: Vec<Job<'_, T>> = sums.iter().zip(&padded).map(|(sum, a)| job(sum, a)).collect();
    let items = items(&jobs);
    parallel(items.len(), 1, |range| {
        BUFFERS.with_borrow_mut(|(panel, tile)| {
            let mut packed = None;
            let items = &items[range];
            for (i, item) in items.iter().enumerate() {
                let job = &jobs[item.job];
                let fresh = packed != Some(item.panel()) || job.passes.len() > 1;
                let next = items.get(i + 1).filter(|next| next.panel() != item.panel());
                let next = next.map(|next| {
                    let job = &jobs[next.job];
                    Ahead { pass: &job.passes[0], column: next.column, columns: job.columns }
                });
                // SAFETY: the block lies in the matrices.
                unsafe { block(job, *item, fresh, next.as_ref(), panel, tile) };
                packed = Some(item.panel());
            }
        });
    });
}

/// The blocks of all jobs, column by column. The last ones are small, so that no thread waits long for another.
fn items<T>(jobs: &[Job<'_, T>]) -> Vec<Item> {
    let mut items = Vec::new();
    for (index, job) in jobs.iter().enumerate() {
        for column in (0..job.columns).step_by(WIDTH) {
            let rows = (0..job.rows).step_by(ITEM);
            items.extend(rows.map(|row| Item { job: index, column, row, rows: ITEM.min(job.rows - row) }));
        }
    }
    let large = items.len().saturating_sub(threads());
    for item in items.split_off(large) {
        let rows = (0..item.rows).step_by(LEAST);
        items.extend(rows.map(|i| Item { row: item.row + i, rows: LEAST.min(item.rows - i), ..item }));
    }
    items
}

/// `a`, or a copy with a column of zeros behind it where its depth is odd and pairs are read.
fn even<T: Packed>(a: &Tensor) -> Tensor {
    if a.size()[1] % T::PAIR as i64 == 0 { a.shallow_clone() } else { a.constant_pad_nd([0, 1]) }
}

fn job<'a, T: Packed>(sum: &'a Sum<'_>, lefts: &[Tensor]) -> Job<'a, T> {
    let matrix =
        |t: &Tensor| Matrix { data: t.data_ptr().cast_const().cast::<T>(), stride: t.stride()[0] as usize };
    let most = DEPTH / size_of::<T>();
    let (mut passes, mut pass, mut used) = (Vec::new(), Vec::new(), 0);
    for (p, left) in sum.products.iter().zip(lefts) {
        let (a, b, depth) = (matrix(left), matrix(p.b), p.depth() as usize);
        let mut k = 0;
        while k < depth {
            if used == most {
                passes.push(std::mem::take(&mut pass));
                used = 0;
            }
            let part = (depth - k).min(most - used).min(T::CHAIN);
            let slab = Slab { a, b, transposed: p.transposed, k, depth: part, offset: used * WIDTH };
            used += slab.padded();
            pass.push(slab);
            k += part;
        }
    }
    passes.push(pass);
    let (rows, columns) = (sum.out.size()[0] as usize, sum.out.size()[1] as usize);
    Job {
        passes,
        out: sum.out.data_ptr(),
        out_stride: sum.out.stride()[0] as usize,
        out_half: sum.out.kind() == Kind::BFloat16,
        rows,
        columns,
        scale: sum.scale as f32,
        gain: sum.gain.and_then(crate::elements),
        bias: sum.bias.and_then(|b| Vec::try_from(b.to_kind(Kind::Float)).ok()),
        onto: sum.onto.map(|t| (t.data_ptr().cast_const(), t.stride()[0] as usize)),
        add: sum.add,
    }
}
