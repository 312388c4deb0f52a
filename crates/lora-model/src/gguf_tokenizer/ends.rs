//! Where llama.cpp ends a text: the `special_eog_ids` of its llama-vocab.cpp, as of commit 00ad355.

use std::collections::HashSet;

use lora_core::Result;
use tokenizers::Tokenizer as Inner;

use crate::checkpoint::Gguf;

/// By a token's text, whatever its type is and the keys say: files of chat models often name the end of a text alone.
const TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// What stands around code that is to be filled in: one of each, by its key or else by its text.
const FILLING: [(&str, &[&str]); 3] = [
    ("fim_pad", &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    ("fim_rep", &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    ("fim_sep", &["<|file_sep|>"]),
];

/// Whether a token of this text ends one, whatever a file says of it.
pub(crate) fn is_an_end(text: &str) -> bool {
    TEXTS.contains(&text) || FILLING.iter().any(|(_, texts)| texts.contains(&text))
}

/// Ids beside EOS that end a turn or a text, by their keys and by their texts.
pub(crate) fn more_ends(gguf: &Gguf) -> Result<Vec<i64>> {
    let tokens = gguf.opt(Gguf::strs, "tokenizer.ggml.tokens")?.unwrap_or_default();
    let id_of = |text: &str| (0_i64..).zip(tokens).find(|(_, token)| *token == text).map(|(id, _)| id);
    let key = |name: &str| gguf.opt(Gguf::i64, &format!("tokenizer.ggml.{name}_token_id"));
    let mut ids = Vec::new();
    for name in ["eot", "eom"] {
        ids.extend(key(name)?);
    }
    let by_text = (0_i64..).zip(tokens).filter(|(_, token)| TEXTS.contains(&token.as_str()));
    ids.extend(by_text.map(|(id, _)| id));
    for (name, texts) in FILLING {
        ids.extend(key(name)?.or_else(|| texts.iter().find_map(|text| id_of(text))));
    }
    let no_ends = no_ends(|text| id_of(text).is_some()).map(|text| id_of(text?));
    let mut seen = HashSet::new();
    ids.retain(|id| !no_ends.contains(&Some(*id)) && seen.insert(*id));
    Ok(ids)
}

/// Ids that end a turn or a text, of those whose texts the chat template `source` writes: it teaches them. In the order of our
/// list.
pub(crate) fn ends_in_template(inner: &Inner, source: &str) -> Vec<i64> {
    let added = inner.get_added_vocabulary().get_vocab();
    let no_ends = no_ends(|text| added.contains_key(text));
    let ends = TEXTS.iter().filter(|text| source.contains(**text) && !no_ends.contains(&Some(**text)));
    ends.filter_map(|text| added.get(*text)).map(|&id| i64::from(id)).collect()
}

/// At `<|end|>` gpt-oss and Solar end a message and not the turn; to Gemma 4 `</s>` is a word like any.
fn no_ends(has: impl Fn(&str) -> bool) -> [Option<&'static str>; 2] {
    let harmony = (has("<|call|>") || has("<|calls|>")) && (has("<|return|>") || has("<|flush|>"));
    [harmony.then_some("<|end|>"), has("<|tool_response>").then_some("</s>")]
}
