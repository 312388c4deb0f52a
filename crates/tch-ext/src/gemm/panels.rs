//! The sums by packed panels.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::OnceLock;

use half::bf16;
use tch::{Device, Kind, Tensor};

use super::Sum;
use super::pack::{Matrix, Packed, WIDTH};
use crate::{parallel, round_bf16};

/// Rows of a tile: with its f32 sums it fits the first cache.
const ROWS: usize = 64;
/// Rows that a thread takes at a time.
const ITEM: usize = 256;
/// Depth of a panel, in bytes a column: with 64 columns a quarter of a megabyte, for the second cache.
const DEPTH: usize = 4096;

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

/// Whether all of this is work for panels.
pub(super) fn fit(sums: &[Sum<'_>], kind: Kind) -> bool {
    let dense = |t: &Tensor, kind: Kind| {
        let stride = t.stride();
        t.kind() == kind && t.device() == Device::Cpu && (stride[1] == 1 || t.size()[1] == 1)
    };
    let out = |t: &Tensor| dense(t, kind) || dense(t, Kind::Float);
    let half = kind == Kind::BFloat16;
    (half || kind == Kind::Float)
        && supported(half)
        && sums.iter().all(|s| {
            out(s.out)
                && s.gain.is_none_or(|g| g.kind() == Kind::Float && g.is_contiguous() && g.device() == Device::Cpu)
                && !s.products.is_empty()
                && s.products.iter().all(|p| dense(p.a, kind) && dense(p.b, kind))
        })
}

/// Whether the small product runs here; tried once.
fn supported(half: bool) -> bool {
    static TRIED: [OnceLock<bool>; 2] = [OnceLock::new(), OnceLock::new()];
    *TRIED[usize::from(half)].get_or_init(|| {
        let (a, b, mut c) = ([0u32; 32], [0u32; 32], [1f32; 16]);
        // SAFETY: 1 x 2 (f32 or bf16) times 2 x 16; all three are large enough.
        cfg!(target_arch = "x86_64")
            && unsafe {
                tch_ext_brgemm(half, 1, 16, 2, 2, 16, 16, false, a.as_ptr().cast(), b.as_ptr().cast(), c.as_mut_ptr())
            }
    })
}

/// A part of a product's depth, as one panel.
struct Slab<T> {
    a: Matrix<T>,
    b: Matrix<T>,
    transposed: bool,
    k: usize,
    depth: usize,
    /// Elements into the panel buffer.
    offset: usize,
}

impl<T: Packed> Slab<T> {
    fn padded(&self) -> usize {
        self.depth.next_multiple_of(T::PAIR)
    }
}

/// One sum, cut to passes of slabs that fit the cache together.
struct Job<'a, T> {
    passes: Vec<Vec<Slab<T>>>,
    out: *mut c_void,
    out_stride: usize,
    out_half: bool,
    rows: usize,
    columns: usize,
    scale: f32,
    gain: Option<&'a [f32]>,
    bias: Option<Vec<f32>>,
    add: bool,
    /// Its first item, counted over all jobs.
    first: usize,
    row_items: usize,
}

// SAFETY: the matrices are only read, and each item writes a block of `out` of its own.
unsafe impl<T: Sync> Sync for Job<'_, T> {}

thread_local! {
    static BUFFERS: RefCell<(Vec<u32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

pub(super) fn run<T: Packed>(sums: &[Sum<'_>]) {
    // An odd depth of bf16 is read in pairs: the left-hand side needs the zero that the panel has.
    let padded: Vec<Vec<Tensor>> = sums.iter().map(|s| s.products.iter().map(|p| even::<T>(p.a)).collect()).collect();
    let mut items = 0;
    let jobs: Vec<Job<'_, T>> = sums.iter().zip(&padded).map(|(sum, a)| job(sum, a, &mut items)).collect();
    parallel(items, 1, |range| {
        BUFFERS.with_borrow_mut(|(panel, tile)| {
            let mut packed = None;
            for item in range {
                let index = jobs.partition_point(|j| j.first <= item) - 1;
                let job = &jobs[index];
                let (column, row) = ((item - job.first) / job.row_items, (item - job.first) % job.row_items);
                let fresh = packed != Some((index, column)) || job.passes.len() > 1;
                // SAFETY: the block lies in the matrices.
                unsafe { block(job, column * WIDTH, row * ITEM, fresh, panel, tile) };
                packed = Some((index, column));
            }
        });
    });
}

/// `a`, or a copy with a column of zeros behind it where its depth is odd and pairs are read.
fn even<T: Packed>(a: &Tensor) -> Tensor {
    if a.size()[1] % T::PAIR as i64 == 0 { a.shallow_clone() } else { a.constant_pad_nd([0, 1]) }
}

fn job<'a, T: Packed>(sum: &'a Sum<'_>, lefts: &[Tensor], items: &mut usize) -> Job<'a, T> {
    let matrix = |t: &Tensor| Matrix { data: t.data_ptr().cast_const().cast::<T>(), stride: t.stride()[0] as usize };
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
            let part = (depth - k).min(most - used);
            let slab = Slab { a, b, transposed: p.transposed, k, depth: part, offset: used * WIDTH };
            used += slab.padded();
            pass.push(slab);
            k += part;
        }
    }
    passes.push(pass);
    let (rows, columns) = (sum.out.size()[0] as usize, sum.out.size()[1] as usize);
    let (first, row_items) = (*items, rows.div_ceil(ITEM));
    *items += row_items * columns.div_ceil(WIDTH);
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
        add: sum.add,
        first,
        row_items,
    }
}

/// Computes the block of `ITEM` rows and `WIDTH` columns from (row, column) on. `fresh`: the panels must be packed.
///
/// # Safety
/// The block begins inside the matrices, and nobody else writes it.
unsafe fn block<T: Packed>(
    job: &Job<'_, T>,
    column: usize,
    row: usize,
    fresh: bool,
    panel: &mut Vec<u32>,
    tile: &mut Vec<f32>,
) {
    let (width, rows) = (WIDTH.min(job.columns - column), ITEM.min(job.rows - row));
    // A depth may be rounded up to a pair twice in a pass.
    panel.resize((DEPTH / 4 + job.passes[0].len()) * WIDTH, 0);
    tile.resize(ITEM * WIDTH, 0.0);
    for (i, pass) in job.passes.iter().enumerate() {
        // SAFETY: words are larger than, or as large as, T, which has no invalid bits.
        let panel =
            unsafe { std::slice::from_raw_parts_mut(panel.as_mut_ptr().cast::<T>(), panel.len() * 4 / size_of::<T>()) };
        if fresh {
            for slab in pass {
                let into = &mut panel[slab.offset..slab.offset + slab.padded() * WIDTH];
                // SAFETY: the slab and the columns lie in b.
                unsafe {
                    if slab.transposed {
                        T::pack_transposed(slab.b, slab.k, slab.depth, column, width, into);
                    } else {
                        T::pack(slab.b, slab.k, slab.depth, column, width, into);
                    }
                }
            }
        }
        for start in (0..rows).step_by(ROWS) {
            let count = ROWS.min(rows - start);
            let sums = &mut tile[start * WIDTH..(start + count) * WIDTH];
            for (j, slab) in pass.iter().enumerate() {
                // SAFETY: `count` rows of a from k on, `padded` rows of the panel, `count` rows of the tile.
                unsafe {
                    let a = slab.a.data.add((row + start) * slab.a.stride + slab.k);
                    let ok = tch_ext_brgemm(
                        T::HALF,
                        count as i64,
                        width as i64,
                        slab.padded() as i64,
                        slab.a.stride as i64,
                        WIDTH as i64,
                        WIDTH as i64,
                        i + j > 0,
                        a.cast(),
                        panel.as_ptr().add(slab.offset).cast(),
                        sums.as_mut_ptr(),
                    );
                    assert!(ok, "the small product failed");
                }
            }
            if i + 1 == job.passes.len() {
                // SAFETY: `count` rows of `width` from here on are this block's.
                unsafe { write(job, row + start, column, width, sums) };
            }
        }
    }
}

/// Writes a tile's rows.
///
/// # Safety
/// They lie in `out`, and nobody else writes them.
unsafe fn write<T>(job: &Job<'_, T>, row: usize, column: usize, width: usize, sums: &mut [f32]) {
    for (i, sums) in sums.chunks_exact_mut(WIDTH).enumerate() {
        let (sums, offset) = (&mut sums[..width], (row + i) * job.out_stride + column);
        if job.scale != 1.0 {
            sums.iter_mut().for_each(|s| *s *= job.scale);
        }
        if let Some(gain) = job.gain {
            sums.iter_mut().zip(&gain[column..]).for_each(|(s, g)| *s *= g);
        }
        if let Some(bias) = &job.bias {
            sums.iter_mut().zip(&bias[column..]).for_each(|(s, b)| *s += b);
        }
        // SAFETY: the caller's promise.
        unsafe {
            if job.out_half {
                let out = std::slice::from_raw_parts_mut(job.out.cast::<bf16>().add(offset), width);
                store_half(out, sums, job.add);
            } else {
                let out = std::slice::from_raw_parts_mut(job.out.cast::<f32>().add(offset), width);
                if job.add {
                    out.iter_mut().zip(sums).for_each(|(o, s)| *o += *s);
                } else {
                    out.copy_from_slice(sums);
                }
            }
        }
    }
}

crate::simd! {
    fn store_half(out: &mut [bf16], sums: &[f32], add: bool) {
        if add {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = round_bf16(o.to_f32() + s));
        } else {
            out.iter_mut().zip(sums).for_each(|(o, s)| *o = round_bf16(*s));
        }
    }
}
