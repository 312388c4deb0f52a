//! How a model's linear weights are kept once they are loaded.

use lora_core::{AsIs, BaseWeight, Dense, Result, Storage};
use tch::{Device, Kind};

use super::Checkpoint;

/// What is to become of the weights of linear layers inside the blocks; the output head is always dense.
#[derive(Debug, Clone, Copy)]
pub struct Keep<'a> {
    /// How weights are kept that the checkpoint does not hold packed, or not to be left so.
    pub storage: &'a dyn Storage,
    /// Whether a weight that the checkpoint holds packed stays so; `None`: as the checkpoint prefers.
    pub packed: Option<bool>,
    /// Modules that stay dense, by path or by the end of it (`mlp.down_proj`).
    pub skip: &'a [String],
}

/// Whether the linear layer at `path` stays dense: the output head, and what `skip` names.
pub(crate) fn stays_dense(path: &str, skip: &[String]) -> bool {
    let named = |s: &String| path.strip_suffix(s.as_str()).is_some_and(|p| p.is_empty() || p.ends_with('.'));
    !path.starts_with("model.layers.") || skip.iter().any(named)
}

impl Keep<'_> {
    /// As they come, but dense.
    pub const DENSE: Self = Self { storage: &AsIs, packed: Some(false), skip: &[] };
    /// As they come: packed, where the checkpoint has them so.
    pub const NATIVE: Self = Self { storage: &AsIs, packed: Some(true), skip: &[] };

    /// The weight of the linear layer at `path`.
    ///
    /// # Errors
    /// What reading and storing it refuse.
    pub fn weight(
        &self,
        checkpoint: &dyn Checkpoint,
        path: &str,
        (kind, device): (Kind, Device),
    ) -> Result<Box<dyn BaseWeight>> {
        let name = format!("{path}.weight");
        let dense = stays_dense(path, self.skip);
        if !dense
            && self.packed.unwrap_or(checkpoint.prefers_packed())
            && let Some(packed) = checkpoint.packed(&name, kind)?
        {
            return Ok(packed.to_device(device));
        }
        if dense || self.storage.keeps_the_tensor() {
            return Ok(Box::new(Dense::new(checkpoint.load(&name, kind)?.to_device(device))));
        }
        self.storage.store(checkpoint.read(&name, kind)?.to_device(device)).map_err(|e| e.at(path))
    }
}
