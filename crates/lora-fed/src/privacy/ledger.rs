//! The ledger of what was spent: written before it is spent.
//!
//! The order of a step is: draw its noise and sample from its [`StepKey`], [`charge`](Ledger::charge) it, and only then
//! release its sum. A crash between charge and release costs nothing: replayed, the step has the same key and
//! releases the same bytes, which is one release. A step with any other key, be its number the same, is another
//! release and another charge.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::accountant::{Accountant, Accounting, SIGMA_WITHIN, steps_for};
use super::budget::{Budget, Unit};
use super::error::{PrivacyError, Result, require_delta, require_epsilon};
use super::journal::Journal;
use super::keys::{Secret, StepKey};
use super::mechanism::Mechanism;
use crate::hex::hex;

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
    /// A hash of what was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<String>,
}

impl Line {
    /// A release is the same only if all of it is.
    fn identity(&self) -> Identity {
        self.called(self.key.clone())
    }

    /// The same release under another name.
    fn called(&self, key: String) -> Identity {
        (self.step, key, self.sigma.to_bits(), self.q.to_bits())
    }
}

type Identity = (u64, String, u64, u64);

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
    /// None if it is kept in memory only.
    journal: Option<Journal>,
    /// Of an infinite epsilon if there is no protection at all.
    budget: Budget,
    spent: Accountant,
    /// With the hash of what was released, where that was told.
    charged: HashMap<Identity, Option<String>>,
    grant: Option<Grant>,
    /// What steps are named under.
    secret: Secret,
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
    /// A ledger belongs to a set of data: everything ever released of it is in one. Its file is its owner's alone. It is refused if
    /// it has another budget, if a line was changed by accident, or if somebody else has it open. See [`under`](Self::under).
    pub fn open(path: &Path, budget: &Budget) -> Result<Self> {
        let mut ledger = Self::in_memory(budget)?;
        let (mut journal, lines) = Journal::open(path)?;
        for (number, text) in lines.iter().enumerate() {
            let bad = |e: &dyn std::fmt::Display| PrivacyError::Corrupt {
                path: path.to_owned(),
                line: number + 1,
                what: e.to_string(),
            };
            if number == 0 {
                let head: Head = serde_json::from_str(text).map_err(|e| bad(&e))?;
                if head.ledger != VERSION {
                    return Err(bad(&format!("a ledger of version {}, not {VERSION}", head.ledger)));
                }
                if head.budget != *budget {
                    let (found, wanted) = (head.budget.to_string(), budget.to_string());
                    return Err(PrivacyError::OtherBudget { path: path.to_owned(), found, wanted });
                }
                continue;
            }
            let line: Line = serde_json::from_str(text).map_err(|e| bad(&e))?;
            ledger.spent.add(Mechanism::new(line.sigma, line.q).map_err(|e| bad(&e))?, 1);
            if ledger.charged.insert(line.identity(), line.released).is_some() {
                return Err(bad(&"the step is charged twice"));
            }
        }
        if lines.is_empty() {
            journal.append(&json(&Head { ledger: VERSION, budget: *budget })?)?;
        }
        ledger.journal = Some(journal);
        Ok(ledger)
    }

    /// One that is on no disk and gone with the process: for simulations of data that nobody has to protect.
    pub fn in_memory(budget: &Budget) -> Result<Self> {
        require_epsilon(budget.epsilon)?;
        require_delta(budget.delta)?;
        Ok(Self::of(*budget, Secret::generate()?))
    }

    /// One of a run without protection: anything goes, and infinitely much was spent.
    pub(super) fn unprotected(secret: &Secret) -> Self {
        let (unit, accounting) = (Unit::Example, Accounting::Rdp);
        Self::of(Budget { unit, epsilon: f64::INFINITY, delta: 0.5, accounting }, secret.clone())
    }

    fn of(budget: Budget, secret: Secret) -> Self {
        let spent = Accountant::new(budget.accounting);
        Self { journal: None, budget, spent, charged: HashMap::new(), grant: None, secret }
    }

    /// The same that names steps under this secret, as [`Release`](super::Release) has it do under its own: a step that is run again
    /// is known again, in another process too. Told of none, a ledger names them under one that is gone with it: whatever is
    /// charged after the next [`open`](Self::open) is a new charge.
    #[must_use]
    pub fn under(self, secret: &Secret) -> Self {
        Self { secret: secret.clone(), ..self }
    }

    fn line(&self, key: &StepKey, mechanism: Mechanism, released: Option<String>) -> Line {
        let (sigma, q) = (mechanism.sigma(), mechanism.q());
        Line { step: key.step(), key: key.id(&self.secret), sigma, q, released }
    }

    /// The charge of a step that is there, if it is: with the hash of what was released, where that was told.
    fn known(&self, key: &StepKey, line: &Line) -> Option<&Option<String>> {
        let charge = self.charged.get(&line.identity());
        // A former name holds under any secret: without a hash, other noise would be free.
        let former = || self.charged.get(&line.called(key.former_id())).filter(|hash| hash.is_some());
        charge.or_else(former)
    }

    /// Charges a step. When this returns without an error the charge is on the disk, and the step may be released.
    ///
    /// Refuses a step that the budget does not allow, or that is not like those before (noise and rate): then nothing was
    /// charged, and nothing may be released.
    pub fn charge(&mut self, key: &StepKey, mechanism: Mechanism) -> Result<Charge> {
        self.put(key, mechanism, None)
    }

    /// Charges a step of which a hash of the noised sum is known. A replay must have the same: the same noise on
    /// another sum would be bare once the two are subtracted.
    pub fn charge_release(&mut self, key: &StepKey, mechanism: Mechanism, hash: &[u8; 32]) -> Result<Charge> {
        self.put(key, mechanism, Some(hex(hash)))
    }

    /// Refuses what [`charge`](Self::charge) would refuse, and charges nothing.
    pub fn allow(&mut self, key: &StepKey, mechanism: Mechanism) -> Result<()> {
        let line = self.line(key, mechanism, None);
        if self.known(key, &line).is_none() {
            self.grant = Some(self.afford(line.step, mechanism)?);
        }
        Ok(())
    }

    fn put(&mut self, key: &StepKey, mechanism: Mechanism, released: Option<String>) -> Result<Charge> {
        let line = self.line(key, mechanism, released);
        let step = line.step;
        if let Some(before) = self.known(key, &line) {
            let same = *before == line.released;
            return if same { Ok(Charge::Replayed) } else { Err(PrivacyError::OtherRelease { step }) };
        }
        let grant = self.afford(step, mechanism)?;
        if let Some(journal) = &mut self.journal {
            journal.append(&json(&line)?)?;
        }
        self.grant = Some(Grant { left: grant.left - 1, ..grant });
        self.spent.add(mechanism, 1);
        self.charged.insert(line.identity(), line.released);
        Ok(Charge::New)
    }

    /// What a budget allows of steps that are alike is settled before the first. Who sees some and then chooses others can do
    /// so where the others' losses lie worse, and learn more than either history says (Feldman and Zrnic 2021 bound that by
    /// divergences of one order). Gaussians that draw nothing are the exception: their losses are of one family, in
    /// whatever order (Smith and Thakurta 2022).
    fn alike(&self, step: u64, wanted: Mechanism) -> Result<()> {
        let spends = |m: Mechanism| m.q() > 0.0;
        let draws = |m: Mechanism| spends(m) && m.q() < 1.0;
        let other = |found: Mechanism| found != wanted && spends(found) && (draws(found) || draws(wanted));
        match self.spent.history().iter().map(|steps| steps.mechanism).find(|&found| other(found)) {
            Some(found) if spends(wanted) => Err(PrivacyError::OtherKind { step, found, wanted }),
            _ => Ok(()),
        }
    }

    /// The kind of the steps that are there, if `wanted` is it but for the noise's last digits: another machine may find others
    /// for the same budget. Else `wanted` itself.
    pub fn settled(&self, wanted: Mechanism) -> Mechanism {
        let off = |m: &Mechanism| (m.sigma() / wanted.sigma() - 1.0).abs();
        let there = self.spent.history().iter().map(|steps| steps.mechanism);
        let near = there.filter(|m| m.q() == wanted.q() && off(m) <= SIGMA_WITHIN);
        near.min_by(|a, b| off(a).total_cmp(&off(b))).unwrap_or(wanted)
    }

    /// A grant of at least one step.
    fn afford(&self, step: u64, mechanism: Mechanism) -> Result<Grant> {
        self.alike(step, mechanism)?;
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
        if self.budget.epsilon.is_infinite() {
            return Ok(f64::INFINITY);
        }
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

    /// How many more steps of a mechanism fit, `most` at most; none if it is not like those before.
    pub fn remaining(&self, mechanism: Mechanism, most: u64) -> Result<u64> {
        let Budget { epsilon, delta, .. } = self.budget;
        if epsilon.is_infinite() {
            return Ok(most);
        }
        if self.alike(0, mechanism).is_err() {
            return Ok(0);
        }
        steps_for(&self.spent, epsilon, delta, mechanism.sigma(), mechanism.q(), most)
    }

    /// The hash of the last line. Kept elsewhere, it later tells whether the ledger was put back to a state before it; by itself
    /// a ledger does not notice that.
    pub fn head(&self) -> &str {
        self.hashes().last().map_or("", String::as_str)
    }

    /// Whether a line has this hash, a former [`head`](Self::head).
    pub fn holds(&self, head: &str) -> bool {
        self.hashes().iter().any(|h| h == head)
    }

    fn hashes(&self) -> &[String] {
        self.journal.as_ref().map_or(&[], Journal::hashes)
    }

    /// Where the ledger is; None if it is in memory only.
    pub fn path(&self) -> Option<&Path> {
        self.journal.as_ref().map(Journal::path)
    }
}

/// Ours have no maps with odd keys, so it does not fail; if it did, nothing would be charged.
fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| PrivacyError::Parameter {
        name: "a line of the ledger",
        value: e.to_string(),
        must: "what JSON can say",
    })
}
