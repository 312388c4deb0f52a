//! What is told of rounds.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::fed::engine::{Round, Told};
use lora::{Error, sibling};

use crate::commands::{aside, say};

/// Rounds, for people and as JSON lines.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Where it lies.
    pub(super) fn place(out: &Path) -> PathBuf {
        sibling(out, "rounds.jsonl")
    }

    /// Begins it anew; of rounds that are done already, it keeps what it said, or says what their `reports` hold.
    pub(super) fn open(out: &Path, reports: &[Vec<u8>]) -> Result<Self> {
        let path = Self::place(out);
        let old = if reports.is_empty() {
            String::new()
        } else {
            std::fs::read_to_string(&path).unwrap_or_default()
        };
        let mut text = String::new();
        for (number, report) in (1..).zip(reports) {
            let said = old.lines().find(|line| {
                let value: Option<serde_json::Value> = serde_json::from_str(line).ok();
                value.is_some_and(|value| value["round"] == number)
            });
            text.push_str(&said.map_or_else(|| String::from_utf8_lossy(report), Into::into));
            text.push('\n');
        }
        let mut file = File::create(&path).map_err(|e| Error::io("write the rounds", &path, e))?;
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write the rounds", &path, e))?;
        Ok(Self { path, file })
    }

    pub(super) fn round(
        &mut self,
        round: &Round,
        rounds: u64,
        held_out: Option<f64>,
        seconds: f64,
    ) -> Result<()> {
        let mut line = serde_json::to_value(round)?;
        line["held_out_loss"] = held_out.into();
        line["seconds"] = seconds.into();
        writeln!(self.file, "{line}").map_err(|e| Error::io("write the rounds", &self.path, e))?;
        let good: Vec<_> = round.clients.iter().filter(|t| t.refused.is_none()).collect();
        let losses: Vec<f64> = good.iter().filter_map(|t| t.metrics.get("loss").copied()).collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let spent = good.iter().filter_map(|t| t.metrics.get("epsilon").copied()).reduce(f64::max);
        let megabytes = |of: fn(&Told) -> u64| round.clients.iter().map(of).sum::<u64>() as f64 / 1e6;
        say!(
            "round {}/{rounds}  {} of {} clients{}{}  down {:.2} MB  up {:.2} MB  {seconds:.1} s{}",
            round.round,
            good.len(),
            round.clients.len(),
            if mean.is_finite() { format!("  loss {mean:.4}") } else { String::new() },
            held_out.map_or_else(String::new, |loss| format!("  held out {loss:.4}")),
            megabytes(|t| t.bytes_down),
            megabytes(|t| t.bytes_up),
            spent.map_or_else(String::new, |epsilon| format!("  epsilon {epsilon:.3}")),
        );
        for line in troubles(round) {
            say!("  {line}");
        }
        Ok(())
    }
}

/// What went wrong in a round, a line each.
fn troubles(round: &Round) -> Vec<String> {
    let lost = |why: &String| format!("the round is lost, and the model as before: {why}");
    let refused = round
        .clients
        .iter()
        .filter_map(|told| Some(format!("{} does not count: {}", told.client, told.refused.as_ref()?)));
    round.lost.iter().map(lost).chain(refused).collect()
}

/// Says on this machine, of whose rows it is, how many texts of private steps counted for nothing, and why.
pub(super) fn left_out_here(client: &str, (count, why): (usize, Option<String>)) {
    if count > 0 {
        let why = why.as_deref().unwrap_or("unknown");
        aside(format_args!(
            "{client}: {count} texts counted as zeros, and nobody else is told; the first: {why}"
        ));
    }
}

/// Says on this machine what the error that travels does not: what a client's part failed of, where it keeps that back, and what to
/// do about it.
pub(super) fn told_here<T>(client: &str, result: &lora::Result<T>) {
    let Err(e) = result else { return };
    if let Some(cause) = std::error::Error::source(e) {
        aside(format_args!("{client}: {cause}"));
    }
    if let Some(hint) = e.hint_text() {
        aside(format_args!("{client}: hint: {hint}"));
    }
}
