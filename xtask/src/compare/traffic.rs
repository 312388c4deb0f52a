//! What a federation's clients sent, and what came to them.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Bytes up and down, of all rounds in a simulation's OUT.rounds.jsonl.
pub(crate) fn read(rounds: &Path) -> Result<(u64, u64)> {
    let text = fs::read_to_string(rounds).with_context(|| rounds.display().to_string())?;
    let (mut up, mut down) = (0, 0);
    for line in text.lines() {
        let round: Value = serde_json::from_str(line).with_context(|| rounds.display().to_string())?;
        for client in round["clients"].as_array().into_iter().flatten() {
            up += client["bytes_up"].as_u64().unwrap_or(0);
            down += client["bytes_down"].as_u64().unwrap_or(0);
        }
    }
    Ok((up, down))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_clients_of_all_rounds_count() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("adapter.rounds.jsonl");
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(error.contains("adapter.rounds.jsonl: "), "{error}");
        let line = |up: u64| {
            format!(
                "{{\"clients\":[{{\"bytes_up\":{up},\"bytes_down\":7}},{{\"bytes_up\":1,\"bytes_down\":20}}]}}\n"
            )
        };
        fs::write(&file, line(100) + &line(3000)).unwrap();
        assert_eq!(read(&file).unwrap(), (3102, 54));
    }
}
