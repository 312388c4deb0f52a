//! How a model's linear weights are kept once they are loaded.

use lora_core::{BaseWeight, Dense, Result, Storage};
use tch::{Device, Kind};

use super::Checkpoint;

/// What is to become of the weight of a linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Keep<'a> {
    /// How weights are kept; `None`: as they come, dense.
    pub storage: Option<&'a dyn Storage>,
    /// Whether a weight that the checkpoint holds packed stays so; `None`: as the checkpoint prefers.
    pub packed: Option<bool>,
    /// Modules that stay dense, by path or by the end of it (`lm_head`, `mlp.down_proj`).
    pub skip: &'a [String],
}

impl Keep<'_> {
    /// As they come, but dense.
    pub const DENSE: Self = Self { storage: None, packed: Some(false), skip: &[] };

    /// Whether the module is one that stays dense.
    pub fn skips(&self, path: &str) -> bool {
        self.skip
            .iter()
            .any(|s| path.strip_suffix(s.as_str()).is_some_and(|p| p.is_empty() || p.ends_with('.')))
    }

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
        let skipped = self.skips(path);
        if !skipped
            && self.packed.unwrap_or(checkpoint.prefers_packed())
            && let Some(packed) = checkpoint.packed(&name, kind)?
        {
            return Ok(packed.to_device(device));
        }
        match self.storage {
            Some(storage) if !skipped && !storage.keeps_the_tensor() => {
                let weight = checkpoint.read(&name, kind)?.to_device(device);
                storage.store(weight).map_err(|e| e.at(path))
            }
            _ => Ok(Box::new(Dense::new(checkpoint.load(&name, kind)?.to_device(device)))),
        }
    }
}
