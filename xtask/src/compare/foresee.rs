//! What can be said before the first run: whether all of it can run, and what it will take.

use super::jobs::Grid;
use super::plan::{FULL, NONE, Plan, split};
use super::run::Settings;
use super::stats;
use crate::{cache, sh};
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The faults that `lora plan` finds in the plan's methods, ranks and rows.
pub(crate) fn faults(plan: &Plan, lora: &Path, model: &Path) -> Result<Vec<String>> {
    let mut faults = BTreeSet::new();
    for data in &plan.data {
        for file in data.files() {
            // `lora plan` knows adapters alone.
            for variant in plan.variants.iter().filter(|v| ![NONE, FULL].contains(&v.as_str())) {
                for &rank in &plan.ranks {
                    if let Err(e) = memory(plan, lora, model, file, variant, rank)? {
                        faults.insert(e);
                    }
                }
            }
        }
    }
    Ok(faults.into_iter().collect())
}

/// What `lora` says against a command line, which is read and not run.
pub(crate) fn refused(grid: &Grid<'_>, lora: &Path) -> Result<Vec<String>> {
    let mut faults = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for job in [grid.floors(), grid.grid(|_, _| 1e-3)].concat() {
        let Settings { federation, start, .. } = &job.settings;
        // Those of a sort have the same options.
        if !seen.insert((job.settings.variant == NONE, federation.is_some(), start.is_some())) {
            continue;
        }
        for step in job.settings.steps(Path::new("run"), Path::new("general.jsonl")) {
            // `--help` stands last: what is before it is read first, and nothing runs.
            let output = sh::ours(lora).args(&step.args).arg("--help").output()?;
            if !output.status.success() {
                let errors = String::from_utf8_lossy(&output.stderr);
                let first = errors.lines().next().unwrap_or_default().trim_start_matches("error: ");
                faults.insert(format!("train: {}: {first}", job.settings.title()));
            }
        }
    }
    Ok(faults.into_iter().collect())
}

/// Bytes that `lora plan` foresees, if it knows the method, or what it says against it.
fn memory(
    plan: &Plan,
    lora: &Path,
    model: &Path,
    data: &Path,
    variant: &str,
    rank: u64,
) -> Result<Result<Option<u64>, String>> {
    let name = split(variant).recipe;
    let mut command = sh::ours(lora);
    command.args(["plan", "--json", "--dtype", &plan.dtype, "--base-storage", &plan.base_storage]);
    command.args([
        "--variant",
        name,
        "--targets",
        &plan.targets,
        "--batch-size",
        &plan.batch_size.to_string(),
    ]);
    let mut given = plan.train.iter();
    while let Some(word) = given.next() {
        match word.split('=').next() {
            Some("--truncate") => {
                command.arg(word);
            }
            Some("--max-length") => {
                command.arg(word);
                if !word.contains('=') {
                    command.args(given.next());
                }
            }
            _ => {}
        }
    }
    let output = command
        .arg("--rank")
        .arg(rank.to_string())
        .arg("--model")
        .arg(model)
        .arg("--data")
        .arg(data)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("is not planned") {
        return Ok(Ok(None));
    }
    if !output.status.success() {
        let from = errors.find("error:").unwrap_or(0);
        let lines: Vec<_> = errors[from..].lines().take(3).map(str::trim).collect();
        return Ok(Err(format!("{variant}, rank {rank}: {}", lines.join(" ").trim_start_matches("error: "))));
    }
    let found: Value = serde_json::from_slice(&output.stdout)?;
    Ok(Ok(found["bytes"].as_u64()))
}

/// Every run with its time and memory: from three steps and four rows of each set, on this machine, now.
pub(crate) fn print(grid: &Grid<'_>, lora: &Path, home: &Path) -> Result<()> {
    let probe = home.join("probe");
    let mut seconds = Vec::new();
    for (set, files) in &grid.sets {
        let rows = fs::read_to_string(&files.train.path)?.lines().count() as f64;
        let held_out = fs::read_to_string(&files.held_out.path)?.lines().count() as f64;
        let plan = grid.plan;
        let mut train = sh::ours(lora);
        train.args(["train", "--max-steps", "3", "--overwrite", "--dtype", &plan.dtype, "--batch-size"]);
        train.arg(plan.batch_size.to_string()).arg("--model").arg(&grid.model.path).arg("--data");
        train.arg(&files.train.path).arg("--out").arg(&probe);
        eprintln!("trying three steps and four rows of {set}");
        sh::capture(train.stderr(std::process::Stdio::null()))?;
        let metrics = fs::read_to_string(probe.with_extension("metrics.jsonl"))?;
        let steps =
            metrics.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()?["seconds"].as_f64());
        let step = stats::median(steps.collect()).unwrap_or(f64::NAN);
        let mut eval = sh::ours(lora);
        eval.args(["eval", "--limit", "4", "--labels", "few", "--json", "--dtype", &plan.dtype, "--model"]);
        eval.arg(&grid.model.path).arg("--data").arg(&files.held_out.path);
        let row = sh::capture_json(&mut eval)?["seconds"].as_f64().unwrap_or(f64::NAN) / 4.0;
        let steps = (rows * plan.epochs / plan.batch_size as f64).ceil();
        seconds.push((set.clone(), step * steps, row * held_out));
    }
    cache::remove(&probe)?;
    cache::remove(&probe.with_extension("metrics.jsonl"))?;
    let jobs = [grid.floors(), grid.tuning(), grid.grid(|_, _| grid.plan.learning_rates[0])].concat();
    let mut total = 0.0;
    println!("{:64} {:>8} {:>10}", "run", "minutes", "memory, GB");
    for job in &jobs {
        let s = &job.settings;
        let (_, train, eval) = seconds.iter().find(|(set, ..)| *set == s.set).cloned().unwrap_or_default();
        // A peer takes about four times as long (docs/performance.md).
        let times = if s.peer.is_some() { 4.0 } else { 1.0 };
        let time = times * (if s.variant == NONE { 0.0 } else { train } + eval);
        total += time;
        let rank = s.rank.unwrap_or(1);
        let bytes = match s.variant.as_str() {
            NONE | FULL => None,
            variant => {
                memory(grid.plan, lora, &grid.model.path, &s.train.path, variant, rank)?.ok().flatten()
            }
        };
        let memory = match (bytes, &s.peer) {
            (Some(bytes), None) => format!("{:.2}", bytes as f64 / 1e9),
            _ => "-".into(),
        };
        println!("{:64} {:>8.1} {memory:>10}", s.title(), time / 60.0);
    }
    println!("\n{} runs, about {:.0} minutes if none has run yet", jobs.len(), total / 60.0);
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::jobs::tests::{grid, plan};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Plans LoRA of rows that may be cut off, and knows no `--warmpu`, as `lora` does.
    const STAND_IN: &str = r#"#!/bin/sh
case "$*" in
  *--warmpu*) echo "error: unexpected argument '--warmpu' found" >&2; exit 2;;
  *"--variant loha"*) echo 'error: the memory of `loha` is not planned' >&2; exit 4;;
  *"--truncate --max-length 64"*) echo '{"bytes": 7}';;
  plan*) echo "error: line 1: 90 tokens" >&2; exit 3;;
esac
"#;

    #[test]
    fn what_is_not_planned_is_no_fault_and_what_training_would_refuse_is() {
        let dir = tempfile::tempdir().unwrap();
        let lora = dir.path().join("lora");
        fs::write(&lora, STAND_IN).unwrap();
        fs::set_permissions(&lora, fs::Permissions::from_mode(0o755)).unwrap();
        let plan = |train: &str| {
            let grid = "variants = ['lora', 'loha']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]";
            plan(&format!("{grid}\ntrain = {train}"))
        };
        let cut = plan("['--truncate', '--max-length', '64']");
        assert_eq!(faults(&cut, &lora, Path::new("model")).unwrap(), Vec::<String>::new());
        assert_eq!(refused(&grid(&cut), &lora).unwrap(), Vec::<String>::new());
        let long = faults(&plan("[]"), &lora, Path::new("model")).unwrap();
        assert_eq!(long, ["lora, rank 8: line 1: 90 tokens"]);
        let wrong = plan("['--warmpu', '0.1']");
        let said = refused(&grid(&wrong), &lora).unwrap();
        assert!(said.len() == 1 && said[0].contains("--warmpu"), "{said:?}");
    }
}
