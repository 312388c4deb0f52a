//! Errors as data: what was wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

use super::mechanism::Mechanism;

/// What every fallible function of [`privacy`](crate::privacy) returns.
pub type Result<T> = std::result::Result<T, PrivacyError>;

/// Why something was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivacyError {
    /// A parameter that makes no sense.
    #[error("{name} is {value}; it must be {must}")]
    Parameter {
        /// The parameter's name.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        must: &'static str,
    },
    /// No noise that this build considers brings the run under its budget.
    #[error(
        "no noise multiplier up to {largest:e} keeps {steps} steps within epsilon {epsilon} at delta {delta:e}"
    )]
    Unreachable {
        /// The largest multiplier tried.
        largest: f64,
        /// The steps asked for.
        steps: u64,
        /// The target.
        epsilon: f64,
        /// Its delta.
        delta: f64,
    },
    /// NaN or infinity where a number is needed.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Which.
        index: usize,
    },
    /// Two lengths that must agree do not.
    #[error("{what} has {got} values, not {want}")]
    Length {
        /// Of what.
        what: &'static str,
        /// Its length.
        got: usize,
        /// What it should be.
        want: usize,
    },
    /// The step would spend more than there is; nothing was charged.
    #[error("step {step} would bring epsilon to {would}, and the budget is {budget} at delta {delta:e}")]
    Exceeded {
        /// The step refused.
        step: u64,
        /// Epsilon with it.
        would: f64,
        /// The budget's epsilon.
        budget: f64,
        /// The budget's delta.
        delta: f64,
    },
    /// The ledger has steps of another kind, and one of the two kinds draws its records.
    #[error(
        "step {step} has noise {} and rate {}, and the ledger has steps of noise {} and rate {}",
        wanted.sigma(), wanted.q(), found.sigma(), found.q()
    )]
    OtherKind {
        /// The step refused.
        step: u64,
        /// What was charged before.
        found: Mechanism,
        /// The step's own.
        wanted: Mechanism,
    },
    /// A record does not belong into the step, or not again, or is missing.
    #[error("record {record} {what}")]
    Record {
        /// Its index.
        record: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A step that was charged before comes out otherwise now.
    #[error("step {step} was charged before, and its sum is another now")]
    OtherRelease {
        /// The step.
        step: u64,
    },
    /// A line of the ledger is not what was written.
    #[error("{}:{line}: {what}", path.display())]
    Corrupt {
        /// The ledger.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The ledger was opened for another budget.
    #[error("{}: was opened with {found}, not with {wanted}", path.display())]
    OtherBudget {
        /// The ledger.
        path: PathBuf,
        /// Its budget.
        found: String,
        /// The one asked for.
        wanted: String,
    },
    /// Another process, or another handle of this one, has the ledger open.
    #[error("{}: is in use", path.display())]
    Locked {
        /// The ledger.
        path: PathBuf,
    },
    /// A write failed before; what the file holds is no longer known.
    #[error("{}: a write failed, and nothing more is charged", path.display())]
    Poisoned {
        /// The ledger.
        path: PathBuf,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system: {0}")]
    Entropy(String),
}

impl PrivacyError {
    /// The ledger's file, where the error is about that. Then its text names the file, which is for whoever keeps it alone.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Corrupt { path, .. }
            | Self::OtherBudget { path, .. }
            | Self::Locked { path }
            | Self::Poisoned { path }
            | Self::Disk { path, .. } => Some(path),
            Self::Parameter { .. }
            | Self::Unreachable { .. }
            | Self::NonFinite { .. }
            | Self::Length { .. }
            | Self::Exceeded { .. }
            | Self::OtherKind { .. }
            | Self::Record { .. }
            | Self::OtherRelease { .. }
            | Self::Entropy(_) => None,
        }
    }

    /// What to do about it, where we know.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Parameter { .. } | Self::Length { .. } => return None,
            Self::Record { .. } => {
                "add every record that was drawn, once; one with nothing to say adds zeros"
            }
            Self::OtherRelease { .. } => {
                "do it on the machine and with the threads of the first time; or delete LEDGER.secret: then it is \
                 another release, with noise of its own, and is charged anew (of a step that an earlier version charged, begin a run of \
                 another name instead)"
            }
            Self::Unreachable { .. } => {
                "allow a larger epsilon or delta, fewer steps, or a lower sampling rate"
            }
            Self::NonFinite { .. } => {
                "add zeros in its place: no clip makes NaN finite, and a step that fails of it tells of it"
            }
            Self::Exceeded { .. } => {
                "what was released before is within the budget; more noise, or a lower rate, allows more steps"
            }
            Self::OtherKind { .. } => {
                "go on with as many expected records a step, and as many steps, as at first: steps of another kind that are chosen \
                 when some were seen are not bounded by what both kinds spend"
            }
            Self::Corrupt { .. } => {
                "restore the file from a copy that is as new; a shortened ledger forgets spending"
            }
            Self::OtherBudget { .. } => "give the run's own budget, or start a new ledger for new data",
            Self::Locked { .. } => "wait for the other process to end; the lock goes with it",
            Self::Poisoned { .. } => "check the disk, then open the ledger again",
            Self::Disk { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => "check the path",
                std::io::ErrorKind::PermissionDenied => "check the permissions of the file and its folder",
                std::io::ErrorKind::StorageFull => {
                    "free some disk space; what was not charged was not released"
                }
                _ => return None,
            },
            Self::Entropy(_) => return None,
        })
    }
}

impl From<PrivacyError> for lora_core::Error {
    fn from(e: PrivacyError) -> Self {
        let text = e.to_string();
        let error = match &e {
            PrivacyError::NonFinite { .. } => Self::non_finite(text),
            PrivacyError::Corrupt { .. } | PrivacyError::OtherRelease { .. } => Self::data(text),
            PrivacyError::Record { .. } | PrivacyError::Entropy(_) => Self::internal(text),
            _ => Self::usage(text),
        };
        match e.hint() {
            Some(hint) => error.hint(hint).because(e),
            None => error.because(e),
        }
    }
}

/// Refuses `value` unless it is `ok`.
pub(super) fn require(ok: bool, name: &'static str, value: f64, must: &'static str) -> Result<()> {
    if ok { Ok(()) } else { Err(PrivacyError::Parameter { name, value: value.to_string(), must }) }
}

/// Refuses a delta outside of (0, 1).
pub(super) fn require_delta(delta: f64) -> Result<()> {
    require(delta > 0.0 && delta < 1.0, "delta", delta, "above 0 and below 1")
}

/// Refuses a negative epsilon and NaN.
pub(super) fn require_epsilon(epsilon: f64) -> Result<()> {
    require(epsilon >= 0.0 && epsilon.is_finite(), "epsilon", epsilon, "0 or more, and finite")
}
