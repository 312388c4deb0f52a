//! Rows of probabilities. A query sees the keys `lo..hi` of its row; what lies outside has probability 0. Rows are
//! worked on in whole groups of lanes: what a group holds beyond `lo..hi` is hidden first.

use std::ops::Range;

use tch_ext::number::fold;
use tch_ext::{Number, Wide, simd};

/// Numbers that are worked on together; a block of keys is a multiple of it.
const LANES: usize = 32;

/// The groups that hold `seen`, in a row of whole groups.
#[inline(always)]
fn groups(seen: &Range<usize>) -> Range<usize> {
    seen.start / LANES * LANES..seen.end.next_multiple_of(LANES)
}

/// Scores of what is not seen: their exponential is 0.
#[inline(always)]
fn hide(z: &mut [f32], seen: &Range<usize>) {
    let groups = groups(seen);
    z[groups.start..seen.start].fill(f32::NEG_INFINITY);
    z[seen.end..groups.end].fill(f32::NEG_INFINITY);
}

simd! {
    /// `softmax(scale z)` over `seen` into p; gives the logarithm of the sum of exponentials.
    pub(super) fn soften<T: HalfOrSingle>(z: &mut [f32], p: &mut [T], seen: Range<usize>, scale: f32) -> f32 {
        hide(z, &seen);
        let groups = groups(&seen);
        let (row, _) = z[groups.clone()].as_chunks_mut::<LANES>();
        let mut lanes = [f32::NEG_INFINITY; LANES];
        for group in row.iter() {
            lanes.iter_mut().zip(group).for_each(|(lane, &z)| *lane = if z > *lane { z } else { *lane });
        }
        let most = fold(lanes, |a, b| if b > a { b } else { a });
        let shift = -most * scale;
        let mut total = 0.0;
        // In lanes of f32, which are emptied into f64 in time.
        for part in row.chunks_mut(32) {
            let mut sums = [0f32; LANES];
            for group in part {
                for (z, sum) in group.iter_mut().zip(&mut sums) {
                    *z = Wide::exp(z.mul_add(scale, shift));
                    *sum += *z;
                }
            }
            total += f64::from(fold(sums, |a, b| a + b));
        }
        let inverse = (1.0 / total) as f32;
        p[..groups.start].fill(T::narrow(0.0));
        p[groups.end..].fill(T::narrow(0.0));
        let (p, _) = p[groups].as_chunks_mut::<LANES>();
        for (p, z) in p.iter_mut().zip(row.iter()) {
            p.iter_mut().zip(z).for_each(|(p, z)| *p = T::narrow(z * inverse));
        }
        total.ln() as f32 - shift
    }
}

simd! {
    /// The probabilities again, from the logarithm of their sum: in z as they are, in p rounded.
    pub(super) fn probabilities<T: HalfOrSingle>(
        z: &mut [f32], p: &mut [T], seen: Range<usize>, scale: f32, lse: f32,
    ) {
        hide(z, &seen);
        let groups = groups(&seen);
        p[..groups.start].fill(T::narrow(0.0));
        p[groups.end..].fill(T::narrow(0.0));
        let ((z, _), (p, _)) = (z[groups.clone()].as_chunks_mut::<LANES>(), p[groups].as_chunks_mut::<LANES>());
        for (z, p) in z.iter_mut().zip(p) {
            for (z, p) in z.iter_mut().zip(p) {
                *z = Wide::exp(z.mul_add(scale, -lse));
                *p = T::narrow(*z);
            }
        }
    }
}

simd! {
    /// The gradient of the scores, `scale p ∘ (dp - along)`.
    pub(super) fn gradients<T: HalfOrSingle>(
        p: &[f32], dp: &[f32], ds: &mut [T], seen: Range<usize>, scale: f32, along: f32,
    ) {
        let groups = groups(&seen);
        ds[..groups.start].fill(T::narrow(0.0));
        ds[groups.end..].fill(T::narrow(0.0));
        let ((p, _), (dp, _)) = (p[groups.clone()].as_chunks::<LANES>(), dp[groups.clone()].as_chunks::<LANES>());
        let (ds, _) = ds[groups].as_chunks_mut::<LANES>();
        for ((ds, p), dp) in ds.iter_mut().zip(p).zip(dp) {
            for ((ds, p), dp) in ds.iter_mut().zip(p).zip(dp) {
                *ds = T::narrow(p * (dp - along) * scale);
            }
        }
    }
}

simd! {
    /// `Σ a b`.
    pub(super) fn inner<T: HalfOrSingle>(a: &[T], b: &[T]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a.wide() * b.wide()).sum();
        for (a, b) in a.zip(b) {
            lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a.wide() * b.wide());
        }
        fold(lanes, |a, b| a + b) + rest
    }
}

simd! {
    /// Rounds sums to where they belong.
    pub(super) fn store<T: HalfOrSingle>(out: &mut [T], sums: &[f32]) {
        out.iter_mut().zip(sums).for_each(|(out, x)| *out = T::narrow(*x));
    }
}

simd! {
    /// Adds x to the sums.
    pub(super) fn add(sums: &mut [f32], x: &[f32]) {
        sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
    }
}

/// What is computed in f32.
pub(super) trait HalfOrSingle: Number<Wide = f32> {}
impl<T: Number<Wide = f32>> HalfOrSingle for T {}
