//! Which rounds a party has taken part in. No round is joined twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Result, SecAggError};
use super::plan::RoundId;

/// Remembers rounds, across restarts too.
///
/// A server that could have a round repeated with the same vectors but other survivors would learn the difference
/// of two sums, one party's vector. So an implementation must have written the claim down for good (synced, where
/// it is a file) before it returns.
pub trait RoundLog {
    /// Claims a round; refuses it when it, or a later one of its run, was claimed before.
    fn claim(&mut self, round: RoundId) -> Result<()>;
}

/// A log in memory: the last round of every run. To outlive the process it must be stored with what it guards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rounds {
    last: BTreeMap<[u8; 16], u64>,
}

impl RoundLog for Rounds {
    fn claim(&mut self, round: RoundId) -> Result<()> {
        if self.last.get(&round.run).is_some_and(|last| round.number <= *last) {
            return Err(SecAggError::Replayed(round));
        }
        self.last.insert(round.run, round.number);
        Ok(())
    }
}
