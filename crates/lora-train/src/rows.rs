//! JSON lines: what a training example may look like.

mod faults;
mod foreign;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use lora_core::{Error, Result};
use lora_model::Message;
use serde::Deserialize;
use serde_json::{Map, Value};

pub(crate) use self::faults::Faults;

/// A line longer than this is refused: it is no text that a model could read.
const LINE_LIMIT: u64 = 64 << 20;

/// An example as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation; the assistant's turns are learnt.
    Chat(Conversation),
    /// The completion is learnt.
    Pair {
        /// What is given.
        prompt: String,
        /// What is to follow.
        completion: String,
        /// Ends of texts that the row has behind it, where they are known as such, but for the tokenizer's own, which is put
        /// behind every completion: learnt as they stand, and part of no answer.
        end: String,
    },
    /// All of it is learnt.
    Text(String),
}

/// What a chat template is given.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Conversation {
    /// Its turns.
    pub messages: Vec<Message>,
    /// Descriptions of the tools that may be called: a list of JSON schemas, all objects, in the field `tools`.
    pub tools: Option<Value>,
    /// More of the template's variables, in the field `chat_template_kwargs`.
    pub variables: Map<String, Value>,
    /// The time that a template may print, in seconds since 1970 (UTC): of a row, when its file was last changed, so that a file
    /// gives the same texts at any time. Without one it is now.
    pub time: Option<i64>,
}

/// Reads every row with its line number (from 1). Blank lines are skipped.
///
/// # Errors
/// [`Error::data`] naming file and line of all that is not UTF-8, not JSON, not a row, or a row that would be rendered otherwise
/// than all; for a file without rows, or of another kind, with what makes it JSON lines.
pub fn read_rows(path: &Path) -> Result<Vec<(usize, Row)>> {
    let (mut rows, mut faults) = (Vec::new(), Faults::of(path));
    each_row(path, |line, row| match row {
        Ok(row) => {
            rows.push((line, row));
            ControlFlow::Continue(())
        }
        Err(e) => faults.add(line, &e),
    })?;
    faults.check()?;
    Ok(rows)
}

/// Gives away every row, or what is wrong with it, with its line number, until it is told to stop.
///
/// # Errors
/// What is wrong with the file.
pub(crate) fn each_row(
    path: &Path,
    mut each: impl FnMut(usize, Result<Row>) -> ControlFlow<()>,
) -> Result<()> {
    let file = File::open(path).map_err(|e| Error::io("open the data", path, e))?;
    let failed = |e| Error::io("read the data", path, e);
    let time = changed(&file);
    let mut reader = BufReader::new(file);
    foreign::refuse(reader.fill_buf().map_err(failed)?, path)?;
    let mut none = true;
    for line in 1.. {
        let mut bytes = Vec::new();
        if reader.by_ref().take(LINE_LIMIT + 1).read_until(b'\n', &mut bytes).map_err(failed)? == 0 {
            break;
        }
        if bytes.len() as u64 > LINE_LIMIT {
            let e = Error::data("the line is longer than 64 MiB").hint("one JSON object a line");
            return Err(e.at(format!("{}:{line}", path.display())));
        }
        let Some(row) = of_line(&bytes, line == 1, time).transpose() else { continue };
        none = false;
        if each(line, row).is_break() {
            break;
        }
    }
    if none {
        return Err(Error::data("there are no rows").at(path.display()).hint(SHAPES));
    }
    Ok(())
}

/// The row of a line; none of a blank one.
fn of_line(bytes: &[u8], first: bool, time: i64) -> Result<Option<Row>> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| Error::data(format!("not UTF-8 at byte {}", e.valid_up_to())).hint(UTF_8))?;
    // A byte order mark is no part of the JSON.
    let text = if first { text.trim_start_matches('\u{feff}') } else { text };
    if text.trim().is_empty() { Ok(None) } else { row(text.trim_end(), time).map(Some) }
}

const SHAPES: &str = "a row is a JSON object with `messages`, `prompt` + `completion`, `context` + `target`, or \
                      `text`; see docs/data.md";

const MESSAGES: &str = "a list of objects with `role` and `content`, both texts; a content may also be a list of parts, \
                        each a text";

const SPANNING: &str = "one JSON object a line; for such as span lines: `jq -c . FILE > NEW.jsonl`";

const UTF_8: &str = "write it as UTF-8: of Latin 1, say, `iconv -f LATIN1 -t UTF-8 FILE > NEW.jsonl`";

/// When a file was last changed, in seconds since 1970; now, if nobody knows.
fn changed(file: &File) -> i64 {
    let at = file.metadata().and_then(|about| about.modified()).unwrap_or_else(|_| SystemTime::now());
    match at.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
    }
}

fn row(text: &str, time: i64) -> Result<Row> {
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let what = e.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        let hint = if e.is_eof() { SPANNING } else { "one JSON object a line" };
        Error::data(format!("not JSON: {what} (column {})", e.column())).hint(hint)
    })?;
    let Value::Object(object) = value else {
        return Err(Error::data("not a JSON object").hint(SHAPES));
    };
    if object.contains_key("messages") {
        return chat(&object, &["messages"], time);
    }
    for (prompt, completion) in [("prompt", "completion"), ("context", "target")] {
        match (object.get(prompt), object.get(completion)) {
            (Some(Value::Array(_)), Some(Value::Array(_))) => {
                return chat(&object, &[prompt, completion], time);
            }
            (Some(_), Some(_)) => {
                let (prompt, completion) = (string(&object, prompt)?, string(&object, completion)?);
                return Ok(Row::Pair { prompt, completion, end: String::new() });
            }
            (Some(_), None) => return Err(missing(completion, prompt)),
            (None, Some(_)) => return Err(missing(prompt, completion)),
            (None, None) => {}
        }
    }
    if object.contains_key("text") {
        return Ok(Row::Text(string(&object, "text")?));
    }
    let keys: Vec<_> = object.keys().map(String::as_str).take(8).collect();
    Err(Error::data(format!("no known fields among: {}", keys.join(", "))).hint(SHAPES))
}

fn missing(field: &str, beside: &str) -> Error {
    Error::data(format!("`{beside}` without `{field}`")).hint(SHAPES)
}

fn string(object: &Map<String, Value>, field: &str) -> Result<String> {
    match object.get(field) {
        Some(Value::String(s)) if !s.is_empty() => Ok(s.clone()),
        Some(Value::String(_)) => Err(Error::data(format!("`{field}` is empty"))),
        _ => Err(Error::data(format!("`{field}` is not a string")).hint(SHAPES)),
    }
}

/// The messages of these fields, one list behind the other, and what the template is given beside them.
fn chat(object: &Map<String, Value>, fields: &[&str], time: i64) -> Result<Row> {
    let lists = fields.iter().map(|field| messages(object, field)).collect::<Result<Vec<_>>>()?;
    let (messages, tools, variables) = (lists.concat(), tools(object)?, variables(object)?);
    Ok(Row::Chat(Conversation { messages, tools, variables, time: Some(time) }))
}

/// A list of objects, or its text, or a list of their texts: columns of one type cannot hold schemas of several shapes.
fn tools(object: &Map<String, Value>) -> Result<Option<Value>> {
    let bad = || {
        let e = Error::data("`tools` is not a list of objects");
        e.hint("a list of JSON schemas, each an object or the text of one, or the text of such a list")
    };
    let read = |text: &str| serde_json::from_str::<Value>(text).map_err(|_| bad());
    let tools = match object.get("tools") {
        Some(Value::String(text)) => read(text)?,
        other => other.cloned().unwrap_or_default(),
    };
    let schema = |tool: Value| match tool {
        Value::String(text) => read(&text),
        tool => Ok(tool),
    };
    match tools {
        Value::Null => Ok(None),
        Value::Array(tools) => {
            let tools = tools.into_iter().map(schema).collect::<Result<Vec<_>>>()?;
            tools.iter().all(Value::is_object).then_some(Some(Value::Array(tools))).ok_or_else(bad)
        }
        _ => Err(bad()),
    }
}

/// What says in TRL how a row is rendered, and is no variable of its template.
const SETTLED: [&str; 4] = ["messages", "add_generation_prompt", "continue_final_message", "chat_template"];

fn variables(object: &Map<String, Value>) -> Result<Map<String, Value>> {
    const FIELD: &str = "chat_template_kwargs";
    let variables = match object.get(FIELD) {
        None | Some(Value::Null) => return Ok(Map::new()),
        Some(Value::Object(variables)) => variables.clone(),
        Some(_) => {
            let e = Error::data(format!("`{FIELD}` is not an object"));
            return Err(e.hint("an object: values of the chat template's variables, by their names"));
        }
    };
    match SETTLED.into_iter().find(|name| variables.contains_key(*name)) {
        Some(name) => Err(Error::unsupported(format!("`{name}` in `{FIELD}`"))
            .hint("leave it out: only variables of the chat template may be set for a row")),
        None => Ok(variables),
    }
}

fn messages(object: &Map<String, Value>, field: &str) -> Result<Vec<Message>> {
    let Some(Value::Array(list)) = object.get(field) else {
        return Err(Error::data(format!("`{field}` is not a list")).hint(MESSAGES));
    };
    if list.is_empty() {
        return Err(Error::data(format!("`{field}` is empty")));
    }
    let message = |(at, message): (usize, &Value)| {
        Message::deserialize(message)
            .map_err(|e| Error::data(format!("`{field}`, message {}: {e}", at + 1)).hint(MESSAGES))
    };
    list.iter().enumerate().map(message).collect()
}
