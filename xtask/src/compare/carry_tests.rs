//! Runs that are saved and loaded give the report that they gave, and nothing else gets in.

use super::carry;
use super::gather::{self, Ended};
use super::jobs::tests::{grid, plan};
use super::outcome::{Diverged, Failure};
use super::run::Settings;
use super::runner;
use crate::cache;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

fn settings() -> Settings {
    let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]");
    grid(&plan).grid(|_, _| 1e-3).remove(0).settings
}

/// A finished run in `runs`, as `Runner::run` leaves it.
fn finished(runs: &Path) -> (Ended, PathBuf) {
    let settings = settings();
    let dir = runs.join(settings.hash());
    fs::create_dir_all(&dir).unwrap();
    let found = json!({
        "settings": settings, "commands": ["LD_LIBRARY_PATH=/a/tree/.libtorch/lib lora train --data /a/tree/target/x.jsonl --rank 4"],
        "machine": "elsewhere", "train": { "settings": { "data": ["/a/tree/target/x.jsonl"] } }, "eval": { "loss": 0.5, "labels": { "accuracy": 0.5 } },
    });
    fs::write(dir.join("result.json"), found.to_string()).unwrap();
    let steps = "{\"event\":\"step\",\"loss\":1.25,\"grad_norm\":0.123456789,\"seconds\":2,\"tokens\":10,\
                 \"grad_norms\":[0.123456789,0]}\n{\"event\":\"end\"}\n";
    fs::write(dir.join("adapter.metrics.jsonl"), steps).unwrap();
    let rows = "{\"line\":1,\"reference\":\"a\",\"answer\":\"SECRET\",\"right\":false,\"label\":\"a\",\"scores\":{\"a\":-1.5,\"b\":-2}}\n\
                {\"line\":2,\"reference\":\"a\",\"answer\":\"SECRET\",\"right\":false,\"label\":\"b\",\"scores\":{\"a\":-3,\"b\":-2}}\n";
    fs::write(dir.join("rows.jsonl"), rows).unwrap();
    (Ended { settings, outcome: Ok((found, dir.clone())) }, dir)
}

#[test]
fn what_was_saved_is_read_alike_elsewhere() {
    let here = tempfile::tempdir().unwrap();
    let runs = here.path().join("runs");
    let (ended, dir) = finished(&runs);
    let failed =
        Ended { settings: settings(), outcome: Err(Failure { why: "killed".into(), diverged: false }) };
    let file = here.path().join("runs.zip");
    assert_eq!(carry::save(&[&ended, &failed], &runs, &file).unwrap(), 1);
    assert!(!here.path().join("runs.partial").exists());

    let there = here.path().join("elsewhere/runs");
    assert_eq!(carry::load(&file, &there).unwrap(), 1);
    assert_eq!(carry::load(&file, &there).unwrap(), 0, "what is there stays");
    let home = there.join(ended.settings.hash());
    let text = |name: &str| fs::read_to_string(home.join(name)).unwrap();
    assert!(!text("rows.jsonl").contains("SECRET"));
    let found: Value = serde_json::from_str(&text("result.json")).unwrap();
    assert_eq!(found["machine"], "elsewhere");
    assert_eq!(found["train"]["settings"]["data"][0], "target/x.jsonl");
    assert_eq!(
        found["commands"][0],
        "LD_LIBRARY_PATH=.libtorch/lib lora train --data target/x.jsonl --rank 4"
    );

    let (before, _) = ended.outcome.as_ref().unwrap();
    let seed = ended.settings.seed;
    let (a, b) = (gather::read(seed, before, &dir), gather::read(seed, &found, &home));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.measures, a.right, a.labels), (b.measures, b.right, b.labels));
    assert_eq!((b.steps[0].loss, b.steps[0].gradient, b.steps.len()), (1.25, 0.123_456_789, 1));
    assert_eq!(b.layers, [[0.1235, 0.0]]);
    let others: Vec<_> = fs::read_dir(&there).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(others, [home.file_name().unwrap()], "nothing else is left behind");
}

#[test]
fn a_run_that_is_being_done_is_left_alone_and_one_without_rows_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (ended, from) = finished(&dir.path().join("elsewhere"));
    let (file, runs) = (dir.path().join("runs.zip"), dir.path().join("runs"));
    carry::save(&[&ended], &runs, &file).unwrap();
    let (hash, home) = (ended.settings.hash(), runs.join(ended.settings.hash()));
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("log.txt"), "half way").unwrap();
    let held = cache::lock(&runner::lock_file(&runs, &hash).unwrap()).unwrap();
    assert_eq!(carry::load(&file, &runs).unwrap(), 0);
    assert!(home.join("log.txt").exists(), "another works there");
    drop(held);
    assert_eq!(carry::load(&file, &runs).unwrap(), 1);
    assert!(!home.join("log.txt").exists() && home.join("rows.jsonl").exists());

    // One that lacks them here is replaced; one that lacks them there brings nothing.
    fs::remove_file(home.join("rows.jsonl")).unwrap();
    assert_eq!(carry::load(&file, &runs).unwrap(), 1);
    fs::remove_file(from.join("rows.jsonl")).unwrap();
    carry::save(&[&ended], &runs, &file).unwrap();
    fs::remove_file(home.join("rows.jsonl")).unwrap();
    assert_eq!(carry::load(&file, &runs).unwrap(), 0);
}

#[test]
fn a_file_of_another_kind_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (file, runs) = (dir.path().join("x.zip"), dir.path().join("runs"));
    let refused = |words: &str| {
        let error = format!("{:#}", carry::load(&file, &runs).unwrap_err());
        assert!(error.contains(words), "{error}");
        assert_eq!(fs::read_dir(&runs).unwrap().count(), 0);
    };
    refused("x.zip");
    fs::write(&file, "no zip").unwrap();
    refused("is no zip file");
    let zip = |entries: &[(&str, &str)]| {
        let mut zip = zip::ZipWriter::new(File::create(&file).unwrap());
        for (name, text) in entries {
            zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
    };
    zip(&[("../../0123456789abcdef/result.json", "{}"), ("0123456789abcdef/run.sh", "rm"), ("x", "")]);
    refused("holds no runs");
    zip(&[("0123456789abcdef/result.json", "{}"), ("fedcba9876543210/result.json", "half a")]);
    refused("fedcba9876543210 has no result");
    let diverged = "{\"why\": \"the loss is NaN\", \"build\": \"b\"}";
    zip(&[("0123456789abcdef/diverged.json", "{\"why\": \"the loss is NaN\"}")]);
    refused("0123456789abcdef has no result");
    zip(&[("0123456789abcdef/diverged.json", diverged), ("0123456789abcdef/result.json", "{}")]);
    refused("0123456789abcdef has no result");
}

/// Else the other machine would train it again, and a report there not know that it was tried.
#[test]
fn what_diverged_is_carried_and_gives_way_to_what_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let [here, there, elsewhere] =
        ["here", "there", "elsewhere"].map(|name| dir.path().join(name).join("runs"));
    let (file, hash) = (dir.path().join("runs.zip"), settings().hash());
    fs::create_dir_all(here.join(&hash)).unwrap();
    let why = "`lora train --data /a/tree/target/x.jsonl`: error: the loss is NaN";
    let diverged = Diverged { why: why.into(), build: "b".into() };
    diverged.write(&here.join(&hash)).unwrap();
    let ended = Ended { settings: settings(), outcome: Err(Failure { why: why.into(), diverged: true }) };
    assert_eq!(carry::save(&[&ended], &here, &file).unwrap(), 1);
    let load = |runs: &Path| carry::load(&file, runs).unwrap();
    assert_eq!((load(&there), load(&there)), (1, 0), "what is there stays");
    let read = Diverged::read(&there.join(&hash)).unwrap();
    assert_eq!(read.build, "b");
    assert!(
        read.why.ends_with("target/x.jsonl`: error: the loss is NaN") && !read.why.contains("/a/"),
        "{read:?}"
    );

    let (ended, home) = finished(&elsewhere);
    assert_eq!(load(&elsewhere), 0);
    assert!(home.join("result.json").exists());
    carry::save(&[&ended], &elsewhere, &file).unwrap();
    assert_eq!(load(&there), 1);
    assert!(Diverged::read(&there.join(&hash)).is_none() && there.join(&hash).join("rows.jsonl").exists());
}

/// A peer of an older build, which read the rows by itself, gives way to one that was asked what ours is; and to no other.
#[test]
fn an_older_peer_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let (file, runs) = (dir.path().join("runs.zip"), dir.path().join("runs"));
    let (ended, _) = finished(&dir.path().join("elsewhere"));
    carry::save(&[&ended], &runs, &file).unwrap();
    let (older, home) = finished(&runs);
    assert_eq!(carry::load(&file, &runs).unwrap(), 0);
    let (mut found, _) = older.outcome.unwrap();
    found["commands"] = json!(["python peft_train.py --held-out rows.jsonl --out x"]);
    fs::write(home.join("result.json"), found.to_string()).unwrap();
    assert_eq!((carry::load(&file, &runs).unwrap(), carry::load(&file, &runs).unwrap()), (1, 0));
}
