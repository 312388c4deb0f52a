//! Keys and values of what was read.

use lora_core::{Error, Result};
use tch::{Device, Tensor};
use tch_ext::Bounds;

use super::{attention, by_flash, pieces};
use crate::model::Texts;
use crate::ops::ATTENTION;
use crate::pieces::{Piece, Pieces};

/// Positions that a text has room for beyond its first ones; then room doubles.
const ROOM: i64 = 64;

/// Keys and values of the positions that texts have had so far. They lie in memory that grows ahead of them, so that a new
/// token does not copy the old ones. Without gradient.
#[derive(Debug, Default)]
pub struct Cache {
    /// Of each layer, `[kv_heads, texts * room, head_dim]`, of which each text has its first positions in use.
    layers: Vec<[Tensor; 2]>,
    lengths: Vec<i64>,
    room: i64,
}

/// What one pass reads: new positions, behind those that each text had.
#[derive(Debug)]
pub(crate) struct Step {
    /// Where they go, i64, in the order of the pass.
    at: Tensor,
    /// Nothing was there before.
    first: bool,
    /// Of what is new, and of all that is there then.
    bounds: (Bounds, Bounds),
}

impl Cache {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions that each text has had so far; none if nothing was seen yet.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Forgets all texts but these, by their numbers, which they get anew in this order.
    ///
    /// # Panics
    /// For the number of no text.
    pub fn keep(&mut self, texts: &[usize]) {
        let _guard = tch::no_grad_guard();
        let numbers: Vec<i64> = texts.iter().map(|&text| text as i64).collect();
        for store in self.layers.iter_mut().flatten() {
            let each = by_text(store, self.lengths.len());
            let numbers = Tensor::from_slice(&numbers).to_device(each.device());
            *store = each.index_select(1, &numbers).flatten(1, 2);
        }
        self.lengths = texts.iter().map(|&text| self.lengths[text]).collect();
    }

    /// Makes room for what `texts` have new: a row each, or a piece each.
    ///
    /// # Errors
    /// [`Error::usage`] for other texts than before, and for pieces that go on from others.
    pub(crate) fn step(&mut self, texts: Texts<'_>, device: Device) -> Result<Step> {
        let new = match texts {
            Texts::Rows(ids) => vec![ids.size2()?.1; ids.size2()?.0 as usize],
            Texts::Packed(_, pieces) => pieces.iter().map(|piece| piece.len).collect(),
        };
        let joined = matches!(texts, Texts::Packed(_, pieces) if pieces.iter().any(|p| p.behind.is_some()));
        let first = self.lengths.is_empty();
        let ragged = matches!(texts, Texts::Rows(_)) && self.lengths.windows(2).any(|two| two[0] != two[1]);
        if joined || ragged || !(first || new.len() == self.lengths.len()) {
            let had = self.lengths.len();
            return Err(Error::usage(format!("{} texts do not go on from the cache's {had}", new.len()))
                .hint("as many as before; as pieces each by itself, if their lengths differ"));
        }
        let before = if first { vec![0; new.len()] } else { self.lengths.clone() };
        self.lengths = before.iter().zip(&new).map(|(before, new)| before + new).collect();
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        if longest > self.room {
            self.grow(if first { longest + ROOM } else { longest.max(2 * self.room) });
        }
        let starts = before.iter().enumerate().map(|(text, had)| text as i64 * self.room + had);
        let places: Vec<i64> = starts.zip(&new).flat_map(|(start, n)| start..start + n).collect();
        let at = Tensor::from_slice(&places).to_device(device);
        let bounds = (Bounds::of(&new), Bounds::padded(&self.lengths, self.room));
        Ok(Step { at, first, bounds })
    }

    fn grow(&mut self, room: i64) {
        let _guard = tch::no_grad_guard();
        let texts = self.lengths.len();
        for store in self.layers.iter_mut().flatten() {
            let old = by_text(store, texts);
            let [heads, _, had, dim] = old.size()[..] else { continue };
            let larger = Tensor::empty([heads, texts as i64 * room, dim], (old.kind(), old.device()));
            by_text(&larger, texts).narrow(2, 0, had).copy_(&old);
            *store = larger;
        }
        self.room = room;
    }

    /// [`attention`] of a layer (layers come in order) over what the texts had and this pass's `k` and `v`, which are kept;
    /// `texts` are those of a packed pass.
    pub(crate) fn attention(
        &mut self,
        layer: usize,
        step: &Step,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        window: Option<i64>,
        texts: Option<&Pieces>,
    ) -> Tensor {
        let (room, count) = (self.room, self.lengths.len());
        let store = |new: &Tensor| {
            let size = new.size();
            Tensor::empty([size[1], count as i64 * room, size[3]], (new.kind(), new.device()))
        };
        if layer == self.layers.len() {
            self.layers.push([store(k), store(v)]);
        }
        let guard = tch::no_grad_guard();
        for (store, new) in self.layers[layer].iter_mut().zip([k, v]) {
            let _ = store.index_copy_(1, &step.at, &new.detach().transpose(0, 1).flatten(1, 2));
        }
        drop(guard);
        if step.first {
            return attention(q, k, v, window, texts);
        }
        let [k, v] = &self.layers[layer];
        let Some(texts) = texts else {
            let all = |store| by_text(store, count).transpose(0, 1).narrow(2, 0, self.lengths[0]);
            return attention(q, &all(k), &all(v), window, None);
        };
        let _inside = ATTENTION.enter();
        let bounds = (&step.bounds.0, &step.bounds.1);
        if let Some(y) = by_flash((&q.squeeze_dim(0), k, v), bounds, window) {
            return y.unsqueeze(0);
        }
        let texts = pieces(texts);
        let each = Piece::places(texts).zip(texts).enumerate().filter(|(_, (_, text))| text.len > 0);
        let each = each.map(|(number, (at, text))| {
            let own =
                |store: &Tensor| store.narrow(1, number as i64 * room, self.lengths[number]).unsqueeze(0);
            attention(&q.narrow(2, at, text.len), &own(k), &own(v), window, None)
        });
        Tensor::cat(&each.collect::<Vec<_>>(), 2)
    }
}

/// `[kv_heads, texts, room, head_dim]`.
fn by_text(store: &Tensor, texts: usize) -> Tensor {
    let size = store.size();
    store.view([size[0], texts as i64, -1, size[2]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use tch::Kind;

    #[test]
    fn a_panic_leaves_the_thread_its_gradients() {
        let heads = |n| Tensor::zeros([1, 2, n, 4], (Kind::Float, Device::Cpu));
        let (q, short) = (heads(3), heads(2));
        let mut cache = Cache::new();
        let ids = Tensor::zeros([1, 3], (Kind::Int64, Device::Cpu));
        let step = cache.step(Texts::Rows(&ids), Device::Cpu).unwrap();
        let pass = || cache.attention(0, &step, (&q, &short, &short), None, None);
        assert!(catch_unwind(AssertUnwindSafe(pass)).is_err());
        assert!(tch_ext::grad_enabled());
    }
}
