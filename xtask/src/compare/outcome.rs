//! What came of a run, as its folder tells.

use super::gather;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// What a run found, in its folder; written last.
pub(crate) const RESULT: &str = "result.json";
/// That it diverged, in a folder without a result.
pub(crate) const DIVERGED: &str = "diverged.json";

/// What went wrong with a run.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) why: String,
    /// It was tried, and would end so again.
    pub(crate) diverged: bool,
}

impl Failure {
    pub(crate) fn of(error: &anyhow::Error) -> Self {
        let diverged = error.downcast_ref::<Self>().is_some_and(|failure| failure.diverged);
        Self { why: format!("{error:#}"), diverged }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Failure {}

/// What the run in `dir` found; none if it has not ended, or lacks what a report reads.
pub(crate) fn found(dir: &Path) -> Option<Value> {
    let text = fs::read_to_string(dir.join(RESULT)).ok()?;
    let found: Value = serde_json::from_str(&text).ok()?;
    gather::read(None, &found, dir).is_ok().then_some(found)
}

/// What is written down of a run that diverged.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Diverged {
    pub(crate) why: String,
    /// Another might not.
    pub(crate) build: String,
}

impl Diverged {
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        serde_json::from_str(&fs::read_to_string(dir.join(DIVERGED)).ok()?).ok()
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        Ok(fs::write(dir.join(DIVERGED), serde_json::to_string_pretty(self)?)?)
    }
}
