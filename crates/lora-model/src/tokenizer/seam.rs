//! Text that goes on another, of tokenizers that put a blank before every text (SentencePiece's `▁`).

use std::collections::HashMap;

use tokenizers::Tokenizer as Inner;

/// A character that shares no token with others: a text after it is cut up as alone, and the blank is before the
/// character.
#[derive(Debug, Clone)]
pub(super) struct Seam {
    mark: char,
    /// Of the blank and the character.
    pub(super) ids: Vec<i64>,
}

/// Characters to try: the first one does for Llama 2 and Mistral, as a byte; the last is hardly in any vocabulary.
const MARKS: [char; 6] = ['\n', '\t', '|', '~', '^', '\u{3}'];

impl Seam {
    /// None for a tokenizer that puts nothing before a text, and where no character is sure.
    pub(super) fn find(inner: &Inner, vocab: &HashMap<String, u32>) -> Option<Self> {
        if !vocab.keys().any(|token| token.starts_with('▁')) {
            return None;
        }
        // The fast way leaves the tokens' texts out.
        let encode = |text: &str| inner.encode(text, false).ok();
        if !encode("a")?.get_tokens().first()?.starts_with('▁') {
            return None;
        }
        MARKS.into_iter().find_map(|mark| {
            let encoding = encode(&mark.to_string())?;
            // A mark that was added as a token has no blank: it would be before the text behind it.
            let [blank, last] = encoding.get_tokens() else { return None };
            let character = *last == mark.to_string() || *last == format!("<0x{:02X}>", u32::from(mark));
            let whole = blank == "▁" && character;
            let alone = |token: &String| !token.contains(mark) || token.chars().count() == 1;
            let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
            (whole && vocab.keys().all(alone)).then_some(Self { mark, ids })
        })
    }

    /// The text behind the character.
    pub(super) fn before(&self, text: &str) -> String {
        format!("{}{text}", self.mark)
    }
}
