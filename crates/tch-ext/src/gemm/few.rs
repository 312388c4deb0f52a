//! Sums of few rows, as a generated token needs them: each number of the right-hand matrices is used once or a few
//! times, so nothing is packed, and what counts is how fast they come.

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use super::Lie;
use super::dots::{Term, dots};
use super::flat::{Flat, Flats};
use super::pack::{Matrix, Packed};
use crate::Simd;
use crate::parallel::parallel;
use half::bf16;

/// So many rows are multiplied with a column while it is in registers.
const TOGETHER: usize = 4;
/// Columns that are worth a thread of their own.
const GRAIN: usize = 32;

/// For more rows panels are faster. AVX-512 packs and multiplies them sooner.
fn most() -> i64 {
    if Simd::best() == Simd::Avx512 { 4 } else { 16 }
}

/// Whether this is the way for all of them; their layout is one that panels would take.
pub(super) fn fit(sums: &[Flats<'_>]) -> bool {
    let transposed = |f: &Flats<'_>| f.sum.products.iter().all(|p| p.lie == Lie::Transposed);
    sums.iter().all(|f| f.out.rows <= most() && transposed(f))
}

/// Rows that are multiplied together.
struct Group<T> {
    first: usize,
    rows: usize,
    terms: Vec<Term<T>>,
}

struct Job<'a, T> {
    groups: Vec<Group<T>>,
    out: (*mut c_void, usize),
    half: bool,
    onto: Option<(*const c_void, usize)>,
    bias: Option<Vec<f32>>,
    gain: Option<&'a [f32]>,
    columns: usize,
    scale: f32,
    add: bool,
}

// SAFETY: matrices are only read, and each column is written by one thread.
unsafe impl<T: Sync> Sync for Job<'_, T> {}

pub(super) fn run<T: Packed>(sums: &[Flats<'_>]) {
    let matrix = |f: &Flat| Matrix { data: f.data.cast_const().cast::<T>(), stride: f.stride as usize };
    // Several sums read one input.
    let mut lefts: Vec<(Matrix<T>, usize, Arc<[f32]>)> = Vec::new();
    let mut left = |a: Matrix<T>, rows: usize, depth: usize| {
        let same = |(m, deep, wide): &&(Matrix<T>, usize, Arc<[f32]>)| {
            (m.data, m.stride, *deep, wide.len()) == (a.data, a.stride, depth, rows * depth)
        };
        if let Some((.., wide)) = lefts.iter().find(same) {
            return wide.clone();
        }
        let mut wide = vec![0f32; rows * depth];
        for (i, wide) in wide.chunks_exact_mut(depth.max(1)).enumerate() {
            // SAFETY: so many rows of that length does the matrix have.
            widen(wide, unsafe { a.row(i, 0, depth) });
        }
        lefts.push((a, depth, wide.into()));
        lefts[lefts.len() - 1].2.clone()
    };
    let jobs = sums.iter().map(|flat| {
        let sum = flat.sum;
        let (rows, columns) = (flat.out.rows as usize, flat.out.columns as usize);
        let groups = (0..rows).step_by(TOGETHER).map(|first| {
            let rows = TOGETHER.min(rows - first);
            let terms = flat.products.iter().map(|(a, b)| {
                let (depth, a) = (a.columns as usize, matrix(a));
                let a = Matrix { data: a.data.wrapping_add(first * a.stride), ..a };
                Term { a: left(a, rows, depth), b: matrix(b), depth }
            });
            Group { first, rows, terms: terms.collect() }
        });
        Job {
            groups: groups.collect(),
            out: (flat.out.data, flat.out.stride as usize),
            half: flat.out.is_half(),
            onto: flat.onto.map(|onto| (onto.data.cast_const(), onto.stride as usize)),
            bias: sum.bias.and_then(|b| Vec::try_from(b.to_kind(tch::Kind::Float)).ok()),
            gain: sum.gain.and_then(crate::elements),
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
                columns(job, begin - first..end - first);
            }
            first += job.columns;
        }
    });
}

crate::simd! {
    fn widen<T: Packed>(wide: &mut [f32], x: &[T]) {
        wide.iter_mut().zip(x).for_each(|(wide, x)| *wide = x.wide());
    }
}

/// These columns of a job: this thread's. A few at a time, which all rows find in the cache.
fn columns<T: Packed>(job: &Job<'_, T>, range: Range<usize>) {
    for start in range.clone().step_by(GRAIN) {
        let few = start..range.end.min(start + GRAIN);
        for group in &job.groups {
            match group.rows {
                1 => numbers::<T, 1>(job, group, few.clone()),
                2 => numbers::<T, 2>(job, group, few.clone()),
                3 => numbers::<T, 3>(job, group, few.clone()),
                _ => numbers::<T, TOGETHER>(job, group, few.clone()),
            }
        }
    }
}

fn numbers<T: Packed, const R: usize>(job: &Job<'_, T>, group: &Group<T>, range: Range<usize>) {
    // SAFETY: the columns lie in the job's matrices, R are the group's rows, and the columns are this thread's.
    unsafe {
        dots::<T, R>(&group.terms, range, |column, sums| {
            for (row, sum) in sums.into_iter().enumerate() {
                finish(job, group.first + row, column, sum);
            }
        });
    }
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
