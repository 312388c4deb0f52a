//! What can be said before the first run: whether all of it can run, and what it will take.

use super::jobs::Grid;
use super::plan::{NONE, Plan, is_full, split};
use super::run::{Fingerprint, Settings};
use super::runner::Runner;
use super::split::Parts;
use super::stats;
use crate::{cache, sh};
use anyhow::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The exit code of a command line that makes no sense.
const USAGE: i32 = 2;

/// The faults that `lora plan` finds in the plan's methods, ranks and rows: in training's, as it cuts them, and in those that
/// are only judged by, as they are.
pub(crate) fn faults(plan: &Plan, parts: &[Parts], lora: &Path, model: &Path) -> Result<Vec<String>> {
    let mut faults = BTreeSet::new();
    let cut = lengths(plan);
    let trained = plan.variants.iter().map(String::as_str).filter(|v| *v != NONE);
    // Without a rank of its own, it is tried once.
    let one: &[u64] = &[1];
    let ranks = |variant: &str| if is_full(split(variant).recipe) { one } else { plan.ranks.as_slice() };
    let trained: Vec<_> = trained.flat_map(|v| ranks(v).iter().map(move |&rank| (v, rank))).collect();
    for part in parts {
        for &(variant, rank) in &trained {
            faults.extend(memory(plan, lora, model, (&part.train, &cut), variant, rank)?.err());
        }
        let tuned = (plan.learning_rates.len() > 1).then_some(&part.validation);
        for file in [&part.held_out].into_iter().chain(tuned) {
            faults.extend(memory(plan, lora, model, (file, &[]), "lora", 1)?.err());
        }
    }
    Ok(faults.into_iter().collect())
}

/// What `lora` says against a command line before it looks for the model, which is not there.
pub(crate) fn refused(grid: &Grid<'_>, runner: &Runner, home: &Path) -> Result<Vec<String>> {
    // What is said of several methods is said of the first.
    let mut faults = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for job in [grid.floors(), grid.grid(|_, _| 1e-3)].concat() {
        let Settings { variant, federation, start, measure, .. } = &job.settings;
        // Those of a sort have the same options; a peer's are ours.
        let rule = federation.as_ref().map(|federation| federation.rule.clone());
        if job.ours.is_some() || !seen.insert((variant.clone(), rule, start.clone(), measure.trace)) {
            continue;
        }
        let nowhere = home.join("nowhere");
        let model = Fingerprint { path: nowhere.join("model"), ..job.settings.model.clone() };
        let settings = Settings { model, ..job.settings.clone() };
        for step in settings.steps(&nowhere, Path::new("general.jsonl")) {
            let output = runner.ours(&step).output()?;
            if output.status.code() == Some(USAGE) {
                let errors = String::from_utf8_lossy(&output.stderr);
                let said: Vec<_> =
                    errors.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
                let said = said.join(" ");
                faults.entry(said.trim_start_matches("error: ").to_owned()).or_insert(settings.title());
            }
        }
    }
    Ok(faults.into_iter().map(|(said, run)| format!("train: {run}: {said}")).collect())
}

/// The options of training that say how long rows may be.
fn lengths(plan: &Plan) -> Vec<String> {
    let mut found = Vec::new();
    let mut given = plan.train.iter();
    while let Some(word) = given.next() {
        match word.split('=').next() {
            Some("--truncate" | "--drop-long") => found.push(word.clone()),
            Some("--max-length") => {
                found.push(word.clone());
                found.extend(given.next().filter(|_| !word.contains('=')).cloned());
            }
            _ => {}
        }
    }
    found
}

/// Bytes that `lora plan` foresees, if it knows the method, or what it says against it.
fn memory(
    plan: &Plan,
    lora: &Path,
    model: &Path,
    (data, lengths): (&Path, &[String]),
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
    if is_full(name) && !plan.full_layers.is_empty() {
        let layers: Vec<_> = plan.full_layers.iter().map(u64::to_string).collect();
        command.args(["--layers", &layers.join(",")]);
    }
    let output = command
        .arg("--rank")
        .arg(rank.to_string())
        .arg("--model")
        .arg(model)
        .arg("--data")
        .arg(data)
        .args(lengths)
        .output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("is not planned") {
        return Ok(Ok(None));
    }
    let found = serde_json::from_slice::<Value>(&output.stdout);
    // Where nothing fits there is a plan all the same.
    if !output.status.success() && found.is_err() {
        let from = errors.find("error:").unwrap_or(0);
        let lines: Vec<_> = errors[from..].lines().take(3).map(str::trim).collect();
        return Ok(Err(format!("{variant}, rank {rank}: {}", lines.join(" ").trim_start_matches("error: "))));
    }
    Ok(Ok(found?["bytes"].as_u64()))
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
        train.arg(&files.train.path).args(lengths(plan)).arg("--out").arg(&probe);
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
    let cut = lengths(grid.plan);
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
            NONE => None,
            variant => {
                let rows = (s.train.path.as_path(), cut.as_slice());
                memory(grid.plan, lora, &grid.model.path, rows, variant, rank)?.ok().flatten()
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
    use super::super::run_tests::runner;
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// Plans LoRA of rows that may be cut off, knows no `--warmpu`, and finds no model, as `lora` does.
    const STAND_IN: &str = r#"#!/bin/sh
case "$*" in
  *--warmpu*) echo "error: unexpected argument '--warmpu' found" >&2; exit 2;;
  *"--rule flora"*--robust*) echo "error: flora with a robust rule" >&2; exit 2;;
  train*"--model model "*) echo "error: it trains" >&2; exit 2;;
  *"--variant loha"*) echo 'error: the memory of `loha` is not planned' >&2; exit 4;;
  plan*"--data cut"*"--truncate --max-length 64"*) echo '{"bytes": 7}';;
  plan*"--layers 28,29"*"--data upper"*) echo '{"bytes": 7}';;
  plan*"--data short"*) case "$*" in *--max-length*) exit 9;; *) echo '{"bytes": 7}';; esac;;
  plan*) echo "error: line 1: 90 tokens" >&2; exit 3;;
  *) echo "error: no model" >&2; exit 5;;
esac
"#;

    #[test]
    fn what_is_not_planned_is_no_fault_and_what_training_would_refuse_is() {
        let dir = tempfile::tempdir().unwrap();
        let runner = runner(dir.path());
        let lora = runner.lora.clone();
        fs::write(&lora, STAND_IN).unwrap();
        fs::set_permissions(&lora, fs::Permissions::from_mode(0o755)).unwrap();
        let plan = |train: &str| {
            let grid = "variants = ['lora', 'loha']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]";
            plan(&format!("{grid}\ntrain = {train}"))
        };
        let parts = |train: &str, judged: &str| {
            let of = PathBuf::from;
            let (held_out, validation) = judged.split_once(' ').unwrap_or((judged, judged));
            let [held_out, validation] = [of(held_out), of(validation)];
            let (train, fit) = (of(train), of(train));
            let (train_rows, held_out_rows, common) = (1, 1, 0);
            let name = "x".into();
            [Parts { name, train, held_out, fit, validation, train_rows, held_out_rows, common }]
        };
        let said = |plan: &Plan, train: &str, judged: &str| {
            faults(plan, &parts(train, judged), &lora, Path::new("model")).unwrap()
        };
        let cut = plan("['--truncate', '--max-length', '64']");
        assert_eq!(said(&cut, "cut", "short"), Vec::<String>::new());
        // What is judged by is not cut.
        assert_eq!(said(&cut, "cut", "long"), ["lora, rank 1: line 1: 90 tokens"]);
        assert_eq!(said(&plan("[]"), "cut", "short"), ["lora, rank 8: line 1: 90 tokens"]);
        // Nor is validation read where there is one rate.
        assert_eq!(said(&cut, "cut", "short long"), Vec::<String>::new());
        let tuned = Plan { learning_rates: vec![1e-3, 1e-4], ..cut.clone() };
        assert_eq!(said(&tuned, "cut", "short long"), ["lora, rank 1: line 1: 90 tokens"]);
        for name in ["full", "qlora+full"] {
            let full = Plan { variants: vec![name.into()], ..plan("[]") };
            assert_eq!(said(&full, "long", "short"), [format!("{name}, rank 1: line 1: 90 tokens")]);
            // Its own layers alone.
            let upper = Plan { full_layers: vec![28, 29], ..full };
            assert_eq!(said(&upper, "upper", "short"), Vec::<String>::new());
        }
        let refused = |plan: &Plan| refused(&grid(plan), &runner, dir.path()).unwrap();
        assert_eq!(refused(&cut), Vec::<String>::new());
        let said = refused(&plan("['--warmpu', '0.1']"));
        assert!(said.len() == 1 && said[0].contains("--warmpu"), "{said:?}");
        // Each rule has its own way of seeing an option.
        let rules = plan("['--robust', 'median']");
        let rules = Plan {
            variants: ["lora by fedit", "lora by flora"].map(str::to_owned).into(),
            clients: 2,
            rounds: 1,
            ..rules
        };
        let said = refused(&rules);
        assert!(said.len() == 1 && said[0].contains("flora with a robust rule"), "{said:?}");
    }
}
