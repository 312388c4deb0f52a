//! Sums of few rows, as a generated token needs them: each number of the right-hand matrices is used once or a few
//! times, so nothing is packed, and what counts is how fast they come.

use std::ffi::c_void;

use half::bf16;
use tch::Tensor;

use super::Sum;
use super::dots::{Term, dots};
use super::pack::{Matrix, Packed};
use crate::parallel::parallel;

/// With more rows than this, panels are used.
const MOST: i64 = 4;
/// Rows that a column is multiplied with while it is in registers.
const ROWS: usize = 4;
/// Columns that are worth a thread of their own.
const GRAIN: usize = 32;

/// Whether this is the way for all of them; their layout is one that panels would take.
pub(super) fn fit(sums: &[Sum<'_>]) -> bool {
    sums.iter().all(|s| s.out.size()[0] <= MOST && s.products.iter().all(|p| p.transposed))
}

struct Job<'a, T> {
    terms: Vec<Term<T>>,
    out: (*mut c_void, usize),
    half: bool,
    onto: Option<(*const c_void, usize)>,
    bias: Option<Vec<f32>>,
    gain: Option<&'a [f32]>,
    rows: usize,
    columns: usize,
    scale: f32,
    add: bool,
}

// SAFETY: matrices are only read, and each column is written by one thread.
unsafe impl<T: Sync> Sync for Job<'_, T> {}

pub(super) fn run<T: Packed>(sums: &[Sum<'_>]) {
    let matrix =
        |t: &Tensor| Matrix { data: t.data_ptr().cast_const().cast::<T>(), stride: t.stride()[0] as usize };
    let jobs = sums.iter().map(|sum| {
        let (rows, columns) = (sum.out.size()[0] as usize, sum.out.size()[1] as usize);
        let term = |p: &super::Product<'_>| {
            let (a, depth) = (matrix(p.a), p.depth() as usize);
            // SAFETY: so many rows of that length does the matrix have.
            let wide = (0..rows).flat_map(|i| unsafe { a.row(i, 0, depth) }.iter().map(|x| x.wide()));
            Term { a: wide.collect(), b: matrix(p.b), depth }
        };
        Job {
            terms: sum.products.iter().map(term).collect(),
            out: (sum.out.data_ptr(), sum.out.stride()[0] as usize),
            half: sum.out.kind() == tch::Kind::BFloat16,
            onto: sum.onto.map(|t| (t.data_ptr().cast_const(), t.stride()[0] as usize)),
            bias: sum.bias.and_then(|b| Vec::try_from(b.to_kind(tch::Kind::Float)).ok()),
            gain: sum.gain.and_then(crate::elements),
            rows,
            columns,
            scale: sum.scale as f32,
            add: sum.add,
        }
    });
    let jobs: Vec<Job<'_, T>> = jobs.collect();
    // All columns of all sums, one behind another.
    parallel(jobs.iter().map(|job| job.columns).sum(), GRAIN, |range| {
        let mut first = 0;
        for job in &jobs {
            let (begin, end) = (range.start.max(first), range.end.min(first + job.columns));
            if begin < end {
                columns(job, begin - first, end - first);
            }
            first += job.columns;
        }
    });
}

/// Columns `begin..end` of a job: this thread's.
fn columns<T: Packed>(job: &Job<'_, T>, begin: usize, end: usize) {
    for column in begin..end {
        let mut row = 0;
        while row < job.rows {
            row += match job.rows - row {
                1 => numbers::<T, 1>(job, row, column),
                2 => numbers::<T, 2>(job, row, column),
                3 => numbers::<T, 3>(job, row, column),
                _ => numbers::<T, ROWS>(job, row, column),
            };
        }
    }
}

/// R numbers of a column from `row` on; R.
fn numbers<T: Packed, const R: usize>(job: &Job<'_, T>, row: usize, column: usize) -> usize {
    // SAFETY: row and column lie in the job's matrices.
    let sums: [f32; R] = unsafe { dots(&job.terms, row, column) };
    for (r, sum) in sums.into_iter().enumerate() {
        // SAFETY: row and column lie in the job's matrices, and the column is this thread's.
        unsafe { finish(job, row + r, column, sum) };
    }
    R
}

/// # Safety
/// Row and column lie in the job's matrices, and nobody else writes there.
#[inline(always)]
unsafe fn finish<T: Packed>(job: &Job<'_, T>, row: usize, column: usize, sum: f32) {
    let mut sum = sum * job.scale;
    sum *= job.gain.map_or(1.0, |gain| gain[column]);
    sum += job.bias.as_ref().map_or(0.0, |bias| bias[column]);
    let wide = |x: bf16| f32::from_bits(u32::from(x.to_bits()) << 16);
    // SAFETY: the caller's promise; `onto` has the sizes and the dtype of `out`.
    unsafe {
        let (at, onto) =
            (row * job.out.1 + column, job.onto.map(|(data, stride)| (data, row * stride + column)));
        if job.half {
            let out = job.out.0.cast::<bf16>().add(at);
            sum += onto.map_or(0.0, |(data, at)| wide(*data.cast::<bf16>().add(at)));
            sum += if job.add { wide(*out) } else { 0.0 };
            *out = crate::round_bf16(sum);
        } else {
            let out = job.out.0.cast::<f32>().add(at);
            sum += onto.map_or(0.0, |(data, at)| *data.cast::<f32>().add(at));
            sum += if job.add { *out } else { 0.0 };
            *out = sum;
        }
    }
}
