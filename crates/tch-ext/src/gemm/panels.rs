//! The sums by packed panels.

use std::cell::RefCell;
use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::ahead::Ahead;
use super::flat::{Flat, Flats};
use super::lines::Lines;
use super::pack::{Matrix, Packed, WIDTH};
use super::product::supported;
use super::thin::Thin;
use super::tile::block;
use super::turn::transpose;
use super::{Lie, Product, Sum};
use crate::parallel::{Rows, parallel, parallel_rows, threads};

/// Rows of the last, small blocks.
const LEAST: usize = 64;
/// Rows that a thread takes at a time.
const ITEM: usize = 256;
/// Depth of a panel, in bytes a column: with 64 columns half a megabyte, for the second cache.
pub(super) const DEPTH: usize = 8192;
/// Depth of a piece of a left-hand matrix whose depth varies; a whole number of [`STEP`]s, to which the last is filled.
const PIECE: usize = 1024;
const STEP: usize = 32;

/// Whether all of this is work for panels.
pub(super) fn fit(sums: &[Flats<'_>], half: bool) -> bool {
    let kind = if half { Flat::HALF } else { Flat::SINGLE };
    // A product over nothing would leave what lies in the output.
    let deep = |sum: &Sum<'_>| sum.products.iter().all(|p| p.depth() > 0);
    let gain = |g: &Tensor| g.kind() == Kind::Float && g.is_contiguous() && g.device() == Device::Cpu;
    let fits = |f: &Flats<'_>| {
        let out = if f.out.is_half() { Flat::HALF } else { Flat::SINGLE };
        (out == Flat::SINGLE || half)
            && f.out.dense(out)
            && f.onto.is_none_or(|onto| onto.dense(out))
            && !f.products.is_empty()
            && f.products.iter().all(|(a, b)| a.dense(kind) && b.dense(kind))
            && f.sum.gain.is_none_or(gain)
            && deep(f.sum)
    };
    supported(half) && sums.iter().all(fits)
}

/// A part of a product's depth, as one panel.
pub(super) struct Slab<T> {
    /// From this part's first column on.
    pub(super) a: Matrix<T>,
    pub(super) b: Matrix<T>,
    pub(super) transposed: bool,
    /// The first row of b, and how many.
    pub(super) k: usize,
    pub(super) depth: usize,
    /// Rows of the panel, with those of zeros.
    pub(super) padded: usize,
    /// Elements into the panel buffer.
    pub(super) offset: usize,
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
    static BUFFERS: RefCell<(Lines, Lines)> = RefCell::default();
}

pub(super) fn run<T: Packed>(sums: &[Flats<'_>]) {
    let (mut thins, mut others) = (Vec::new(), Vec::new());
    for flats in sums {
        match Thin::of(flats) {
            Some(thin) => thins.push(thin),
            None => others.push(flats.sum),
        }
    }
    let parts: Vec<(&Thin, usize)> =
        thins.iter().flat_map(|thin| (0..thin.parts()).map(move |part| (thin, part))).collect();
    let lefts: Vec<Vec<Left<T>>> = others.iter().map(|s| s.products.iter().map(left).collect()).collect();
    let jobs: Vec<Job<'_, T>> = others.iter().zip(&lefts).map(|(sum, lefts)| job(sum, lefts)).collect();
    let items = items(&jobs);
    let n = parts.len();
    parallel(n + items.len(), 1, |range| {
        let (first, end) = (range.start.min(n), range.end.min(n));
        for same in parts[first..end].chunk_by(|a, b| std::ptr::eq(a.0, b.0)) {
            let (thin, part) = same[0];
            // SAFETY: each part is in one range.
            unsafe { thin.run(part..part + same.len()) };
        }
        blocks(&jobs, &items[range.start.saturating_sub(n)..range.end.saturating_sub(n)]);
    });
}

fn blocks<T: Packed>(jobs: &[Job<'_, T>], items: &[Item]) {
    BUFFERS.with_borrow_mut(|(panel, tile)| {
        let mut packed = None;
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

/// A left-hand matrix, as the small product reads it.
enum Left<T> {
    Whole(Tensor),
    /// `[pieces, rows, stride]`, zeros behind the last column.
    Pieces(Vec<T>),
}

fn left<T: Packed>(p: &Product<'_>) -> Left<T> {
    if p.lie == Lie::OverTokens {
        let (depth, rows) = (p.a.size()[0] as usize, p.a.size()[1] as usize);
        return Left::Pieces(pieces(matrix(p.a), rows, depth));
    }
    // An odd depth of bf16 is read in pairs: the left-hand side needs the zero that the panel has.
    let even = p.a.size()[1] % T::PAIR as i64 == 0;
    Left::Whole(if even { p.a.shallow_clone() } else { p.a.constant_pad_nd([0, 1]) })
}

/// From a piece's row to the next. Of few kinds, as each is another shape to oneDNN's product; where one short piece is
/// all, not much longer than it, for the whole is filled.
fn stride(depth: usize) -> usize {
    if depth < PIECE { depth.next_power_of_two().max(STEP) } else { PIECE }
}

/// Of a matrix whose transpose has these rows and this depth.
fn pieces<T: Packed>(a: Matrix<T>, rows: usize, depth: usize) -> Vec<T> {
    let (count, width) = (rows * depth.div_ceil(PIECE), stride(depth));
    let mut all = vec![T::narrow(0.0); count * width];
    parallel_rows(Rows { data: &mut all[..], width }, count, LEAST, |first, n, out| {
        let mut done = 0;
        while done < n {
            let (k, row) = ((first + done) / rows * PIECE, (first + done) % rows);
            let (m, to) = ((rows - row).min(n - done), out.data[done * width..].as_mut_ptr());
            // SAFETY: these rows of the matrix are there, and these columns of m rows of the piece.
            unsafe { transpose(a, (k, PIECE.min(depth - k)), (row, m), to, width) };
            done += m;
        }
    });
    all
}

fn matrix<T>(t: &Tensor) -> Matrix<T> {
    Matrix { data: t.data_ptr().cast_const().cast::<T>(), stride: t.stride()[0] as usize }
}

fn job<'a, T: Packed>(sum: &'a Sum<'_>, lefts: &[Left<T>]) -> Job<'a, T> {
    let (rows, columns) = (sum.out.size()[0] as usize, sum.out.size()[1] as usize);
    let most = DEPTH / size_of::<T>();
    let (mut passes, mut pass, mut used) = (Vec::new(), Vec::new(), 0);
    for (p, left) in sum.products.iter().zip(lefts) {
        let (b, depth) = (matrix(p.b), p.depth() as usize);
        let (longest, step) = match left {
            Left::Whole(_) => (T::CHAIN, T::PAIR),
            Left::Pieces(_) => (PIECE, STEP),
        };
        let mut k = 0;
        while k < depth {
            // A piece stays whole.
            let least = match left {
                Left::Whole(_) => 1,
                Left::Pieces(_) => PIECE.min(depth - k).next_multiple_of(STEP),
            };
            if most - used < least {
                passes.push(std::mem::take(&mut pass));
                used = 0;
            }
            let part = (depth - k).min(most - used).min(longest);
            let padded = part.next_multiple_of(step);
            let a = match left {
                Left::Whole(a) => {
                    let a = matrix::<T>(a);
                    Matrix { data: a.data.wrapping_add(k), ..a }
                }
                Left::Pieces(all) => Matrix { data: all[k * rows..].as_ptr(), stride: stride(depth) },
            };
            let offset = used * WIDTH;
            pass.push(Slab { a, b, transposed: p.lie == Lie::Transposed, k, depth: part, padded, offset });
            used += padded;
            k += part;
        }
    }
    passes.push(pass);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use half::bf16;

    use super::*;
    use crate::number::Number;

    /// What oneDNN's small product would be compiled for.
    fn shapes<T: Packed>(kind: Kind, products: usize) -> usize {
        let mut all = BTreeSet::new();
        for depth in (1i64..6000).step_by(7) {
            let [a, b] = [[depth, 3], [depth, 2]].map(|size| Tensor::zeros(size, (kind, Device::Cpu)));
            let out = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
            let sum = Sum::new(vec![Product::over_tokens(&a, &b); products], &out);
            let lefts: Vec<Left<T>> = sum.products.iter().map(left).collect();
            for pass in job(&sum, &lefts).passes {
                assert!(!pass.is_empty());
                let used: usize = pass.iter().map(|slab| slab.padded).sum();
                assert!(used <= DEPTH / size_of::<T>(), "{used} rows of a panel");
                all.extend(pass.iter().map(|slab| (slab.padded, slab.a.stride)));
            }
        }
        all.len()
    }

    #[test]
    fn depths_that_vary_make_few_shapes() {
        for products in [1, 3] {
            // Of whole pieces and their rests, and of depths below a half of one.
            assert!(shapes::<f32>(Kind::Float, products) <= PIECE / STEP + PIECE / STEP / 2);
            assert!(shapes::<bf16>(Kind::BFloat16, products) <= PIECE / STEP + PIECE / STEP / 2);
        }
    }

    #[test]
    fn pieces_lie_one_behind_another() {
        let a: Vec<bf16> = (0..3 * 1300).map(|i| bf16::from_bits(i as u16)).collect();
        for (depth, count, width) in
            [(1290, 2, PIECE), (1024, 1, PIECE), (513, 1, PIECE), (40, 1, 64), (3, 1, STEP)]
        {
            let all = pieces(Matrix { data: a.as_ptr(), stride: 3 }, 2, depth);
            assert_eq!(all.len(), count * 2 * width, "{depth}");
            for (at, got) in all.iter().enumerate() {
                let (piece, row, k) = (at / width / 2, at / width % 2, at % width + at / width / 2 * PIECE);
                let want = if k < depth { a[k * 3 + row] } else { bf16::narrow(0.0) };
                assert_eq!(got.to_bits(), want.to_bits(), "depth {depth}, piece {piece}, row {row}, {k}");
            }
        }
    }
}
