//! What a comparison found: what the reports are made from, and `results.json`.

use super::plan::{NONE, is_full, split};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// All of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    /// The command that makes it again.
    pub(crate) command: String,
    /// Day of the report, as 2026-11-24.
    pub(crate) date: String,
    /// Of the runs: processors and devices, threads, builds.
    pub(crate) machine: String,
    pub(crate) model: String,
    /// The plan, as a TOML file.
    pub(crate) plan: String,
    /// Those that are there, failed ones too, and those of the plan.
    pub(crate) runs: [usize; 2],
    pub(crate) sets: Vec<Set>,
    /// Set after set; in a set, method after method in the plan's order, by rank.
    pub(crate) cells: Vec<Cell>,
    /// Ours beside a peer's, where both trained alike.
    pub(crate) pairs: Vec<Pair>,
    /// The learning rates that were tried on the validation part.
    pub(crate) tuning: Vec<Tried>,
}

/// One data set, split.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) train: usize,
    pub(crate) held_out: usize,
    /// Of the held-out rows those whose question was trained on too.
    pub(crate) common: usize,
    /// The answers to choose from; empty where there are too many.
    pub(crate) labels: Vec<String>,
    /// What a constant answer would score; none where there are no labels.
    pub(crate) commonest: Option<Commonest>,
    /// Time is measured to this training loss (nats a token, mean of five steps).
    pub(crate) target_loss: Option<f64>,
}

/// The label that most of the held-out rows have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Commonest {
    pub(crate) label: String,
    /// Of the rows.
    pub(crate) share: f64,
}

/// One method at one setting on one set, over its seeds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) set: String,
    /// `lora`, `qlora+dora`, `none`, `full`, ...; `lora (peft)` for a peer's.
    pub(crate) method: String,
    /// None for `none`, and where `full` is a part.
    pub(crate) rank: Option<u64>,
    pub(crate) alpha: Option<f64>,
    pub(crate) lr: Option<f64>,
    pub(crate) seeds: Vec<u64>,
    pub(crate) measures: BTreeMap<Measure, Values>,
    /// Whether its score is the highest of its set's adapters of as many seeds as any has, peers aside.
    pub(crate) best: bool,
    /// Its score less the best's. None for the best itself, and where there is no score.
    pub(crate) behind: Option<Interval>,
    /// Training loss: step from 1, mean, lowest and highest over the seeds, each smoothed over some steps.
    pub(crate) loss_curve: Vec<[f64; 4]>,
    /// The joint gradient norm likewise.
    pub(crate) gradient_curve: Vec<[f64; 4]>,
    /// The median gradient norm of each layer that trained, lowest first, mean over the seeds.
    pub(crate) gradient_layers: Vec<f64>,
    /// What went wrong: a line a seed that failed.
    pub(crate) failures: Vec<String>,
    /// The command lines of the first seed.
    pub(crate) commands: Vec<String>,
    /// Where its runs were done, and on which devices as far as they tell.
    pub(crate) machines: Vec<String>,
    pub(crate) devices: Vec<String>,
    /// Some of them beside others, each with its part of the processors.
    pub(crate) shared: bool,
}

impl Cell {
    /// Not the floor, nor the ceiling.
    pub(crate) fn is_adapter(&self) -> bool {
        self.method != NONE && !is_full(split(&self.method).recipe)
    }

    pub(crate) fn is_peer(&self) -> bool {
        peer(&self.method).is_some()
    }
}

/// The method and the peer of `lora (peft)`.
pub(crate) fn peer(method: &str) -> Option<(&str, &str)> {
    method.strip_suffix(')')?.rsplit_once(" (")
}

/// What is measured. The order is the tables'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Measure {
    /// Share of held-out rows whose label scores highest.
    Accuracy,
    MacroF1,
    /// Share of held-out rows whose generated answer is the right one.
    ExactMatch,
    GeneratedF1,
    /// Held-out, nats a token.
    Loss,
    CalibrationError,
    Brier,
    /// Loss on general text less the untrained model's, nats a token.
    Forgetting,
    /// Median over the steps.
    TokensPerSecond,
    /// Of all steps.
    TrainSeconds,
    /// Until the set's target loss.
    SecondsToTarget,
    LoadSeconds,
    /// Resident at most, in training.
    PeakBytes,
    /// That train.
    Parameters,
    /// Of the model's.
    ParameterShare,
    AdapterBytes,
    /// By a federation's clients, all rounds.
    BytesUp,
    /// And to them.
    BytesDown,
    /// Largest logit difference between adapter and merged model.
    MergeDifference,
    /// Mean Kullback-Leibler divergence between the two, nats a token.
    MergeKl,
    /// Median over the steps, before clipping.
    GradientNorm,
    /// exp(entropy of the update's normalised singular values), mean over modules (Roy and Vetterli 2007).
    EffectiveRank,
}

impl Measure {
    /// Whether other runs beside it change it.
    pub(crate) fn is_time(self) -> bool {
        [Self::TokensPerSecond, Self::TrainSeconds, Self::SecondsToTarget, Self::LoadSeconds].contains(&self)
    }
}

/// How a measure is shown.
pub(crate) struct Shown {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    /// Multiplies the value.
    pub(crate) times: f64,
    pub(crate) digits: usize,
    /// Scientific notation.
    pub(crate) scientific: bool,
    /// What is better: more (1), less (-1), neither (0).
    pub(crate) better: i8,
}

impl Measure {
    pub(crate) const ALL: [Self; 22] = [
        Self::Accuracy,
        Self::MacroF1,
        Self::ExactMatch,
        Self::GeneratedF1,
        Self::Loss,
        Self::CalibrationError,
        Self::Brier,
        Self::Forgetting,
        Self::TokensPerSecond,
        Self::TrainSeconds,
        Self::SecondsToTarget,
        Self::LoadSeconds,
        Self::PeakBytes,
        Self::Parameters,
        Self::ParameterShare,
        Self::AdapterBytes,
        Self::BytesUp,
        Self::BytesDown,
        Self::MergeDifference,
        Self::MergeKl,
        Self::GradientNorm,
        Self::EffectiveRank,
    ];

    pub(crate) fn shown(self) -> Shown {
        let of = |name, unit, times, digits, better| Shown {
            name,
            unit,
            times,
            digits,
            scientific: false,
            better,
        };
        let small = |name, unit| Shown { name, unit, times: 1.0, digits: 1, scientific: true, better: -1 };
        match self {
            Self::Accuracy => of("accuracy", "%", 100.0, 1, 1),
            Self::MacroF1 => of("macro-F1", "", 1.0, 3, 1),
            Self::ExactMatch => of("exact match", "%", 100.0, 1, 1),
            Self::GeneratedF1 => of("macro-F1, generated", "", 1.0, 3, 1),
            Self::Loss => of("held-out loss", "nats", 1.0, 4, -1),
            Self::CalibrationError => of("calibration error", "", 1.0, 3, -1),
            Self::Brier => of("Brier score", "", 1.0, 3, -1),
            Self::Forgetting => of("forgetting", "nats", 1.0, 3, -1),
            Self::TokensPerSecond => of("speed", "tokens/s", 1.0, 0, 1),
            Self::TrainSeconds => of("training time", "s", 1.0, 1, -1),
            Self::SecondsToTarget => of("time to target", "s", 1.0, 1, -1),
            Self::LoadSeconds => of("load time", "s", 1.0, 2, -1),
            Self::PeakBytes => of("peak memory", "MB", 1e-6, 0, -1),
            Self::Parameters => of("parameters", "M", 1e-6, 2, -1),
            Self::ParameterShare => of("share of all", "%", 100.0, 2, -1),
            Self::AdapterBytes => of("adapter size", "MB", 1e-6, 1, -1),
            Self::BytesUp => of("sent up", "MB", 1e-6, 1, -1),
            Self::BytesDown => of("sent down", "MB", 1e-6, 1, -1),
            Self::MergeDifference => small("merge: logits", ""),
            Self::MergeKl => small("merge: KL", "nats"),
            Self::GradientNorm => of("gradient norm", "", 1.0, 3, 0),
            Self::EffectiveRank => of("effective rank", "", 1.0, 1, 0),
        }
    }
}

/// A measure over the seeds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Values {
    pub(crate) mean: f64,
    /// Of the sample (n - 1); none for a single seed.
    pub(crate) sd: Option<f64>,
    /// In the order of the cell's seeds.
    pub(crate) each: Vec<f64>,
}

/// A difference with its bootstrap interval over seeds and examples, both paired: 95 %, alone or with all of its set at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) mean: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// That it is over.
    pub(crate) seeds: usize,
}

impl Interval {
    /// Whether it says nothing: zero lies in it. Of one seed it says nothing either way.
    pub(crate) fn is_tie(&self) -> bool {
        !self.is_of_rows_alone() && self.low <= 0.0 && 0.0 <= self.high
    }

    /// One seed does not tell what another would change.
    pub(crate) fn is_of_rows_alone(&self) -> bool {
        self.seeds < 2
    }
}

/// Ours and a peer's, trained from the same start on the same batches.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Pair {
    pub(crate) set: String,
    /// `lora`, ...
    pub(crate) method: String,
    pub(crate) peer: String,
    pub(crate) rank: u64,
    pub(crate) dtype: String,
    pub(crate) seeds: Vec<u64>,
    /// Ours less theirs.
    pub(crate) accuracy: Option<Interval>,
    /// The largest relative difference of the training losses, over all steps and seeds.
    pub(crate) worst_loss_difference: Option<f64>,
    /// Ours over theirs, in tokens a second.
    pub(crate) speed_ratio: Option<f64>,
    /// Ours over theirs.
    pub(crate) memory_ratio: Option<f64>,
    /// Training loss of the first seed, step by step: ours, theirs.
    pub(crate) losses: Vec<[f64; 2]>,
}

/// A learning rate that was tried.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Tried {
    pub(crate) set: String,
    pub(crate) method: String,
    pub(crate) rank: Option<u64>,
    pub(crate) lr: f64,
    /// On the validation part; none if it diverged or failed.
    pub(crate) loss: Option<f64>,
    pub(crate) accuracy: Option<f64>,
    pub(crate) chosen: bool,
    /// The lowest or the highest of those that were tried, so that a better one may lie beyond.
    pub(crate) at_end: Option<End>,
}

/// Of the rates that were tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Lowest,
    Highest,
}
