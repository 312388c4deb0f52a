//! What is trained, and how: the arguments that `train` and `plan` share.

use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use anyhow::Result;
use lora::model::Tokenizer;
use lora::train::{AdamWConfig, DataOptions, Dataset, Long, Schedule, TrainConfig};
use lora::{AdapterConfig, Error, Init, Start, Targets};

use crate::commands::aside;

#[derive(clap::Args)]
pub(crate) struct MethodArgs {
    /// Methods joined by `+`; `lora variants` lists them
    #[arg(long, default_value = "lora", help_heading = "Method")]
    pub(crate) variant: String,
    /// Rank of the update
    #[arg(long, default_value_t = 8, help_heading = "Method")]
    pub(crate) rank: i64,
    /// Size of the update: scaled by alpha/rank (rslora: alpha/sqrt(rank)) [default: twice the rank]
    #[arg(long, help_heading = "Method")]
    pub(crate) alpha: Option<f64>,
    /// Probability of dropping an input of the update
    #[arg(long, default_value_t = 0.0, help_heading = "Method")]
    pub(crate) dropout: f64,
    /// all-linear, names (q_proj,v_proj) or regex:EXPRESSION over whole module paths
    #[arg(long, default_value = "all-linear", help_heading = "Method")]
    pub(crate) targets: String,
    /// Names or regex:EXPRESSION to leave out
    #[arg(long, help_heading = "Method")]
    pub(crate) exclude: Option<String>,
    /// Only these layers, by number, as 0-3,7
    #[arg(long, value_delimiter = ',', help_heading = "Method")]
    pub(crate) layers: Vec<Layers>,
    /// MODULE=RANK for modules that end so; may be repeated, the first that fits wins
    #[arg(long, value_parser = pair::<i64>, help_heading = "Method")]
    pub(crate) rank_pattern: Vec<(String, i64)>,
    /// MODULE=ALPHA likewise
    #[arg(long, value_parser = pair::<f64>, help_heading = "Method")]
    pub(crate) alpha_pattern: Vec<(String, f64)>,
    /// How A and B start: kaiming or gaussian; loftq, pissa, olora in `lora init`
    #[arg(long, default_value = "kaiming", value_parser = ["kaiming", "gaussian", "loftq", "pissa", "olora"],
          help_heading = "Method")]
    pub(crate) init: String,
}

/// One layer, or from one to another: `7`, `0-3`.
#[derive(Debug, Clone)]
pub(crate) struct Layers(RangeInclusive<u16>);

impl FromStr for Layers {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.trim().parse::<u16>().ok();
        let layers = number(first).zip(number(last)).filter(|(first, last)| first <= last);
        let (first, last) = layers.ok_or_else(|| format!("`{text}` is no layer's number: say 7, or 0-3"))?;
        Ok(Self(first..=last))
    }
}

/// How rows are read.
#[derive(clap::Args)]
pub(crate) struct TextArgs {
    /// Longest sample in tokens [default: the model's context]
    #[arg(long, help_heading = "Training")]
    pub(crate) max_length: Option<usize>,
    /// Cut longer samples off instead of refusing them
    #[arg(long, help_heading = "Training")]
    pub(crate) truncate: bool,
    /// Leave longer samples out instead of refusing them
    #[arg(long, conflicts_with = "truncate", help_heading = "Training")]
    pub(crate) drop_long: bool,
}

/// How an adapter is trained, by itself or in a federation's round.
#[derive(clap::Args)]
pub(crate) struct StepArgs {
    /// Passes over the data
    #[arg(long, default_value_t = 2.0, help_heading = "Training")]
    pub(crate) epochs: f64,
    /// Stop after so many steps
    #[arg(long, help_heading = "Training")]
    pub(crate) max_steps: Option<u64>,
    /// Samples in one forward pass
    #[arg(long, default_value_t = 8, help_heading = "Training")]
    pub(crate) batch_size: usize,
    /// Forward passes a step
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    pub(crate) accumulate: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-4, help_heading = "Training")]
    pub(crate) lr: f64,
    /// constant, linear or cosine
    #[arg(long, default_value = "cosine", help_heading = "Training")]
    pub(crate) schedule: String,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    pub(crate) weight_decay: f64,
    /// Limit of the joint gradient norm; 0 for none
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    pub(crate) clip: f64,
    /// none, all, or so many layers, from the lowest up, of which only the input is kept and the rest made again:
    /// less memory, more time
    #[arg(long, default_value = "none", value_name = "LAYERS", help_heading = "Training")]
    pub(crate) recompute: String,
    /// Tell a GPU every operation by itself, where small models are told whole passes at once (CUDA graphs)
    #[arg(long, help_heading = "Training")]
    pub(crate) eager: bool,
    /// Of the initialisation, the order and dropout
    #[arg(long, default_value_t = 42, help_heading = "Training")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) text: TextArgs,
}

/// How an adapter is trained by itself.
#[derive(clap::Args)]
pub(crate) struct TrainingArgs {
    #[command(flatten)]
    pub(crate) step: StepArgs,
    /// Share of the steps that warm up
    #[arg(long, default_value_t = 0.05, help_heading = "Training")]
    pub(crate) warmup: f64,
    /// Held-out loss every so many steps, besides the end
    #[arg(long, help_heading = "Training")]
    pub(crate) eval_every: Option<u64>,
}

impl MethodArgs {
    /// Refuses a start that changes the base.
    pub(crate) fn is_for_train(&self, adapter: bool) -> Result<()> {
        if adapter || Start::from_str(&self.init).is_err() {
            return Ok(());
        }
        let what =
            format!("a start by {} changes the base, which must be written beside the adapter", self.init);
        Err(Error::usage(what)
            .hint(format!(
                "first `lora init --init {} ... --out start`, then `lora train --model start/base --adapter \
                 start/adapter ...`",
                self.init
            ))
            .into())
    }

    /// The adapter's configuration.
    pub(crate) fn adapter_config(&self) -> Result<AdapterConfig> {
        let config = AdapterConfig {
            r: self.rank,
            lora_alpha: self.alpha.unwrap_or(2.0 * self.rank.max(1) as f64),
            lora_dropout: self.dropout,
            target_modules: targets(&self.targets),
            exclude_modules: self.exclude.as_deref().map(targets),
            layers_to_transform: (!self.layers.is_empty())
                .then(|| self.layers.iter().flat_map(|layers| layers.0.clone()).map(i64::from).collect()),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            init: if self.init == "gaussian" { Init::Gaussian } else { Init::Kaiming },
            ..AdapterConfig::default()
        };
        config.check()?;
        Ok(config)
    }
}

impl TextArgs {
    /// Reads rows as the arguments say, for a model of that context.
    pub(crate) fn read(&self, path: &Path, tokenizer: &Tokenizer, context: i64) -> lora::Result<Dataset> {
        let long = match (self.truncate, self.drop_long) {
            (true, _) => Long::Cut,
            (_, true) => Long::LeftOut,
            _ => Long::Refused,
        };
        let data = Dataset::read(path, tokenizer, DataOptions { max_length: self.longest(context), long })?;
        if data.left_out > 0 {
            let (name, all) = (path.display(), data.left_out + data.rows.len());
            aside(format_args!("note: {name}: {} of {all} rows left out: too long", data.left_out));
        }
        Ok(data)
    }

    /// A note where a sample may not have as many tokens as it is allowed.
    pub(crate) fn tell_longest(&self, context: i64) {
        let longest = self.longest(context);
        if let Some(asked) = self.max_length.filter(|asked| *asked > longest) {
            aside(format_args!(
                "note: --max-length {asked} is beyond the model's context: {longest} is taken"
            ));
        }
    }

    /// Tokens that a sample may have.
    pub(crate) fn longest(&self, context: i64) -> usize {
        let context = usize::try_from(context).unwrap_or(usize::MAX);
        self.max_length.map_or(context, |n| n.min(context))
    }
}

impl StepArgs {
    /// The loop's configuration, without a warm-up.
    pub(crate) fn train_config(&self) -> Result<TrainConfig> {
        let config = TrainConfig {
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            learning_rate: self.lr,
            schedule: Schedule::from_str(&self.schedule)?,
            warmup: 0.0,
            adamw: AdamWConfig { weight_decay: self.weight_decay, ..AdamWConfig::default() },
            clip: (self.clip != 0.0).then_some(self.clip),
            proximal: None,
            recompute: match self.recompute.as_str() {
                "none" => 0,
                "all" => usize::MAX,
                layers => layers.parse().map_err(|_| {
                    Error::usage(format!("--recompute takes none, all or a number of layers, not `{layers}`"))
                })?,
            },
            record: !self.eager,
            seed: self.seed,
            eval_every: None,
            save: None,
            stop: None,
        };
        Ok(config)
    }
}

impl TrainingArgs {
    /// The loop's configuration.
    pub(crate) fn train_config(&self) -> Result<TrainConfig> {
        let config =
            TrainConfig { warmup: self.warmup, eval_every: self.eval_every, ..self.step.train_config()? };
        config.check()?;
        Ok(config)
    }
}

fn targets(text: &str) -> Targets {
    match text.strip_prefix("regex:") {
        Some(regex) => Targets::Regex(regex.to_owned()),
        None if text == "all-linear" => Targets::AllLinear,
        None => Targets::Names(text.split(',').map(|n| n.trim().to_owned()).collect()),
    }
}

fn pair<T: FromStr>(text: &str) -> std::result::Result<(String, T), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    let value = value.parse().map_err(|_| format!("`{value}` is no number"))?;
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::Layers;

    #[test]
    fn layers_are_numbers_and_ranges() {
        for (text, layers) in [("7", vec![7]), ("0-3", vec![0, 1, 2, 3]), ("5 - 5", vec![5])] {
            assert_eq!(text.parse::<Layers>().unwrap().0.collect::<Vec<_>>(), layers, "{text}");
        }
        for text in ["", "-1", "3-0", "0-", "1-2-3", "0..3", "x", "99999"] {
            assert!(text.parse::<Layers>().unwrap_err().contains("say 7, or 0-3"), "{text}");
        }
    }
}
