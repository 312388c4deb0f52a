//! A plan's runs, by the stand-in of `run_tests.rs`.

use super::Args;
use super::carry;
use super::jobs::tests::{grid, plan};
use super::progress::Progress;
use super::run_tests::{calls, runner};
use clap::Parser;
use std::fs;
use std::time::Duration;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Args {
    Line::parse_from(["compare"].into_iter().chain(words.iter().copied())).args
}

#[test]
fn no_run_begins_that_would_end_too_late() {
    let dir = tempfile::tempdir().unwrap();
    let runner = runner(dir.path());
    let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1, 2, 3]");
    let jobs = grid(&plan).grid(|_, _| 1e-3);
    let work = |seconds: f64| {
        let time = Some(Duration::from_secs_f64(seconds));
        let ended = Progress::new(&runner, 1, false, jobs.len(), time).work(&jobs);
        ended.iter().map(|e| e.settings.hash()).collect::<Vec<_>>()
    };
    assert_eq!(work(0.0), Vec::<String>::new(), "the time is up");
    // Nothing tells how long the first will take; it took longer than what is left for a second.
    fs::write(dir.path().join("slow-train"), "").unwrap();
    let first = work(1.5);
    assert_eq!(first, [jobs[0].settings.hash()]);
    // What is there takes no time, so the next one begins.
    fs::remove_file(dir.path().join("slow-train")).unwrap();
    assert_eq!(work(0.0), first);
    assert_eq!(work(600.0).len(), jobs.len());
}

/// Another comparison's run tells nothing of how long ours take, and takes of our time all the same.
#[test]
fn waiting_for_another_comparison_is_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let runner = runner(dir.path());
    let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1, 2]");
    let jobs = grid(&plan).grid(|_, _| 1e-3);
    // The first is held by another, who does not finish it.
    let work = |held: f64, seconds: f64| {
        let lock = runner.lock(&jobs[0].settings).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_secs_f64(held));
                drop(lock);
            });
            let time = Some(Duration::from_secs_f64(seconds));
            Progress::new(&runner, 1, false, jobs.len(), time).work(&jobs).len()
        })
    };
    assert_eq!((work(0.6, 0.3), calls(dir.path())), (0, 0), "the time is up when its turn comes");
    // As long as the wait, a second run would end too late.
    assert!(work(2.0, 3.5) > 1);
}

/// It takes minutes and gigabytes, and a report trains nothing.
#[test]
fn a_report_makes_no_environment_for_peers() {
    let plan =
        plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]\npeers = ['lora']");
    let of = |words: &[&str]| super::interpreter(&plan, &args(words));
    let error = of(&["--venv", "/nowhere/at/all"]).unwrap_err().to_string();
    assert!(error.contains("is no virtual environment"), "{error}");
    assert_eq!(of(&["--venv", "/nowhere/at/all", "--report"]).unwrap(), None);
}

#[test]
fn what_is_there_is_saved_where_no_rates_come_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let runner = runner(dir.path());
    let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3, 1e-4]\nseeds = [1]");
    let file = dir.path().join("runs.zip");
    let args = args(&["--save", file.to_str().unwrap()]);
    fs::write(dir.path().join("fail-train"), "").unwrap();
    let progress = Progress::new(&runner, 1, false, 99, None);
    let error = super::work(&grid(&plan), &runner, &progress, &args).err().unwrap().to_string();
    assert!(error.starts_with("4 runs that choose a rate failed"), "{error}");
    let runs = dir.path().join("elsewhere/runs");
    assert_eq!(carry::load(&file, &runs).unwrap(), 2, "both sets' floors");
}
