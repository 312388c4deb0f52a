//! Causal attention with grouped heads, and the key-value cache.

mod backward;
mod blocks;
mod cache;
mod layout;
mod one;
mod rows;

use tch::{Device, Kind, Tensor};
use tch_ext::{Bounds, flash_attention, has_flash_attention};

use super::ATTENTION;
use crate::pieces::{Piece, Pieces};
pub(crate) use blocks::keys as keys_worked_on;
pub use cache::Cache;
pub(crate) use cache::Step;
use layout::Layout;

/// `softmax(q kᵀ / √head_dim) v`, causal: `q [B, heads, T, head_dim]` are the last T of the S positions of
/// `k, v [B, kv_heads, S, head_dim]`; heads is a multiple of kv_heads. With a window, a position sees itself and
/// the `window - 1` before it. With `texts`, which takes T = S, a row is these pieces one behind another, and none
/// sees another but what it goes on from.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>, texts: Option<&Pieces>) -> Tensor {
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
    by_piece(q, k, v, windowed, texts)
}

/// Piece by piece, by libtorch's kernels.
fn by_piece(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>, pieces: &[Piece]) -> Tensor {
    let places: Vec<i64> = Piece::places(pieces).collect();
    let rows = |x: &Tensor, piece: usize| x.narrow(2, places[piece], pieces[piece].len);
    let each = Piece::chains(pieces).into_iter().enumerate().map(|(i, chain)| {
        let seen = |x| Tensor::cat(&chain.iter().map(|&at| rows(x, at)).collect::<Vec<_>>(), 2);
        definition(&rows(q, i), &seen(k), &seen(v), window)
    });
    Tensor::cat(&each.collect::<Vec<_>>(), 2)
}

/// Whether [`attention`] reads pieces that go on from others as fast as others.
pub fn joins(device: Device, kind: Kind) -> bool {
    blocks::are_there(device, kind)
}

/// What a device alone knows is for kernels that read it there.
fn pieces(texts: &Pieces) -> &[Piece] {
    texts.pieces().expect("texts of known lengths")
}

/// By one kernel for all texts, on CUDA.
fn packed(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>, texts: Option<&Pieces>) -> Option<Tensor> {
    let (one_row, t) = (q.size()[0] == 1, q.size()[2]);
    let is_there = has_flash_attention(q.device(), q.kind(), q.size()[3]);
    if !one_row || t != k.size()[2] || !is_there {
        return None;
    }
    let whole = Bounds::of(&[t]);
    let queries = texts.map_or(&whole, Pieces::bounds);
    let [q, k, v] = [q, k, v].map(|x| x.squeeze_dim(0));
    let y = match texts.and_then(Pieces::seen) {
        None => by_flash((&q, &k, &v), (queries, queries), window),
        Some(seen) => by_flash((&q, &seen.of_row(&k), &seen.of_row(&v)), (queries, &seen.bounds), window),
    }?;
    Some(y.unsqueeze(0))
}

/// `q [heads, n, dim]`, `k, v [kv_heads, m, dim]`, as [`flash_attention`] has them but for the order.
fn by_flash(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    bounds: (&Bounds, &Bounds),
    window: Option<i64>,
) -> Option<Tensor> {
    let [q, k, v] = [q, k, v].map(|x| x.transpose(0, 1));
    // What libtorch refuses goes text by text.
    Some(flash_attention((&q, &k, &v), bounds, window).ok()??.transpose(0, 1))
}

/// By libtorch's kernels.
fn definition(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Tensor {
    let (t, s) = (q.size()[2], k.size()[2]);
    let window = window.filter(|&w| w < s);
    // The kernels know "causal" and "everything"; a mask is built only for what is neither.
    let mask = (window.is_some() || (t > 1 && t < s)).then(|| mask(t, s, window, q));
    let causal = mask.is_none() && t > 1;
    attend(q, k, v, mask, causal)
}

fn attend(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<Tensor>, causal: bool) -> Tensor {
    let mut grouped = q.size()[1] != k.size()[1];
    // On CUDA the kernel for wide numbers knows no groups, and torch would make all scores.
    let spread = |x: &Tensor| x.repeat_interleave_self_int(q.size()[1] / x.size()[1], 1, None);
    let wide = grouped && q.device() != Device::Cpu && !matches!(q.kind(), Kind::BFloat16 | Kind::Half);
    let (k, v) = if wide { (&spread(k), &spread(v)) } else { (k, v) };
    grouped &= !wide;
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None, grouped)
}

fn mask(t: i64, s: i64, window: Option<i64>, like: &Tensor) -> Tensor {
    let options = (Kind::Int64, like.device());
    let key = Tensor::arange(s, options).unsqueeze(0);
    let query = Tensor::arange_start(s - t, s, options).unsqueeze(1);
    near(&query, &key, window)
}

/// Keys that are not behind the query, nor before its window.
fn near(query: &Tensor, key: &Tensor, window: Option<i64>) -> Tensor {
    let seen = key.le_tensor(query);
    match window {
        Some(w) => seen.logical_and(&key.gt_tensor(&(query - w))),
        None => seen,
    }
}
