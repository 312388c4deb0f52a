//! A factor for each column of a result, on CUDA.

use tch::{Kind, Tensor};

use crate::cuda::{Arg, Source};

// A block reads and writes its part of rows by width, and width factors.
static SOURCE: Source = crate::cuda_source!("columns", include_str!("columns.cu"));
/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&Source; 1] = [&SOURCE];

/// `y ∘ factors`, in the factors' dtype and rounded once.
pub(super) fn scale(y: &mut Tensor, factors: &Tensor) {
    if on_cuda(y, factors).is_none() {
        let _ = y.g_mul_(factors);
    }
}

fn on_cuda(y: &Tensor, factors: &Tensor) -> Option<()> {
    const THREADS: usize = 256;
    const PART: usize = 32;
    let kind = if y.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    if !y.is_contiguous() || !factors.is_contiguous() || factors.kind() != kind {
        return None;
    }
    let width = factors.numel();
    let ready = SOURCE.on(&[y, factors], width)?;
    let (rows, tiles) = (y.numel() / width.max(1), width.div_ceil(THREADS * ready.vec()));
    let args = [Arg::Of(y, y.kind(), rows * width), Arg::Of(factors, kind, width)];
    let args: Vec<Arg<'_>> = args.into_iter().chain([rows, width, PART].map(Arg::Int)).collect();
    ready.run("scale", rows.div_ceil(PART) * tiles, THREADS, &args);
    Some(())
}
