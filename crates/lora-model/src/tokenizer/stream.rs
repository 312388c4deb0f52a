//! Text from ids, as a model generates them.

use lora_core::Result;

use super::{Tokenizer, checked};

/// A character takes at most four bytes, so at most four byte tokens; after more, the bytes are simply not UTF-8.
const PATIENCE: usize = 8;

/// Decodes one id at a time. What it gives out, joined, is what [`Tokenizer::decode`] gives for all ids (except
/// that a long run of invalid UTF-8 may come out as a different number of U+FFFD).
#[derive(Debug, Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Ids given out by the last text, kept because a token's text may depend on the one before it, and ids
    /// whose text is still incomplete.
    window: Vec<i64>,
    /// How many ids of the window are given out.
    given: usize,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, window: Vec::new(), given: 0 }
    }

    /// Takes the next id and gives the text that is complete by now: often empty.
    ///
    /// # Errors
    /// Data, for what cannot be an id; the stream stays as it was.
    pub fn push(&mut self, id: i64) -> Result<String> {
        if self.tokenizer.is_silent(checked(id)?, self.skip_special) {
            return Ok(String::new());
        }
        self.window.push(id);
        self.give(false)
    }

    /// The rest, when no more ids come: U+FFFD for an incomplete character.
    ///
    /// # Errors
    /// None in practice: every id was checked.
    pub fn finish(mut self) -> Result<String> {
        self.give(true)
    }

    fn give(&mut self, all: bool) -> Result<String> {
        let decode = |ids: &[i64]| self.tokenizer.decode(ids, self.skip_special);
        let text = decode(&self.window)?;
        let pending = self.window.len() - self.given;
        if pending == 0 || (text.ends_with('\u{FFFD}') && pending < PATIENCE && !all) {
            return Ok(String::new());
        }
        let old = decode(self.window.get(..self.given).unwrap_or_default())?;
        let new = text.get(old.len()..).unwrap_or_default().to_owned();
        self.window.drain(..self.given);
        self.given = self.window.len();
        Ok(new)
    }
}
