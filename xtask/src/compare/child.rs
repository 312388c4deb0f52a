//! A run's child process: what it found, or what went wrong.

use super::outcome::Failure;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

/// What `lora` exits with where data is at fault, and where a number left the finite range.
const DATA: i32 = 3;
const NON_FINITE: i32 = 6;

/// That a number left the finite range, as federations tell it: to them a client that fails is faulty data, and why it
/// failed stands before the error.
const LEFT: [&str; 4] = ["not finite", "the loss is NaN", "the loss is inf", "the loss is -inf"];

/// Runs a child, which trains a federation or does not; the last JSON object that it printed, or null. Its words go to the
/// log.
pub(super) fn run(command: &mut Command, shown: &str, mut log: &File, federated: bool) -> Result<Value> {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    write!(log, "$ {shown}\n{out}{errors}\n")?;
    if output.status.code().is_none() {
        bail!(
            "`{shown}`: it was killed ({}), maybe for want of memory: with fewer --jobs each has more",
            output.status
        );
    }
    if !output.status.success() {
        let error = errors.find("error:").filter(|_| !federated);
        let from = error.unwrap_or(errors.len().saturating_sub(2000));
        let why = errors.get(from..).unwrap_or(&errors).trim();
        let why = if why.is_empty() { output.status.to_string() } else { why.to_owned() };
        let diverged = match output.status.code() {
            Some(DATA) => federated && LEFT.iter().any(|words| errors.contains(words)),
            code => code == Some(NON_FINITE),
        };
        return Err(Failure { why: format!("`{shown}`: {why}"), diverged }.into());
    }
    let last =
        out.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
    Ok(last.unwrap_or(Value::Null))
}
