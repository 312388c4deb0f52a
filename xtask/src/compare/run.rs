//! One run: its settings, and the command lines that they mean.

use super::plan::{self, NONE};
use crate::cache;
use anyhow::{Context, Result};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// All that a run's figures depend on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Settings {
    /// `lora --version`.
    pub(crate) program: String,
    pub(crate) model: Fingerprint,
    pub(crate) train: Fingerprint,
    pub(crate) held_out: Fingerprint,
    pub(crate) set: String,
    /// Older builds may have called it so.
    #[serde(skip)]
    pub(crate) former_set: Option<String>,
    /// As in `lora train`, or [`NONE`].
    pub(crate) variant: String,
    /// LoftQ, ... by `lora init`.
    pub(crate) start: Option<String>,
    pub(crate) rank: Option<u64>,
    pub(crate) alpha: Option<f64>,
    /// Where there is no rank, the first rank and alpha of the plan: older builds knew some of these runs by them.
    #[serde(skip)]
    pub(crate) point: Option<(u64, f64)>,
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
    /// The texts that forgetting is measured on, as [`general`] tells them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) general: Option<String>,
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

/// What others may have put beside a model: a run's metrics, say.
fn is_foreign(file: &Path) -> bool {
    let kinds = ["json", "safetensors", "jinja", "model", "txt", "tiktoken"];
    !file.extension().is_some_and(|kind| kinds.iter().any(|known| kind == *known))
}

/// A file or folder, by what is in it; of a folder a model's own files count.
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
        files.retain(|file| file.path().is_file() && !is_foreign(&file.path()));
        files.sort_by_key(fs::DirEntry::file_name);
        let mut hash = Sha256::new();
        for file in &files {
            hash.update(format!("{:?} {}\n", file.file_name(), cache::sha256(&file.path())?));
        }
        Ok(Self { sha256: cache::hex(&hash.finalize())[..16].to_owned(), path })
    }

    fn text(&self) -> String {
        self.path.display().to_string()
    }
}

/// The texts of the runs that name none; other texts have another hash, and this stays what it is.
const FIRST_TEXTS: &str = "23df3b4e77568f4a";

/// By what the texts that forgetting is measured on are known; none: those that runs which name none were measured on.
pub(crate) fn general(texts: &Path) -> Result<Option<String>> {
    let found = Fingerprint::of(texts)?.sha256;
    Ok((found != FIRST_TEXTS).then_some(found))
}

/// In a traced run's folder: the start and the batches, and what a peer is asked, written last of what it needs.
pub(crate) const TRACE: &str = "trace";
pub(crate) const QUESTIONS: &str = "asked.jsonl";

/// One child process.
pub(crate) struct Step {
    /// What its result is called: `train`, `eval`, ...
    pub(crate) name: &'static str,
    pub(crate) args: Vec<String>,
}

impl Settings {
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
                args.extend(words(&["--trace", &at(TRACE)]));
            }
            steps.push(Step { name: "train", args });
        }
        // Of the variant the storage alone counts where an adapter is loaded.
        let mut loaded = common.clone();
        if trained {
            loaded.extend(words(&["--adapter", &adapter, "--variant", &self.variant]));
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
        if self.measure.trace {
            eval.extend(words(&["--trace", &at(QUESTIONS)]));
        }
        steps.push(Step { name: "eval", args: eval });
        if self.measure.general {
            let data = general.display().to_string();
            let args =
                [words(&["eval"]), loaded, words(&["--data", &data, "--max-tokens", "0", "--json"])].concat();
            steps.push(Step { name: "general", args });
            if trained && !plan::is_full(&self.variant) {
                let args = words(&["inspect", &adapter, "--model", &model, "--spectrum", "--json"]);
                steps.push(Step { name: "inspect", args });
            }
        }
        if self.measure.merge && trained {
            let mut args = [words(&["merge"]), common].concat();
            args.extend(words(&["--adapter", &adapter, "--out", &at("merged"), "--overwrite"]));
            args.extend(words(&["--verify", "--variant", &self.variant, "--tolerance", "1000", "--json"]));
            steps.push(Step { name: "merge", args });
        }
        steps
    }
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}
