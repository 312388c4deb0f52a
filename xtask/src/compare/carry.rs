//! Finished runs in one file: half of a plan done on another machine, or the figures behind a document.
//!
//! A zip of `HASH/result.json`, `HASH/adapter.metrics.jsonl` and `HASH/rows.jsonl`, all that a report needs, or of
//! `HASH/diverged.json` alone. No text of the data is in it: answers are left out, a row keeps its labels and whether it was
//! right.

use super::gather::Ended;
use super::outcome::{self, DIVERGED, Diverged, RESULT};
use super::runner;
use crate::{bench, cache, unpack};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use zip::write::SimpleFileOptions;

const METRICS: &str = "adapter.metrics.jsonl";
const ROWS: &str = "rows.jsonl";

/// Writes those of the runs that ended, and those that diverged; how many.
pub(crate) fn save(ended: &[&Ended], runs: &Path, to: &Path) -> Result<usize> {
    let partial = to.with_extension("partial");
    let shown = to.display();
    let mut zip =
        zip::ZipWriter::new(File::create(&partial).with_context(|| format!("cannot write {shown}"))?);
    let mut saved = 0;
    for e in ended {
        let hash = e.settings.hash();
        let files = match &e.outcome {
            Ok((found, dir)) => finished(found, dir).with_context(|| hash.clone())?,
            Err(failure) if failure.diverged => diverged(&e.settings.home(runs))?,
            Err(_) => Vec::new(),
        };
        saved += usize::from(!files.is_empty());
        for (name, text) in files {
            zip.start_file(format!("{hash}/{name}"), SimpleFileOptions::default())?;
            zip.write_all(text.as_bytes()).with_context(|| format!("cannot write {shown}"))?;
        }
    }
    zip.finish().with_context(|| format!("cannot write {shown}"))?.sync_all()?;
    fs::rename(&partial, to).with_context(|| format!("cannot write {shown}"))?;
    Ok(saved)
}

/// The files of a run that ended: names and texts.
fn finished(found: &Value, dir: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut found = found.clone();
    if found["machine"].is_null() {
        found["machine"] = json!(bench::cpu());
    }
    let lines = |name: &'static str, of: fn(&mut Value)| -> Result<(&'static str, String)> {
        let text = fs::read_to_string(dir.join(name)).unwrap_or_default();
        let line = |line: &str| -> Result<String> {
            let mut value = serde_json::from_str(line).context(name)?;
            of(&mut value);
            Ok(format!("{value}\n"))
        };
        Ok((name, text.lines().map(line).collect::<Result<String>>()?))
    };
    Ok(vec![(RESULT, anywhere(found)?), lines(METRICS, step)?, lines(ROWS, row)?])
}

/// The file of a run that diverged.
fn diverged(dir: &Path) -> Result<Vec<(&'static str, String)>> {
    let found = Diverged::read(dir).map(serde_json::to_value).transpose()?;
    found.into_iter().map(|found| Ok((DIVERGED, anywhere(found)?))).collect()
}

/// As a text without the folders of this machine.
fn anywhere(mut value: Value) -> Result<String> {
    strip(&mut value, &cache::dir()?.display().to_string());
    Ok(serde_json::to_string(&value)?)
}

/// Takes away the folders that lie above a tree or the cache; the tree may be another that runs were brought from.
fn strip(value: &mut Value, caches: &str) {
    let below = |word: &str| {
        // A path may be the value of a name.
        let (name, path) = word.split_at(word.find("=/").map_or(0, |at| at + 1));
        let at = ["/target/", "/xtask/", "/.libtorch/"].iter().filter_map(|part| path.find(part)).min();
        format!("{name}{}", &path[at.map_or(0, |at| at + 1)..])
    };
    match value {
        Value::String(text) => {
            let words: Vec<_> = text.replace(caches, "CACHE").split(' ').map(below).collect();
            *text = words.join(" ");
        }
        Value::Array(all) => all.iter_mut().for_each(|value| strip(value, caches)),
        Value::Object(all) => all.values_mut().for_each(|value| strip(value, caches)),
        _ => {}
    }
}

fn row(row: &mut Value) {
    if let Some(row) = row.as_object_mut() {
        row.remove("answer");
        // Which labels there were is asked for, what each scored is summed up already.
        for score in row.get_mut("scores").and_then(Value::as_object_mut).into_iter().flatten() {
            *score.1 = json!(0);
        }
    }
}

/// The layers' gradient norms, for a picture, to four digits: they are most of what there is.
fn step(step: &mut Value) {
    for norm in step["grad_norms"].as_array_mut().into_iter().flatten() {
        if let Some(rounded) = norm.as_f64().and_then(|n| format!("{n:.3e}").parse::<f64>().ok()) {
            *norm = json!(rounded);
        }
    }
}

/// Puts the runs of `from` among `runs`, but those that are there or being done; how many were put.
pub(crate) fn load(from: &Path, runs: &Path) -> Result<usize> {
    fs::create_dir_all(runs).with_context(|| runs.display().to_string())?;
    let staging = runs.join(format!(".loading-{}", std::process::id()));
    cache::remove(&staging)?;
    let put = stage(from, &staging).and_then(|()| place(from, &staging, runs));
    cache::remove(&staging)?;
    put
}

fn stage(from: &Path, staging: &Path) -> Result<()> {
    let known = |name: &str| {
        let (hash, file) = name.split_once('/')?;
        let hash_like = hash.len() == 16 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (hash_like && [RESULT, METRICS, ROWS, DIVERGED].contains(&file)).then(|| name.to_owned())
    };
    if unpack::unpack(from, staging, &known)? == 0 {
        bail!("{} holds no runs: it should be a file that `compare --save` wrote", from.display());
    }
    Ok(())
}

fn place(from: &Path, staging: &Path, runs: &Path) -> Result<usize> {
    let staged = fs::read_dir(staging)?.collect::<std::io::Result<Vec<_>>>()?;
    for dir in &staged {
        if !is_readable(&dir.path()) {
            bail!("{}: {} has no result that can be read", from.display(), dir.file_name().display());
        }
    }
    let mut put = 0;
    for dir in staged {
        let home = runs.join(dir.file_name());
        // Who holds it is about to finish it.
        let lock = runner::lock_file(runs, &dir.file_name().to_string_lossy())?;
        let Some(_lock) = cache::try_lock(&lock)? else { continue };
        if known(&home) >= known(&dir.path()) {
            continue;
        }
        cache::remove(&home)?;
        fs::rename(dir.path(), &home).with_context(|| home.display().to_string())?;
        put += 1;
    }
    Ok(put)
}

/// Says that it ended, or that it diverged, and not both.
fn is_readable(dir: &Path) -> bool {
    match fs::read_to_string(dir.join(RESULT)) {
        Ok(text) => {
            let result = serde_json::from_str(&text).is_ok_and(|v: Value| v.is_object());
            result && !dir.join(DIVERGED).exists()
        }
        Err(_) => Diverged::read(dir).is_some(),
    }
}

/// How much is known of a run: nothing, that it diverged, or what it found; of a peer's, asked what ours is, the most.
fn known(dir: &Path) -> u8 {
    match outcome::found(dir) {
        Some(found) => 3 - u8::from(runner::read_by_itself(&found)),
        None => u8::from(Diverged::read(dir).is_some()),
    }
}
