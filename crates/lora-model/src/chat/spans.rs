//! Where the assistant's turns are, for templates that do not say.
//!
//! Never by searching for the content, which may occur elsewhere. A turn begins where the conversation before
//! it, rendered with the generation prompt, ends: what the model sees before it has to write. It ends where the
//! conversation up to and with it ends. Both renderings must be prefixes of the whole.
//!
//! Some templates render a turn differently once others follow (Qwen3 drops its reasoning, Mistral moves the
//! system prompt), so that a prefix does not fit. Then the content of the turn is replaced by an unguessable
//! marker and the whole rendered again: what is before and after the marker must be what is before and after
//! the content in the original. What follows the marker in the conversation cut after the turn is the
//! end-of-turn text; what follows the marker in place of the message before the turn, with the generation prompt,
//! is where it begins.

use std::ops::Range;

use lora_core::{Error, ErrorKind, Result};
use serde_json::Value as Json;

use super::{ChatTemplate, Message, NAME, REASONING};

/// What the rendering of a part gives: `None` if the template refuses the part (a conversation that ends with the
/// system prompt, say), which only means that this part tells nothing.
type Part<T> = Result<Option<T>>;

/// The assistant's last turn, to be said again: what is given, and what training has the model say behind it, in three parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastTurn {
    /// The conversation before, with the generation prompt.
    pub prompt: String,
    /// What the template writes before the content: Qwen3's empty thinking, say.
    pub before: String,
    /// The content as the template writes it; the whole turn where its place cannot be told, and where tools are called beside it.
    pub content: String,
    /// What it writes behind the content, the end of the turn among it.
    pub behind: String,
    /// What of `before` stands before and behind a reasoning of the message's own; none without one, or if its place cannot be
    /// told.
    pub reasoning: Option<[String; 2]>,
}

impl LastTurn {
    /// Nothing but a content.
    fn of_content(prompt: String, content: String) -> Self {
        Self { prompt, before: String::new(), content, behind: String::new(), reasoning: None }
    }
}

impl ChatTemplate {
    /// The last message of a conversation as a turn to be said again; none if it is not the assistant's. Where the template
    /// writes the conversation before it otherwise than in the whole, its content stands alone; if it calls tools, what it wrote of
    /// the text does, and it is none where that cannot be told.
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn last_turn(&self, messages: &[Message]) -> Result<Option<LastTurn>> {
        let Some((last, earlier)) = messages.split_last().filter(|(last, _)| last.role == "assistant") else {
            return Ok(None);
        };
        let still = self.still();
        let (prompt, text) = (still.rendered(earlier, true)?, still.rendered(messages, false)?);
        let (start, end) = (prompt.len(), text.len());
        let part = |range: Range<usize>| text.get(range).unwrap_or_default().to_owned();
        let follows = text.starts_with(&prompt);
        if last.calls_tools() {
            let turn = if follows { Some(start..end) } else { still.span(messages, earlier.len(), &text)? };
            return Ok(turn.map(|turn| LastTurn::of_content(prompt, part(turn))));
        }
        if !follows {
            return Ok(Some(LastTurn::of_content(prompt, last.content.clone())));
        }
        let content = still.around_content(messages, earlier.len(), &text)?;
        let content = content.filter(|content| start <= content.start).unwrap_or(start..end);
        let reasoning = still.around_reasoning(messages, &text, start..content.start)?;
        let [before, behind] = [start..content.start, content.end..end].map(part);
        Ok(Some(LastTurn { prompt, before, content: part(content), behind, reasoning }))
    }

    /// Ranges of `text` (the rendering of `messages`) that assistant turns wrote.
    pub(super) fn spans_from_parts(&self, messages: &[Message], text: &str) -> Result<Vec<Range<usize>>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (turn, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let after = spans.last().map_or(0, |previous| previous.end);
            match self.span(messages, turn, text)? {
                Some(span) if after <= span.start && span.start <= span.end => spans.push(span),
                _ => return Err(unplaced(turn)),
            }
        }
        Ok(spans)
    }

    fn span(&self, messages: &[Message], turn: usize, text: &str) -> Part<Range<usize>> {
        let (earlier, with) = (head(messages, turn), head(messages, turn + 1));
        let prefix =
            |part: Option<String>| part.filter(|part| text.starts_with(part.as_str())).map(|part| part.len());
        let before = prefix(self.part(earlier, true)?);
        let after = prefix(self.part(with, false)?);
        if let (Some(start), Some(end)) = (before, after)
            && start <= end
        {
            return Ok(Some(start..end));
        }
        let Some(content) = self.around_content(messages, turn, text)? else { return Ok(None) };
        let start = match before {
            Some(start) => Some(start),
            None => self.end_of_prompt(messages, turn, text)?,
        };
        let start = start.filter(|start| *start <= content.start).unwrap_or(content.start);
        let end = match after.filter(|end| *end >= content.end) {
            Some(end) => Some(end),
            None => follow(text, content.end, self.around_marker(with, turn, false)?),
        };
        Ok(end.map(|end| start..end))
    }

    /// Where the generation prompt ends that follows the message before a turn.
    fn end_of_prompt(&self, messages: &[Message], turn: usize, text: &str) -> Part<usize> {
        let Some(previous) = turn.checked_sub(1) else { return Ok(None) };
        let Some(content) = self.around_content(messages, previous, text)? else { return Ok(None) };
        Ok(follow(text, content.end, self.around_marker(head(messages, turn), previous, true)?))
    }

    /// The range of `text` that the content of a turn takes.
    fn around_content(&self, messages: &[Message], turn: usize, text: &str) -> Part<Range<usize>> {
        Ok(self.around_marker(messages, turn, false)?.and_then(|around| between(text, &around)))
    }

    /// What stands in `part` of the text before and behind the last message's own reasoning, where that is in there.
    fn around_reasoning(&self, messages: &[Message], text: &str, part: Range<usize>) -> Part<[String; 2]> {
        let mut messages = messages.to_vec();
        let mut own = false;
        for name in REASONING {
            if let Some(Json::String(reasoning)) = messages.last_mut().and_then(|m| m.other.get_mut(name))
                && !reasoning.is_empty()
            {
                reasoning.clone_from(&self.markers.content);
                own = true;
            }
        }
        if !own {
            return Ok(None);
        }
        let own = self.around(&messages, false)?.and_then(|around| between(text, &around));
        let side = |range: Range<usize>| text.get(range).map(str::to_owned);
        Ok(own.and_then(|own| Some([side(part.start..own.start)?, side(own.end..part.end)?])))
    }

    /// What is rendered before and after the content of a message.
    fn around_marker(&self, messages: &[Message], at: usize, prompt: bool) -> Part<(String, String)> {
        let mut messages = messages.to_vec();
        let Some(message) = messages.get_mut(at) else { return Ok(None) };
        message.content.clone_from(&self.markers.content);
        self.around(&messages, prompt)
    }

    /// What is rendered before and after the marker, if that is printed once.
    fn around(&self, messages: &[Message], prompt: bool) -> Part<(String, String)> {
        let marker = self.markers.content.as_str();
        let text = self.part(messages, prompt)?;
        let split = text.as_deref().and_then(|text| text.split_once(marker));
        let once = split.filter(|(_, after)| !after.contains(marker));
        Ok(once.map(|(before, after)| (before.to_owned(), after.to_owned())))
    }

    pub(super) fn part(&self, messages: &[Message], prompt: bool) -> Part<String> {
        match self.run(messages, prompt, ["", ""]) {
            Ok(text) => Ok(Some(text)),
            // Beyond the limits once is beyond them again, and each time takes its time.
            Err(e) if e.kind() == ErrorKind::Unsupported => Err(e),
            Err(_) => Ok(None),
        }
    }
}

fn head(messages: &[Message], count: usize) -> &[Message] {
    messages.get(..count).unwrap_or(messages)
}

/// What of a text is not around a marker that was in its place.
fn between(text: &str, (before, after): &(String, String)) -> Option<Range<usize>> {
    let fits = text.len() >= before.len() + after.len() && text.starts_with(before) && text.ends_with(after);
    fits.then(|| before.len()..text.len() - after.len())
}

/// Where the text around a marker's end stops, if it stands at `at`.
fn follow(text: &str, at: usize, around: Option<(String, String)>) -> Option<usize> {
    let (_, tail) = around?;
    text.get(at..)?.starts_with(&tail).then_some(at + tail.len())
}

fn unplaced(turn: usize) -> Error {
    Error::data(format!("cannot tell which part of the text message {} (assistant) wrote", turn + 1))
        .at(NAME)
        .hint("put the assistant's part of the template between {% generation %} and {% endgeneration %}")
}
