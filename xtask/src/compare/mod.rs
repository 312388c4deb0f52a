//! `compare`: methods, ranks and seeds trained alike, judged on rows that none of them saw, with what each costs.

mod assemble;
mod foresee;
mod gather;
mod jobs;
mod plan;
mod report;
mod results;
mod run;
mod split;
mod stats;

use crate::{cache, peers, setup, sh};
use anyhow::{Context, Result, bail};
use gather::Ended;
use jobs::{Grid, Job};
use plan::Plan;
use run::{Files, Fingerprint, Runner};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to compare (docs/comparison.md); default: the methods at two ranks on the demo's data, half an hour
    #[arg(long, value_name = "TOML")]
    plan: Option<PathBuf>,
    /// Also train lora, rslora and dora, as far as the plan has them, by this peer, from the same start on the same
    /// batches
    #[arg(long, value_parser = ["peft"])]
    peer: Option<String>,
    /// Only say what would run, with the time and memory that it would take
    #[arg(long)]
    dry_run: bool,
    /// Only write the report of what has run so far
    #[arg(long, conflicts_with = "dry_run")]
    report: bool,
    #[command(flatten)]
    peers: peers::Args,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (mut plan, text) = match &args.plan {
        Some(path) => Plan::read(path)?,
        None => {
            let mut plan = Plan::parse(plan::DEFAULT)?;
            plan.under(sh::root());
            (plan, plan::DEFAULT.to_owned())
        }
    };
    if args.peer.is_some() && plan.peers.is_empty() {
        let known = ["lora", "rslora", "dora"].map(str::to_owned);
        plan.peers = known.into_iter().filter(|v| plan.variants.contains(v)).collect();
    }
    plan::refuse(&plan.faults())?;
    setup::ensure(false)?;
    let model = if plan.model == "demo" { setup::model()? } else { PathBuf::from(&plan.model) };
    sh::run(sh::cargo().args(["build", "--release", "-p", "lora-cli"]))?;
    let lora = sh::root().join("target/release/lora");
    plan::refuse(&foresee::faults(&plan, &lora, &model)?)?;

    let home = sh::root().join("target/compare").join(&plan.name);
    fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    let _lock = cache::lock(&home.join("lock"))?;
    let parts = plan.data.iter().map(|data| split::split(data, &home.join("data"))).collect::<Result<Vec<_>>>()?;
    let sets = parts.iter().map(|p| Ok((p.name.clone(), Files::of(p)?))).collect::<Result<Vec<_>>>()?;
    let program = sh::capture(Command::new(&lora).arg("--version"))?.trim().to_owned();
    let grid = Grid { plan: &plan, program, model: Fingerprint::of(&model)?, sets };
    if args.dry_run {
        return foresee::print(&grid, &lora, &home);
    }
    let python = if plan.peers.is_empty() { None } else { Some(peers::python(&args.peers)?) };
    let general = sh::root().join("xtask/data/general.jsonl");
    let runner = Runner { lora, runs: sh::root().join("target/compare/runs"), general, python };

    let (floors, tuning) = (grid.floors(), grid.tuning());
    let left = floors.len() + tuning.len() + grid.grid(|_, _| 1.0).len();
    let mut progress = Progress { runner: &runner, only_found: args.report, left, spent: (0.0, 0) };
    let mut ended = progress.work(&floors);
    let (rates, tried) = assemble::rates(&plan, &progress.work(&tuning));
    let rate = |set: &str, variant: &str| {
        rates.get(&(set.to_owned(), variant.to_owned())).copied().unwrap_or(plan.learning_rates[0])
    };
    ended.extend(progress.work(&grid.grid(rate)));
    let command = match &args.plan {
        Some(path) => format!("cargo xtask compare --plan {}", path.display()),
        None => "cargo xtask compare".to_owned(),
    };
    let comparison = assemble::comparison(&plan, &text, command, &parts, &ended, tried)?;
    report::write(&comparison, &home)?;
    let failed = ended.iter().filter(|e| e.outcome.is_err()).count();
    println!("{}", report::summary(&comparison));
    println!("report    {}", home.join("report.html").display());
    if failed > 0 && !args.report {
        bail!("{failed} runs failed: the report lists them, and the same command tries them again");
    }
    Ok(())
}

/// Runs that are being done.
struct Progress<'a> {
    runner: &'a Runner,
    only_found: bool,
    left: usize,
    /// Seconds, and runs that took them.
    spent: (f64, u32),
}

impl Progress<'_> {
    /// What came of each job: of an earlier time, or of now.
    fn work(&mut self, jobs: &[Job]) -> Vec<Ended> {
        let mut ended = Vec::new();
        for job in jobs {
            self.left = self.left.saturating_sub(1);
            let outcome = match self.runner.found(&job.settings) {
                Some(found) => Ok(found),
                None if self.only_found => continue,
                None => self.one(job).map_err(|e| format!("{e:#}")),
            };
            let dir = self.runner.dir(&job.settings);
            let settings = job.settings.clone();
            ended.push(Ended { settings, outcome: outcome.map(|found| (found, dir)) });
        }
        ended
    }

    fn one(&mut self, job: &Job) -> Result<Value> {
        let begin = Instant::now();
        eprintln!("{}", job.settings.title());
        let outcome = self.runner.run(&job.settings, job.ours.as_ref());
        let seconds = begin.elapsed().as_secs_f64();
        self.spent = (self.spent.0 + seconds, self.spent.1 + 1);
        let left = self.left as f64 * self.spent.0 / f64::from(self.spent.1) / 60.0;
        let said = match &outcome {
            Ok(found) => score(found),
            Err(e) => format!("FAILED: {e:#}"),
        };
        eprintln!("  {said}  ({seconds:.0} s; {} runs, about {left:.0} min left)", self.left);
        outcome
    }
}

fn score(found: &Value) -> String {
    let number = |path: &str| found.pointer(path).and_then(Value::as_f64);
    let accuracy = number("/eval/labels/accuracy").map_or(String::new(), |a| format!("{:.1} % right, ", 100.0 * a));
    format!("{accuracy}loss {:.4}", number("/eval/loss").unwrap_or(f64::NAN))
}
