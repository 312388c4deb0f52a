//! What is asked of a model about each row, and what came of it.

use std::io::Write;

use anyhow::Result;
use lora::model::Tokenizer;
use lora::train::{
    Answer, Choices, Dataset, MOST_TOKENS, Question, Row, Sample, answers, in_one_pass, label_scores,
    likeliest, reference, summed_loss,
};
use lora::{Error, OutputFile};
use serde_json::{Value, json};

use super::Args;
use crate::commands::{aside, say};
use crate::open::Opened;

/// What came of a row.
pub(super) struct Seen {
    line: usize,
    pub(super) answer: Option<Answer>,
    /// The right label's number, and the labels' scores.
    pub(super) scores: Option<(usize, Vec<f64>)>,
}

/// What of a row is asked: an answer, and which label, with the right one's number.
struct Asked {
    line: usize,
    question: Option<Question>,
    choices: Option<(Choices, usize)>,
}

impl Args {
    /// Answers and scores, row by row.
    pub(super) fn look(&self, opened: &Opened, data: &Dataset, labels: &[String]) -> Result<Vec<Seen>> {
        let (model, tokenizer) = (&opened.model, &opened.tokenizer);
        let rows: Vec<_> = data.rows.iter().zip(&data.samples).collect();
        let (mut seen, mut shown) = (Vec::new(), 0);
        // What the labels add to each row.
        let encoded = labels.iter().map(|label| tokenizer.encode(label, false));
        let added: usize = encoded.map(|ids| ids.map(|ids| ids.len() + 1)).sum::<lora::Result<_>>()?;
        let mut rest = &rows[..];
        while !rest.is_empty() {
            let lengths = rest.iter().map(|(row, sample)| {
                let generated = if matches!(row, Row::Text(_)) { 0 } else { self.max_tokens };
                longest(sample.ids.len(), added, generated, context(opened))
            });
            let (rows, others) = rest.split_at(pass(self.batch_size, lengths));
            rest = others;
            let asked = rows.iter().map(|row| self.ask(opened, *row, labels)).collect::<Result<Vec<_>>>()?;
            let at = |e: Error| e.at(self.data.display());
            let questions: Vec<_> = asked.iter().filter_map(|a| a.question.as_ref()).collect();
            let mut answers = answers(model, tokenizer, &questions).map_err(at)?.into_iter();
            let choices: Vec<_> = asked.iter().filter_map(|a| Some(&a.choices.as_ref()?.0)).collect();
            let mut scores = label_scores(model, &choices).map_err(at)?.into_iter();
            for asked in asked {
                let answer = asked.question.and_then(|_| answers.next());
                if let Some(a) = answer.as_ref().filter(|_| shown < self.samples) {
                    shown += 1;
                    self.show(a);
                }
                let scores = asked.choices.and_then(|(_, truth)| Some((truth, scores.next()?)));
                seen.push(Seen { line: asked.line, answer, scores });
            }
        }
        Ok(seen)
    }

    /// Beside a JSON object samples go where messages go.
    fn show(&self, a: &Answer) {
        let mark = if a.right { "right" } else { "wrong" };
        let [prompt, text, reference] = [&a.prompt, &a.answer, &a.reference].map(|s| one_line(s));
        let shown = format!("  question  {prompt}\n  answer    {text}\n  expected  {reference}  ({mark})\n");
        if self.json {
            aside(shown);
        } else {
            say!("{shown}");
        }
    }

    /// What is read of each row: with each label as its answer, or as it is.
    pub(super) fn trace(
        &self,
        file: OutputFile,
        tokenizer: &Tokenizer,
        data: &Dataset,
        labels: &[String],
    ) -> Result<()> {
        let mut text = Vec::new();
        for (row, sample) in data.rows.iter().zip(&data.samples) {
            let at = |e: Error| e.at(format!("{}:{}", self.data.display(), sample.line));
            let mut object = json!({ "line": sample.line });
            match Choices::of(tokenizer, row, labels).map_err(at)? {
                Some(choices) => {
                    let texts = choices.texts().map(|(ids, labels)| json!({ "ids": ids, "labels": labels }));
                    object["texts"] = texts.collect();
                    object["right"] = truth(row, labels).map_err(at)?.into();
                    object["answers"] = json!(labels);
                }
                None => object["texts"] = json!([{ "ids": sample.ids, "labels": sample.labels }]),
            }
            writeln!(text, "{object}")?;
        }
        Ok(file.commit(text)?)
    }

    /// The mean over the supervised tokens. A row's answer that was scored as a label is not read again.
    pub(super) fn loss(&self, opened: &Opened, data: &Dataset, seen: &[Seen]) -> Result<f64> {
        let (mut sum, mut count, mut unread) = (0.0, 0, Vec::new());
        for (sample, seen) in data.samples.iter().zip(seen) {
            match &seen.scores {
                Some((truth, scores)) => {
                    sum -= scores[*truth];
                    count += sample.supervised() as i64;
                }
                None => unread.push(sample),
            }
        }
        let mut rest = &unread[..];
        while !rest.is_empty() {
            let (samples, others) =
                rest.split_at(pass(self.batch_size, rest.iter().map(|sample| sample.ids.len())));
            rest = others;
            let (more, n) = summed_loss(&opened.model, samples)?;
            sum += more;
            count += n;
        }
        Ok(sum / count.max(1) as f64)
    }

    /// What is asked of the model about a row.
    fn ask(&self, opened: &Opened, (row, sample): (&Row, &Sample), labels: &[String]) -> Result<Asked> {
        let context = context(opened);
        let at = |e: Error| e.at(format!("{}:{}", self.data.display(), sample.line));
        let question = match self.max_tokens {
            0 => None,
            most => Question::of(&opened.tokenizer, row, most).map_err(at)?,
        };
        let choices = Choices::of(&opened.tokenizer, row, labels).map_err(at)?;
        if let Some(n) = choices.as_ref().map(Choices::longest).filter(|n| *n > context) {
            let what =
                format!("{n} tokens with the longest answer do not fit the model's context of {context}");
            return Err(at(Error::data(what).hint("shorten the text")).into());
        }
        let truth = choices.as_ref().map(|_| truth(row, labels).map_err(at)).transpose()?;
        Ok(Asked { line: sample.line, question, choices: choices.zip(truth) })
    }
}

/// Tokens that the model can read.
fn context(opened: &Opened) -> usize {
    usize::try_from(opened.checkpoint.config().max_positions).unwrap_or(usize::MAX)
}

/// How many tokens of a row the model holds at once: with all labels, or with an answer that is generated, which ends with the
/// context at the latest.
fn longest(row: usize, labels: usize, answer: usize, context: usize) -> usize {
    (row + labels).max(row.saturating_add(answer).min(context))
}

/// How many of these rows, of so many tokens, are read at once.
fn pass(most: usize, lengths: impl Iterator<Item = usize>) -> usize {
    in_one_pass((most, MOST_TOKENS), lengths)
}

/// The number of the row's own answer among the labels.
pub(super) fn truth(row: &Row, labels: &[String]) -> lora::Result<usize> {
    let reference = reference(row).unwrap_or_default();
    labels.iter().position(|label| label.trim() == reference.trim()).ok_or_else(|| {
        Error::data(format!("its answer `{}` is none of the labels", one_line(reference)))
            .hint("name all of them, or use --labels auto")
    })
}

/// As JSON lines.
pub(super) fn write(file: OutputFile, seen: &[Seen], labels: &[String]) -> Result<()> {
    let mut text = Vec::new();
    for row in seen {
        let mut object = json!({ "line": row.line });
        if let Some(a) = &row.answer {
            object["reference"] = a.reference.clone().into();
            object["answer"] = a.answer.clone().into();
            object["right"] = a.right.into();
        }
        if let Some((truth, scores)) = &row.scores {
            object["reference"] = labels[*truth].clone().into();
            object["label"] = likeliest(scores).map_or(Value::Null, |best| labels[best].clone().into());
            let scores = labels.iter().cloned().zip(scores.iter().map(|s| Value::from(*s)));
            object["scores"] = Value::Object(scores.collect());
        }
        writeln!(text, "{object}")?;
    }
    Ok(file.commit(text)?)
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_generated_counts() {
        assert_eq!(longest(40, 0, 24, 256), 64);
        assert_eq!(longest(40, 30, 24, 256), 70, "labels and answers are passes of their own");
        assert_eq!(longest(40, 0, usize::MAX, 256), 256);
        assert_eq!(longest(40, 0, 0, 256), 40);
    }

    #[test]
    fn a_pass_is_of_so_many_rows_and_tokens() {
        for (most, lengths, rows) in [
            (16, vec![10; 40], 16),
            (16, vec![1000; 40], 4),
            (16, vec![4000, 96, 1], 2),
            // However long, and in batches of none.
            (16, vec![9000, 1], 1),
            (0, vec![10; 3], 1),
            (16, vec![10; 3], 3),
        ] {
            assert_eq!(pass(most, lengths.into_iter()), rows);
        }
    }
}
