//! What is to be compared: a TOML file, or the plan built in.

use super::identity;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The default plan: the demo's model and data.
pub(crate) const DEFAULT: &str = include_str!("default.toml");

/// A grid: every variant at every rank and alpha with every seed on every set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The folder under target/compare.
    pub(crate) name: String,
    /// A Hugging Face folder or GGUF file; `demo`: the demo's.
    #[serde(default = "demo")]
    pub(crate) model: String,
    pub(crate) data: Vec<Data>,
    /// Recipes as in `lora train --variant`, a start behind `@` (`qlora@loftq`), a federation's rule behind `by`
    /// (`lora by fedsvd`); or `full`.
    pub(crate) variants: Vec<String>,
    pub(crate) ranks: Vec<u64>,
    #[serde(default = "twice")]
    pub(crate) alphas: Vec<Alpha>,
    /// Several: each variant takes the one with the lowest loss on the validation part.
    pub(crate) learning_rates: Vec<f64>,
    /// The rank at which they are tried; default: the middle one.
    pub(crate) tune_rank: Option<u64>,
    pub(crate) seeds: Vec<u64>,
    #[serde(default = "one")]
    pub(crate) epochs: f64,
    #[serde(default = "sixteen")]
    pub(crate) batch_size: u64,
    #[serde(default = "all_linear")]
    pub(crate) targets: String,
    #[serde(default = "bf16")]
    pub(crate) dtype: String,
    #[serde(default = "auto")]
    pub(crate) base_storage: String,
    /// Further arguments for `lora train`.
    #[serde(default)]
    pub(crate) train: Vec<String>,
    /// The layers that `full` trains; default: all.
    #[serde(default)]
    pub(crate) full_layers: Vec<u64>,
    /// Whether answers are generated too, besides scoring the labels.
    #[serde(default = "yes")]
    pub(crate) generate: bool,
    /// Among how many clients a federation deals the rows out, a row in turn.
    #[serde(default)]
    pub(crate) clients: u64,
    /// A federation's rounds: `epochs` are those of all together.
    #[serde(default)]
    pub(crate) rounds: u64,
    /// Variants that `peer` trains too, beside ours.
    #[serde(default)]
    pub(crate) peers: Vec<String>,
    /// At these ranks; default: all.
    #[serde(default)]
    pub(crate) peer_ranks: Vec<u64>,
}

/// Where rows come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Data {
    /// A fifth of the file is held out, by the hash of each row's question.
    Split(PathBuf),
    /// Two files.
    Given { train: PathBuf, held_out: PathBuf },
}

/// The size of the update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Alpha {
    Number(f64),
    /// `r` or `2r`.
    OfRank(String),
}

fn demo() -> String {
    "demo".into()
}
fn twice() -> Vec<Alpha> {
    vec![Alpha::OfRank("2r".into())]
}
fn one() -> f64 {
    1.0
}
fn sixteen() -> u64 {
    16
}
fn all_linear() -> String {
    "all-linear".into()
}
fn bf16() -> String {
    "bf16".into()
}
fn auto() -> String {
    "auto".into()
}
fn yes() -> bool {
    true
}

/// Trains the layers' own weights, in other parts' company too: the ceiling. No adapter, and no rank.
pub(crate) const FULL: &str = "full";
/// No training: the floor.
pub(crate) const NONE: &str = "none";

/// What a federation's rule may be.
const RULES: [&str; 7] = ["fedit", "ffa", "rolora", "fedex", "flora", "flexlora", "fedsvd"];

/// `RECIPE[@START][ by RULE]`.
pub(crate) struct Parts<'a> {
    pub(crate) recipe: &'a str,
    pub(crate) start: Option<&'a str>,
    pub(crate) rule: Option<&'a str>,
}

/// Whether a recipe trains the layers' own weights, however the base is kept.
pub(crate) fn is_full(recipe: &str) -> bool {
    recipe.split('+').any(|part| part.trim() == FULL)
}

/// A variant's parts.
pub(crate) fn split(variant: &str) -> Parts<'_> {
    let (method, rule) = variant.split_once(" by ").map_or((variant, None), |(m, rule)| (m, Some(rule)));
    let (recipe, start) = method.split_once('@').map_or((method, None), |(r, start)| (r, Some(start)));
    Parts { recipe, start, rule }
}

impl Alpha {
    /// None if it is neither a number nor `r` nor `2r`.
    pub(crate) fn at(&self, rank: u64) -> Option<f64> {
        match self {
            Self::Number(alpha) => Some(*alpha),
            Self::OfRank(text) if text == "r" => Some(rank as f64),
            Self::OfRank(text) if text == "2r" => Some(2.0 * rank as f64),
            Self::OfRank(_) => None,
        }
    }
}

impl Data {
    /// Where training rows come from.
    pub(crate) fn train(&self) -> &Path {
        let (Self::Split(file) | Self::Given { train: file, .. }) = self;
        file
    }

    /// Where held-out rows come from.
    pub(crate) fn held_out(&self) -> &Path {
        let (Self::Split(file) | Self::Given { held_out: file, .. }) = self;
        file
    }

    /// The file's name without its ending; of two files, the folder's.
    pub(crate) fn name(&self) -> String {
        let part = match self {
            Self::Split(file) => file.file_stem(),
            Self::Given { train, .. } => train.parent().and_then(Path::file_name).or(train.file_stem()),
        };
        part.map_or_else(|| "data".into(), |name| name.to_string_lossy().into_owned())
    }

    /// What older builds called it where the plan was called from its own folder, if that is something else.
    pub(crate) fn former_name(&self) -> Option<String> {
        let Self::Given { train, .. } = self else { return None };
        let name = train.file_stem()?.to_string_lossy().into_owned();
        (name != self.name()).then_some(name)
    }
}

impl Plan {
    /// Reads a plan; paths in it are relative to its folder.
    pub(crate) fn read(path: &Path) -> Result<(Self, String)> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut plan = Self::parse(&text).with_context(|| path.display().to_string())?;
        plan.under(&home(path)?);
        Ok((plan, text))
    }

    pub(crate) fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| anyhow::anyhow!("{}", e.to_string().trim_end()))
    }

    /// Makes relative paths lie under `folder`.
    pub(crate) fn under(&mut self, folder: &Path) {
        let place = |path: &mut PathBuf| *path = folder.join(&path);
        for data in &mut self.data {
            match data {
                Data::Split(file) => place(file),
                Data::Given { train, held_out } => [train, held_out].into_iter().for_each(place),
            }
        }
        if self.model != "demo" {
            self.model = folder.join(&self.model).to_string_lossy().into_owned();
        }
    }

    /// The rank at which learning rates are tried.
    pub(crate) fn tune_rank(&self) -> u64 {
        self.tune_rank.unwrap_or_else(|| {
            let mut ranks = self.ranks.clone();
            ranks.sort_unstable();
            ranks.get(ranks.len() / 2).copied().unwrap_or(8)
        })
    }

    /// All that is wrong with it and can be seen without the model.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut refuse = |bad: bool, what: String| faults.extend(bad.then_some(what));
        let name_chars = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        refuse(
            self.name.is_empty() || !self.name.chars().all(name_chars),
            format!("name: {:?} is no folder's name: letters, digits, `-` and `_`", self.name),
        );
        let lists = [
            ("data", self.data.len()),
            ("variants", self.variants.len()),
            ("alphas", self.alphas.len()),
            ("learning_rates", self.learning_rates.len()),
            ("seeds", self.seeds.len()),
        ];
        for (name, len) in lists {
            refuse(len == 0, format!("{name}: the list is empty, so there is nothing to run"));
        }
        let ranked = self.variants.iter().any(|v| v != NONE && !is_full(split(v).recipe));
        refuse(
            ranked && self.ranks.is_empty(),
            "ranks: the list is empty, so there is nothing to run".into(),
        );
        let variants: Vec<_> = self.variants.iter().map(|spelt| identity::variant(spelt)).collect();
        twice_in("variants", &variants, &mut refuse);
        twice_in("ranks", &self.ranks, &mut refuse);
        twice_in("seeds", &self.seeds, &mut refuse);
        twice_in(
            "learning_rates",
            &self.learning_rates.iter().map(f64::to_string).collect::<Vec<_>>(),
            &mut refuse,
        );
        let names: Vec<_> = self.data.iter().map(Data::name).collect();
        twice_in("data", &names, &mut refuse);
        refuse(self.ranks.contains(&0), "ranks: 0 is no rank".into());
        for lr in &self.learning_rates {
            refuse(!(*lr > 0.0 && lr.is_finite()), format!("learning_rates: {lr} is not positive"));
        }
        for alpha in &self.alphas {
            let bad = !alpha.at(1).is_some_and(|a| a > 0.0 && a.is_finite());
            refuse(bad, format!("alphas: {alpha:?} is neither a positive number nor \"r\" nor \"2r\""));
        }
        refuse(!(self.epochs > 0.0 && self.epochs.is_finite()), "epochs: must be positive".into());
        refuse(self.batch_size == 0, "batch_size: must be positive".into());
        for file in self.data.iter().flat_map(|data| BTreeSet::from([data.train(), data.held_out()])) {
            refuse(!file.is_file(), format!("data: there is no file {}", file.display()));
        }
        for data in &self.data {
            let same = |a: &Path, b: &Path| Some(fs::canonicalize(a).ok()? == fs::canonicalize(b).ok()?);
            let twice =
                matches!(data, Data::Given { train, held_out } if same(train, held_out) == Some(true));
            let file = data.train().display();
            refuse(
                twice,
                format!(
                    "data: {file} is to train on and to judge by; give it alone, and a fifth is held out"
                ),
            );
        }
        refuse(
            self.model != "demo" && !Path::new(&self.model).exists(),
            format!("model: there is nothing at {}", self.model),
        );
        let federated: Vec<_> = self.variants.iter().filter_map(|v| Some((v, split(v).rule?))).collect();
        for (variant, rule) in &federated {
            refuse(
                !RULES.contains(rule),
                format!(
                    "variants: {variant}: {rule} is none of {} (fedsa has no common adapter)",
                    RULES.join(", ")
                ),
            );
            let recipe = split(variant).recipe;
            refuse(recipe == NONE || is_full(recipe), format!("variants: {variant} has no adapter"));
        }
        if let Some((variant, _)) = federated.first() {
            refuse(self.clients < 2, format!("clients: {variant} needs two and more"));
            refuse(self.rounds == 0, format!("rounds: {variant} needs some"));
        }
        for peer in &self.peers {
            let federated = split(peer).rule.is_some();
            let alone = peer == NONE || is_full(split(peer).recipe);
            let quantised = federated || peer.contains("qlora") || peer.contains('@') || alone;
            refuse(!self.variants.contains(peer), format!("peers: {peer} is not among the variants"));
            refuse(quantised, format!("peers: {peer} has no counterpart there; use lora, rslora or dora"));
        }
        let beside = !self.peers.is_empty();
        refuse(beside && self.model != "demo", "peers: their side knows the demo's model alone".into());
        for alone in ["--weight-decay", "--clip", "--dropout"] {
            let given = self.train.iter().any(|word| word.split('=').next() == Some(alone));
            refuse(beside && given, format!("peers: {alone} would be ours alone"));
        }
        for rank in &self.peer_ranks {
            refuse(!self.ranks.contains(rank), format!("peer_ranks: {rank} is not among the ranks"));
        }
        faults
    }

    /// Sets that a federation cannot deal out: a client has a row at least, of what rates are tried on too.
    pub(crate) fn few_rows(&self, parts: &[super::split::Parts]) -> Vec<String> {
        let federated = self.variants.iter().any(|v| split(v).rule.is_some());
        let few = |p: &&super::split::Parts| federated && (p.train_rows as u64) < 2 * self.clients;
        let say = |p: &super::split::Parts| {
            format!(
                "clients: {} are too many for the {} training rows of {}",
                self.clients, p.train_rows, p.name
            )
        };
        parts.iter().filter(few).map(say).collect()
    }
}

fn twice_in<T: Ord + std::fmt::Display>(list: &str, items: &[T], refuse: &mut impl FnMut(bool, String)) {
    let mut seen = BTreeSet::new();
    for item in items {
        refuse(!seen.insert(item), format!("{list}: {item} is there twice"));
    }
}

/// The folder of a plan, from wherever it is called: a set may be named after it.
pub(crate) fn home(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::canonicalize(folder).with_context(|| folder.display().to_string())
}

/// One error that lists all of them.
pub(crate) fn refuse(faults: &[String]) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    bail!("this plan cannot run\n  - {}", faults.join("\n  - "))
}
