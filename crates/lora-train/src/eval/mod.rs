//! Held-out loss, and answers against references.

mod classes;
mod labels;

use lora_core::{Mode, Result};
use lora_model::{Model, Sampling, Tokenizer, generate_all};
use serde::Serialize;

pub use classes::{Classified, likeliest, macro_f1};
pub use labels::{Choices, label_scores, labels_of, reference};

use crate::batches::Batch;
use crate::data::{Dataset, Sample, template};
use crate::rows::Row;
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
    /// Share of the answers, generated greedily, that equal their reference but for surrounding white space;
    /// none for `text` rows.
    pub accuracy: Option<f64>,
    /// [`macro_f1`] of the generated answers that are labels; none without labels.
    pub macro_f1: Option<f64>,
    /// By the labels' scores; none without labels.
    pub labels: Option<Classified>,
}

/// One generated answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// What was given.
    pub prompt: String,
    /// What the data says.
    pub reference: String,
    /// What the model says.
    pub answer: String,
    /// Whether they are equal.
    pub right: bool,
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

/// A row without its answer, to be answered.
#[derive(Debug, Clone)]
pub struct Question {
    prompt: String,
    ids: Vec<i64>,
    limit: usize,
    reference: String,
}

impl Question {
    /// The row's, to be answered by at most `max_tokens` tokens but as many as the reference has; none for a row without an
    /// answer.
    ///
    /// # Errors
    /// A template that fails.
    pub fn of(tokenizer: &Tokenizer, row: &Row, max_tokens: usize) -> Result<Option<Self>> {
        let Some((prompt, ids, reference)) = question(row, tokenizer)? else { return Ok(None) };
        // A reference longer than the limit would be wrong by force. Behind a blank it may take other tokens.
        let (text, after) = (tokenizer.encode(&reference, false)?, tokenizer.encode_after(&reference)?);
        let limit = max_tokens.max(text.len().max(after.len()) + 1);
        Ok(Some(Self { prompt, ids, limit, reference }))
    }
}

/// Generates the answers to these questions, greedily, all at once.
///
/// # Errors
/// A prompt longer than the model's context.
pub fn answers(model: &dyn Model, tokenizer: &Tokenizer, questions: &[&Question]) -> Result<Vec<Answer>> {
    let prompts: Vec<_> = questions.iter().map(|q| (&q.ids[..], q.limit)).collect();
    let texts = generate_all(model, &prompts, tokenizer.eos_ids(), Sampling::Greedy)?;
    let answered = |(question, ids): (&&Question, Vec<i64>)| {
        let Question { prompt, reference, .. } = (*question).clone();
        let answer = tokenizer.decode(&ids, true)?;
        let right = answer.trim() == reference.trim();
        Ok(Answer { prompt, reference, answer, right })
    };
    questions.iter().zip(texts).map(answered).collect()
}

/// What is shown as the prompt, its ids, and the reference.
fn question(row: &Row, tokenizer: &Tokenizer) -> Result<Option<(String, Vec<i64>, String)>> {
    Ok(match row {
        Row::Text(_) => None,
        Row::Pair { prompt, completion } => {
            Some((prompt.clone(), tokenizer.encode(prompt, true)?, completion.clone()))
        }
        Row::Chat(messages) => match messages.split_last() {
            Some((last, before)) if last.role == "assistant" => {
                let text = template(tokenizer)?.render(before, true)?;
                let shown = before.last().map(|m| m.content.clone()).unwrap_or_default();
                Some((shown, tokenizer.encode(&text, false)?, last.content.clone()))
            }
            _ => None,
        },
    })
}
