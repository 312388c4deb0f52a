//! Rows of probabilities. A query sees the keys `lo..hi` of its row; what lies outside has probability 0.

use std::ops::Range;

use tch_ext::simd;

use crate::ops::number::{Number, Wide, sum};

simd! {
    /// `softmax(scale z)` over `lo..hi` into p; gives the logarithm of the sum of exponentials.
    pub(super) fn soften<T: HalfOrSingle>(z: &mut [f32], p: &mut [T], seen: Range<usize>, scale: f32) -> f32 {
        let Range { start: lo, end: hi } = seen;
        let seen = &mut z[lo..hi];
        let mut lanes = [f32::NEG_INFINITY; 32];
        let chunks = seen.chunks_exact(32);
        let rest = chunks.remainder();
        for chunk in chunks {
            lanes.iter_mut().zip(chunk).for_each(|(lane, &z)| *lane = if z > *lane { z } else { *lane });
        }
        let most = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &z| if z > most { z } else { most });
        seen.iter_mut().for_each(|z| *z = Wide::exp((*z - most) * scale));
        let total = sum(seen, |z| z);
        let inverse = (1.0 / total) as f32;
        p[..lo].fill(T::narrow(0.0));
        p[lo..hi].iter_mut().zip(seen.iter()).for_each(|(p, z)| *p = T::narrow(z * inverse));
        p[hi..].fill(T::narrow(0.0));
        most * scale + total.ln() as f32
    }
}

simd! {
    /// The probabilities again, from the logarithm of their sum: in z as they are, in p rounded.
    pub(super) fn probabilities<T: HalfOrSingle>(z: &mut [f32], p: &mut [T], seen: Range<usize>, scale: f32, lse: f32) {
        let Range { start: lo, end: hi } = seen;
        p[..lo].fill(T::narrow(0.0));
        p[hi..].fill(T::narrow(0.0));
        for (z, p) in z[lo..hi].iter_mut().zip(&mut p[lo..hi]) {
            *z = Wide::exp(*z * scale - lse);
            *p = T::narrow(*z);
        }
    }
}

simd! {
    /// The gradient of the scores, `scale p ∘ (dp - along)`.
    pub(super) fn gradients<T: HalfOrSingle>(p: &[f32], dp: &[f32], ds: &mut [T], seen: Range<usize>, scale: f32, along: f32) {
        let Range { start: lo, end: hi } = seen;
        ds[..lo].fill(T::narrow(0.0));
        ds[hi..].fill(T::narrow(0.0));
        for ((ds, p), dp) in ds[lo..hi].iter_mut().zip(&p[lo..hi]).zip(&dp[lo..hi]) {
            *ds = T::narrow(p * (dp - along) * scale);
        }
    }
}

simd! {
    /// `Σ a b`.
    pub(super) fn inner<T: HalfOrSingle>(a: &[T], b: &[T]) -> f32 {
        let mut lanes = [0f32; 16];
        let (a, b) = (a.chunks_exact(16), b.chunks_exact(16));
        let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a.wide() * b.wide()).sum();
        for (a, b) in a.zip(b) {
            lanes.iter_mut().zip(a.iter().zip(b)).for_each(|(lane, (a, b))| *lane += a.wide() * b.wide());
        }
        lanes.iter().sum::<f32>() + rest
    }
}

/// What is computed in f32.
pub(super) trait HalfOrSingle: Number<Wide = f32> {}
impl<T: Number<Wide = f32>> HalfOrSingle for T {}
