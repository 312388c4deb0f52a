//! The gain: `dv = g ∘ dy` and `Σ dy ∘ y` of each column, in one pass over the rows; what a gain is divided by.

use std::sync::{Mutex, PoisonError};

use tch::{Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::number::{Number, Wide, read, write};
use tch_ext::{Rows, kernel, parallel_rows, simd};

use super::part::Kept;

/// What a smaller gain is taken for where the output after it is divided by it: nobody sees it in a sum, and a power of
/// two gives back what it was multiplied with. To ask whether a gain is 0 would have a GPU waited for in each layer.
const LEAST: f64 = 1.0 / (1u64 << 60) as f64;

/// The gain, or [`LEAST`] where that is larger.
pub(super) fn floored(gain: &Tensor) -> Tensor {
    let on_cuda = || {
        let (ready, width) = (SOURCE.on(&[gain], 1)?, gain.numel());
        let out = gain.empty_like();
        let of = |t| Arg::Of(t, gain.kind(), width);
        let args = [of(&out), of(gain), Arg::Int(width), Arg::Float(LEAST)];
        ready.run("floored", width.div_ceil(THREADS), THREADS, &args);
        Some(out)
    };
    on_cuda().unwrap_or_else(|| gain.masked_fill(&gain.abs().lt(LEAST), LEAST))
}

/// `dy ∘ gain` in dy's dtype, and the magnitude's gradient `[out]` in the gain's, from y `[n, out]`: the layer's output,
/// after the gain or before it.
pub(super) fn backward(dy: &Tensor, y: &Tensor, kept: &Kept) -> (Tensor, Tensor) {
    let (kind, gain) = (dy.kind(), &kept.value);
    let same = y.kind() == kind && gain.kind() == crate::master_kind(kind);
    let (flat_dy, flat_y, flat_gain) = (dy.contiguous(), y.contiguous(), gain.contiguous());
    if let Some(done) = same.then(|| on_cuda(&flat_dy, &flat_y, &flat_gain, kept)).flatten() {
        return done;
    }
    let fused = || kernel!(dy, fused(&flat_dy, &flat_y, &flat_gain));
    let (dv, sum) = same.then(fused).flatten().unwrap_or_else(|| {
        let wide = dy.to_kind(gain.kind());
        let sum = (&wide * y).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
        ((wide * gain).to_kind(kind), sum)
    });
    let dm = if kept.before { sum * &kept.slope } else { sum / gain * &kept.slope };
    (dv, dm)
}

const THREADS: usize = 256;

// A block writes `part` rows of `width` elements at most, and one row of sums; or each thread one of `width` numbers.
static SOURCE: Source = tch_ext::cuda_source!("gain", include_str!("gain.cu"));
/// The kernels of this file.
pub(crate) const CUDA_SOURCE: &Source = &SOURCE;

fn on_cuda(dy: &Tensor, y: &Tensor, gain: &Tensor, kept: &Kept) -> Option<(Tensor, Tensor)> {
    const PART: usize = 64;
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
    let dm = Tensor::empty([width as i64], (gain.kind(), gain.device()));
    let slope = kept.slope.contiguous();
    let divided = if kept.before { Arg::Null } else { wide(gain, width) };
    let args = [wide(&dm, width), wide(&sums, blocks * width), wide(&slope, width), divided];
    let args: Vec<Arg<'_>> = args.into_iter().chain([blocks, width].map(Arg::Int)).collect();
    ready.run("finish", width.div_ceil(THREADS), THREADS, &args);
    Some((dv, dm))
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

    #[test]
    fn a_small_gain_is_the_least() {
        let small = || {
            let gain =
                Tensor::from_slice(&[0.0f32, -0.0, 1e-30, -1e-30, 1e-10, -1e-10, 2.0]).to_device(here());
            let least = LEAST as f32;
            let want =
                Tensor::from_slice(&[least, least, least, least, 1e-10, -1e-10, 2.0]).to_device(here());
            assert_eq!(floored(&gain), want);
        };
        small();
        tch_ext::cuda::emulated(small);
    }

    fn one_pass() {
        // Fewer columns than a block of the kernel takes, and more.
        let widths = [37, 2600];
        let kinds = [Kind::BFloat16, Kind::Float, Kind::Double];
        for (kind, width) in kinds.into_iter().flat_map(|kind| widths.map(|width| (kind, width))) {
            let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, here())).to_kind(kind);
            let (dy, y) = (random(&[150, width]), random(&[150, width]));
            let row = || Tensor::rand([width], (crate::master_kind(kind), here())) + 0.5;
            let (gain, slope) = (row(), row());
            let kept = |before| Kept { value: gain.copy(), slope: slope.copy(), y: None, before };
            let (dv, dm) = backward(&dy, &y, &kept(true));
            let wide = |t: &Tensor| t.to_kind(Kind::Double);
            let error = |a: &Tensor, b: Tensor| ((wide(a) - &b).norm() / b.norm()).double_value(&[]);
            let eps = if kind == Kind::BFloat16 { 4e-3 } else { 1e-6 };
            assert!(error(&dv, wide(&dy) * wide(&gain)) < eps, "{kind:?}");
            let exact = (wide(&dy) * wide(&y)).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>);
            assert!(error(&dm, &exact * wide(&slope)) < 1e-6, "{kind:?}");
            let (_, dm) = backward(&dy, &y, &kept(false));
            assert!(error(&dm, exact / wide(&gain) * wide(&slope)) < 1e-6, "{kind:?}");
        }
    }
}
