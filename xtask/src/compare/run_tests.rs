//! Runs, by a stand-in for `lora` that can be told to fail or to be killed.

use super::gather::Ended;
use super::jobs::Job;
use super::jobs::tests::{grid, plan};
use super::outcome::Failure;
use super::progress::Progress;
use super::run::{Federation, Fingerprint, Measure, QUESTIONS, Settings, TRACE};
use super::runner::Runner;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Does what `lora` leaves behind, unless a file beside it says otherwise.
const STAND_IN: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$1" >> "$here/calls"
[ -e "$here/slow-$1" ] && sleep 1
[ -e "$here/diverge-$1" ] && { echo "error: the loss is NaN; all parameters are finite" >&2; exit 6; }
[ -e "$here/lose-$1" ] && { cat "$here/lose-$1" >&2; exit 3; }
[ -e "$here/fail-$1" ] && { echo "error: told to fail" >&2; exit 1; }
[ -e "$here/kill-$1" ] && { rm "$here/kill-$1"; kill -9 $$; }
while [ $# -gt 0 ]; do
  case $1 in --out) out=$2;; --rows) rows=$2;; esac
  shift
done
[ -n "$out" ] && mkdir -p "$out" && echo '{"outcome": {"seconds": 2.5}}' > "$out/training.json"
[ -n "$out" ] && echo weights > "$out/adapter_model.safetensors"
[ -n "$rows" ] && echo '{"line": 1, "reference": "a", "label": "a", "scores": {"a": -1, "b": -2}}' > "$rows"
echo '{"loss": 0.5, "labels": {"accuracy": 1.0}}'
"#;

pub(super) fn runner(dir: &Path) -> Runner {
    let lora = dir.join("lora");
    fs::write(&lora, STAND_IN).unwrap();
    fs::set_permissions(&lora, fs::Permissions::from_mode(0o755)).unwrap();
    Runner {
        plain: lora.clone(),
        lora,
        build: "a build".into(),
        threads: None,
        runs: dir.join("runs"),
        general: dir.join("general.jsonl"),
        python: None,
    }
}

fn settings() -> Settings {
    let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]");
    grid(&plan).grid(|_, _| 1e-3).remove(0).settings
}

fn run(runner: &Runner, settings: &Settings) -> anyhow::Result<Value> {
    runner.run(settings, None, || true).map(Option::unwrap)
}

/// How often the stand-in was called.
pub(super) fn calls(dir: &Path) -> usize {
    fs::read_to_string(dir.join("calls")).unwrap_or_default().lines().count()
}

#[test]
fn a_run_is_found_again_only_when_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, settings) = (runner(dir.path()), settings());
    // Killed in each of its steps, it is not there; then it is, and all of it ran again.
    for step in ["train", "eval", "inspect", "merge"] {
        fs::write(dir.path().join(format!("kill-{step}")), "").unwrap();
        let error = run(&runner, &settings).unwrap_err().to_string();
        assert!(error.contains(step) && error.contains("signal: 9"), "{error}");
        assert!(runner.found(&settings).is_none(), "killed in {step}");
    }
    let before = calls(dir.path());
    let result = run(&runner, &settings).unwrap();
    assert_eq!(calls(dir.path()) - before, 5, "train, eval, general, inspect, merge");
    assert_eq!(runner.found(&settings), Some(result.clone()));
    assert_eq!((&result["eval"]["loss"], &result["train"]["outcome"]["seconds"]), (&0.5.into(), &2.5.into()));
    let home = runner.dir(&settings);
    assert!(home.join("rows.jsonl").exists() && !home.join("adapter/adapter_model.safetensors").exists());
    // By hand, from the folder alone.
    let script = fs::read_to_string(home.join("run.sh")).unwrap();
    assert_eq!(script.lines().count(), 5);
    assert!(Command::new("sh").arg(home.join("run.sh")).status().unwrap().success());
    // Half a result is none, nor is one without the rows, which some other program may have left out.
    let whole = fs::read_to_string(home.join("result.json")).unwrap();
    fs::write(home.join("result.json"), &whole[..whole.len() / 2]).unwrap();
    assert!(runner.found(&settings).is_none());
    fs::write(home.join("result.json"), whole).unwrap();
    assert!(runner.found(&settings).is_some());
    for rows in ["", "{\"line\":"] {
        fs::write(home.join("rows.jsonl"), rows).unwrap();
        assert!(runner.found(&settings).is_none(), "{rows:?}");
    }
    fs::remove_file(home.join("rows.jsonl")).unwrap();
    assert!(runner.found(&settings).is_none());
}

/// A peer wants the trace of a run that is finished.
#[test]
fn what_is_finished_stays_until_what_takes_its_place_is() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, settings) = (runner(dir.path()), settings());
    let first = run(&runner, &settings).unwrap();
    let peer = Settings { peer: Some("peft".into()), ..settings.clone() };
    for (step, there) in [("train", TRACE), ("eval", QUESTIONS)] {
        // Half of what a peer needs: an older build's, or of a try that was killed.
        let _ = [TRACE, QUESTIONS].map(|name| fs::remove_file(runner.dir(&settings).join(name)));
        fs::write(runner.dir(&settings).join(there), "").unwrap();
        fs::write(dir.path().join(format!("kill-{step}")), "").unwrap();
        let error = runner.run(&peer, Some(&settings), || true).unwrap_err().to_string();
        assert!(error.contains(step), "{error}");
        assert_eq!(runner.found(&settings).as_ref(), Some(&first));
    }
    let home = runner.dir(&settings);
    fs::write(home.join("of-the-first"), "").unwrap();
    let second = runner.anew(&settings, None).unwrap();
    assert_eq!((runner.found(&settings), home.join("of-the-first").exists()), (Some(second.clone()), false));
    assert_eq!(second["commands"], first["commands"], "they name the folder where it lies");
    assert_eq!(fs::read_dir(&runner.runs).unwrap().count(), 1, "where runs lie there are runs alone");

    // What a report has of it is what is there in the end; if nothing is, it says so.
    let mut ended = [Ended { settings, outcome: Ok(("of before".into(), home.clone())) }];
    runner.look_again(&mut ended);
    assert_eq!(ended[0].outcome.as_ref().unwrap(), &(second, home.clone()));
    fs::remove_file(home.join("rows.jsonl")).unwrap();
    runner.look_again(&mut ended);
    assert!(ended[0].outcome.is_err());
}

/// Peers of older builds read rows by themselves, conversations and completions otherwise than ours.
#[test]
fn a_peer_is_asked_what_ours_is() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, ours) = (runner(dir.path()), settings());
    let rows = dir.path().join("rows.jsonl");
    let held_out = Fingerprint { path: rows.clone(), ..ours.held_out.clone() };
    let peer = Settings { held_out, peer: Some("peft".into()), ..ours };
    let home = runner.dir(&peer);
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("rows.jsonl"), "{\"right\": true}\n").unwrap();
    for (row, option, there) in [
        (r#"{"messages": []}"#, "--held-out rows.jsonl", false),
        (r#"{"prompt": "a", "completion": "b"}"#, "--held-out rows.jsonl", false),
        (r#"{"context": "a", "target": "b"}"#, "--held-out rows.jsonl", true),
        (r#"{"messages": []}"#, "--asked asked.jsonl", true),
    ] {
        fs::write(&rows, row).unwrap();
        let found = serde_json::json!({ "commands": [format!("python peft_train.py {option} --out x")] });
        fs::write(home.join("result.json"), found.to_string()).unwrap();
        assert_eq!(runner.found(&peer).is_some(), there, "{row} {option}");
    }
    // Ours leaves it what it is asked, where repeating the run by hand is not in its way.
    let traced = Settings { peer: None, measure: Measure { trace: true, ..peer.measure }, ..peer };
    let steps = traced.steps(Path::new("run"), Path::new("general.jsonl"));
    for (step, file) in [("train", TRACE), ("eval", QUESTIONS)] {
        let line = steps.iter().find(|s| s.name == step).unwrap().args.join(" ");
        assert!(line.contains(&format!("--trace run/{file}")), "{line}");
    }
    assert!(!QUESTIONS.starts_with(TRACE));
}

/// A run that wrote beside a model's files makes it no other one.
#[test]
fn a_models_folder_is_known_by_its_own_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let now = || Fingerprint::of(dir.path()).unwrap().sha256;
    for own in ["config.json", "model.safetensors", "chat_template.jinja"] {
        write(own, "a");
    }
    let first = now();
    write("out.metrics.jsonl", "x");
    write("out.resume", "x");
    fs::create_dir(dir.path().join("out")).unwrap();
    assert_eq!(now(), first);
    for own in ["tokenizer.json", "chat_template.jinja"] {
        let before = now();
        write(own, "b");
        assert_ne!(now(), before, "{own}");
    }
}

/// A federation would go on with its state, training with what it has written down.
#[test]
fn a_run_begins_with_an_empty_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, settings) = (runner(dir.path()), settings());
    fs::write(dir.path().join("fail-train"), "").unwrap();
    assert!(run(&runner, &settings).is_err());
    fs::remove_file(dir.path().join("fail-train")).unwrap();
    let left = ["adapter.state", "adapter.resume.safetensors"].map(|name| runner.dir(&settings).join(name));
    left.iter().for_each(|path| fs::write(path, "half way").unwrap());
    run(&runner, &settings).unwrap();
    assert!(!left.iter().any(|path| path.exists()));
}

/// Two plans that share a run, at once.
#[test]
fn what_another_does_meanwhile_is_waited_for_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, settings) = (runner(dir.path()), settings());
    let lock = runner.lock(&settings).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| run(&runner, &settings));
        let done = runner.anew(&settings, None).unwrap();
        drop(lock);
        assert_eq!(waits.join().unwrap().unwrap(), done);
    });
    assert_eq!(calls(dir.path()), 5);
    // Where runs lie there are runs alone.
    assert_eq!(fs::read_dir(&runner.runs).unwrap().count(), 1);
}

/// The copy that ran may be gone when somebody repeats a run.
#[test]
fn command_lines_name_what_cargo_builds() {
    let dir = tempfile::tempdir().unwrap();
    let (mut runner, settings) = (runner(dir.path()), settings());
    runner.plain = dir.path().join("as-cargo-calls-it");
    let result = run(&runner, &settings).unwrap();
    let script = fs::read_to_string(runner.dir(&settings).join("run.sh")).unwrap();
    let lines = result["commands"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    for line in script.lines().chain(lines) {
        assert!(line.contains("as-cargo-calls-it ") && !line.contains("/lora "), "{line}");
        // It lies in no folder from which it would find libtorch.
        assert!(line.starts_with("LD_LIBRARY_PATH="), "{line}");
    }
}

#[test]
fn a_failure_says_why_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, settings) = (runner(dir.path()), settings());
    fs::write(dir.path().join("fail-eval"), "").unwrap();
    let failure = run(&runner, &settings).unwrap_err().downcast::<Failure>().unwrap();
    assert!(failure.why.contains("lora eval") && failure.why.contains("told to fail"), "{failure}");
    assert!(!failure.diverged);
    assert!(fs::read_to_string(runner.dir(&settings).join("error.txt")).unwrap().contains("told to fail"));
    fs::remove_file(dir.path().join("fail-eval")).unwrap();
    run(&runner, &settings).unwrap();
    assert!(!runner.dir(&settings).join("error.txt").exists());
}

/// It would do so again: told by the exit code, whatever the words.
#[test]
fn what_diverged_is_known_and_tried_again_by_another_build_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (mut runner, settings) = (runner(dir.path()), settings());
    let jobs = [Job { settings: settings.clone(), ours: None }];
    let work = |runner: &Runner, report: bool, time: Option<Duration>| {
        let mut ended = Progress::new(runner, 1, report, 1, time).work(&jobs);
        ended.pop().map(|e| e.outcome.map_err(|failure| (failure.diverged, failure.why)))
    };
    fs::write(dir.path().join("diverge-train"), "").unwrap();
    let main = fs::read_to_string(crate::sh::root().join("crates/lora-cli/src/main.rs")).unwrap();
    assert!(main.contains("Some(ErrorKind::NonFinite) => 6,"), "the stand-in's code is that of `lora`");
    let Some(Err((true, why))) = work(&runner, false, None) else { panic!("it diverged") };
    assert!(why.contains("the loss is NaN"), "{why}");
    fs::remove_file(dir.path().join("diverge-train")).unwrap();
    let before = calls(dir.path());
    let up = Some(Duration::ZERO);
    for (report, time) in [(false, None), (false, up), (true, None)] {
        assert_eq!(work(&runner, report, time), Some(Err((true, why.clone()))));
    }
    // Nor does a peer wait for a trace of it.
    let peer = Settings { peer: Some("peft".into()), ..settings.clone() };
    let error = runner.run(&peer, Some(&settings), || true).unwrap_err();
    assert!(error.downcast::<Failure>().unwrap().diverged);
    assert_eq!(calls(dir.path()), before);

    runner.build = "another build".into();
    assert_eq!(work(&runner, true, None), Some(Err((true, why))), "a report has what is there");
    assert_eq!(work(&runner, false, up), None, "and this build has not tried it");
    assert!(matches!(work(&runner, false, None), Some(Ok(_))));
    assert!(!runner.dir(&settings).join("diverged.json").exists());
}

/// To a federation a client that fails is faulty data: why it failed stands before the error, on the client's machine.
#[test]
fn a_federation_that_diverges_is_told_by_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let (runner, central) = (runner(dir.path()), settings());
    let federation = Some(Federation { rule: "fedit".into(), clients: 1, rounds: 1 });
    let federated = Settings { federation, ..central.clone() };
    let failure = |verb: &str, settings: &Settings, cause: &str| {
        let error = "error: round 1 has 0 good replies of 1\n  - client-1: work on its rows failed; why is told here alone";
        let told = dir.path().join(format!("lose-{verb}"));
        fs::write(&told, format!("client-1: {cause}\n{error}\n")).unwrap();
        // What is known of it would be told again.
        let _ = fs::remove_file(runner.dir(settings).join("diverged.json"));
        let failure = run(&runner, settings).unwrap_err().downcast::<Failure>().unwrap();
        fs::remove_file(told).unwrap();
        failure
    };
    for words in [
        "rows 1 to 8: the loss is NaN; all parameters are finite, so it arose in the forward pass",
        "rows 1 to 8: the loss is inf; the parameter a is not finite",
        "these gradients are not finite",
    ] {
        let failed = failure("fed", &federated, words);
        assert!(failed.diverged && failed.why.contains(words), "{}", failed.why);
        assert!(failed.why.contains("0 good replies"), "{}", failed.why);
    }
    let failed = failure("fed", &federated, "rows.jsonl, line 7: no target");
    assert!(!failed.diverged && failed.why.contains("line 7: no target"), "{}", failed.why);
    // Of other runs the exit code tells.
    assert!(!failure("train", &central, "the loss is NaN").diverged);

    // They are the words of `lora`.
    let source = |path: &str| fs::read_to_string(crate::sh::root().join("crates").join(path)).unwrap();
    assert!(source("lora-cli/src/main.rs").contains("Some(ErrorKind::Data) => 3,"));
    assert!(source("lora-train/src/recorder.rs").contains("\"the loss is {loss}\""));
    assert!(source("lora-train/src/arena.rs").contains("\"these gradients are not finite\""));
}
