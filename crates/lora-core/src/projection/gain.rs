//! The gain's backward: `dv = g ∘ dy` and `Σ dy ∘ y` of each column, in one pass over the rows.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::number::{Number, Wide, read, write};
use tch_ext::{Rows, kernel, parallel_rows, simd};

/// `dy ∘ gain` in dy's dtype, and the columns' sums of `dy ∘ y [n, out]` in the gain's.
pub(super) fn backward(dy: &Tensor, y: &Tensor, gain: &Tensor) -> (Tensor, Tensor) {
    let kind = dy.kind();
    let same = y.kind() == kind && gain.kind() == crate::master_kind(kind);
    let (flat_dy, flat_y, flat_gain) = (dy.contiguous(), y.contiguous(), gain.contiguous());
    let fused = || {
        on_cuda(&flat_dy, &flat_y, &flat_gain).or_else(|| kernel!(dy, fused(&flat_dy, &flat_y, &flat_gain)))
    };
    same.then(fused).flatten().unwrap_or_else(|| {
        let wide = dy.to_kind(gain.kind());
        let sum = (&wide * y).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
        ((wide * gain).to_kind(kind), sum)
    })
}

// A block writes `part` rows of `width` elements at most, and one row of sums.
static SOURCE: Source = tch_ext::cuda_source!("gain", include_str!("gain.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

fn on_cuda(dy: &Tensor, y: &Tensor, gain: &Tensor) -> Option<(Tensor, Tensor)> {
    const PART: usize = 64;
    const THREADS: usize = 256;
    let width = gain.numel();
    let ready = SOURCE.on(&[dy, y, gain], width)?;
    let rows = dy.numel() / width.max(1);
    let blocks = rows.div_ceil(PART);
    let dv = dy.empty_like();
    let sums = Tensor::empty([blocks as i64, width as i64], (gain.kind(), gain.device()));
    let of = |t, n| Arg::Of(t, dy.kind(), n);
    let wide = |t, n| Arg::Of(t, crate::master_kind(dy.kind()), n);
    let n = rows * width;
    let tensors = [of(&dv, n), wide(&sums, blocks * width), of(dy, n), of(y, n), wide(gain, width)];
    let args: Vec<Arg<'_>> = tensors.into_iter().chain([rows, width, PART].map(Arg::Int)).collect();
    let tiles = width.div_ceil(THREADS * ready.vec());
    ready.run("backward", blocks * tiles, THREADS, &args);
    Some((dv, sums.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)))
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
    use tch_ext::cuda::here;

    #[test]
    fn one_pass_is_the_definition() {
        one_pass();
        tch_ext::cuda::emulated(one_pass);
    }

    fn one_pass() {
        // Fewer columns than a block of the kernel takes, and more.
        let widths = [37, 2600];
        let kinds = [Kind::BFloat16, Kind::Float, Kind::Double];
        for (kind, width) in kinds.into_iter().flat_map(|kind| widths.map(|width| (kind, width))) {
            let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, here())).to_kind(kind);
            let (dy, y) = (random(&[150, width]), random(&[150, width]));
            let gain = Tensor::rand([width], (crate::master_kind(kind), here()));
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
