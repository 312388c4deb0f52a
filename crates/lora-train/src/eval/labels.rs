//! Which of a few answers a model finds likeliest: classification by scoring, without generating.

use lora_core::{Error, Mode, Result};
use lora_model::{Model, Piece, Texts, Tokenizer};
use tch::{Kind, Tensor};

use crate::data::{encode, next_tokens};
use crate::rows::{Conversation, Row};
use crate::sharing::Tree;

/// Logits of so many positions exist at one time.
const ROWS: usize = 256;

/// Fewer tokens spared are not worth a piece of their own.
const LEAST: usize = 2;

/// A row with each of the answers to choose from: tokens, and which of them are learnt.
#[derive(Debug, Clone)]
pub struct Choices(Vec<(Vec<i64>, Vec<bool>)>);

impl Choices {
    /// The row with each of `labels` as its answer, in the white space that surrounds the row's own, since it was trained so;
    /// none for a row that has no answer.
    ///
    /// # Errors
    /// Those of encoding; [`Error::data`] for a row without a question.
    pub fn of(tokenizer: &Tokenizer, row: &Row, labels: &[String]) -> Result<Option<Self>> {
        let Some(texts) = labels.iter().map(|label| answered(row, label)).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let texts = texts.iter().map(|row| encode(row, tokenizer)).collect::<Result<Vec<_>>>()?;
        // Nothing tells how likely a first token is.
        if texts.windows(2).any(|two| two[0].0.first() != two[1].0.first()) {
            return Err(Error::data("the answers leave no question to read").hint("give the row a prompt"));
        }
        Ok((!texts.is_empty()).then_some(Self(texts)))
    }

    /// What a model reads of each text, and what it should say next at each position, or [`IGNORE`](lora_model::IGNORE).
    pub fn texts(&self) -> impl Iterator<Item = (&[i64], Vec<i64>)> {
        self.0.iter().map(|(ids, learnt)| (&ids[..ids.len().saturating_sub(1)], next_tokens(ids, learnt)))
    }

    /// Tokens of the longest of its texts that a model must read.
    pub fn longest(&self) -> usize {
        self.0.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0).saturating_sub(1)
    }
}

/// The total log-probability (nats) of each answer of each row, its end included: what the loss of a sample with that
/// answer sums up. The rows are read in one pass, and what some of its texts begin with alike is read once.
///
/// # Errors
/// A text longer than the model's context.
pub fn label_scores(model: &dyn Model, rows: &[&Choices]) -> Result<Vec<Vec<f64>>> {
    let texts: Vec<_> = rows.iter().flat_map(|choices| &choices.0).collect();
    // Nothing is asked of the state behind the end.
    let read: Vec<&[i64]> = texts.iter().map(|(ids, _)| &ids[..ids.len().saturating_sub(1)]).collect();
    let tree = Tree::of(&read, |text| read[text].len(), LEAST);
    let mut asked = Vec::new();
    for (text, (ids, learnt)) in texts.iter().enumerate() {
        for i in (1..ids.len()).filter(|&i| learnt[i]) {
            asked.extend(tree.place(text, i - 1).map(|place| Asked { place, token: ids[i], text }));
        }
    }
    asked.sort_by_key(|asked| asked.place);
    let mut scores = vec![0.0; texts.len()];
    let told = log_probabilities(model, (&tree.row(|text| read[text]), &tree.pieces()), &asked)?;
    asked.iter().zip(told).for_each(|(asked, score)| scores[asked.text] += score);
    let mut scores = scores.into_iter();
    Ok(rows.iter().map(|choices| scores.by_ref().take(choices.0.len()).collect()).collect())
}

/// How likely a token is after the state of a place in the row, and whose score that is part of.
struct Asked {
    place: usize,
    token: i64,
    text: usize,
}

/// Of these, in the order of their places.
fn log_probabilities(
    model: &dyn Model,
    (ids, pieces): (&[i64], &[Piece]),
    asked: &[Asked],
) -> Result<Vec<f64>> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    let _guard = tch::no_grad_guard();
    let there = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(model.device());
    let states = model.hidden(Texts::Packed(&there(ids).unsqueeze(0), pieces), None, Mode::Eval)?;
    let states = states.squeeze_dim(0);
    let mut all = Vec::new();
    // The logits of a place tell of all tokens that are asked of it.
    let places: Vec<&[Asked]> = asked.chunk_by(|a, b| a.place == b.place).collect();
    for places in places.chunks(ROWS) {
        let rows: Vec<i64> = places.iter().map(|of| of[0].place as i64).collect();
        let logits = model.head().forward(&states.index_select(0, &there(&rows)).unsqueeze(0), Mode::Eval);
        let told = logits.to_kind(Kind::Float).squeeze_dim(0).log_softmax(-1, Kind::Float);
        let width = told.size()[1];
        let at =
            places.iter().enumerate().flat_map(|(row, of)| of.iter().map(move |a| (row as i64, a.token)));
        let at: Vec<i64> = at.map(|(row, token)| row * width + token).collect();
        all.push(told.reshape([-1]).index_select(0, &there(&at)));
    }
    let all = Tensor::cat(&all, 0).to_kind(Kind::Double);
    Vec::try_from(all).map_err(|e: tch::TchError| Error::internal(e.to_string()))
}

/// What the row says its answer is; none where its last message calls tools, which no text of its own tells.
pub fn reference(row: &Row) -> Option<&str> {
    match row {
        Row::Text(_) => None,
        Row::Pair { completion, .. } => Some(completion),
        Row::Chat(Conversation { messages, .. }) => {
            let last = messages.last().filter(|m| m.role == "assistant" && !m.calls_tools());
            last.map(|m| m.content.as_str())
        }
    }
}

/// The answers that `rows` hold, each once and without surrounding white space, in the order of the alphabet, if there are at
/// most `most`.
pub fn labels_of(rows: &[Row], most: usize) -> Option<Vec<String>> {
    let mut labels = std::collections::BTreeSet::new();
    for label in rows.iter().filter_map(reference).map(str::trim) {
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
    let own = reference(row)?;
    let (rest, label) = (own.trim_start(), label.trim());
    let (before, after) = (&own[..own.len() - rest.len()], &rest[rest.trim_end().len()..]);
    let answer = format!("{before}{label}{after}");
    match row {
        Row::Text(_) => None,
        Row::Pair { prompt, end, .. } => {
            Some(Row::Pair { prompt: prompt.clone(), completion: answer, end: end.clone() })
        }
        Row::Chat(chat) => {
            let mut chat = chat.clone();
            chat.messages.last_mut()?.content = answer;
            Some(Row::Chat(chat))
        }
    }
}
