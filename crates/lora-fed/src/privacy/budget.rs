//! What may be spent, and the ledger of what was: written before it is spent.
//!
//! The order of a step is: draw its noise and sample from its [`StepKey`], [`charge`](Ledger::charge) it, and only then
//! release its sum. A crash between charge and release costs nothing: replayed, the step has the same key and
//! releases the same bytes, which is one release. A step with any other key, be its number the same, is another
//! release and another charge.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::accountant::{Accountant, Accounting, steps_for};
use super::error::{PrivacyError, Result, require_delta, require_epsilon};
use super::journal::Journal;
use super::keys::StepKey;
use super::mechanism::Mechanism;

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

/// The first line of a ledger.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    ledger: u32,
    budget: Budget,
}

const VERSION: u32 = 1;

/// Any other.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    step: u64,
    key: String,
    sigma: f64,
    q: f64,
}

impl Line {
    /// A release is the same only if all of it is.
    fn identity(&self) -> (u64, String, u64, u64) {
        (self.step, self.key.clone(), self.sigma.to_bits(), self.q.to_bits())
    }
}

/// How a step was charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charge {
    /// It is on the disk now.
    New,
    /// It was there already: the step is a replay.
    Replayed,
}

/// A budget and what was spent of it, in a file.
#[derive(Debug)]
pub struct Ledger {
    journal: Journal,
    budget: Budget,
    spent: Accountant,
    charged: HashSet<(u64, String, u64, u64)>,
    grant: Option<Grant>,
}

/// Further steps of a mechanism that are known to fit, so that not each is accounted for anew.
#[derive(Debug, Clone, Copy)]
struct Grant {
    mechanism: Mechanism,
    left: u64,
    size: u64,
}

impl Ledger {
    /// Opens the ledger of a budget, or begins one.
    ///
    /// A ledger belongs to a set of data: everything ever released of it is in one. It is refused if it has another
    /// budget, if a line was changed, or if somebody else has it open.
    pub fn open(path: &Path, budget: &Budget) -> Result<Self> {
        require_epsilon(budget.epsilon)?;
        require_delta(budget.delta)?;
        let (mut journal, lines) = Journal::open(path)?;
        let corrupt = |line, what: String| PrivacyError::Corrupt { path: path.to_owned(), line, what };
        let (mut spent, mut charged) = (Accountant::new(budget.accounting), HashSet::new());
        for (number, text) in lines.iter().enumerate() {
            let bad = |e: &dyn std::fmt::Display| corrupt(number + 1, e.to_string());
            if number == 0 {
                let head: Head = serde_json::from_str(text).map_err(|e| bad(&e))?;
                if head.ledger != VERSION {
                    return Err(bad(&format!("a ledger of version {}, not {VERSION}", head.ledger)));
                }
                if head.budget != *budget {
                    let (found, wanted) = (describe(&head.budget), describe(budget));
                    return Err(PrivacyError::OtherBudget { path: path.to_owned(), found, wanted });
                }
                continue;
            }
            let line: Line = serde_json::from_str(text).map_err(|e| bad(&e))?;
            spent.add(Mechanism::new(line.sigma, line.q).map_err(|e| bad(&e))?, 1);
            if !charged.insert(line.identity()) {
                return Err(bad(&"the step is charged twice"));
            }
        }
        if lines.is_empty() {
            journal.append(&json(&Head { ledger: VERSION, budget: *budget })?)?;
        }
        Ok(Self { journal, budget: *budget, spent, charged, grant: None })
    }

    /// Charges a step. When this returns without an error the charge is on the disk, and the step may be released.
    ///
    /// Refuses a step that the budget does not allow: then nothing was charged, and nothing may be released.
    pub fn charge(&mut self, key: &StepKey, mechanism: Mechanism) -> Result<Charge> {
        let line = Line { step: key.step(), key: key.id(), sigma: mechanism.sigma(), q: mechanism.q() };
        let identity = line.identity();
        if self.charged.contains(&identity) {
            return Ok(Charge::Replayed);
        }
        let grant = self.afford(line.step, mechanism)?;
        self.journal.append(&json(&line)?)?;
        self.grant = Some(Grant { left: grant.left - 1, ..grant });
        self.spent.add(mechanism, 1);
        self.charged.insert(identity);
        Ok(Charge::New)
    }

    /// A grant of at least one step.
    fn afford(&self, step: u64, mechanism: Mechanism) -> Result<Grant> {
        let granted = self.grant.filter(|g| g.mechanism == mechanism);
        if let Some(grant) = granted.filter(|g| g.left > 0) {
            return Ok(grant);
        }
        // Twice as many as last time, then half as many until they fit.
        let mut size = granted.map_or(1, |g| g.size.saturating_mul(2));
        loop {
            let mut with = self.spent.clone();
            with.add(mechanism, size);
            let would = with.epsilon(self.budget.delta)?;
            if would <= self.budget.epsilon {
                return Ok(Grant { mechanism, left: size, size });
            }
            if size == 1 {
                let Budget { epsilon: budget, delta, .. } = self.budget;
                return Err(PrivacyError::Exceeded { step, would, budget, delta });
            }
            size /= 2;
        }
    }

    /// The budget.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Epsilon so far, at the budget's delta.
    pub fn spent(&self) -> Result<f64> {
        self.spent.epsilon(self.budget.delta)
    }

    /// All that was charged.
    pub fn accountant(&self) -> &Accountant {
        &self.spent
    }

    /// The number of charges.
    pub fn charges(&self) -> usize {
        self.charged.len()
    }

    /// How many more steps of a mechanism fit, `most` at most.
    pub fn remaining(&self, mechanism: Mechanism, most: u64) -> Result<u64> {
        let Budget { epsilon, delta, .. } = self.budget;
        steps_for(&self.spent, epsilon, delta, mechanism.sigma(), mechanism.q(), most)
    }

    /// The hash of the last line. Kept in a checkpoint, it later tells whether the ledger was put back to a state
    /// before it.
    pub fn head(&self) -> &str {
        self.journal.hashes().last().map_or("", String::as_str)
    }

    /// Whether a line has this hash, a former [`head`](Self::head).
    pub fn holds(&self, head: &str) -> bool {
        self.journal.hashes().iter().any(|h| h == head)
    }

    /// Where the ledger is.
    pub fn path(&self) -> &Path {
        self.journal.path()
    }
}

fn describe(budget: &Budget) -> String {
    let Budget { unit, epsilon, delta, accounting } = budget;
    format!("epsilon {epsilon} at delta {delta:e} per {unit:?} by {accounting:?}").to_lowercase()
}

/// Ours have no maps with odd keys, so it does not fail; if it did, nothing would be charged.
fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| PrivacyError::Parameter {
        name: "a line of the ledger",
        value: e.to_string(),
        must: "what JSON can say",
    })
}
