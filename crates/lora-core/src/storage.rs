//! Storages as variants bring them, and how checkpoints keep weights that are packed.

use std::fmt::Debug;

use serde_json::Value;
use tch::{Kind, Tensor};

use crate::weight::{BaseWeight, Dense};
use crate::{Error, Result};

/// A way to keep frozen weights, with its options chosen.
pub trait Storage: Debug + Send + Sync {
    /// Keeps `weight [out, in]`.
    ///
    /// # Errors
    /// What the storage refuses.
    fn store(&self, weight: Tensor) -> Result<Box<dyn BaseWeight>>;

    /// Bytes that a weight of `shape`, computed in `kind`, takes so.
    fn bytes(&self, shape: (i64, i64), kind: Kind) -> u64;

    /// Whether what it keeps is the very tensor that it was given, as long as that lives.
    fn keeps_the_tensor(&self) -> bool {
        false
    }

    /// The `quantization_config` of a config.json whose weights are kept so, computed in `kind`, without the modules
    /// named `skipped`; `None` if weights are not packed.
    fn config(&self, kind: Kind, skipped: &[String]) -> Option<Value> {
        let _ = (kind, skipped);
        None
    }
}

/// A weight that lies in a checkpoint as several tensors: `name` itself, and `name.part` for each part.
pub struct Parts<'a> {
    /// The parts' names, sorted; the tensor called `name` is the part "".
    pub names: &'a [&'a str],
    /// Reads a part as it is stored.
    pub load: &'a dyn Fn(&str) -> Result<Tensor>,
}

impl Parts<'_> {
    /// Reads a part that must be there.
    ///
    /// # Errors
    /// [`Error::data`] naming the part, and what reading it gives.
    pub fn get(&self, part: &str) -> Result<Tensor> {
        if !self.names.contains(&part) {
            return Err(Error::data(format!("its `{part}` is missing"))
                .hint("the checkpoint is incomplete: fetch it again"));
        }
        (self.load)(part)
    }
}

/// How a storage lies in a checkpoint.
pub trait Packing: Debug + Sync {
    /// Shape `(out, in)` and dtype of the weight, from what is cheap to read; `None` if the parts are another packing's.
    ///
    /// # Errors
    /// For parts that are of this packing, but malformed.
    fn describe(&self, parts: &Parts<'_>) -> Result<Option<((i64, i64), Kind)>>;

    /// The weight itself, on the CPU, to be computed in `kind`.
    ///
    /// # Errors
    /// For parts that are malformed or do not fit one another: before anything large is allocated.
    fn read(&self, parts: &Parts<'_>, kind: Kind) -> Result<Box<dyn BaseWeight>>;
}

/// The weight as it is.
#[derive(Debug)]
pub struct AsIs;

impl Storage for AsIs {
    fn store(&self, weight: Tensor) -> Result<Box<dyn BaseWeight>> {
        Ok(Box::new(Dense::new(weight)))
    }

    fn bytes(&self, (out, inp): (i64, i64), kind: Kind) -> u64 {
        (out * inp).unsigned_abs() * kind.elt_size_in_bytes() as u64
    }

    fn keeps_the_tensor(&self) -> bool {
        true
    }
}

/// Refuses options, for a variant that has none.
pub(crate) fn no_options(name: &str, options: &str) -> Result<()> {
    if options.is_empty() {
        return Ok(());
    }
    Err(Error::usage(format!("`{name}` takes no options, but `{options}` was given")))
}
