//! How a model's linear weights are kept once they are loaded.

use lora_core::{AsIs, BaseWeight, Dense, Error, Result, Storage};
use tch::{Device, Kind};

use super::Checkpoint;
use crate::config::ModelConfig;
use crate::llama::linear_names;

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
    !path.starts_with(BLOCKS) || skip.iter().any(named)
}

/// Whether each name of `skip` is that of a linear layer inside the blocks.
///
/// # Errors
/// [`Error::usage`] for one that is not: what it was to spare would be packed.
pub(crate) fn check_skip(config: &ModelConfig, skip: &[String]) -> Result<()> {
    let idle = |name: &&String| {
        let one = std::slice::from_ref(*name);
        !linear_names(config).any(|path| path.starts_with(BLOCKS) && stays_dense(&path, one))
    };
    match skip.iter().find(idle) {
        Some(name) => {
            Err(Error::usage(format!("no linear layer ends with `{name}`, which is to be skipped"))
                .hint("name a layer by the end of its path: `down_proj`, `layers.0.mlp.down_proj`"))
        }
        None => Ok(()),
    }
}

/// Where the linear layers are that may be packed.
const BLOCKS: &str = "model.layers.";

/// What will become of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Bytes in memory.
    pub bytes: u64,
    /// Whether it is dense only while it is multiplied with.
    pub packed: bool,
    /// Bytes that are there beside it while it is loaded.
    pub loading: u64,
}

enum Way {
    Dense,
    AsInTheFile,
    Stored,
}

impl Keep<'_> {
    /// As they come, but dense.
    pub const DENSE: Self = Self { storage: &AsIs, packed: Some(false), skip: &[] };
    /// As they come: packed, where the checkpoint has them so.
    pub const NATIVE: Self = Self { storage: &AsIs, packed: Some(true), skip: &[] };

    fn way(&self, checkpoint: &dyn Checkpoint, path: &str) -> Way {
        let native = self.packed.unwrap_or(checkpoint.prefers_packed());
        match stays_dense(path, self.skip) {
            false if native && checkpoint.packed_bytes(&weight_of(path)).is_some() => Way::AsInTheFile,
            false if !self.storage.keeps_the_tensor() => Way::Stored,
            _ => Way::Dense,
        }
    }

    /// The weight of the linear layer at `path`.
    ///
    /// # Errors
    /// What loading gives, and what the storage refuses.
    pub(crate) fn weight(
        &self,
        checkpoint: &dyn Checkpoint,
        path: &str,
        (kind, device): (Kind, Device),
    ) -> Result<Box<dyn BaseWeight>> {
        let name = weight_of(path);
        match self.way(checkpoint, path) {
            Way::AsInTheFile => match checkpoint.packed(&name, kind)? {
                Some(packed) => Ok(packed.to_device(device)),
                None => Err(Error::internal("a packed weight is none").at(name)),
            },
            Way::Stored => {
                self.storage.store(checkpoint.read(&name, kind)?.to_device(device)).map_err(|e| e.at(path))
            }
            Way::Dense => Ok(Box::new(Dense::new(checkpoint.load(&name, kind)?.to_device(device)))),
        }
    }

    /// What will become of the weight of `shape` at `path`, computed in `kind`.
    pub fn plan(&self, checkpoint: &dyn Checkpoint, path: &str, shape: (i64, i64), kind: Kind) -> Kept {
        let dense = AsIs.bytes(shape, kind);
        match self.way(checkpoint, path) {
            Way::AsInTheFile => {
                let bytes = checkpoint.packed_bytes(&weight_of(path)).unwrap_or(dense);
                Kept { bytes, packed: true, loading: 0 }
            }
            Way::Stored => Kept { bytes: self.storage.bytes(shape, kind), packed: true, loading: dense },
            Way::Dense => Kept { bytes: dense, packed: false, loading: 0 },
        }
    }
}

fn weight_of(path: &str) -> String {
    format!("{path}.weight")
}
