//! `fed --scale`: what a simulated round costs, as the clients, those asked, the rank and the model grow.

use crate::{setup, sh};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

const ROUNDS: usize = 20;

/// One simulation, and what it took.
struct Row {
    model: &'static str,
    clients: usize,
    asked: usize,
    rank: usize,
    seconds: f64,
    peak: u64,
    down: u64,
    up: u64,
}

pub(super) fn run() -> Result<()> {
    setup::ensure(false)?;
    let small = setup::model()?;
    let lora = sh::lora()?;
    let home = sh::root().join("target/fed/scale");
    let _ = fs::remove_dir_all(&home);
    fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    let tiny = tiny_model(&home)?;
    let mut rows = Vec::new();
    for (name, model, clients, asked, rank) in [
        ("tiny", &tiny, 10, 10, 8),
        ("tiny", &tiny, 100, 10, 8),
        ("tiny", &tiny, 1000, 10, 8),
        ("tiny", &tiny, 10000, 10, 8),
        ("tiny", &tiny, 1000, 40, 8),
        ("tiny", &tiny, 1000, 160, 8),
        ("tiny", &tiny, 1000, 10, 2),
        ("tiny", &tiny, 1000, 10, 16),
        ("SmolLM2-135M", &small, 1000, 10, 8),
    ] {
        let row = simulate(&lora, &home, (name, model), (clients, asked, rank))?;
        println!("{}", line(&row));
        rows.push(row);
    }
    println!("\n{HEAD}");
    rows.iter().for_each(|row| println!("{}", line(row)));
    Ok(())
}

/// A model of two layers, with a tokenizer.
fn tiny_model(home: &Path) -> Result<PathBuf> {
    let (from, to) = (sh::root().join("tests/goldens/smollm/model"), home.join("tiny"));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(&from).with_context(|| from.display().to_string())?.flatten() {
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    fs::copy(sh::root().join("crates/lora-cli/tests/data/tokenizer.json"), to.join("tokenizer.json"))?;
    fs::write(to.join("tokenizer_config.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)?;
    Ok(to)
}

fn simulate(
    lora: &Path,
    home: &Path,
    (name, model): (&'static str, &Path),
    (clients, asked, rank): (usize, usize, usize),
) -> Result<Row> {
    // Two rows a client.
    let data: String = (0..2 * clients)
        .map(|i| format!("{{\"prompt\": \"{i} and {} is \", \"completion\": \"{}\"}}\n", i % 7, i + i % 7))
        .collect();
    fs::write(home.join("rows.jsonl"), data)?;
    let out = home.join("out");
    let mut command = sh::ours(lora);
    command.args(["fed", "simulate", "--rule", "fedex", "--rounds", &ROUNDS.to_string(), "--max-steps", "1"]);
    command.args(["--batch-size", "2", "--overwrite", "--device", "cpu", "--dtype", "f32"]);
    for (flag, n) in [("--split", clients), ("--per-round", asked), ("--rank", rank)] {
        command.args([flag, &n.to_string()]);
    }
    command.arg("--model").arg(model).arg("--data").arg(home.join("rows.jsonl")).arg("--out").arg(&out);
    let mut child = command.stdout(Stdio::null()).spawn().with_context(|| sh::show(&command))?;
    let mut peak = 0;
    let status = loop {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = field.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(kib.unwrap_or(0) * 1024);
        if let Some(status) = child.try_wait()? {
            break status;
        }
        sleep(Duration::from_millis(20));
    };
    if !status.success() {
        bail!("{} failed", sh::show(&command));
    }
    let text = fs::read_to_string(home.join("out.rounds.jsonl"))?;
    let rounds: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut seconds: Vec<f64> = rounds.iter().filter_map(|round| round["seconds"].as_f64()).collect();
    seconds.sort_by(f64::total_cmp);
    let of = |key: &str| rounds.last().and_then(|round| round["clients"][0][key].as_u64()).unwrap_or(0);
    let middle = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    let (down, up) = (of("bytes_down"), of("bytes_up"));
    Ok(Row { model: name, clients, asked, rank, seconds: middle, peak, down, up })
}

const HEAD: &str = "| model | clients | asked a round | rank | s a round | peak MB | kB down, a client | kB up |\n\
                    |---|---|---|---|---|---|---|---|";

fn line(row: &Row) -> String {
    let Row { model, clients, asked, rank, seconds, peak, down, up } = row;
    let (peak, down, up) = (*peak as f64 / 1e6, *down as f64 / 1e3, *up as f64 / 1e3);
    format!("| {model} | {clients} | {asked} | {rank} | {seconds:.3} | {peak:.0} | {down:.0} | {up:.0} |")
}
