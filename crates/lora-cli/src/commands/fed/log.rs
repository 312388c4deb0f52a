//! What is told of rounds.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::fed::engine::{Round, Told};
use lora::{Error, sibling};
use serde_json::{Map, Value};

use crate::commands::{aside, say};

/// Rounds, for people and as JSON lines.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    /// Nothing of single clients: who was drawn is the secret that a bound on them rests on.
    private: bool,
}

impl Log {
    /// Where it lies.
    pub(super) fn place(out: &Path) -> PathBuf {
        sibling(out, "rounds.jsonl")
    }

    /// Begins it anew; of rounds that are done already, it keeps what it said, or says what their `reports` hold.
    pub(super) fn open(out: &Path, reports: &[Vec<u8>], private: bool) -> Result<Self> {
        let path = Self::place(out);
        let old = if reports.is_empty() {
            String::new()
        } else {
            std::fs::read_to_string(&path).unwrap_or_default()
        };
        let mut text = String::new();
        for (number, report) in (1..).zip(reports) {
            let said = old.lines().find(|line| {
                let value: Option<Value> = serde_json::from_str(line).ok();
                value.is_some_and(|value| value["round"] == number)
            });
            let line = said.map_or_else(|| String::from_utf8_lossy(report), Into::into);
            text.push_str(&if private { untold(&line) } else { line.into_owned() });
            text.push('\n');
        }
        let mut file = File::create(&path).map_err(|e| Error::io("write the rounds", &path, e))?;
        file.write_all(text.as_bytes()).map_err(|e| Error::io("write the rounds", &path, e))?;
        Ok(Self { path, file, private })
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
        // They tell how many were drawn.
        line["seconds"] = (!self.private).then_some(seconds).into();
        writeln!(self.file, "{line}").map_err(|e| Error::io("write the rounds", &self.path, e))?;
        let megabytes = |of: fn(&Told) -> u64| round.clients.iter().map(of).sum::<u64>() as f64 / 1e6;
        let (down, up) = (megabytes(|t| t.bytes_down), megabytes(|t| t.bytes_up));
        let held_out = held_out.map_or_else(String::new, |loss| format!("  held out {loss:.4}"));
        if self.private {
            say!("round {}/{rounds}{held_out}  down {down:.2} MB  up {up:.2} MB a client", round.round);
            return Ok(());
        }
        let good: Vec<_> = round.clients.iter().filter(|t| t.refused.is_none()).collect();
        let losses: Vec<f64> = good.iter().filter_map(|t| t.metrics.get("loss").copied()).collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let spent = good.iter().filter_map(|t| t.metrics.get("epsilon").copied()).reduce(f64::max);
        say!(
            "round {}/{rounds}  {} of {} clients{}{held_out}  down {down:.2} MB  up {up:.2} MB  {seconds:.1} s{}",
            round.round,
            good.len(),
            round.clients.len(),
            if mean.is_finite() { format!("  loss {mean:.4}") } else { String::new() },
            spent.map_or_else(String::new, |epsilon| format!("  epsilon {epsilon:.3}")),
        );
        for line in troubles(round) {
            say!("  {line}");
        }
        Ok(())
    }
}

/// A line as a private round's is: one of an earlier version names clients.
fn untold(line: &str) -> String {
    let Ok(mut line) = serde_json::from_str::<Map<String, Value>>(line) else { return String::new() };
    if let Some(clients) = line.get_mut("clients").and_then(Value::as_array_mut) {
        clients.retain(|told| told["client"] == "");
    }
    line.insert("seconds".to_owned(), Value::Null);
    Value::from(line).to_string()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_version_told_of_a_private_round_is_told_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let told = |client: &str| format!(r#"{{"client":"{client}","metrics":{{"loss":2.5}}}}"#);
        let line = |round: u64, client: &str| {
            format!(r#"{{"round":{round},"clients":[{}],"held_out_loss":1.5,"seconds":3.5}}"#, told(client))
        };
        std::fs::write(Log::place(&out), line(1, "bank") + "\n").unwrap();
        let reports = [line(1, "bank"), line(2, "clinic")].map(String::into_bytes);
        let read = |private| {
            drop(Log::open(&out, &reports, private).unwrap());
            std::fs::read_to_string(Log::place(&out)).unwrap()
        };
        let plain = read(false);
        assert!(plain.contains("bank") && plain.contains("clinic") && plain.contains("3.5"), "{plain}");
        let private = read(true);
        assert!(["bank", "clinic", "2.5", "3.5"].iter().all(|said| !private.contains(said)), "{private}");
        assert!(private.lines().count() == 2 && private.matches("\"held_out_loss\":1.5").count() == 2);
        assert_eq!(untold(&line(3, "")), line(3, "").replace("3.5", "null"));
    }
}
