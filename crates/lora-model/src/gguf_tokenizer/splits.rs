//! How byte-level BPE cuts a text up before merging: llama.cpp's names for it (`tokenizer.ggml.pre`), and what a
//! `tokenizer.json` says.

use serde_json::{Value as Json, json};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// One way to cut.
pub(crate) struct Split {
    /// What llama.cpp calls it; the first is what we write.
    names: &'static [&'static str],
    how: How,
    /// Whether a piece that is a token is taken whole, whatever the merges.
    pub(super) whole: bool,
    /// Whether llama.cpp puts BOS before a text where the file does not say.
    pub(super) add_bos: bool,
}

enum How {
    /// GPT-2's expression.
    Words,
    /// The same after every digit is cut off.
    Digits,
    Regex(&'static str),
}

const SPLITS: [Split; 6] = [
    Split { names: &["gpt-2", "gpt2"], how: How::Words, whole: false, add_bos: false },
    Split { names: &["smollm", "starcoder", "refact"], how: How::Digits, whole: false, add_bos: false },
    Split {
        names: &["llama-bpe", "llama3", "llama-v3"],
        how: How::Regex(LLAMA3),
        whole: true,
        add_bos: true,
    },
    // Llama 3's files from before `ignore_merges`.
    Split { names: &["smaug-bpe", "dbrx"], how: How::Regex(LLAMA3), whole: false, add_bos: false },
    Split { names: &["qwen2"], how: How::Regex(QWEN2), whole: false, add_bos: false },
    Split { names: &["tekken"], how: How::Regex(TEKKEN), whole: true, add_bos: true },
];

impl Split {
    /// The one that llama.cpp calls so.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        SPLITS.iter().find(|split| split.names.contains(&name))
    }

    /// llama.cpp's name for the pre-tokenizer of a `tokenizer.json`, as the library writes it, with or without
    /// `ignore_merges`.
    pub(crate) fn name_of(pre_tokenizer: &Json, whole: bool) -> Option<&'static str> {
        let steps = steps(pre_tokenizer, "pretokenizers");
        let same =
            |split: &&Split| split.whole == whole && self::steps(&split.json(), "pretokenizers") == steps;
        SPLITS.iter().find(same).and_then(|split| split.names.first().copied())
    }

    /// All names, for messages.
    pub(crate) fn known() -> String {
        SPLITS.iter().flat_map(|split| split.names).copied().collect::<Vec<_>>().join(", ")
    }

    /// The pre-tokenizer in a `tokenizer.json`.
    pub(super) fn json(&self) -> Json {
        let both =
            |first: Json, regex: bool| json!({"type": "Sequence", "pretokenizers": [first, bytes(regex)]});
        match self.how {
            How::Words => bytes(true),
            How::Digits => both(json!({"type": "Digits", "individual_digits": true}), true),
            How::Regex(regex) => {
                let pattern = json!({"Regex": regex});
                both(
                    json!({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false}),
                    false,
                )
            }
        }
    }
}

/// The step from characters to bytes, also as a decoder.
pub(super) fn bytes(regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
}

/// The single steps of a normalizer or pre-tokenizer, without what changes offsets alone.
pub(crate) fn steps(part: &Json, list: &str) -> Vec<Json> {
    match part.get(list).and_then(Json::as_array) {
        Some(parts) => parts.iter().flat_map(|part| steps(part, list)).collect(),
        None if part.is_null() => Vec::new(),
        None => {
            let mut step = part.clone();
            if let Some(object) = step.as_object_mut() {
                object.remove("trim_offsets");
            }
            vec![step]
        }
    }
}
