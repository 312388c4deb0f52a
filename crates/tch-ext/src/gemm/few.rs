//! Sums of few rows, as a generated token needs them: each number of the right-hand matrices is used once or a few
//! times, so nothing is packed, and what counts is how fast they come.

use std::ffi::c_void;

use half::bf16;
use tch::Tensor;

use super::Sum;
use super::pack::{Matrix, Packed};
use crate::parallel::parallel;

/// With more rows than this, panels are used.
const MOST: i64 = 4;
/// Columns that are worth a thread of their own.
const GRAIN: usize = 32;

/// Whether this is the way for all of them; their layout is one that panels would take.
pub(super) fn fit(sums: &[Sum<'_>]) -> bool {
    sums.iter().all(|s| s.out.size()[0] <= MOST && s.products.iter().all(|p| p.transposed))
}

struct Job<'a, T> {
    products: Vec<(Matrix<T>, Matrix<T>, usize)>,
    out: (*mut c_void, usize),
    half: bool,
    onto: Option<(*const c_void, usize)>,
    bias: Option<Vec<f32>>,
    gain: Option<&'a [f32]>,
    rows: usize,
    scale: f32,
    add: bool,
}

// SAFETY: matrices are only read, and each column is written by one thread.
unsafe impl<T: Sync> Sync for Job<'_, T> {}

pub(super) fn run<T: Packed>(sums: &[Sum<'_>]) {
    let matrix =
        |t: &Tensor| Matrix { data: t.data_ptr().cast_const().cast::<T>(), stride: t.stride()[0] as usize };
    for sum in sums {
        let job = Job {
            products: sum.products.iter().map(|p| (matrix(p.a), matrix(p.b), p.depth() as usize)).collect(),
            out: (sum.out.data_ptr(), sum.out.stride()[0] as usize),
            half: sum.out.kind() == tch::Kind::BFloat16,
            onto: sum.onto.map(|t| (t.data_ptr().cast_const(), t.stride()[0] as usize)),
            bias: sum.bias.and_then(|b| Vec::try_from(b.to_kind(tch::Kind::Float)).ok()),
            gain: sum.gain.and_then(crate::elements),
            rows: sum.out.size()[0] as usize,
            scale: sum.scale as f32,
            add: sum.add,
        };
        parallel(sum.out.size()[1] as usize, GRAIN, |columns| {
            for column in columns {
                for row in 0..job.rows {
                    // SAFETY: row and column lie in the matrices, and the column is this thread's.
                    unsafe { number(&job, row, column) };
                }
            }
        });
    }
}

/// # Safety
/// Row and column lie in the job's matrices, and nobody else writes there.
unsafe fn number<T: Packed>(job: &Job<'_, T>, row: usize, column: usize) {
    // SAFETY: the caller's promise.
    let product = |&(a, b, depth): &(Matrix<T>, Matrix<T>, usize)| unsafe {
        dot(a.row(row, 0, depth), b.row(column, 0, depth))
    };
    let mut sum: f32 = job.products.iter().map(product).sum::<f32>() * job.scale;
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

crate::simd! {
    /// `Σ a b`, in lanes.
    fn dot<T: Packed>(a: &[T], b: &[T]) -> f32 {
        let mut lanes = [0f32; 64];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<64>(), b.as_chunks::<64>());
        for (a, b) in a.iter().zip(b) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane = a.wide().mul_add(b.wide(), *lane);
            }
        }
        let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a.wide() * b.wide()).sum();
        lanes.iter().sum::<f32>() + rest
    }
}
