//! What a run tells of itself.

use serde::Serialize;

use crate::limit::Work;

/// One step, as it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean cross-entropy over the step's supervised tokens; in a private step of the texts that count, NaN if none does.
    pub loss: f64,
    /// Joint norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The same of each layer that trains: see [`Norms`](crate::Norms).
    pub grad_norms: Vec<f64>,
    /// The rate of this step.
    pub lr: f64,
    /// Tokens of the texts, padding not counted.
    pub tokens: usize,
    /// Of them supervised.
    pub supervised: usize,
    /// Wall time of the step.
    pub seconds: f64,
    /// Texts of a private step that counted as zeros, since their loss or gradient is not finite, or their pass failed.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: usize,
    /// What the first of them failed of: for whoever holds the rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out_for: Option<String>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// What the loop tells while it runs.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step is done.
    Step(StepReport),
    /// The held-out loss after a step.
    Eval {
        /// After this step.
        step: u64,
        /// Mean cross-entropy over the supervised tokens.
        loss: f64,
    },
    /// The run was written down, or could not be; what was written before is still there then.
    Saved {
        /// After this step.
        step: u64,
        /// Why it could not.
        failed: Option<String>,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Steps done: fewer than planned where a privacy budget ended them, or a [`Stop`](crate::Stop).
    pub steps: u64,
    /// Loss of the first step that has one.
    pub first_loss: f64,
    /// Mean loss of the last tenth of them.
    pub last_loss: f64,
    /// Last held-out loss.
    pub eval_loss: Option<f64>,
    /// Tokens of the texts.
    pub tokens: usize,
    /// Wall time of the steps.
    pub seconds: f64,
    /// What was to be done in them.
    #[serde(skip)]
    pub work: Work,
    /// Backward passes that a GPU was told at once.
    #[serde(skip)]
    pub replayed: u64,
}
