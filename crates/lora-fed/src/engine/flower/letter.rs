//! Letters as records: the bytes as an array, which travels in parts however long it is, and the task beside it.

use super::{ARRAYS, to_task};
use crate::engine::{Letter, Noise};
use crate::flower::{Dtype, NdArray, Record, Records, Value, Values};
use lora_core::{Error, Result};

/// What Flower calls such a message.
pub(super) const KIND: &str = "query.letter";
const LETTER: &str = "lora.letter";
const NOISE: &str = "lora.noise";
const LENGTH: &str = "lora.letter.length";

/// All but its task.
pub(super) fn of_letter(letter: &Letter) -> Result<Records> {
    let mut records = of_bytes(&letter.bytes)?;
    if let Some(Noise { clip, sigma }) = letter.noise {
        let terms = [("clip", clip), ("sigma", sigma)].map(|(name, x)| (name.to_owned(), Value::Float(x)));
        records.insert(NOISE.into(), Record::Config(Values::from_iter(terms)));
    }
    Ok(records)
}

pub(super) fn to_letter(records: &Records, run: &str) -> Result<Letter> {
    let task = records.contains_key(ARRAYS).then(|| to_task(records, run)).transpose()?;
    let noise = match records.get(NOISE) {
        None => None,
        Some(Record::Config(terms)) => {
            let number = |name: &str| {
                let number = terms.get(name).and_then(Value::number).filter(|x| *x > 0.0 && x.is_finite());
                number.ok_or_else(|| Error::data(format!("it has no {name} above 0")).at(NOISE))
            };
            Some(Noise { clip: number("clip")?, sigma: number("sigma")? })
        }
        Some(_) => return Err(Error::data("it holds no numbers").at(NOISE)),
    };
    Ok(Letter { bytes: to_bytes(records)?, task, noise })
}

/// Whole words of 8 bytes, and how many bytes of them count.
pub(super) fn of_bytes(bytes: &[u8]) -> Result<Records> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(8), 0);
    let words = NdArray::new(Dtype::I64, vec![padded.len() / 8], padded)?;
    let length = Value::Int(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
    Ok([
        (LETTER.to_owned(), Record::Arrays([("bytes".to_owned(), words)].into_iter().collect())),
        (LENGTH.to_owned(), Record::Config(Values::from_iter([("length".to_owned(), length)]))),
    ]
    .into_iter()
    .collect())
}

pub(super) fn to_bytes(records: &Records) -> Result<Vec<u8>> {
    let bad = || Error::data("it is no letter").at(LETTER);
    let (Some(Record::Arrays(arrays)), Some(Record::Config(config))) =
        (records.get(LETTER), records.get(LENGTH))
    else {
        return Err(bad());
    };
    let words = arrays.get("bytes").ok_or_else(bad)?.bytes();
    let length = match config.get("length") {
        Some(Value::Int(length)) => {
            usize::try_from(*length).ok().filter(|n| n.next_multiple_of(8) == words.len())
        }
        _ => None,
    };
    Ok(words[..length.ok_or_else(bad)?].to_vec())
}
