//! transformers' `{% generation %}…{% endgeneration %}` blocks, which minijinja does not know.
//!
//! Each tag becomes code that prints a variable: empty in an ordinary rendering, an unguessable marker when the
//! ranges are asked for.

use std::borrow::Cow;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::LazyLock;

use lora_core::{Error, Result};
use regex::{Captures, Regex};

use super::{ChatTemplate, Message, NAME};

pub(super) const START: &str = "__generation_start__";
pub(super) const END: &str = "__generation_end__";

/// A text that no conversation can hold but by chance: 128 random bits.
#[derive(Debug, Clone)]
pub(super) struct Markers {
    pub(super) start: String,
    pub(super) end: String,
    pub(super) content: String,
}

impl Markers {
    pub(super) fn random() -> Self {
        let word = || RandomState::new().build_hasher().finish();
        let nonce = format!("{:016x}{:016x}", word(), word());
        Self { start: format!("<{nonce}:s>"), end: format!("<{nonce}:e>"), content: format!("<{nonce}:c>") }
    }
}

/// The template with the tags replaced, and whether there was any.
///
/// The outer tags of each replacement carry the original's `-` and `+`, so white space is handled alike; `with`
/// keeps what is `set` inside from leaking, as transformers' call block does.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    // A constant pattern: it compiles, or every test fails.
    static TAG: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").unwrap());
    let program = TAG.replace_all(source, |tag: &Captures<'_>| {
        let (left, right) = (&tag[1], &tag[3]);
        match tag.get(2) {
            None => format!("{{%{left} with %}}{{{{ {START} }}}}{{% set __generation__ = 0 {right}%}}"),
            Some(_) => format!("{{%{left} set __generation__ = 0 %}}{{{{ {END} }}}}{{% endwith {right}%}}"),
        }
    });
    let marked = matches!(program, Cow::Owned(_));
    (program.into_owned(), marked)
}

impl ChatTemplate {
    /// Ranges of `text` (the plain rendering) that generation blocks wrote.
    pub(super) fn spans_from_blocks(&self, messages: &[Message], text: &str) -> Result<Vec<Range<usize>>> {
        let Markers { start, end, .. } = &self.markers;
        let marked = self.run(messages, false, [start, end])?;
        let (plain, spans) = split(&marked, start, end)
            .ok_or_else(|| Error::data("`{% generation %}` blocks are nested or printed twice").at(NAME))?;
        if plain != text {
            return Err(Error::data(
                "the template changes the text of a `{% generation %}` block afterwards",
            )
            .at(NAME)
            .hint("print the block where it stands, without filters on the result"));
        }
        Ok(spans)
    }
}

fn split(marked: &str, start: &str, end: &str) -> Option<(String, Vec<Range<usize>>)> {
    let (mut plain, mut spans) = (String::with_capacity(marked.len()), Vec::new());
    let mut rest = marked;
    while let Some((before, after)) = rest.split_once(start) {
        let (inside, after) = after.split_once(end)?;
        if before.contains(end) || inside.contains(start) {
            return None;
        }
        plain.push_str(before);
        let from = plain.len();
        plain.push_str(inside);
        spans.push(from..plain.len());
        rest = after;
    }
    plain.push_str(rest);
    (!rest.contains(end)).then_some((plain, spans))
}
