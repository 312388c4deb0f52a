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
    /// Share of the answers, generated greedily, that equal their reference but for surrounding white space, and for what
    /// the chat template writes around it; none for `text` rows.
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
    /// What the model says, without what the chat template writes around a content.
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
    /// What the model is to say before the reference, in its place, and behind it: a chat template may write more than that.
    said: [String; 3],
}

impl Question {
    /// The row's, to be answered by at most `max_tokens` tokens but as many as the reference has, with what the chat template
    /// writes around it; none for a row without an answer.
    ///
    /// # Errors
    /// A template that fails.
    pub fn of(tokenizer: &Tokenizer, row: &Row, max_tokens: usize) -> Result<Option<Self>> {
        let Some(reference) = reference(row).map(str::to_owned) else { return Ok(None) };
        let (prompt, ids, turn) = match row {
            Row::Text(_) => return Ok(None),
            Row::Pair { prompt, completion, .. } => {
                let turn = [String::new(), completion.clone(), String::new()];
                (prompt.clone(), tokenizer.encode(prompt, true)?, turn)
            }
            Row::Chat(chat) => {
                let turn = template(tokenizer, chat)?.last_turn(&chat.messages)?;
                let Some(turn) = turn else { return Ok(None) };
                let asked = chat.messages.iter().nth_back(1).map(|m| m.content.clone()).unwrap_or_default();
                (asked, tokenizer.encode(&turn.prompt, false)?, [turn.before, turn.content, turn.behind])
            }
        };
        // A reference longer than the limit would be wrong by force. Behind a blank it may take other tokens.
        let whole = turn.concat();
        let (text, after) = (tokenizer.encode(&whole, false)?, tokenizer.encode_after(&whole)?);
        let limit = max_tokens.max(text.len().max(after.len()) + 1);
        let [before, content, behind] = turn.map(|part| shown(tokenizer, &part));
        Ok(Some(Self { prompt, ids, limit, reference, said: [before?, content?, behind?] }))
    }

    /// The answer, in what was generated.
    fn judge(&self, text: &str) -> Answer {
        let [before, content, behind] = &self.said;
        let answer = within(text, before, behind).to_owned();
        let right = [&self.reference, content].iter().any(|wanted| answer.trim() == wanted.trim());
        Answer { prompt: self.prompt.clone(), reference: self.reference.clone(), answer, right }
    }
}

/// A part of a turn as it is read once it is generated, up to the turn's end and without white space around it.
fn shown(tokenizer: &Tokenizer, part: &str) -> Result<String> {
    let ids = tokenizer.encode_after(part)?;
    let ids = ids.split(|id| tokenizer.eos_ids().contains(id)).next().unwrap_or_default();
    Ok(tokenizer.decode(ids, true)?.trim().to_owned())
}

/// The text without what it begins with, and without what it ends with, where it does.
fn within<'a>(text: &'a str, before: &str, behind: &str) -> &'a str {
    // White space goes with what it is around alone: an answer is shown as it was said.
    let begins = text.trim_start().strip_prefix(before).filter(|_| !before.is_empty());
    let text = begins.unwrap_or(text);
    let ends = text.trim_end().strip_suffix(behind).filter(|_| !behind.is_empty());
    ends.unwrap_or(text)
}

/// Generates the answers to these questions, greedily, all at once.
///
/// # Errors
/// A prompt longer than the model's context.
pub fn answers(model: &dyn Model, tokenizer: &Tokenizer, questions: &[&Question]) -> Result<Vec<Answer>> {
    let prompts: Vec<_> = questions.iter().map(|q| (&q.ids[..], q.limit)).collect();
    let texts = generate_all(model, &prompts, tokenizer.eos_ids(), Sampling::Greedy)?;
    let answered =
        |(question, ids): (&&Question, Vec<i64>)| Ok(question.judge(&tokenizer.decode(&ids, true)?));
    questions.iter().zip(texts).map(answered).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_stands_within_what_its_template_writes() {
        for (text, before, behind, answer) in [
            ("[] yes", "[]", "", " yes"),
            (" [] yes\n", "[]", "", " yes\n"),
            ("yes (end) ", "", "(end)", "yes "),
            ("[]yes(end)", "[]", "(end)", "yes"),
            // As it was said.
            (" yes ", "", "", " yes "),
            (" yes ", "[]", "(end)", " yes "),
            ("[]", "[]", "", ""),
        ] {
            assert_eq!(within(text, before, behind), answer, "{text:?}");
        }
    }
}
