//! `compare`: methods, ranks and seeds trained alike, judged on rows that none of them saw, with what each costs.

mod assemble;
mod carry;
#[cfg(test)]
mod carry_tests;
mod child;
mod foresee;
mod gather;
mod identity;
mod jobs;
mod judge;
mod machines;
mod outcome;
pub(crate) mod plan;
#[cfg(test)]
mod plan_tests;
mod program;
mod progress;
mod rates;
mod report;
mod resample;
mod results;
mod run;
#[cfg(all(test, unix))]
mod run_tests;
mod runner;
pub(crate) mod split;
mod stats;
pub(crate) mod traffic;
#[cfg(all(test, unix))]
mod work_tests;

use crate::{cache, peers, setup, sh};
use anyhow::{Context, Result, bail};
use gather::Ended;
use jobs::{Files, Grid};
use plan::Plan;
use program::Program;
use progress::Progress;
use report::text::count;
use results::Tried;
use run::Fingerprint;
use runner::Runner;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a try of the built-in plan may take; on two cores with AVX512-BF16 it takes 12.
const BUILT_IN_MINUTES: u32 = 30;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to compare (docs/comparison.md); default: the methods at two ranks on the demo's data
    #[arg(long, value_name = "TOML")]
    plan: Option<PathBuf>,
    /// Also train lora, rslora and dora, as far as the plan has them, by this peer, from the same start on the same
    /// batches
    #[arg(long, value_parser = ["peft"])]
    peer: Option<String>,
    /// Runs at once, each with its share of the processors: sooner done, but speeds are then those of a busy machine
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Begin no run that would end later, as far as the longest one so far tells, and report those there are; the same
    /// command goes on with the others [default: 30 for the built-in plan, else as long as it takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    minutes: Option<u32>,
    /// Only say what would run, with the time and memory that it would take
    #[arg(long)]
    dry_run: bool,
    /// Only write the report of what has run so far
    #[arg(long, conflicts_with = "dry_run")]
    report: bool,
    /// First take the finished runs that are in FILE (`--save`, perhaps elsewhere); speeds are then those of their
    /// machines
    #[arg(long, value_name = "FILE")]
    load: Vec<PathBuf>,
    /// In the end put all runs of the plan that finished or diverged into FILE, a zip, for `--load`; of the data it has the
    /// labels alone
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    save: Option<PathBuf>,
    #[command(flatten)]
    peers: peers::Args,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let begin = Instant::now();
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
    let ours = Program::get(args.report)?;
    let lora = ours.copy.clone();

    let home = sh::root().join("target/compare").join(&plan.name);
    fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    // A report of what is there waits for nobody, and disturbs nobody.
    let lock = home.join("lock");
    let lock = if args.report { cache::try_lock(&lock)? } else { Some(cache::lock(&lock)?) };
    let runs = sh::root().join("target/compare/runs");
    for file in &args.load {
        println!("{} taken from {}", count(carry::load(file, &runs)?, "run"), file.display());
    }
    let split = if lock.is_some() { split::split } else { split::there };
    let parts = plan.data.iter().map(|data| split(data, &home.join("data"))).collect::<Result<Vec<_>>>()?;
    plan::refuse(&plan.few_rows(&parts))?;
    for part in parts.iter().filter(|part| part.common > 0) {
        eprintln!(
            "note: {}: {} of the {} held-out rows ask what is trained on too\n  hint: leave them out of one of the files: what \
             was learnt by heart judges no method",
            part.name, part.common, part.held_out_rows
        );
    }
    plan::refuse(&foresee::faults(&plan, &parts, &lora, &model)?)?;
    let sets = parts.iter().map(|p| Ok((p.name.clone(), Files::of(p)?))).collect::<Result<Vec<_>>>()?;
    let program = sh::capture(sh::ours(&lora).arg("--version"))?.trim().to_owned();
    let general = sh::root().join("xtask/data/general.jsonl");
    let texts = run::general(&general)?;
    let grid = Grid { plan: &plan, program, model: Fingerprint::of(&model)?, sets, general: texts };
    let threads = threads(args.jobs);
    let (plain, build) = (ours.plain.clone(), ours.build.clone());
    let mut runner = Runner { lora, plain, build, threads, runs, general, python: None };
    if !args.report {
        plan::refuse(&foresee::refused(&grid, &runner, &home)?)?;
    }
    if args.dry_run {
        return foresee::print(&grid, &runner.lora, &home);
    }
    runner.python = interpreter(&plan, args)?;

    let runs = grid.floors().len() + grid.tuning().len() + grid.grid(|_, _| 1.0).len();
    let minutes = args.minutes.or(args.plan.is_none().then_some(BUILT_IN_MINUTES));
    // What was built or fetched on the way counts too.
    let time = minutes.map(|m| Duration::from_secs(60 * u64::from(m)).saturating_sub(begin.elapsed()));
    let progress = Progress::new(&runner, args.jobs, args.report, runs, time);
    let Done { ended, tuning, tried } = work(&grid, &runner, &progress, args)?;
    let command = match &args.plan {
        Some(path) => format!("cargo xtask compare --plan {}", path.display()),
        None => "cargo xtask compare".to_owned(),
    };
    let mut comparison =
        assemble::comparison(&plan, &text, command, &ours.build, &parts, &ended, (tuning.as_slice(), tried))?;
    comparison.runs = [ended.len() + tuning.len(), runs];
    report::write(&comparison, &home)?;
    save(args, &runner, ended.iter().chain(&tuning))?;
    // Those that cannot be read too.
    let failed: usize = comparison.cells.iter().map(|cell| cell.failures.len()).sum();
    println!("{}", report::summary(&comparison));
    println!("report    {}", home.join("report.html").display());
    if failed > 0 && !args.report {
        let (them, failed) = (if failed == 1 { "it" } else { "them" }, count(failed, "run"));
        let diverged = ended.iter().any(|e| e.outcome.as_ref().is_err_and(|failure| failure.diverged));
        let but = if diverged { ", but for what diverged" } else { "" };
        bail!("{failed} failed: the report lists {them}, and the same command tries {them} again{but}");
    }
    Ok(())
}

/// What came of the floors and the grid, of the runs that chose the rates, and of the rates.
struct Done {
    ended: Vec<Ended>,
    tuning: Vec<Ended>,
    tried: Vec<Tried>,
}

/// All runs of the plan. If no rates come of those that choose them, what is there is saved all the same.
fn work(grid: &Grid<'_>, runner: &Runner, progress: &Progress<'_>, args: &Args) -> Result<Done> {
    let mut ended = progress.work(&grid.floors());
    let jobs = grid.tuning();
    let tuning = progress.work(&jobs);
    let chosen = rates::choose(grid.plan, &tuning, jobs.len(), args.report);
    if chosen.is_err() {
        save(args, runner, ended.iter().chain(&tuning))?;
    }
    let (rates, tried) = chosen?;
    let rate = |set: &str, variant: &str| {
        rates.get(&(set.to_owned(), variant.to_owned())).copied().unwrap_or(grid.plan.learning_rates[0])
    };
    ended.extend(progress.work(&grid.grid(rate)));
    runner.look_again(&mut ended);
    Ok(Done { ended, tuning, tried })
}

/// If it is asked for.
fn save<'a>(args: &Args, runner: &Runner, ended: impl Iterator<Item = &'a Ended>) -> Result<()> {
    if let Some(file) = &args.save {
        let saved = carry::save(&ended.collect::<Vec<_>>(), &runner.runs, file)?;
        println!("{} saved in {}", count(saved, "run"), file.display());
    }
    Ok(())
}

/// The peers', where the plan has any and runs are to be done: it may have to be made first.
fn interpreter(plan: &Plan, args: &Args) -> Result<Option<PathBuf>> {
    if plan.peers.is_empty() || args.report { Ok(None) } else { peers::python(&args.peers).map(Some) }
}

/// Each run's share of the processors; none where one run has them all.
pub(crate) fn threads(jobs: u32) -> Option<usize> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    (jobs > 1).then(|| (all / jobs as usize).max(1))
}
