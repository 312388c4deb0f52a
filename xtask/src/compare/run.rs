//! One run: its settings, the command lines that they mean, and what came out. A run lies in a folder named after the
//! hash of its settings, so that it is found again, and anyone can repeat it by hand.

use super::plan::{FULL, NONE};
use crate::{bench, cache, sh};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// All that a run's figures depend on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Settings {
    /// `lora --version`.
    pub(crate) program: String,
    pub(crate) model: Fingerprint,
    pub(crate) train: Fingerprint,
    pub(crate) held_out: Fingerprint,
    pub(crate) set: String,
    /// As in `lora train`, or [`NONE`], or [`FULL`].
    pub(crate) variant: String,
    /// LoftQ, ... by `lora init`.
    pub(crate) start: Option<String>,
    pub(crate) rank: Option<u64>,
    pub(crate) alpha: Option<f64>,
    pub(crate) lr: Option<f64>,
    pub(crate) seed: Option<u64>,
    pub(crate) epochs: f64,
    pub(crate) batch_size: u64,
    pub(crate) targets: String,
    pub(crate) dtype: String,
    pub(crate) base_storage: String,
    pub(crate) extra: Vec<String>,
    pub(crate) layers: Vec<u64>,
    /// Trained by a federation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) federation: Option<Federation>,
    pub(crate) measure: Measure,
    /// Trained by the peer, from the trace of our run with the same settings.
    pub(crate) peer: Option<String>,
}

/// Clients among whom rows are dealt out, and how their adapters become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Federation {
    pub(crate) rule: String,
    pub(crate) clients: u64,
    pub(crate) rounds: u64,
}

/// What is measured behind training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Measure {
    /// Answers, besides the labels' scores.
    pub(crate) generate: bool,
    /// Loss on general text, and the update's spectrum.
    pub(crate) general: bool,
    pub(crate) merge: bool,
    /// The start and the batches are kept, for a peer; no figure depends on it.
    #[serde(skip)]
    pub(crate) trace: bool,
}

/// A file or folder, by what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Fingerprint {
    #[serde(skip)]
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
}

impl Fingerprint {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).with_context(|| path.display().to_string())?;
        if path.is_file() {
            return Ok(Self { sha256: cache::sha256(&path)?[..16].to_owned(), path });
        }
        let mut files: Vec<_> = fs::read_dir(&path)?.collect::<std::io::Result<Vec<_>>>()?;
        files.sort_by_key(fs::DirEntry::file_name);
        let mut hash = Sha256::new();
        for file in files.iter().filter(|f| f.path().is_file()) {
            hash.update(format!("{:?} {}\n", file.file_name(), cache::sha256(&file.path())?));
        }
        Ok(Self { sha256: cache::hex(&hash.finalize())[..16].to_owned(), path })
    }

    fn text(&self) -> String {
        self.path.display().to_string()
    }
}

/// One child process.
pub(crate) struct Step {
    /// What its result is called: `train`, `eval`, ...
    pub(crate) name: &'static str,
    pub(crate) args: Vec<String>,
}

impl Settings {
    /// Letters and digits.
    pub(crate) fn hash(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        cache::hex(&Sha256::digest(text))[..16].to_owned()
    }

    /// A line for people.
    pub(crate) fn title(&self) -> String {
        let start = self.start.as_ref().map_or(String::new(), |s| format!("@{s}"));
        let part =
            |name: &str, value: Option<String>| value.map_or(String::new(), |v| format!(" {name} {v}"));
        format!(
            "{} {}{start}{}{}{}{}{}{}",
            self.set,
            self.variant,
            part("by", self.federation.as_ref().map(|f| f.rule.clone())),
            part("r", self.rank.map(|r| r.to_string())),
            part("alpha", self.alpha.map(|a| a.to_string())),
            part("lr", self.lr.map(|l| format!("{l:e}"))),
            part("seed", self.seed.map(|s| s.to_string())),
            part("by", self.peer.clone()),
        )
    }

    /// The command lines, in order; `dir` is the run's folder.
    pub(crate) fn steps(&self, dir: &Path, general: &Path) -> Vec<Step> {
        let at = |name: &str| dir.join(name).display().to_string();
        let adapter = at("adapter");
        let (mut steps, mut model, mut train) = (Vec::new(), self.model.text(), Vec::<String>::new());
        let method = |args: &mut Vec<String>| {
            let mut put = |flag: &str, value: Option<String>| {
                args.extend(value.into_iter().flat_map(|value| [flag.to_owned(), value]));
            };
            put("--variant", Some(self.variant.clone()));
            put("--rank", self.rank.map(|r| r.to_string()));
            put("--alpha", self.alpha.map(|a| a.to_string()));
            put("--targets", Some(self.targets.clone()));
            let layers: Vec<_> = self.layers.iter().map(u64::to_string).collect();
            put("--layers", (!layers.is_empty()).then(|| layers.join(",")));
        };
        if let Some(start) = &self.start {
            let mut init = words(&["init", "--model", &model, "--init", start, "--dtype", &self.dtype]);
            method(&mut init);
            init.extend(words(&["--out", &at("start"), "--overwrite"]));
            steps.push(Step { name: "init", args: init });
            model = at("start/base");
            train.extend(words(&["--variant", &self.variant, "--adapter", &at("start/adapter")]));
        } else {
            method(&mut train);
        }
        let common =
            words(&["--model", &model, "--dtype", &self.dtype, "--base-storage", &self.base_storage]);
        let trained = self.variant != NONE;
        if trained {
            let number = |n: Option<String>| n.unwrap_or_default();
            let mut epochs = self.epochs;
            let verb = match &self.federation {
                Some(Federation { rule, clients, rounds }) => {
                    epochs /= *rounds as f64;
                    let [clients, rounds] = [clients, rounds].map(u64::to_string);
                    train.extend(words(&["--rule", rule, "--split", &clients, "--rounds", &rounds]));
                    words(&["fed", "simulate"])
                }
                None => words(&["train"]),
            };
            let mut args = [verb, common.clone(), train].concat();
            args.extend(words(&[
                "--data",
                &self.train.text(),
                "--lr",
                &number(self.lr.map(|l| format!("{l:e}"))),
            ]));
            args.extend(words(&[
                "--epochs",
                &epochs.to_string(),
                "--batch-size",
                &self.batch_size.to_string(),
            ]));
            args.extend(words(&["--seed", &number(self.seed.map(|s| s.to_string()))]));
            args.extend(self.extra.clone());
            args.extend(words(&["--out", &adapter, "--overwrite"]));
            if self.measure.trace {
                args.extend(words(&["--trace", &at("trace")]));
            }
            steps.push(Step { name: "train", args });
        }
        // The storage alone counts where an adapter is loaded.
        let mut loaded = common.clone();
        if trained {
            let storage = self.variant.split('+').find(|v| v.starts_with("qlora")).unwrap_or("lora");
            loaded.extend(words(&["--adapter", &adapter, "--variant", storage]));
        }
        let mut eval = [words(&["eval"]), loaded.clone()].concat();
        eval.extend(words(&[
            "--data",
            &self.held_out.text(),
            "--labels",
            "few",
            "--rows",
            &at("rows.jsonl"),
            "--json",
        ]));
        if !self.measure.generate {
            eval.extend(words(&["--max-tokens", "0"]));
        }
        steps.push(Step { name: "eval", args: eval });
        if self.measure.general {
            let data = general.display().to_string();
            let args =
                [words(&["eval"]), loaded, words(&["--data", &data, "--max-tokens", "0", "--json"])].concat();
            steps.push(Step { name: "general", args });
            if trained && self.variant != FULL {
                let args = words(&["inspect", &adapter, "--model", &model, "--spectrum", "--json"]);
                steps.push(Step { name: "inspect", args });
            }
        }
        if self.measure.merge && trained {
            let mut args = [words(&["merge"]), common].concat();
            args.extend(words(&["--adapter", &adapter, "--out", &at("merged"), "--overwrite"]));
            args.extend(words(&["--verify", "--tolerance", "1000", "--json"]));
            steps.push(Step { name: "merge", args });
        }
        steps
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

/// Where runs lie, and what they need.
pub(crate) struct Runner {
    pub(crate) lora: PathBuf,
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
    pub(crate) fn dir(&self, settings: &Settings) -> PathBuf {
        self.runs.join(settings.hash())
    }

    /// What a finished run found; none if it is still to be done.
    pub(crate) fn found(&self, settings: &Settings) -> Option<Value> {
        let text = fs::read_to_string(self.dir(settings).join("result.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Does the run from its beginning; what it found. A run that fails is an error, and will be tried again.
    pub(crate) fn run(&self, settings: &Settings, ours: Option<&Settings>) -> Result<Value> {
        let dir = self.dir(settings);
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        // What is begun anew is not there until it has ended.
        ["error.txt", "result.json"].iter().try_for_each(|file| cache::remove(&dir.join(file)))?;
        let text = serde_json::to_string_pretty(settings)?;
        fs::write(dir.join("settings.json"), text)?;
        let mut commands = Vec::new();
        if let Some(ours) = ours {
            if !self.dir(ours).join("trace").exists() || self.found(ours).is_none() {
                self.run(ours, None)?;
            }
            commands.push(("peer", self.peer(settings, &self.dir(ours), &dir)?));
        } else {
            for step in settings.steps(&dir, &self.general) {
                let mut command = Command::new(&self.lora);
                let computes = !["inspect", "init"].contains(&step.name);
                command.args(step.args);
                if let Some(threads) = self.threads.filter(|_| computes) {
                    command.args(["--threads", &threads.to_string()]);
                }
                commands.push((step.name, command));
            }
        }
        let script: Vec<_> = commands.iter().map(|(_, command)| sh::show(command)).collect();
        fs::write(dir.join("run.sh"), script.join("\n") + "\n")?;
        let mut result = json!({ "settings": settings, "commands": script, "threads": self.threads,
            "machine": bench::cpu(), "build": self.build });
        let log = File::create(dir.join("log.txt"))?;
        for (name, command) in &mut commands {
            let begin = Instant::now();
            match one(command, &log) {
                // A peer tells of training and judging at once.
                Ok(Value::Object(parts)) if *name == "peer" => {
                    parts.into_iter().for_each(|(name, part)| result[name] = part);
                }
                Ok(Value::Null) if settings.federation.is_some() && *name == "train" => {
                    result[*name] = federated(&dir, begin.elapsed().as_secs_f64())?;
                }
                Ok(value) => result[*name] = value,
                Err(e) => {
                    fs::write(dir.join("error.txt"), format!("{e:#}\n"))?;
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
            cache::remove(&self.dir(ours).join("trace"))?;
        }
        let partial = dir.join("result.json.partial");
        fs::write(&partial, serde_json::to_string_pretty(&result)?)?;
        fs::rename(&partial, dir.join("result.json"))?;
        Ok(result)
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
            .arg(ours.join("trace"))
            .arg("--metrics")
            .arg(ours.join("adapter.metrics.jsonl"))
            .arg("--held-out")
            .arg(&settings.held_out.path)
            .args(["--dtype", &settings.dtype])
            .arg("--out")
            .arg(dir);
        Ok(command)
    }
}

/// What a simulation took and sent: it writes no `training.json`.
fn federated(dir: &Path, seconds: f64) -> Result<Value> {
    let text = fs::read_to_string(dir.join("adapter.rounds.jsonl")).context("adapter.rounds.jsonl")?;
    let (mut up, mut down) = (0, 0);
    for line in text.lines() {
        let round: Value = serde_json::from_str(line).context("adapter.rounds.jsonl")?;
        for client in round["clients"].as_array().into_iter().flatten() {
            up += client["bytes_up"].as_u64().unwrap_or(0);
            down += client["bytes_down"].as_u64().unwrap_or(0);
        }
    }
    Ok(json!({ "outcome": { "seconds": seconds }, "bytes_up": up, "bytes_down": down }))
}

/// Runs a child; the last JSON object that it printed, or null. Its words go to the log.
fn one(command: &mut Command, log: &File) -> Result<Value> {
    let shown = sh::show(command);
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot start `{shown}`"))?;
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    use std::io::Write;
    write!(&mut &*log, "$ {shown}\n{out}{errors}\n")?;
    if output.status.code().is_none() {
        bail!(
            "`{shown}`: it was killed ({}), maybe for want of memory: with fewer --jobs each has more",
            output.status
        );
    }
    if !output.status.success() {
        let from = errors.find("error:").unwrap_or(errors.len().saturating_sub(2000));
        let why = errors.get(from..).unwrap_or(&errors).trim();
        bail!("`{shown}`: {}", if why.is_empty() { output.status.to_string() } else { why.to_owned() });
    }
    let last =
        out.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
    Ok(last.unwrap_or(Value::Null))
}
