//! What a template may call, and the bounds it runs in.

use std::error::Error as StdError;
use std::fmt;

use lora_core::{Error, Result, python_repr};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{AutoEscape, Environment, Error as JinjaError, ErrorKind, State, Value, escape_formatter};
use time::format_description::parse_strftime_owned;
use time::{OffsetDateTime, UtcOffset};

use super::{NAME, json};

pub(super) type JinjaResult<T> = std::result::Result<T, JinjaError>;

/// transformers' environment: `_compile_jinja_template`.
pub(super) fn environment() -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| template_error(&e))?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_unknown_method_callback(call_method);
    env.add_function("raise_exception", raise_exception);
    env.add_filter("tojson", json::to_json);
    env.add_filter("string", |state: &State<'_, '_>, value: &Value| match float(value) {
        Some(x) => Ok(Value::from(python_repr(x))),
        None => minijinja::filters::string(state, value),
    });
    env.set_formatter(|out, state, value| match float(value) {
        Some(x) => out.write_str(&python_repr(x)).map_err(JinjaError::from),
        None => escape_formatter(out, state, value),
    });
    Ok(env)
}

/// A number that is a float to Python.
pub(super) fn float(value: &Value) -> Option<f64> {
    if value.is_number() && !value.is_integer() { f64::try_from(value.clone()).ok() } else { None }
}

/// The text a template refused the conversation with.
#[derive(Debug)]
struct Raised(String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Raised {}

fn raise_exception(message: String) -> JinjaResult<Value> {
    Err(JinjaError::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// Python's methods of strings, lists and dicts. Some walk their object without paying fuel for it.
fn call_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> JinjaResult<Value> {
    let steps = match value.kind() {
        ValueKind::String => value.as_str().map_or(0, str::len) / 64,
        _ => value.len().unwrap_or(0),
    };
    state.consume_fuel(steps as u64)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// An instant: seconds since 1970, and where they are told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    seconds: i64,
    place: UtcOffset,
}

impl Clock {
    pub(super) fn utc(seconds: i64) -> Self {
        Self { seconds, place: UtcOffset::UTC }
    }

    /// The local time of the machine, if it tells one.
    pub(super) fn now() -> Self {
        let now = OffsetDateTime::now_local().unwrap_or_else(|_| OffsetDateTime::now_utc());
        Self { seconds: now.unix_timestamp(), place: now.offset() }
    }
}

/// `strftime_now(format)`.
pub(super) fn set_clock(env: &mut Environment<'_>, clock: Clock) {
    env.add_function("strftime_now", move |format: &str| {
        let fail =
            |e: &dyn fmt::Display| JinjaError::new(ErrorKind::InvalidOperation, format!("`{format}`: {e}"));
        let instant = OffsetDateTime::from_unix_timestamp(clock.seconds).map_err(|e| fail(&e))?;
        let format = parse_strftime_owned(format).map_err(|e| fail(&e))?;
        instant.to_offset(clock.place).format(&format).map_err(|e| fail(&e))
    });
}

/// Our error for minijinja's: its line, its text, and what to do.
pub(super) fn template_error(e: &JinjaError) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(e);
    // The innermost error has the line; the outer ones say which macro called it.
    let mut inner = e;
    while let Some(error) = cause {
        if let Some(Raised(message)) = error.downcast_ref() {
            return Error::data(format!("the template refuses this conversation: {message}"))
                .at(NAME)
                .hint("bring the conversation into the form that the model's template asks for");
        }
        inner = error.downcast_ref().unwrap_or(inner);
        cause = error.source();
    }
    let what = match inner.kind() {
        ErrorKind::OutOfFuel => Error::unsupported("the template runs too long, or builds too much data")
            .hint("a sound template takes a few thousand steps: look for an endless loop"),
        ErrorKind::WriteFailure => {
            Error::unsupported("the template gives far more text than the conversation holds")
                .hint("look for a loop that prints without end")
        }
        kind => {
            let detail = inner.detail().map(|d| format!(": {d}")).unwrap_or_default();
            Error::data(format!("{kind}{detail}")).hint("correct the template, or choose another")
        }
    };
    match inner.line() {
        Some(line) => what.at(format!("{NAME}, line {line}")),
        None => what.at(NAME),
    }
}
