//! What the rest of the workspace asks of a model.

use lora_core::{Linear, Linears, Mode, Result};
use tch::{Device, Kind, Tensor};

use crate::config::ModelConfig;
use crate::ops::Cache;
use crate::ops::{cross_entropy, wide};

/// A causal language model over frozen weights.
pub trait Model: Linears + Send {
    /// Its shape and constants.
    fn config(&self) -> &ModelConfig;

    /// Where it lies.
    fn device(&self) -> Device;

    /// The dtype it computes in.
    fn kind(&self) -> Kind;

    /// Token ids `[B, T]` (i64) to the last layer's normalised states `[B, T, hidden]`. With a cache, `ids` go on
    /// behind what it has seen. Batches of unequal lengths are padded on the right: causal attention keeps
    /// what comes before a padding free of it.
    ///
    /// # Errors
    /// [`lora_core::Error::data`] if the positions exceed the model's context.
    fn hidden(&self, ids: &Tensor, cache: Option<&mut Cache>, mode: Mode) -> Result<Tensor>;

    /// The layer from hidden states to logits.
    fn head(&self) -> &Linear;

    /// f32 logits `[B, T, vocab]` of every position.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    fn logits(&self, ids: &Tensor, cache: Option<&mut Cache>, mode: Mode) -> Result<Tensor> {
        Ok(wide(&self.head().forward(&self.hidden(ids, cache, mode)?, mode)))
    }

    /// The summed cross-entropy of `labels [B, T]` (position t's label is the token that follows it;
    /// [`crate::IGNORE`]: not supervised), an f32 scalar, and how many labels count.
    ///
    /// # Errors
    /// As [`Model::hidden`].
    fn loss(&self, ids: &Tensor, labels: &Tensor, mode: Mode) -> Result<(Tensor, i64)> {
        let hidden = self.hidden(ids, None, mode)?;
        let width = self.config().hidden_size;
        Ok(cross_entropy(&hidden.reshape([-1, width]), &labels.reshape(-1), self.head(), mode))
    }
}
