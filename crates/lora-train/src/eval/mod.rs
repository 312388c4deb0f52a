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

/// Tokens that an evaluation reads in one pass, if it is of more than one text: what is kept of them (keys and values, for a
/// model of 8 billion weights 0.13 MB each) stays small beside a model.
pub const MOST_TOKENS: usize = 4096;

/// How many texts of these lengths are read at once: at most so many texts, and so many tokens, but never fewer than one text.
pub fn in_one_pass((texts, tokens): (usize, usize), lengths: impl Iterator<Item = usize>) -> usize {
    let sums = lengths.scan(0, |sum, length| {
        *sum += length;
        Some(*sum)
    });
    sums.take(texts).take_while(|sum| *sum <= tokens).count().max(1)
}

/// Mean cross-entropy over the supervised tokens of `data`, read by passes of `batch_size` texts, or fewer long ones.
///
/// # Errors
/// A sample longer than the model's context.
pub fn mean_loss(model: &dyn Model, data: &Dataset, batch_size: usize) -> Result<f64> {
    mean_loss_within(model, data, (batch_size, MOST_TOKENS))
}

/// The same by passes of at most so many texts and tokens, see [`in_one_pass`].
pub(crate) fn mean_loss_within(model: &dyn Model, data: &Dataset, most: (usize, usize)) -> Result<f64> {
    data.check(model.config().vocab_size)?;
    let samples: Vec<&Sample> = data.samples.iter().collect();
    let (mut sum, mut count, mut rest) = (0.0, 0, &samples[..]);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(in_one_pass(most, rest.iter().map(|sample| sample.ids.len())));
        rest = later;
        let (more, n) = summed_loss(model, now)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_has_so_many_texts_and_tokens_at_most_but_a_text() {
        let pass = |texts, tokens, lengths: &[usize]| in_one_pass((texts, tokens), lengths.iter().copied());
        assert_eq!(pass(2, 100, &[10, 10, 10]), 2);
        assert_eq!(pass(9, 25, &[10, 10, 10]), 2);
        assert_eq!(pass(9, 20, &[10, 10, 10]), 2);
        assert_eq!(pass(9, 5, &[10, 10]), 1);
        assert_eq!(pass(0, 0, &[10]), 1);
    }
}
