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
        Ok(Self { known, store: Some(store) })
    }

    /// The vector of this round of the run leaves now; refused if it has left before.
    pub(super) fn send(&mut self, run: [u8; 16], round: u64) -> Result<()> {
        if self.known.sent.get(&run).is_some_and(|last| round <= *last) {
            return Err(Error::data(format!("this party has sent its vector for round {round} before"))
                .hint("two sums that differ in one vector would show it: go on with the next round"));
        }
        let mut next = self.known.clone();
        next.sent.insert(run, round);
        self.keep(next)
    }

    fn keep(&mut self, next: Known) -> Result<()> {
        if let Some(store) = &mut self.store {
            let bytes = postcard::to_allocvec(&next).map_err(|e| Error::internal(e.to_string()))?;
            store.put(SPACE, KEY, &bytes)?;
        }
        self.known = next;
        Ok(())
    }
}

impl RoundLog for Claims {
    fn claim(&mut self, round: RoundId) -> std::result::Result<(), SecAggError> {
        let mut next = self.known.clone();
        next.joined.claim(round)?;
        self.keep(next).map_err(|e| SecAggError::Log(e.to_string()))
    }
}
