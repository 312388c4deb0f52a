//! Which of a few answers a model finds likeliest: classification by scoring, without generating.

use lora_core::{Error, Mode, Result};
use lora_model::{Message, Model, Piece, Texts, Tokenizer};
use tch::{Kind, Tensor};

use crate::data::encode;
use crate::rows::Row;

/// Logits of so many positions exist at one time.
const ROWS: i64 = 256;

/// A row, and the answers to choose from.
#[derive(Debug, Clone)]
pub struct Choices {
    /// What all texts begin with, the question above all, and which of it is learnt: answers may begin alike.
    lead: (Vec<i64>, Vec<bool>),
    /// What each has of its own.
    tails: Vec<(Vec<i64>, Vec<bool>)>,
}

impl Choices {
    /// The row with each of `labels` as its answer; none for a row that has no answer.
    ///
    /// # Errors
    /// Those of encoding; [`Error::data`] for a row without a question.
    pub fn of(tokenizer: &Tokenizer, row: &Row, labels: &[String]) -> Result<Option<Self>> {
        let Some(texts) = labels.iter().map(|label| answered(row, label)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let texts = texts.iter().map(|row| encode(row, tokenizer)).collect::<Result<Vec<_>>>()?;
        let Some((first, rest)) = texts.split_first() else { return Ok(None) };
        let shortest = texts.iter().map(|(ids, _)| ids.len()).min().unwrap_or(0);
        let alike = |&at: &usize| rest.iter().all(|(ids, _)| ids[at] == first.0[at]);
        // A token is left to each.
        let shared = (0..shortest.saturating_sub(1)).take_while(alike).count();
        if shared == 0 {
            return Err(Error::data("the answers leave no question to read").hint("give the row a prompt"));
        }
        let part = |(ids, learnt): &(Vec<i64>, Vec<bool>), from: usize, to: usize| {
            (ids[from..to].to_vec(), learnt[from..to].to_vec())
        };
        let tails = texts.iter().map(|text| part(text, shared, text.0.len())).collect();
        Ok(Some(Self { lead: part(first, 0, shared), tails }))
    }
}

impl Choices {
    /// Tokens of the longest of its texts that a model must read.
    pub fn longest(&self) -> usize {
        self.lead.0.len() + self.tails.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0).saturating_sub(1)
    }
}

/// The total log-probability (nats) of each answer of each row, its end included: what the loss of a sample with that
/// answer sums up. The rows are read in one pass, the question of each once.
///
/// # Errors
/// A text longer than the model's context.
pub fn label_scores(model: &dyn Model, rows: &[&Choices]) -> Result<Vec<Vec<f64>>> {
    let (mut ids, mut pieces) = (Vec::new(), Vec::new());
    // For each learnt token: the position whose state tells it, the token, and whose score it is part of.
    let (mut before, mut tokens, mut whose) = (Vec::new(), Vec::new(), Vec::new());
    let mut learn = |at: usize, token: i64, row: usize, label: Option<usize>| {
        before.push(at as i64);
        tokens.push(token);
        whose.push((row, label));
    };
    for (row, Choices { lead, tails }) in rows.iter().enumerate() {
        let (start, question) = (ids.len(), pieces.len());
        for i in (1..lead.0.len()).filter(|&i| lead.1[i]) {
            learn(start + i - 1, lead.0[i], row, None);
        }
        ids.extend(&lead.0);
        pieces.push(Piece { len: lead.0.len() as i64, behind: None });
        for (label, (tail, learnt)) in tails.iter().enumerate() {
            let (last, own) = (start + lead.0.len() - 1, ids.len());
            for i in (0..tail.len()).filter(|&i| learnt[i]) {
                learn(if i == 0 { last } else { own + i - 1 }, tail[i], row, Some(label));
            }
            // Nothing is asked of the state behind its end.
            let read = &tail[..tail.len() - 1];
            ids.extend(read);
            if !read.is_empty() {
                pieces.push(Piece { len: read.len() as i64, behind: Some(question) });
            }
        }
    }
    let mut scores: Vec<Vec<f64>> = rows.iter().map(|row| vec![0.0; row.tails.len()]).collect();
    for ((row, label), score) in
        whose.into_iter().zip(log_probabilities(model, (&ids, &pieces), &before, &tokens)?)
    {
        match label {
            Some(label) => scores[row][label] += score,
            None => scores[row].iter_mut().for_each(|total| *total += score),
        }
    }
    Ok(scores)
}

/// Of these tokens, each after the state of a position of the packed texts.
fn log_probabilities(
    model: &dyn Model,
    (ids, pieces): (&[i64], &[Piece]),
    before: &[i64],
    tokens: &[i64],
) -> Result<Vec<f64>> {
    if tokens.is_empty() {
        return Ok(Vec::new());
    }
    let _guard = tch::no_grad_guard();
    let there = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(model.device());
    let states = model.hidden(Texts::Packed(&there(ids).unsqueeze(0), pieces), None, Mode::Eval)?;
    let states = states.squeeze_dim(0).index_select(0, &there(before));
    let each = states.split(ROWS, 0).into_iter().zip(there(tokens).split(ROWS, 0)).map(|(states, tokens)| {
        let logits = model.head().forward(&states.unsqueeze(0), Mode::Eval).to_kind(Kind::Float);
        logits.squeeze_dim(0).log_softmax(-1, Kind::Float).gather(1, &tokens.unsqueeze(1), false)
    });
    let all = Tensor::cat(&each.collect::<Vec<_>>(), 0).reshape([-1]).to_kind(Kind::Double);
    Vec::try_from(all).map_err(|e: tch::TchError| Error::internal(e.to_string()))
}

/// What the row says its answer is.
pub fn reference(row: &Row) -> Option<&str> {
    match row {
        Row::Text(_) => None,
        Row::Pair { completion, .. } => Some(completion),
        Row::Chat(messages) => messages.last().filter(|m| m.role == "assistant").map(|m| m.content.as_str()),
    }
}

/// The answers that `rows` hold, each once, in the order of the alphabet, if there are at most `most`.
pub fn labels_of(rows: &[Row], most: usize) -> Option<Vec<String>> {
    let mut labels = std::collections::BTreeSet::new();
    for label in rows.iter().filter_map(reference) {
        if !labels.contains(label) {
            labels.insert(label.to_owned());
        }
        if labels.len() > most {
            return None;
        }
    }
    Some(labels.into_iter().collect())
}

/// The row with another answer, of which nothing before is learnt.
fn answered(row: &Row, label: &str) -> Option<Row> {
    match row {
        Row::Text(_) => None,
        Row::Pair { prompt, .. } => Some(Row::Pair { prompt: prompt.clone(), completion: label.to_owned() }),
        Row::Chat(messages) => {
            let (last, before) = messages.split_last().filter(|(last, _)| last.role == "assistant")?;
            let last = Message { content: label.to_owned(), ..last.clone() };
            Some(Row::Chat(before.iter().cloned().chain([last]).collect()))
        }
    }
}
