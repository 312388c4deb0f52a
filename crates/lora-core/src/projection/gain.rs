//! The gain's backward: `dv = g ∘ dy` and `Σ dy ∘ y` of each column, in one pass over the rows.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};
use tch_ext::number::{Number, Wide, read, write};
use tch_ext::{Rows, kernel, parallel_rows, simd};

/// `dy ∘ gain` in dy's dtype, and the columns' sums of `dy ∘ y [n, out]` in the gain's.
pub(super) fn backward(dy: &Tensor, y: &Tensor, gain: &Tensor) -> (Tensor, Tensor) {
    let kind = dy.kind();
    let same = y.kind() == kind && gain.kind() == crate::master_kind(kind);
    same.then(|| kernel!(dy, fused(&dy.contiguous(), &y.contiguous(), &gain.contiguous())))
        .flatten()
        .unwrap_or_else(|| {
            let wide = dy.to_kind(gain.kind());
            let sum = (&wide * y).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
            ((wide * gain).to_kind(kind), sum)
        })
}

/// Rows that are worth a thread of their own; their sums stay in the gain's dtype.
const GRAIN: usize = 32;

fn fused<T: Number>(dy: &Tensor, y: &Tensor, gain: &Tensor) -> (Tensor, Tensor) {
    let mut dv = dy.empty_like();
    let (width, parts) = (gain.numel(), Mutex::new(Vec::new()));
    let (source, y, gain) = (read::<T>(dy), read::<T>(y), read::<T::Wide>(gain));
    let rows = source.len() / width.max(1);
    parallel_rows(Rows { data: write::<T>(&mut dv), width }, rows, GRAIN, |first, n, out| {
        let mine = first * width..(first + n) * width;
        let mut sums = vec![T::Wide::of(0.0); width];
        pass(out.data, &source[mine.clone()], &y[mine], gain, &mut sums);
        parts.lock().unwrap_or_else(PoisonError::into_inner).push((first, sums));
    });
    // In the rows' order, whichever thread was first: the same bits every time.
    let mut parts = parts.into_inner().unwrap_or_else(PoisonError::into_inner);
    parts.sort_by_key(|(first, _)| *first);
    let mut total = vec![0f64; width];
    for (_, sums) in parts {
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum.f64());
    }
    (dv, Tensor::from_slice(&total).to_kind(crate::master_kind(dy.kind())))
}

simd! {
    fn pass<T: Number>(dv: &mut [T], dy: &[T], y: &[T], gain: &[T::Wide], sums: &mut [T::Wide]) {
        let width = gain.len();
        let rows = dv.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(y.chunks_exact(width));
        for ((dv, dy), y) in rows {
            for ((((dv, dy), y), gain), sum) in dv.iter_mut().zip(dy).zip(y).zip(gain).zip(sums.iter_mut()) {
                *dv = T::narrow(dy.wide() * *gain);
                *sum += dy.wide() * y.wide();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn one_pass_is_the_definition() {
        for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
            let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind);
            let (dy, y) = (random(&[150, 37]), random(&[150, 37]));
            let gain = Tensor::rand([37], (crate::master_kind(kind), Device::Cpu));
            let (dv, sums) = backward(&dy, &y, &gain);
            let wide = |t: &Tensor| t.to_kind(Kind::Double);
            let error = |a: &Tensor, b: Tensor| ((wide(a) - &b).norm() / b.norm()).double_value(&[]);
            let eps = if kind == Kind::BFloat16 { 4e-3 } else { 1e-6 };
            assert!(error(&dv, wide(&dy) * wide(&gain)) < eps, "{kind:?}");
            let exact = (wide(&dy) * wide(&y)).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
            assert!(error(&sums, exact) < 1e-6, "{kind:?}");
        }
    }
}
