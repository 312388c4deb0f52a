//! What a run is known by beside its settings and its shapes: those of another base model may be the same, and under it the numbers
//! of the run mean something else.

use super::Federation;
use crate::store::{Changes, Store};
use lora_core::{Error, Result};

/// Where versions before kept the recipe.
const SPACE: &str = "course";
const BASE: &str = "base model";

impl Federation {
    /// The same over the base model of that name (letters and digits, 64 at most), which is another for other weights: tasks say
    /// it, so that a client over another one refuses, and the run is [known by](Self::known_by) it.
    #[must_use]
    pub fn over(self, base: impl Into<String>) -> Self {
        self.known_by(BASE, base)
    }

    /// The same that is known by something else, too, which neither settings nor shapes show: `what` it is, in words, and its
    /// name. A run that has another one there does not go on as this one ([`Self::resume`]).
    #[must_use]
    pub fn known_by(mut self, what: &'static str, name: impl Into<String>) -> Self {
        self.known.insert(what, name.into());
        self
    }

    /// The base model's name, if it is known.
    pub(super) fn base(&self) -> Option<String> {
        self.known.get(BASE).cloned()
    }

    /// Why the run in `store`, so many of whose rounds are done, is not this one. What either does not say is not compared: versions
    /// before said less.
    ///
    /// # Errors
    /// What the store meets.
    pub(super) fn unlike(&self, store: &Store, rounds: u64) -> Result<Option<Error>> {
        for (what, own) in &self.known {
            let Some(other) = store.get(SPACE, what)?.filter(|name| name != own.as_bytes()) else { continue };
            let other = String::from_utf8_lossy(&other);
            let why = format!(
                "there is a run, {rounds} of whose rounds are done, of another {what}: {other}, and here it is {own}"
            );
            return Ok(Some(Error::usage(why).hint(
                "give that run's --model, --variant and --adapter, or keep this one elsewhere, by another --out",
            )));
        }
        Ok(None)
    }

    /// Writes down what the run is known by.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn write_known(&self, changes: &Changes<'_>) -> Result<()> {
        changes.clear(SPACE)?;
        self.known.iter().try_for_each(|(what, name)| changes.put(SPACE, what, name.as_bytes()))
    }
}
