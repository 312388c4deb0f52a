//! Which of a few answers a model finds likeliest: classification by scoring, without generating.

use lora_core::{Error, Mode, Result};
use lora_model::{Cache, Message, Model, Texts, Tokenizer};
use tch::{IndexOp, Kind, Tensor};

use crate::data::encode;
use crate::rows::Row;

/// The total log-probability (nats) of each of `labels` as the row's answer, its end included: what the loss of a
/// sample with that answer sums up. None for a row that has no answer.
///
/// What the texts have in common, the question above all, is read once.
///
/// # Errors
/// Those of encoding; a text longer than the model's context.
pub fn label_scores(
    model: &dyn Model,
    tokenizer: &Tokenizer,
    row: &Row,
    labels: &[String],
) -> Result<Option<Vec<f64>>> {
    let Some(texts) = labels.iter().map(|label| answered(row, label)).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    let texts = texts.iter().map(|row| encode(row, tokenizer)).collect::<Result<Vec<_>>>()?;
    let Some(shortest) = texts.iter().map(|(ids, _)| ids.len()).min() else { return Ok(Some(Vec::new())) };
    let (first, _) = &texts[0];
    let alike = |&at: &usize| texts.iter().all(|(ids, _)| ids[at] == first[at]);
    // A token is left to each: what follows is scored row by row.
    let shared = (0..shortest.saturating_sub(1)).take_while(alike).count();
    if shared == 0 {
        return Err(Error::data("the answers leave no question to read").hint("give the row a prompt"));
    }

    let _guard = tch::no_grad_guard();
    let device = model.device();
    let mut cache = Cache::new();
    let prefix = Tensor::from_slice(&first[..shared]).unsqueeze(0).to_device(device);
    let read = model.hidden(Texts::Rows(&prefix), Some(&mut cache), Mode::Eval)?;
    let rows = texts.len() as i64;
    let longest = texts.iter().map(|(ids, _)| ids.len() - shared).max().unwrap_or(0);
    let tails: Vec<i64> = texts.iter().flat_map(|(ids, _)| padded(&ids[shared..], longest)).collect();
    let tails = Tensor::from_slice(&tails).view([rows, longest as i64]).to_device(device);
    // The state before each of the tail's tokens: the last that is shared, then the tail's own but the last.
    let mut before = read.i((.., shared as i64 - 1.., ..)).expand([rows, -1, -1], false);
    if longest > 1 {
        let input = tails.narrow(1, 0, longest as i64 - 1);
        let own = model.hidden(Texts::Rows(&input), Some(&mut cache.branch(rows)), Mode::Eval)?;
        before = Tensor::cat(&[before, own], 1);
    }
    let scores = log_probabilities(model, &before, &tails);
    let learnt: Vec<f64> = texts
        .iter()
        .flat_map(|(_, learnt)| padded(&learnt[shared..], longest))
        .map(|l| f64::from(u8::from(l)))
        .collect();
    let learnt = Tensor::from_slice(&learnt).view([rows, longest as i64]).to_device(device);
    let mut totals: Vec<f64> =
        Vec::try_from((scores * learnt).sum_dim_intlist([1i64].as_slice(), false, Kind::Double))
            .map_err(|e: tch::TchError| Error::internal(e.to_string()))?;
    // Answers may begin alike: those tokens count for all of them.
    let begun: Vec<i64> = (1..shared).filter(|&at| texts[0].1[at]).map(|at| at as i64).collect();
    if !begun.is_empty() {
        let at = Tensor::from_slice(&begun).to_device(device);
        let (before, ids) = (read.index_select(1, &(&at - 1)), prefix.index_select(1, &at));
        let common = log_probabilities(model, &before, &ids).sum(Kind::Double).double_value(&[]);
        totals.iter_mut().for_each(|total| *total += common);
    }
    Ok(Some(totals))
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

fn padded<T: Copy + Default>(values: &[T], len: usize) -> impl Iterator<Item = T> {
    values.iter().copied().chain(std::iter::repeat_n(T::default(), len - values.len()))
}

/// `[B, T]` log-probabilities of `ids [B, T]` after the states `[B, T, hidden]`.
fn log_probabilities(model: &dyn Model, states: &Tensor, ids: &Tensor) -> Tensor {
    let logits = model.head().forward(states, Mode::Eval).to_kind(Kind::Float);
    logits
        .log_softmax(-1, Kind::Float)
        .gather(-1, &ids.unsqueeze(-1), false)
        .squeeze_dim(-1)
        .to_kind(Kind::Double)
}
