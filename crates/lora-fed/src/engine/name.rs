//! What a run is called, so that no other ever is.

use super::Federation;
use super::state::SECURE;
use crate::hex::hex;
use crate::store::{Changes, Store};
use lora_core::{Error, Result};
use rand::TryRng;
use rand::rngs::SysRng;

/// Where versions before had it, of secure runs alone.
pub(super) const NAME: &str = "name";

impl Federation {
    /// Writes down a name that no other run has: the settings' own and a random part.
    ///
    /// # Errors
    /// What the store meets; [`Error::data`] if the operating system gives no randomness.
    pub(super) fn write_name(&self, changes: &Changes<'_>) -> Result<()> {
        let mut random = [0u8; 16];
        SysRng
            .try_fill_bytes(&mut random)
            .map_err(|e| Error::data(format!("no randomness from the operating system: {e}")))?;
        let name = format!("{} {}", self.settings.run, hex(&random));
        changes.put(SECURE, NAME, name.as_bytes())
    }

    /// Gives the run the name that it was begun under: its own and a random part, so that clients, who keep things by it, never take
    /// it for another. Nothing that is learnt hangs on it. To be called behind [`Federation::resume`], which knows a run by the name
    /// that it was made with. A run that a version before began in plain has that one, and keeps it.
    ///
    /// # Errors
    /// What the store meets.
    pub fn named_in(&mut self, store: &Store) -> Result<()> {
        if let Some(name) = store.get(SECURE, NAME)? {
            self.settings.run =
                String::from_utf8(name).map_err(|_| Error::data("the run's name in the store is no text"))?;
        }
        Ok(())
    }
}
