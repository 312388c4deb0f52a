//! Attention of one new token: its query sees all keys, which come from memory once.

use tch::{Device, Kind, Tensor};
use tch_ext::number::write;
use tch_ext::{Rows, bf16, parallel_rows, simd, span};

use super::rows::HalfOrSingle;

/// Keys and values of one head, in elements, that are worth a thread of their own.
const GRAIN: usize = 1 << 16;

/// `q [B, heads, 1, dim]`, `k, v [B, kv_heads, S, dim]`, which may be views of longer ones; `None` where this is not
/// the way. Tracks no gradient.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Option<Tensor> {
    let neighbours = |t: &Tensor| t.stride().last() == Some(&1);
    let same = q.kind() == k.kind() && q.kind() == v.kind() && neighbours(k) && neighbours(v);
    if q.device() != Device::Cpu || q.size()[2] != 1 || !same || tch_ext::grad_enabled() {
        return None;
    }
    match q.kind() {
        Kind::BFloat16 => Some(forward::<bf16>(q, k, v, window)),
        Kind::Float => Some(forward::<f32>(q, k, v, window)),
        _ => None,
    }
}

/// Keys or values: rows of one head lie `row` elements apart.
#[derive(Clone, Copy)]
struct Head<'a, T> {
    data: &'a [T],
    row: usize,
}

fn forward<T: HalfOrSingle>(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Tensor {
    let q = q.contiguous();
    let mut y = q.empty_like();
    let (heads, dim) = (q.size()[1] as usize, q.size()[3] as usize);
    let (kv_heads, keys) = (k.size()[1] as usize, k.size()[2] as usize);
    let first = window.map_or(0, |w| keys.saturating_sub(w as usize));
    let rows = q.size()[0] as usize * heads;
    let (Some((q, _)), Some((k, k_strides)), Some((v, v_strides))) =
        (span::<T>(&q), span::<T>(k), span::<T>(v))
    else {
        return y;
    };
    let scale = 1.0 / (dim as f32).sqrt();
    let out = Rows { data: write::<T>(&mut y), width: dim };
    parallel_rows(out, rows, GRAIN / ((keys - first) * dim + 1), |start, n, out| {
        let (mut scores, mut sums) = (vec![0f32; keys - first], vec![0f32; dim]);
        for i in 0..n {
            let (batch, head) = ((start + i) / heads, (start + i) % heads * kv_heads / heads);
            let at = |s: &[usize]| batch * s[0] + head * s[1] + first * s[2];
            let query: Vec<f32> = q[(start + i) * dim..][..dim].iter().map(|x| x.wide() * scale).collect();
            let k = Head { data: &k[at(&k_strides)..], row: k_strides[2] };
            let v = Head { data: &v[at(&v_strides)..], row: v_strides[2] };
            score(&mut scores, &query, k);
            let total = soften(&mut scores);
            mix(&mut sums, &scores, v, total);
            let y = &mut out.data[i * dim..][..dim];
            y.iter_mut().zip(&sums).for_each(|(y, x)| *y = T::narrow(*x));
        }
    });
    y
}

const LANES: usize = 16;

simd! {
    fn score<T: HalfOrSingle>(scores: &mut [f32], q: &[f32], k: Head<'_, T>) {
        let (q, q_rest) = q.as_chunks::<LANES>();
        for (j, score) in scores.iter_mut().enumerate() {
            let (key, rest) = k.data[j * k.row..][..q.len() * LANES + q_rest.len()].as_chunks::<LANES>();
            let mut lanes = [0f32; LANES];
            for (q, k) in q.iter().zip(key) {
                for ((lane, q), k) in lanes.iter_mut().zip(q).zip(k) {
                    *lane = q.mul_add(k.wide(), *lane);
                }
            }
            *score = halved(lanes);
            for (q, k) in q_rest.iter().zip(rest) {
                *score += q * k.wide();
            }
        }
    }
}

/// The sum of the lanes, half added to half.
#[inline(always)]
fn halved(mut lanes: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

simd! {
    /// The scores' exponentials, the largest being 1; their sum.
    fn soften(scores: &mut [f32]) -> f32 {
        use tch_ext::Wide;
        let mut most = f32::NEG_INFINITY;
        for z in scores.iter() {
            most = if *z > most { *z } else { most };
        }
        for z in scores.iter_mut() {
            *z = Wide::exp(*z - most);
        }
        tch_ext::number::sum(scores, |z| z) as f32
    }
}

simd! {
    /// `Σ p v / total`.
    fn mix<T: HalfOrSingle>(sums: &mut [f32], p: &[f32], v: Head<'_, T>, total: f32) {
        sums.fill(0.0);
        for (j, p) in p.iter().enumerate() {
            for (sum, v) in sums.iter_mut().zip(&v.data[j * v.row..]) {
                *sum = p.mul_add(v.wide(), *sum);
            }
        }
        for sum in sums.iter_mut() {
            *sum /= total;
        }
    }
}
