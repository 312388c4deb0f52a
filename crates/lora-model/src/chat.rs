//! Chat templates: a conversation to text, and the parts of it that the assistant writes.
//!
//! Templates are Jinja programs that come with a model, so they are run as untrusted code: by minijinja, with
//! no loader, and bounds on steps, memory, output and time (`sandbox.rs`). The environment is the one
//! transformers gives them (`transformers.utils.chat_template_utils`).

mod environment;
mod generation;
mod json;
mod known;
mod sandbox;
mod spans;

use std::borrow::Cow;
use std::ops::Range;

use lora_core::{Error, ErrorKind, Result};
use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::de::Error as DeError;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json};

use self::environment::{Clock, template_error};
use self::generation::Markers;
use self::sandbox::Sandbox;
pub use self::spans::LastTurn;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or another that the template names.
    pub role: String,
    /// What is said, of a list of parts all their texts. A missing or null content reads as empty.
    pub content: String,
    /// Why the content is empty, if no text was given: templates ask for it, above all beside tool calls.
    pub unsaid: Option<Unsaid>,
    /// Every other field (`reasoning_content`, `tool_calls`, ...), passed to the template as it is.
    pub other: Map<String, Json>,
}

/// What stands in place of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsaid {
    /// null: `none` to the template.
    Null,
    /// Nothing: undefined.
    Missing,
}

impl Message {
    /// A turn with nothing but a role and a content.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), unsaid: None, other: Map::new() }
    }

    /// Whether it calls tools: that is said beside its content.
    pub fn calls_tools(&self) -> bool {
        match self.other.get("tool_calls") {
            None | Some(Json::Null) => false,
            Some(Json::Array(calls)) => !calls.is_empty(),
            Some(_) => true,
        }
    }

    /// The content as templates see it. A message that was given a text since has one.
    fn said(&self) -> Option<Option<&str>> {
        match self.unsaid.filter(|_| self.content.is_empty()) {
            None => Some(Some(self.content.as_str())),
            Some(Unsaid::Null) => Some(None),
            Some(Unsaid::Missing) => None,
        }
    }
}

/// A message as JSON has it.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Message")]
struct Written {
    role: String,
    #[serde(default, deserialize_with = "there", skip_serializing_if = "Option::is_none")]
    content: Option<Option<String>>,
    #[serde(flatten)]
    other: Map<String, Json>,
}

/// What is there, be it null; of a list of parts, as OpenAI's API has them, their texts.
fn there<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Option<Option<String>>, D::Error> {
    let text = match Json::deserialize(d)? {
        Json::Null => None,
        Json::String(text) => Some(text),
        Json::Array(parts) => {
            Some(parts.iter().map(text_of).collect::<std::result::Result<String, D::Error>>()?)
        }
        _ => return Err(D::Error::custom("`content` is neither a text nor a list of parts")),
    };
    Ok(Some(text))
}

/// The text of a part; no model here reads anything else.
fn text_of<E: DeError>(part: &Json) -> std::result::Result<&str, E> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (Some("text") | None, _) => {
            Err(E::custom("a part of `content` is not of the form {\"type\": \"text\", \"text\": \"...\"}"))
        }
        (Some(kind), _) => {
            Err(E::custom(format!("a part of `content` is of the type `{kind}`, and no text")))
        }
    }
}

impl From<Written> for Message {
    fn from(Written { role, content, other }: Written) -> Self {
        let unsaid = match &content {
            Some(Some(_)) => None,
            Some(None) => Some(Unsaid::Null),
            None => Some(Unsaid::Missing),
        };
        Self { role, content: content.flatten().unwrap_or_default(), unsaid, other }
    }
}

impl From<Message> for Written {
    fn from(message: Message) -> Self {
        let content = message.said().map(|said| said.map(str::to_owned));
        Self { role: message.role, content, other: message.other }
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
    markers: Markers,
    /// Whether the template marks what the assistant writes with `{% generation %}`.
    marked: bool,
    /// What `strftime_now` reads; else now.
    clock: Option<Clock>,
    /// Bytes of the variables that it was given: a rendering may be so much longer.
    given: usize,
    /// Whether it was given tools.
    tools: bool,
    sandbox: Sandbox,
}

const NAME: &str = "chat template";
/// The fields that a message may have its reasoning in.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

impl ChatTemplate {
    /// Compiles `source`. `bos` and `eos` are the texts of the special tokens (empty if there is none).
    ///
    /// # Errors
    /// Data, with the line, when the template does not parse.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        let markers = Markers::random();
        let (program, marked) = generation::rewrite(source);
        let mut env = environment::environment()?;
        env.add_global("bos_token", bos.to_owned());
        env.add_global("eos_token", eos.to_owned());
        env.add_global("tools", ());
        env.add_global("documents", ());
        env.add_template_owned(NAME, program).map_err(|e| template_error(&e))?;
        let (source, sandbox) = (source.to_owned(), Sandbox::default());
        Ok(Self { source, env, markers, marked, clock: None, given: 0, tools: false, sandbox })
    }

    /// Gives the template one more variable, such as `pad_token`, `tools`, or `enable_thinking` for Qwen3.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: Json) -> Self {
        self.given += name.len() + value.to_string().len();
        if name == "tools" {
            self.tools = value.as_array().is_some_and(|tools| !tools.is_empty());
        }
        self.env.add_global(name.to_owned(), Value::from(Serde(value)));
        self
    }

    /// Fixes the clock that `strftime_now` reads (seconds since 1970, UTC), so that a template that prints the
    /// date renders the same on another day. Without it, the local time of the machine is used, one instant for all that a
    /// call renders.
    #[must_use]
    pub fn at_time(mut self, unix_seconds: i64) -> Self {
        self.clock = Some(Clock::utc(unix_seconds));
        self
    }

    /// With a clock that stands still: what is compared must be of one instant.
    fn still(&self) -> Cow<'_, Self> {
        match self.clock {
            Some(_) => Cow::Borrowed(self),
            None => Cow::Owned(Self { clock: Some(Clock::now()), ..self.clone() }),
        }
    }

    /// The template as written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template says itself what the assistant writes, by `{% generation %}` blocks.
    pub fn has_generation_blocks(&self) -> bool {
        self.marked
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant is to go on.
    /// The text holds its special tokens, so it is to be encoded without adding any.
    ///
    /// # Errors
    /// Data, when the template refuses the conversation (`raise_exception`) or fails; unsupported, when it runs
    /// too long or builds too much.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.still().rendered(messages, add_generation_prompt)
    }

    fn rendered(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let rendered = self.run(messages, add_generation_prompt, ["", ""]);
        rendered.map_err(|e| match self.wants_content(messages, add_generation_prompt, &e) {
            Some(at) => self.without_content(messages, at, e),
            None => e,
        })
    }

    /// The first message whose missing content is what the template fails at.
    fn wants_content(&self, messages: &[Message], prompt: bool, error: &Error) -> Option<usize> {
        let unsaid = |message: &Message| message.said().flatten().is_none();
        if error.kind() != ErrorKind::Data || !messages.iter().any(unsaid) {
            return None;
        }
        let fails_without = |at: Option<usize>| {
            let mut given = messages.to_vec();
            for (_, message) in given.iter_mut().enumerate().filter(|(i, _)| Some(*i) != at) {
                message.unsaid = None;
            }
            self.run(&given, prompt, ["", ""]).is_err()
        };
        // Where all have one and it fails still, it is at something else.
        if fails_without(None) {
            return None;
        }
        (0..messages.len()).filter(|at| unsaid(&messages[*at])).find(|at| fails_without(Some(*at)))
    }

    /// The text of a conversation, and the byte ranges of it that the assistant writes, its end-of-turn token
    /// included, in order.
    ///
    /// A template with `{% generation %}` blocks states the ranges. Otherwise they come from rendering parts of
    /// the conversation: see the errors, and `spans.rs`.
    ///
    /// # Errors
    /// As [`render`](Self::render); and data, when the template renders the beginning of a conversation so
    /// differently from the whole that the assistant's turns cannot be placed, and when it does not write the calls of a
    /// message, or the tools that it was given beside them, and for a role that is empty, or another's misspelt.
    pub fn render_with_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        self.check_roles(messages)?;
        let still = self.still();
        let text = still.rendered(messages, false)?;
        still.check_tools(messages, &text)?;
        let spans = if still.marked {
            still.spans_from_blocks(messages, &text)?
        } else {
            still.spans_from_parts(messages, &text)?
        };
        Ok((text, spans))
    }

    fn run(&self, messages: &[Message], add_generation_prompt: bool, marks: [&str; 2]) -> Result<String> {
        let mut env = self.env.clone();
        env.add_global(generation::START, marks[0].to_owned());
        env.add_global(generation::END, marks[1].to_owned());
        environment::set_clock(&mut env, self.clock.unwrap_or_else(Clock::now));
        let context = minijinja::context! {
            messages => messages.iter().map(to_value).collect::<Vec<_>>(),
            add_generation_prompt,
        };
        let said: usize = messages.iter().map(size).sum();
        self.sandbox.render(env, context, self.source.len() + self.given + said)
    }
}

/// A message as templates see it. Reasoning goes under the names that templates use for it, as transformers does.
fn to_value(message: &Message) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.clone().into());
    if let Some(said) = message.said() {
        fields.insert("content".into(), said.into());
    }
    let reasoning =
        REASONING.iter().find_map(|name| message.other.get(*name).filter(|value| !value.is_null()));
    if let Some(reasoning) = reasoning {
        fields.insert("thinking".into(), reasoning.clone());
    }
    fields.extend(message.other.iter().map(|(k, v)| (k.clone(), v.clone())));
    if let Some(reasoning) = reasoning {
        fields.insert("reasoning_content".into(), reasoning.clone());
    }
    Value::from(Serde(fields))
}

fn size(message: &Message) -> usize {
    let other: usize = message.other.iter().map(|(k, v)| k.len() + v.to_string().len()).sum();
    message.role.len() + message.content.len() + other
}
