//! `quality`: what a method's rounding costs in right answers, over several seeds.

use crate::{cache, setup, sh};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// JSON-lines files of `context` and `target`; a fifth of each is held out, by the sha256 of the context
    #[arg(long, num_args = 1.., required = true, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Methods, a start behind a colon: lora, qlora, qlora:loftq
    #[arg(long, value_delimiter = ',', default_value = "lora,qlora,qlora:loftq")]
    rows: Vec<String>,
    /// Seeds, from 1 on
    #[arg(long, default_value_t = 3)]
    seeds: u64,
    /// Handed on to `lora train`
    #[arg(long, default_value = "--rank 8 --lr 5e-4 --epochs 1 --batch-size 8", allow_hyphen_values = true)]
    train: String,
    /// A Hugging Face folder or GGUF file [default: the demo's]
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(false)?;
    let model = args.model.clone().map_or_else(setup::model, Ok)?;
    sh::run(sh::cargo().args(["build", "--release", "-p", "lora-cli"]))?;
    let dir = sh::root().join("target/quality");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let (train, held_out) = split(&args.data, &dir)?;
    // What is done already, by its command lines, is not done again: a run may be stopped and go on.
    let results = dir.join("results.jsonl");
    let done = fs::read_to_string(&results).unwrap_or_default();
    let known: Vec<Value> = done.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let mut table = String::new();
    for row in &args.rows {
        let mut scores = Vec::new();
        for seed in 1..=args.seeds {
            let run = Run { args, row, seed, model: &model, dir: &dir, data: (&train, &held_out) };
            let key = run.key()?;
            let score = match known.iter().find(|r| r["key"] == key.as_str()) {
                Some(found) => found.clone(),
                None => {
                    let mut score = run.run()?;
                    score["key"] = key.into();
                    let mut file = fs::File::options().create(true).append(true).open(&results)?;
                    writeln!(file, "{score}")?;
                    score
                }
            };
            let number = |name: &str| score[name].as_f64().with_context(|| format!("no {name} in {score}"));
            scores.push((100.0 * number("accuracy")?, number("loss")?));
        }
        let mean =
            |of: fn(&(f64, f64)) -> f64| scores.iter().map(of).sum::<f64>() / scores.len().max(1) as f64;
        let each: Vec<_> = scores.iter().map(|(right, _)| format!("{right:.1}")).collect();
        let line = format!("{row:16} {:6.2} %   {:.4}   {}", mean(|s| s.0), mean(|s| s.1), each.join("  "));
        writeln!(table, "{line}")?;
    }
    println!("\nmethod            right      loss    each seed");
    print!("{table}");
    Ok(())
}

/// Rows whose context's sha256 begins with a byte that 5 divides are held out; the rest is for training.
fn split(files: &[PathBuf], dir: &Path) -> Result<(PathBuf, PathBuf)> {
    let (mut train, mut held_out) = (String::new(), String::new());
    for path in files {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = || format!("{}:{}", path.display(), n + 1);
            let row: Value = serde_json::from_str(line).with_context(place)?;
            let context = row["context"].as_str().with_context(|| format!("{}: no `context`", place()))?;
            let first = Sha256::digest(context.as_bytes())[0];
            writeln!(if first % 5 == 0 { &mut held_out } else { &mut train }, "{line}")?;
        }
    }
    ensure!(!train.is_empty() && !held_out.is_empty(), "too few rows to split");
    let (to, beside) = (dir.join("train.jsonl"), dir.join("heldout.jsonl"));
    fs::write(&to, train)?;
    fs::write(&beside, held_out)?;
    Ok((to, beside))
}

/// One method with one seed.
struct Run<'a> {
    args: &'a Args,
    row: &'a str,
    seed: u64,
    model: &'a Path,
    dir: &'a Path,
    data: (&'a Path, &'a Path),
}

impl Run<'_> {
    /// What the result depends on.
    fn key(&self) -> Result<String> {
        let hash = |path: &Path| cache::sha256(path).map(|text| text[..12].to_owned());
        let (train, held_out) = (hash(self.data.0)?, hash(self.data.1)?);
        let model = self.model.display();
        Ok(format!("{} {} {} {model} {train} {held_out}", self.row, self.seed, self.args.train))
    }

    fn run(&self) -> Result<Value> {
        let (method, start) = self.row.split_once(':').unwrap_or((self.row, ""));
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (mut model, mut extra) = (self.model.display().to_string(), Vec::new());
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let mut training = words(&self.args.train);
        if !start.is_empty() {
            // The start has the rank; training goes on with it.
            let at = training.iter().position(|word| word == "--rank");
            let rank: Vec<_> = at.map_or_else(Vec::new, |at| training.drain(at..at + 2).collect());
            let out = path("start");
            let init = [
                "init",
                "--model",
                &model,
                "--init",
                start,
                "--variant",
                method,
                "--out",
                &out,
                "--overwrite",
            ];
            lora(&[&init.map(str::to_owned)[..], &rank].concat())?;
            model = format!("{out}/base");
            extra = vec!["--adapter".to_owned(), format!("{out}/adapter")];
        }
        let (data, out, seed) = (self.data.0.display().to_string(), path("adapter"), self.seed.to_string());
        let train = ["train", "--model", &model, "--data", &data, "--variant", method, "--seed", &seed];
        let to = ["--out", &out, "--overwrite"].map(str::to_owned);
        lora(&[&train.map(str::to_owned)[..], &to, &training, &extra].concat())?;
        let held_out = self.data.1.display().to_string();
        let eval = [
            "eval",
            "--model",
            &model,
            "--adapter",
            &out,
            "--data",
            &held_out,
            "--variant",
            method,
            "--json",
        ];
        let text = lora(&eval.map(str::to_owned))?;
        let last = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("`lora eval` said {text:?}"))
    }
}

/// Runs the program, its progress on the screen; what it printed.
fn lora(words: &[String]) -> Result<String> {
    eprintln!("$ lora {}", words.join(" "));
    let output = Command::new(sh::root().join("target/release/lora")).args(words).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
