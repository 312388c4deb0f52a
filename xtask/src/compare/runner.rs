//! Runs carried out. A run lies in a folder named after the hash of its settings, so that it is found again, and anyone
//! can repeat it by hand.

use super::child;
use super::gather::Ended;
use super::outcome::{self, Diverged, Failure, RESULT};
use super::run::{QUESTIONS, Settings, Step, TRACE};
use super::traffic;
use crate::{bench, cache, sh};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Where runs lie, and what they need.
pub(crate) struct Runner {
    pub(crate) lora: PathBuf,
    /// What people call it: `lora` itself may be a copy that is gone one day.
    pub(crate) plain: PathBuf,
    /// Of the program, by its bytes.
    pub(crate) build: String,
    /// Of each child; none: all there are.
    pub(crate) threads: Option<usize>,
    pub(crate) runs: PathBuf,
    pub(crate) general: PathBuf,
    /// The peers' interpreter.
    pub(crate) python: Option<PathBuf>,
}

impl Runner {
    /// Where the run lies.
    pub(crate) fn dir(&self, settings: &Settings) -> PathBuf {
        settings.home(&self.runs)
    }

    /// Where it is put.
    fn place(&self, settings: &Settings) -> PathBuf {
        self.runs.join(settings.hash())
    }

    /// What a finished run found; none if it is still to be done, or lacks what a report reads.
    pub(crate) fn found(&self, settings: &Settings) -> Option<Value> {
        outcome::found(&self.dir(settings)).filter(|found| !was_asked_otherwise(settings, found))
    }

    /// Looks again at what was there: a run of ours is done again where a peer wants its trace, by whoever compares.
    pub(crate) fn look_again(&self, ended: &mut [Ended]) {
        for e in ended.iter_mut().filter(|e| e.outcome.is_ok()) {
            let gone = || Failure { why: "it was there, and is no more".into(), diverged: false };
            let found = self.found(&e.settings).map(|found| (found, self.dir(&e.settings)));
            e.outcome = found.ok_or_else(gone);
        }
    }

    /// What is known of a run: what it found, or that it diverged. By another build it might not, which is tried unless all
    /// that is asked for is a `report`.
    pub(crate) fn known(&self, settings: &Settings, report: bool) -> Option<Result<Value, Failure>> {
        if let Some(found) = self.found(settings) {
            return Some(Ok(found));
        }
        let diverged = Diverged::read(&self.dir(settings)).filter(|d| report || d.build == self.build)?;
        Some(Err(Failure { why: diverged.why, diverged: true }))
    }

    /// What the run finds: done now, unless another comparison, which may share it, has done it meanwhile. None: it is not
    /// there, and `begins`, asked when nobody else is to be waited for, says no.
    pub(crate) fn run(
        &self,
        settings: &Settings,
        ours: Option<&Settings>,
        begins: impl FnOnce() -> bool,
    ) -> Result<Option<Value>> {
        let _lock = self.lock(settings)?;
        if let Some(known) = self.known(settings, false) {
            return Ok(Some(known?));
        }
        // Until the peer has read its trace.
        let _ours = ours.map(|ours| self.lock(ours)).transpose()?;
        if begins() { self.anew(settings, ours).map(Some) } else { Ok(None) }
    }

    /// The run is ours alone while the file lives.
    pub(super) fn lock(&self, settings: &Settings) -> Result<File> {
        cache::lock(&lock_file(&self.runs, &settings.hash())?)
    }

    /// Does the run from its beginning; what it found. A run that fails is an error, and will be tried again, unless it
    /// diverged. Call it under the locks of the run and of `ours` only.
    pub(super) fn anew(&self, settings: &Settings, ours: Option<&Settings>) -> Result<Value> {
        if let Some(ours) = ours {
            let known = self.known(ours, false).transpose()?;
            let lacks = |name: &&str| !self.dir(ours).join(name).exists();
            if known.is_none() || [TRACE, QUESTIONS].iter().any(lacks) {
                self.anew(ours, None)?;
            }
        }
        let home = self.place(settings);
        if self.found(settings).is_none() {
            return self.carry_out(settings, ours, &home);
        }
        // What is finished stays until what takes its place is.
        let aside = beside(&self.runs, ".anew")?.join(settings.hash());
        let found = self.carry_out(settings, ours, &aside)?;
        cache::remove(&home)?;
        fs::rename(&aside, &home).with_context(|| home.display().to_string())?;
        Ok(found)
    }

    /// All steps of the run, in `dir`.
    fn carry_out(&self, settings: &Settings, ours: Option<&Settings>, dir: &Path) -> Result<Value> {
        // Some of what an earlier try left would be gone on with: a federation's state, say.
        cache::remove(dir)?;
        fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let text = serde_json::to_string_pretty(settings)?;
        fs::write(dir.join("settings.json"), text)?;
        let mut commands = Vec::new();
        if let Some(ours) = ours {
            commands.push(("peer", self.peer(settings, &self.dir(ours), dir)?));
        } else {
            for step in settings.steps(dir, &self.general) {
                commands.push((step.name, self.ours(&step)));
            }
        }
        // As it is typed where the run lies in the end.
        let [here, home] = [dir, self.place(settings).as_path()].map(|dir| dir.display().to_string());
        let typed = |command: &Command| self.typed(command).replace(&here, &home);
        let script: Vec<_> = commands.iter().map(|(_, command)| typed(command)).collect();
        fs::write(dir.join("run.sh"), script.join("\n") + "\n")?;
        let mut result = json!({ "settings": settings, "commands": script, "threads": self.threads,
            "machine": bench::cpu(), "build": self.build });
        let log = File::create(dir.join("log.txt"))?;
        for ((name, command), shown) in commands.iter_mut().zip(&script) {
            let begin = Instant::now();
            match child::run(command, shown, &log, settings.federation.is_some()) {
                // A peer tells of training and judging at once.
                Ok(Value::Object(parts)) if *name == "peer" => {
                    parts.into_iter().for_each(|(name, part)| result[name] = part);
                }
                Ok(Value::Null) if settings.federation.is_some() && *name == "train" => {
                    // A simulation writes no `training.json`.
                    let seconds = begin.elapsed().as_secs_f64();
                    let (up, down) = traffic::read(&dir.join("adapter.rounds.jsonl"))?;
                    result[*name] =
                        json!({ "outcome": { "seconds": seconds }, "bytes_up": up, "bytes_down": down });
                }
                Ok(value) => result[*name] = value,
                Err(e) => {
                    fs::write(dir.join("error.txt"), format!("{e:#}\n"))?;
                    let Failure { why, diverged } = Failure::of(&e);
                    if diverged {
                        Diverged { why, build: self.build.clone() }.write(dir)?;
                    }
                    return Err(e);
                }
            }
        }
        if let Ok(text) = fs::read_to_string(dir.join("adapter/training.json")) {
            result["train"] = serde_json::from_str(&text)?;
        }
        for large in ["start", "merged", "adapter/adapter_model.safetensors"] {
            cache::remove(&dir.join(large))?;
        }
        if let Some(ours) = ours {
            [QUESTIONS, TRACE].iter().try_for_each(|name| cache::remove(&self.dir(ours).join(name)))?;
        }
        let partial = dir.join("result.json.partial");
        fs::write(&partial, serde_json::to_string_pretty(&result)?)?;
        fs::rename(&partial, dir.join(RESULT))?;
        Ok(result)
    }

    /// A step of a run of ours.
    pub(super) fn ours(&self, step: &Step) -> Command {
        let mut command = sh::ours(&self.lora);
        let computes = !["inspect", "init"].contains(&step.name);
        command.args(&step.args);
        if let Some(threads) = self.threads.filter(|_| computes) {
            command.args(["--threads", &threads.to_string()]);
        }
        command
    }

    /// The command line for people.
    fn typed(&self, command: &Command) -> String {
        let mut typed = match command.get_program() {
            program if program == self.lora.as_os_str() => sh::ours(&self.plain),
            program => Command::new(program),
        };
        sh::show(typed.args(command.get_args()))
    }

    /// transformers + PEFT on the trace in `ours`.
    fn peer(&self, settings: &Settings, ours: &Path, dir: &Path) -> Result<Command> {
        let python = self.python.as_ref().context("no peers' environment")?;
        let mut command = Command::new(python);
        if let Some(threads) = self.threads {
            command.env("OMP_NUM_THREADS", threads.to_string());
        }
        command
            .arg(sh::root().join("xtask/peers/peft_train.py"))
            .arg("--model")
            .arg(&settings.model.path)
            .arg("--cache")
            .arg(cache::dir()?.join("peers-models"))
            .arg("--trace")
            .arg(ours.join(TRACE))
            .arg("--asked")
            .arg(ours.join(QUESTIONS))
            .arg("--metrics")
            .arg(ours.join("adapter.metrics.jsonl"))
            .args(["--dtype", &settings.dtype])
            .arg("--out")
            .arg(dir);
        Ok(command)
    }
}

/// Whether it is of a peer of an older build, which read the rows by itself.
pub(super) fn read_by_itself(found: &Value) -> bool {
    let mut commands = found["commands"].as_array().into_iter().flatten().filter_map(Value::as_str);
    commands.any(|line| line.contains(" --held-out "))
}

/// Whether such a peer read otherwise than ours: conversations, and completions. A context and a target it read alike, but for what
/// is rare.
fn was_asked_otherwise(settings: &Settings, found: &Value) -> bool {
    read_by_itself(found)
        && fs::read_to_string(&settings.held_out.path)
            .is_ok_and(|rows| ["\"messages\"", "\"completion\""].iter().any(|field| rows.contains(field)))
}

/// The lock of a run: beside `runs`, where nothing that is saved, loaded or begun anew takes it away.
pub(crate) fn lock_file(runs: &Path, hash: &str) -> Result<PathBuf> {
    Ok(beside(runs, ".locks")?.join(hash))
}

fn beside(runs: &Path, name: &str) -> Result<PathBuf> {
    let folder = runs.with_file_name(name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
