//! Beside which base an adapter was trained, and whether that is the one that is opened: only what is certain is said.
//!
//! Paths tell nothing (folders move, and hubs have names), and other numbers may be the same model in another file: 4 bits,
//! or a narrower float type. So numbers are compared where nothing rounds, and where a start had changed them.

use std::path::Path;

use lora::Recipe;
use lora::model::Checkpoint;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::commands::aside;
use crate::open::name_of;
use crate::planning::is_packed;

/// The file beside an adapter that tells of its training.
pub(crate) const TRAINING: &str = "training.json";

/// A base as it was opened: what [`TRAINING`] has under `base`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Origin {
    /// What its numbers are known by ([`lora::fingerprint`]), before anything rounds them.
    weights: Option<String>,
    /// The float type that all of its matrices are stored in, if it is one.
    dtype: Option<String>,
    /// The storage that rounded them when they were loaded.
    rounded: Option<String>,
    /// The start that changed a model to this base (`lora init`).
    start: Option<String>,
}

impl Origin {
    /// A base of which `kept` says how it is kept; without it, only the file is looked at.
    pub(crate) fn of(checkpoint: &dyn Checkpoint, kept: Option<(&Recipe, Option<bool>)>) -> Self {
        let rounded = kept.filter(|(recipe, packed)| {
            let native = packed.unwrap_or(checkpoint.prefers_packed());
            !(recipe.is_dense() || native && is_packed(checkpoint).unwrap_or(false))
        });
        Self {
            // What cannot be read is loading's to tell.
            weights: lora::fingerprint(checkpoint).ok(),
            dtype: dtype(checkpoint),
            rounded: rounded.and_then(|(recipe, _)| recipe.storage_name()).map(str::to_owned),
            start: None,
        }
    }

    /// The base of an adapter that began by `start`.
    pub(crate) fn started(self, start: Option<String>) -> Self {
        Self { start, ..self }
    }

    /// What an adapter's folder tells; nothing, if it was made elsewhere.
    pub(crate) fn read(folder: &Path) -> Self {
        let text = std::fs::read(folder.join(TRAINING)).unwrap_or_default();
        let told: Value = serde_json::from_slice(&text).unwrap_or_default();
        told.get("base").and_then(|base| Self::deserialize(base).ok()).unwrap_or_default()
    }

    /// The start that changed this adapter's base, if one did.
    pub(crate) fn start(&self) -> Option<String> {
        self.start.clone()
    }

    /// Whether both have the same numbers.
    pub(crate) fn is_of(&self, opened: &Self) -> bool {
        self.weights.is_some() && self.weights == opened.weights
    }

    /// Says on standard error where the base that is opened is certainly another one than this, an adapter's own.
    pub(crate) fn tell(&self, opened: &Self, how_kept: bool) {
        if let Some(what) = self.unlike(opened, how_kept) {
            aside(format_args!("note: the adapter {what}"));
        }
    }

    /// What is to be said of an adapter whose own base this is, beside the one that is opened.
    fn unlike(&self, opened: &Self, how_kept: bool) -> Option<String> {
        let (own, here) = (self.weights.as_ref()?, opened.weights.as_ref()?);
        if own == here {
            return match (&self.rounded, &opened.rounded) {
                _ if !how_kept => None,
                (Some(own), None) => Some(format!(
                    "was trained beside the base as `--variant {own}` rounds it, and here it is as the file has it"
                )),
                (None, Some(here)) => Some(format!(
                    "was trained beside the base as the file has it, and here `--variant {here}` rounds it"
                )),
                _ => None,
            };
        }
        let alike = self.dtype.is_some() && self.dtype == opened.dtype && self.rounded.is_none();
        if let Some(start) = &self.start {
            // It may be that base in another file.
            let is = if alike { "is" } else { "may be" };
            return Some(format!(
                "is of the base that `lora init --init {start}` wrote, and this {is} another one"
            ));
        }
        alike.then(|| "was trained beside other weights than these".to_owned())
    }
}

/// Says where the adapter in `folder` was certainly trained beside another base than this one. How that is kept counts where
/// `kept` says it.
pub(crate) fn tell(folder: &Path, checkpoint: &dyn Checkpoint, kept: Option<(&Recipe, Option<bool>)>) {
    let own = Origin::read(folder);
    // Of adapters that were made elsewhere there is nothing to read the model for.
    if own.weights.is_some() {
        own.tell(&Origin::of(checkpoint, kept), kept.is_some());
    }
}

/// The float type that every matrix is stored in; none where one is packed, or they differ.
fn dtype(checkpoint: &dyn Checkpoint) -> Option<String> {
    let matrix = |name: &String| checkpoint.shape(name).is_some_and(|shape| shape.len() > 1);
    let mut kinds = checkpoint.names().into_iter().filter(matrix).map(|name| {
        let dense = checkpoint.packed_bytes(&name).is_none();
        checkpoint.kind(&name).filter(|_| dense)
    });
    let first = kinds.next()??;
    kinds.all(|kind| kind == Some(first)).then(|| name_of(first).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(weights: &str, dtype: Option<&str>, rounded: Option<&str>, start: Option<&str>) -> Origin {
        let [weights, dtype, rounded, start] =
            [Some(weights), dtype, rounded, start].map(|s| s.map(str::to_owned));
        Origin { weights, dtype, rounded, start }
    }

    /// Of copies in other files and 4 bits nothing is said.
    #[test]
    fn only_what_is_certain_is_said() {
        let (bf16, f32) = (Some("bf16"), Some("f32"));
        let (plain, four) = (origin("a", bf16, None, None), origin("a", bf16, Some("qlora"), None));
        let started = origin("a", bf16, None, Some("pissa"));
        for (own, opened, said) in [
            (&plain, origin("a", bf16, None, None), None),
            (&plain, origin("a", f32, None, None), None),
            (&plain, origin("b", bf16, None, None), Some("other weights")),
            // Cast, or packed.
            (&plain, origin("b", f32, None, None), None),
            (&plain, origin("b", None, None, None), None),
            (&origin("a", None, None, None), origin("b", None, None, None), None),
            (&plain, origin("a", bf16, Some("qlora"), None), Some("here `--variant qlora` rounds it")),
            (&four, origin("a", bf16, None, None), Some("as `--variant qlora` rounds it")),
            (&four, origin("a", bf16, Some("qlora"), None), None),
            // It may be what the 4 bits mean.
            (&four, origin("b", bf16, None, None), None),
            (&four, origin("b", None, None, None), None),
            (&started, origin("a", bf16, None, None), None),
            (&started, origin("b", bf16, None, None), Some("and this is another one")),
            (&started, origin("b", None, None, None), Some("and this may be another one")),
            (&Origin::default(), origin("b", bf16, None, None), None),
            (&plain, Origin::default(), None),
        ] {
            let told = own.unlike(&opened, true);
            match said {
                None => assert_eq!(told, None, "{own:?} {opened:?}"),
                Some(said) => assert!(told.is_some_and(|told| told.contains(said)), "{own:?} {opened:?}"),
            }
        }
        assert_eq!(four.unlike(&plain, false), None, "where nothing is computed");
    }
}
