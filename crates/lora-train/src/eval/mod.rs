//! Held-out loss, and answers against references.

mod classes;
mod labels;
mod question;

use lora_core::{Mode, Result};
use lora_model::Model;
use serde::Serialize;

pub use classes::{Classified, likeliest, macro_f1};
pub use labels::{Choices, label_scores, labels_of, reference};
pub use question::{Answer, Question, answers};

use crate::batches::Batch;
use crate::data::{Dataset, Sample};
use crate::sharing::may_share;

/// The figures of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows looked at.
    pub examples: usize,
    /// Mean cross-entropy over the supervised tokens.
    pub loss: f64,
    /// `exp(loss)`.
    pub perplexity: f64,
    /// Share of the answers, generated greedily, that equal their reference but for surrounding white space, and for what
    /// the chat template writes around it; none for `text` rows.
    pub accuracy: Option<f64>,
    /// [`macro_f1`] of the generated answers that are labels; none without labels.
    pub macro_f1: Option<f64>,
    /// By the labels' scores; none without labels.
    pub labels: Option<Classified>,
}

/// Mean cross-entropy over the supervised tokens of `data`.
///
/// # Errors
/// A sample longer than the model's context.
pub fn mean_loss(model: &dyn Model, data: &Dataset, batch_size: usize) -> Result<f64> {
    data.check(model.config().vocab_size)?;
    let (mut sum, mut count) = (0.0, 0);
    for samples in data.samples.chunks(batch_size.max(1)) {
        let (more, n) = summed_loss(model, &samples.iter().collect::<Vec<_>>())?;
        sum += more;
        count += n;
    }
    Ok(sum / count.max(1) as f64)
}

/// The cross-entropy of these samples' supervised tokens, summed up, and how many those are, in one pass.
///
/// # Errors
/// A sample longer than the model's context.
pub fn summed_loss(model: &dyn Model, samples: &[&Sample]) -> Result<(f64, i64)> {
    let _guard = tch::no_grad_guard();
    let batch = Batch::sharing(samples, may_share(model.device(), model.kind(), false), model.device());
    let (loss, n) = model.loss(batch.texts(), batch.labels(), Mode::Eval)?;
    Ok((loss.double_value(&[]), n))
}
