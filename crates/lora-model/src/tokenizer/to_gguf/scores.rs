//! SentencePiece's scores, of which a `tokenizer.json` keeps the order of merges alone.

use std::collections::{HashMap, HashSet};

use lora_core::{Error, Result};

use super::vocabulary::Vocabulary;
use crate::gguf_tokenizer::{BYTE, LONGEST, NORMAL, UNUSED};

/// llama.cpp merges any two neighbours that make a token, the best score first. Where the merges are every cut of every
/// token, as they are in what SentencePiece trained, scores that fall with the first merge say the same: and they are
/// the original ones, 0, -1, -2 and so on, if tokens stand in their order. Tokens whose merges are mixed had one score.
/// What no merge makes comes after, by its id.
///
/// # Errors
/// [`Error::unsupported`] where llama.cpp would merge what the tokenizer does not.
pub(super) fn from_merges(vocabulary: &Vocabulary, merges: &[(String, String)]) -> Result<Vec<f32>> {
    // Tokens in the order of their first merge, with their first and last.
    let mut made: Vec<(String, usize, usize)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        let token = format!("{left}{right}");
        match places.get(&token).and_then(|&at| made.get_mut(at)) {
            Some((_, _, last)) => *last = rank,
            None => {
                places.insert(token.clone(), made.len());
                made.push((token, rank, rank));
            }
        }
    }
    every_cut_is_a_merge(vocabulary, merges)?;
    let mut scores = HashMap::new();
    let (mut score, mut end) = (0, None);
    for (at, (token, first, last)) in made.iter().enumerate() {
        if end.is_none_or(|end| first > end) {
            score = at;
        }
        end = end.max(Some(last));
        scores.insert(token, score);
    }
    let mut next = made.len();
    let of = |(token, &sort): (&String, &i32)| match i64::from(sort) {
        NORMAL => {
            let place = scores.get(token).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            0.0 - place as f32
        }
        BYTE => 0.0,
        UNUSED => -10_000.0,
        _ => -1_000.0,
    };
    Ok(vocabulary.tokens.iter().zip(&vocabulary.types).map(of).collect())
}

fn every_cut_is_a_merge(vocabulary: &Vocabulary, merges: &[(String, String)]) -> Result<()> {
    let merges: HashSet<_> = merges.iter().map(|(left, right)| (left.as_str(), right.as_str())).collect();
    let normal =
        vocabulary.tokens.iter().zip(&vocabulary.types).filter(|(_, sort)| i64::from(**sort) == NORMAL);
    let normal: HashSet<_> = normal.map(|(token, _)| token.as_str()).collect();
    for token in &normal {
        if token.len() > LONGEST {
            let what = format!("a token of {} bytes (up to {LONGEST} are written)", token.len());
            return Err(Error::unsupported(what).at("the tokenizer"));
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let missing = |(left, right): &(&str, &str)| {
            normal.contains(left) && normal.contains(right) && !merges.contains(&(left, right))
        };
        if let Some((left, right)) = { cuts }.find(missing) {
            let what = format!("{left:?} and {right:?} make a token, and no merge; llama.cpp merges them");
            return Err(Error::unsupported(what)
                .at("the tokenizer's merges")
                .hint("give the model's .gguf file as --model, if it has one"));
        }
    }
    Ok(())
}
