//! Causal attention with grouped heads, and the key-value cache.

mod backward;
mod blocks;
mod cache;
mod layout;
mod one;
mod rows;

use tch::{Device, Kind, Tensor};
use tch_ext::{Bounds, flash_attention};

use super::ATTENTION;
use crate::pieces::{Packing, Piece};
pub use cache::Cache;
use layout::Layout;

/// `softmax(q kᵀ / √head_dim) v`, causal: `q [B, heads, T, head_dim]` are the last T of the S positions of
/// `k, v [B, kv_heads, S, head_dim]`; heads is a multiple of kv_heads. With a window, a position sees itself and
/// the `window - 1` before it. With `texts`, which takes T = S, a row is these pieces one behind another, and none
/// sees another but what it goes on from.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>, texts: Option<&Packing>) -> Tensor {
    let _inside = ATTENTION.enter();
    let s = k.size()[2];
    let windowed = window.filter(|&w| w < s);
    if blocks::pay(q) {
        return blocks::attention(q, k, v, Layout::new(q, k, windowed, texts.map(pieces)));
    }
    if let Some(y) = one::attention(q, k, v, windowed) {
        return y;
    }
    if let Some(y) = packed(q, k, v, windowed, texts) {
        return y;
    }
    let Some(texts) = texts.map(pieces).filter(|texts| texts.len() > 1) else {
        return definition(q, k, v, windowed);
    };
    let ends = texts.iter().scan(0, |end, piece| {
        *end += piece.len;
        Some(*end)
    });
    let places: Vec<(i64, i64)> = ends.zip(texts).map(|(end, piece)| (end - piece.len, piece.len)).collect();
    let each = texts.iter().zip(&places).map(|(piece, &(start, n))| {
        let seen = |x: &Tensor| match piece.behind.map(|at| places[at]) {
            Some((lead, len)) => Tensor::cat(&[x.narrow(2, lead, len), x.narrow(2, start, n)], 2),
            None => x.narrow(2, start, n),
        };
        definition(&q.narrow(2, start, n), &seen(k), &seen(v), window)
    });
    Tensor::cat(&each.collect::<Vec<_>>(), 2)
}

/// What a device alone knows is for kernels that read it there.
fn pieces(texts: &Packing) -> &[Piece] {
    texts.pieces().expect("texts of known lengths")
}

/// By one kernel for all texts, on CUDA.
fn packed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    window: Option<i64>,
    texts: Option<&Packing>,
) -> Option<Tensor> {
    let (one_row, t) = (q.size()[0] == 1, q.size()[2]);
    if !one_row || t != k.size()[2] {
        return None;
    }
    let whole = Bounds::of(&[t]);
    let texts = texts.map_or(Some(&whole), Packing::apart)?;
    let flat = |x: &Tensor| x.squeeze_dim(0).transpose(0, 1);
    let [q, k, v] = [flat(q), flat(k), flat(v)];
    // An older GPU than the kernel's refuses it; what libtorch has else goes text by text.
    let y = flash_attention((&q, &k, &v), texts, window).ok()??;
    Some(y.transpose(0, 1).unsqueeze(0))
}

/// By libtorch's kernels.
fn definition(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Tensor {
    let (t, s) = (q.size()[2], k.size()[2]);
    let window = window.filter(|&w| w < s);
    let mut grouped = q.size()[1] != k.size()[1];
    // On CUDA the kernel for wide numbers knows no groups, and torch would make all scores.
    let spread = |x: &Tensor| x.repeat_interleave_self_int(q.size()[1] / x.size()[1], 1, None);
    let wide = grouped && q.device() != Device::Cpu && !matches!(q.kind(), Kind::BFloat16 | Kind::Half);
    let (k, v) = if wide { (&spread(k), &spread(v)) } else { (k, v) };
    grouped &= !wide;
    // The kernels know "causal" and "everything"; a mask is built only for what is neither.
    let mask = (window.is_some() || (t > 1 && t < s)).then(|| mask(t, s, window, q));
    let causal = mask.is_none() && t > 1;
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None, grouped)
}

fn mask(t: i64, s: i64, window: Option<i64>, like: &Tensor) -> Tensor {
    let options = (Kind::Int64, like.device());
    let key = Tensor::arange(s, options).unsqueeze(0);
    let query = Tensor::arange_start(s - t, s, options).unsqueeze(1);
    let seen = key.le_tensor(&query);
    match window {
        Some(w) => seen.logical_and(&key.gt_tensor(&(query - w))),
        None => seen,
    }
}
