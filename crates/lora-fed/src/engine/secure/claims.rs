//! What a party must remember: in which rounds it took part, and for which its vector has left.

use crate::secagg::{RoundId, RoundLog, Rounds, SecAggError};
use crate::store::Store;
use lora_core::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

const SPACE: &str = "secure";
const KEY: &str = "claims";

/// In a file, or for as long as the process lives.
#[derive(Debug, Default)]
pub struct Claims {
    known: Known,
    store: Option<Store>,
    /// What the last claim failed of, if it could not be written.
    failed: Option<Error>,
}

#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Known {
    joined: Rounds,
    /// By run, the last round of the federation for which a vector was sent.
    sent: BTreeMap<[u8; 16], u64>,
}

impl Claims {
    /// In a file, which has what it says before it is acted on.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or is open in another process.
    pub fn open(path: &Path) -> Result<Self> {
        let store = Store::open(path)?;
        let known = match store.get(SPACE, KEY)? {
            Some(bytes) => postcard::from_bytes(&bytes).map_err(|e| {
                Error::data(format!("the rounds taken part in cannot be read: {e}")).at(path.display())
            })?,
            None => Known::default(),
        };
        Ok(Self { known, store: Some(store), failed: None })
    }

    /// Refuses what [`Claims::send`] would refuse, and claims nothing.
    pub(super) fn unsent(&self, run: [u8; 16], round: u64) -> Result<()> {
        if self.known.sent.get(&run).is_some_and(|last| round <= *last) {
            return Err(Error::data(format!("this party has sent its vector for round {round} before"))
                .hint("two sums that differ in one vector would show it: go on with the next round"));
        }
        Ok(())
    }

    /// The vector of this round of the run leaves now; refused if it has left before.
    pub(super) fn send(&mut self, run: [u8; 16], round: u64) -> Result<()> {
        self.unsent(run, round)?;
        let mut next = self.known.clone();
        next.sent.insert(run, round);
        self.keep(next)
    }

    /// A claim's error, with its cause where that is a store's: a [`SecAggError`] has room for words alone.
    pub(super) fn whole(&mut self, e: SecAggError) -> Error {
        let failed = self.failed.take().filter(|_| matches!(e, SecAggError::Log(_)));
        failed.unwrap_or_else(|| e.into())
    }

    fn keep(&mut self, next: Known) -> Result<()> {
        if let Some(store) = &mut self.store {
            let bytes = postcard::to_allocvec(&next).map_err(|e| Error::internal(e.to_string()))?;
            // It names the file, and an error travels in plain.
            let failed =
                |e| Error::data("its rounds could not be written; why is told here alone").because(e);
            store.put(SPACE, KEY, &bytes).map_err(failed)?;
        }
        self.known = next;
        Ok(())
    }
}

impl RoundLog for Claims {
    fn claim(&mut self, round: RoundId) -> std::result::Result<(), SecAggError> {
        let mut next = self.known.clone();
        next.joined.claim(round)?;
        self.keep(next).map_err(|e| {
            let told = SecAggError::Log(e.to_string());
            self.failed = Some(e);
            told
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where its store lies is told to the party alone.
    #[test]
    fn what_a_store_failed_of_is_a_cause() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bank.rounds");
        drop(Claims::open(&path).unwrap());
        let fails = "CREATE TRIGGER fails BEFORE INSERT ON entry BEGIN SELECT RAISE(ABORT, 'no room'); END";
        rusqlite::Connection::open(&path).unwrap().execute_batch(fails).unwrap();
        let mut claims = Claims::open(&path).unwrap();
        let claimed = claims.claim(RoundId { run: [1; 16], number: 1 }).unwrap_err();
        for e in [claims.whole(claimed), claims.send([1; 16], 1).unwrap_err()] {
            let cause = std::error::Error::source(&e).unwrap().to_string();
            assert!(!e.to_string().contains("bank.rounds") && cause.contains("bank.rounds"), "{e}: {cause}");
        }
    }
}
