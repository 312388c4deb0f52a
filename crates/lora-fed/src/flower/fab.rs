//! What a run is configured with: the app's own `pyproject.toml`, and what `flwr run --run-config` overrides.

use std::io::{Cursor, Read};

use lora_core::{Error, Result};
use sha2::{Digest, Sha256};
use toml::Table;

use super::messages::{Fab, OneScalar, Scalar};
use super::values::{Value, Values};
use crate::hex::hex;

/// A project file is small.
const PROJECT: u64 = 1 << 20;

/// The settings, nested ones as `a.b`; an override must name one that there is.
pub(crate) fn run_config<'a>(
    fab: &Fab,
    overrides: impl Iterator<Item = (&'a String, &'a Scalar)>,
) -> Result<Values> {
    if hex(&Sha256::digest(&fab.content)) != fab.hash_str {
        return Err(Error::data("the app's files do not have its hash"));
    }
    let bad = |e: &dyn std::fmt::Display| Error::data(format!("the app has no readable pyproject.toml: {e}"));
    let mut files = zip::ZipArchive::new(Cursor::new(&fab.content)).map_err(|e| bad(&e))?;
    let mut text = String::new();
    files
        .by_name("pyproject.toml")
        .map_err(|e| bad(&e))?
        .take(PROJECT)
        .read_to_string(&mut text)
        .map_err(|e| bad(&e))?;
    let project: Table = text.parse().map_err(|e| bad(&e))?;
    let mut at = Some(&project);
    for key in ["tool", "flwr", "app", "config"] {
        at = at.and_then(|table| table.get(key)).and_then(|value| value.as_table());
    }
    let mut config = Values::new();
    flatten(at.unwrap_or(&Table::new()), "", &mut config)?;
    for (key, value) in overrides {
        let known = config.get_mut(key).ok_or_else(|| {
            Error::usage(format!("the app has no setting `{key}`"))
                .hint("put it under [tool.flwr.app.config] of its pyproject.toml")
        })?;
        *known = scalar(value).ok_or_else(|| Error::data("has no value").at(key))?;
    }
    Ok(config)
}

fn flatten(table: &Table, prefix: &str, config: &mut Values) -> Result<()> {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        let value = match value {
            toml::Value::Table(inner) => {
                flatten(inner, &format!("{key}."), config)?;
                continue;
            }
            toml::Value::String(v) => Value::Text(v.clone()),
            toml::Value::Integer(v) => Value::Int(*v),
            toml::Value::Float(v) => Value::Float(*v),
            toml::Value::Boolean(v) => Value::Bool(*v),
            _ => return Err(Error::data("is no text, number or truth value").at(key)),
        };
        config.insert(key, value);
    }
    Ok(())
}

fn scalar(scalar: &Scalar) -> Option<Value> {
    Some(match scalar.scalar.clone()? {
        OneScalar::Double(v) => Value::Float(v),
        OneScalar::Uint64(v) => Value::Unsigned(v),
        OneScalar::Sint64(v) => Value::Int(v),
        OneScalar::Bool(v) => Value::Bool(v),
        OneScalar::String(v) => Value::Text(v),
        OneScalar::Bytes(v) => Value::Bytes(v),
    })
}
