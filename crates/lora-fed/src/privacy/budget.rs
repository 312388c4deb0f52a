//! What may be spent.

use serde::{Deserialize, Serialize};

use super::accountant::Accounting;

/// What a record is: that whose presence stays hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// One training example.
    Example,
    /// One client, with all its examples.
    Client,
}

/// What a run may give away of any one record.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// What a record is.
    pub unit: Unit,
    /// In nats.
    pub epsilon: f64,
    /// A chance, well below one over the number of records.
    pub delta: f64,
    /// How spending adds up.
    pub accounting: Accounting,
}

impl std::fmt::Display for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unit, epsilon, delta, accounting } = self;
        let names = format!("per {unit:?} by {accounting:?}").to_lowercase();
        write!(f, "epsilon {epsilon} at delta {delta:e} {names}")
    }
}
