//! The operations on CUDA: one kernel each. `None` where the tensors lie elsewhere.

use lora_core::master_kind;
use tch::{Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::cuda_source;

use super::heads::Angles;

// The kernels write rows or elements whose number is an argument, and read as many; `run` is told how large each tensor
// must be for that.
static RMS_NORM: Source = cuda_source!("rms_norm", include_str!("rms_norm.cu"));
static SWIGLU: Source = cuda_source!("swiglu", include_str!("swiglu.cu"));
static HEADS: Source = cuda_source!("heads", include_str!("heads.cu"));
static CROSS_ENTROPY: Source = cuda_source!("cross_entropy", include_str!("cross_entropy.cu"));

/// All of them.
pub(crate) const SOURCES: [&Source; 4] = [&RMS_NORM, &SWIGLU, &HEADS, &CROSS_ENTROPY];

const THREADS: usize = 256;
/// Blocks that elements are spread over at most; a thread takes what is left.
const BLOCKS: usize = 1 << 14;

/// The norm, and one number a row.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Option<(Tensor, Tensor)> {
    let (rows, width) = shape(x);
    let ready = RMS_NORM.on(&[x, weight], width)?;
    let mut leading = x.size();
    *leading.last_mut()? = 1;
    let (y, inverse) = (x.empty_like(), Tensor::empty(leading, (master_kind(x.kind()), x.device())));
    let (y_arg, x_arg) = (all(&y), all(x));
    let args = [y_arg, of(&inverse, rows), x_arg, of(weight, width), Arg::Int(width), Arg::Float(eps)];
    ready.run("forward", rows, threads(width, ready.vec(), THREADS), &args);
    Some((y, inverse))
}

/// The norm again.
pub(super) fn rms_norm_again(x: &Tensor, weight: &Tensor, inverse: &Tensor) -> Option<Tensor> {
    let (rows, width) = shape(x);
    let ready = RMS_NORM.on(&[x, weight], width)?;
    let y = x.empty_like();
    let args = [all(&y), all(x), of(weight, width), of(inverse, rows), Arg::Int(width)];
    ready.run("again", rows, threads(width, ready.vec(), THREADS), &args);
    Some(y)
}

/// The gradient of x.
pub(super) fn rms_norm_gradient(
    g: &Tensor,
    beside: Option<&Tensor>,
    x: &Tensor,
    weight: &Tensor,
    inverse: &Tensor,
) -> Option<Tensor> {
    let (rows, width) = shape(x);
    let ready = RMS_NORM.on(&[x, weight, g, beside.unwrap_or(g)], width)?;
    let dx = x.empty_like();
    let beside = beside.map_or(Arg::Null, |b| like(b, x));
    let (weight, inverse) = (of(weight, width), of(inverse, rows));
    let args = [all(&dx), like(g, x), beside, all(x), weight, inverse, Arg::Int(width)];
    ready.run("gradient", rows, threads(width, ready.vec(), THREADS), &args);
    Some(dx)
}

/// `silu(gate) up`.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> Option<Tensor> {
    let n = gate.numel();
    let ready = SWIGLU.on(&[gate, up], n)?;
    let y = gate.empty_like();
    let args = [all(&y), all(gate), like(up, gate), Arg::Int(n)];
    ready.run("forward", blocks(n, ready.vec()), THREADS, &args);
    Some(y)
}

/// The gradients of both.
pub(super) fn swiglu_gradient(dy: &Tensor, gate: &Tensor, up: &Tensor) -> Option<[Tensor; 2]> {
    let n = gate.numel();
    let ready = SWIGLU.on(&[gate, up, dy], n)?;
    let both = [gate.empty_like(), gate.empty_like()];
    let args = [all(&both[0]), all(&both[1]), like(dy, gate), all(gate), like(up, gate), Arg::Int(n)];
    ready.run("gradient", blocks(n, ready.vec()), THREADS, &args);
    Some(both)
}

/// Rows of `dim` from `x` to a tensor of `size`, `[B, count, T, dim]`; `back`: from there to `[B, T, count dim]`.
pub(super) fn heads(
    x: &Tensor,
    size: &[i64],
    (t, count, dim): (usize, usize, usize),
    angles: Option<&Angles>,
    back: bool,
) -> Option<Tensor> {
    let (rows, half) = (x.numel() / dim.max(1), dim / 2);
    if !dim.is_multiple_of(2) {
        return None;
    }
    let ready = HEADS.on(&[x], half)?;
    let out = Tensor::empty(size, (x.kind(), x.device()));
    let angle = |of: fn(&Angles) -> &Tensor| {
        angles.map_or(Arg::Null, |a| Arg::Of(of(a), master_kind(x.kind()), t * half))
    };
    let (cos, sin) = (angle(|a| &a.cos), angle(|a| &a.sin));
    let sizes = [rows, t, count, half, usize::from(back)].map(Arg::Int);
    let args: Vec<Arg<'_>> = [like(&out, x), all(x), cos, sin].into_iter().chain(sizes).collect();
    ready.run("turn", blocks(rows * half, ready.vec()), THREADS, &args);
    drop(args);
    Some(out)
}

/// The summed loss of `logits [n, V]`, f64, and its gradient in `kind`.
pub(super) fn softmax(logits: &Tensor, labels: &Tensor, kind: Kind) -> Option<(Tensor, Tensor)> {
    let (rows, width) = shape(logits);
    let like = Tensor::empty([0], (kind, logits.device()));
    let ready = CROSS_ENTROPY.on(&[&like], width)?;
    let d = Tensor::empty(logits.size(), (kind, logits.device()));
    let loss = Tensor::empty([rows as i64], (Kind::Double, logits.device()));
    let labels = labels.contiguous();
    let args = [all(&d), of(&loss, rows), all(logits), Arg::Of(&labels, Kind::Int64, rows), Arg::Int(width)];
    ready.run("softmax", rows, threads(width, ready.vec(), 1024), &args);
    Some((loss.sum(Kind::Double), d))
}

fn shape(x: &Tensor) -> (usize, usize) {
    let width = x.size().last().map_or(1, |&w| w as usize);
    (x.numel() / width.max(1), width)
}

/// Threads for a row: VEC elements each, or more of them.
fn threads(width: usize, vec: usize, most: usize) -> usize {
    width.div_ceil(vec).next_multiple_of(32).clamp(32, most)
}

fn blocks(n: usize, vec: usize) -> usize {
    n.div_ceil(THREADS * vec).min(BLOCKS)
}

fn of(t: &Tensor, n: usize) -> Arg<'_> {
    Arg::Of(t, t.kind(), n)
}

fn all(t: &Tensor) -> Arg<'_> {
    of(t, t.numel())
}

/// As many of the same kind as `other`.
fn like<'a>(t: &'a Tensor, other: &Tensor) -> Arg<'a> {
    Arg::Of(t, other.kind(), other.numel())
}
