//! What the rest of the workspace asks of a model.

use lora_core::{Linear, Linears, Mode, Result};
use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::ops::Cache;
use crate::ops::{cross_entropy, wide};
use crate::pieces::Piece;
use crate::slots::Slots;

/// Token ids, i64, as a model reads them.
#[derive(Debug, Clone, Copy)]
pub enum Texts<'a> {
    /// `[B, T]`, a text a row. Unequal lengths are padded on the right: causal attention keeps what comes before a
    /// padding free of it.
    Rows(&'a Tensor),
    /// `[1, N]`, these pieces one behind another: none sees another but what it goes on from, and nothing is spent on
    /// padding.
    Packed(&'a Tensor, &'a [Piece]),
}

impl<'a> Texts<'a> {
    /// The ids.
    pub fn ids(self) -> &'a Tensor {
        match self {
            Self::Rows(ids) | Self::Packed(ids, _) => ids,
        }
    }
}

/// A causal language model over frozen weights.
pub trait Model: Linears + Send {
    /// Its shape and constants.
    fn config(&self) -> &ModelConfig;

    /// Where it lies.
    fn device(&self) -> Device;

    /// The dtype it computes in.
    fn kind(&self) -> Kind;

    /// Token ids `[B, T]` to the last layer's normalised states `[B, T, hidden]`. With a cache each row, or each piece,
    /// goes on behind what the cache has of it: they are as many as at first, and in the same order.
    ///
    /// # Errors
    /// [`lora_core::Error::data`] if the positions exceed the model's context; [`lora_core::Error::usage`] for texts that
    /// do not go on from the cache's: others, rows behind texts of unequal lengths, and pieces that go on from others.
    fn hidden(&self, texts: Texts<'_>, cache: Option<&mut Cache>, mode: Mode) -> Result<Tensor>;

    /// The layer from hidden states to logits.
    fn head(&self) -> &Linear;

    /// f32 logits `[B, T, vocab]` of every position.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    fn logits(&self, texts: Texts<'_>, cache: Option<&mut Cache>, mode: Mode) -> Result<Tensor> {
        Ok(wide(&self.head().forward(&self.hidden(texts, cache, mode)?, mode)))
    }

    /// The summed cross-entropy of `labels [B, T]` (position t's label is the token that follows it;
    /// [`crate::IGNORE`]: not supervised), an f32 scalar, and how many labels count.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    fn loss(&self, texts: Texts<'_>, labels: &Tensor, mode: Mode) -> Result<(Tensor, i64)> {
        let hidden = self.hidden(texts, None, mode)?;
        let width = self.config().hidden_size;
        Ok(cross_entropy(&hidden.reshape([-1, width]), &labels.reshape(-1), self.head(), mode))
    }

    /// Adds the gradient of `scale *` the summed cross-entropy to the leaves; gives that product. What the lowest
    /// `recompute` layers make on the way is not kept but made again, which takes time and saves memory.
    ///
    /// # Errors
    /// As [`Model::hidden`]; [`lora_core::Error::non_finite`] if the loss is not finite: nothing is added then.
    fn backward(&self, texts: Texts<'_>, labels: &Tensor, scale: f64, recompute: usize) -> Result<f64>;

    /// The same of what `slots` hold, all of it kept on the way; a scalar on their device, which is not waited for.
    /// Where the loss is not finite, gradients that are not were added.
    ///
    /// # Errors
    /// What libtorch says.
    ///
    /// # Panics
    /// On a device whose attention must know the texts' lengths ahead: other than a CPU, without flash attention.
    fn gradients(&self, slots: &Slots) -> Result<Tensor>;
}
