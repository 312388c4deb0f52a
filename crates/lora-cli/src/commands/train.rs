//! `lora train`

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use lora::train::{AdamWConfig, DataOptions, Dataset, Outcome, Schedule, TrainConfig};
use lora::{AdapterConfig, Error, Init, OutputFolder, Recipe, Targets, VARIANTS};

use super::say;
use crate::open::{ADAPTER, ModelArgs, count, grouped};
use crate::profile::Profile;
use crate::progress::Progress;

/// Train an adapter on a JSONL file
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora train --model SmolLM2.gguf --data train.jsonl --out my-adapter
  lora train --model models/Llama-3.2-1B --data train.jsonl --eval heldout.jsonl \\
      --variant qlora+dora+rslora --rank 16 --alpha 32 --out my-adapter
  lora train ... --recompute all --profile
  lora train ... --targets q_proj,v_proj --rank-pattern 'layers.0.self_attn.q_proj=4'")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Training rows: messages, prompt + completion, context + target, or text (docs/data.md)
    #[arg(long, value_name = "JSONL")]
    data: PathBuf,
    /// Held-out rows, for the loss during training
    #[arg(long, value_name = "JSONL")]
    eval: Option<PathBuf>,
    /// The adapter folder to write (PEFT's format); metrics go to OUT.metrics.jsonl
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace an adapter folder that is there
    #[arg(long)]
    overwrite: bool,

    /// Methods joined by `+`; `lora variants` lists them
    #[arg(long, default_value = "lora", help_heading = "Method")]
    variant: String,
    /// Rank of the update
    #[arg(long, default_value_t = 8, help_heading = "Method", allow_negative_numbers = true)]
    rank: i64,
    /// Size of the update: scaled by alpha/rank (rslora: alpha/sqrt(rank)) [default: twice the rank]
    #[arg(long, help_heading = "Method", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Probability of dropping an input of the update
    #[arg(long, default_value_t = 0.0, help_heading = "Method", allow_negative_numbers = true)]
    dropout: f64,
    /// all-linear, names (q_proj,v_proj) or regex:EXPRESSION over whole module paths
    #[arg(long, default_value = "all-linear", help_heading = "Method")]
    targets: String,
    /// Names or regex:EXPRESSION to leave out
    #[arg(long, help_heading = "Method")]
    exclude: Option<String>,
    /// Only these layers, by number
    #[arg(long, value_delimiter = ',', help_heading = "Method")]
    layers: Vec<i64>,
    /// MODULE=RANK for modules that end so; may be repeated, the first that fits wins
    #[arg(long, value_parser = pair::<i64>, help_heading = "Method")]
    rank_pattern: Vec<(String, i64)>,
    /// MODULE=ALPHA likewise
    #[arg(long, value_parser = pair::<f64>, help_heading = "Method")]
    alpha_pattern: Vec<(String, f64)>,
    /// How A starts
    #[arg(long, default_value = "kaiming", value_parser = ["kaiming", "gaussian"], help_heading = "Method")]
    init: String,

    /// Passes over the data
    #[arg(long, default_value_t = 2.0, help_heading = "Training")]
    epochs: f64,
    /// Stop after so many steps
    #[arg(long, help_heading = "Training")]
    max_steps: Option<u64>,
    /// Samples in one forward pass
    #[arg(long, default_value_t = 8, help_heading = "Training")]
    batch_size: usize,
    /// Forward passes a step
    #[arg(long, default_value_t = 1, help_heading = "Training")]
    accumulate: usize,
    /// Peak learning rate
    #[arg(long, default_value_t = 2e-4, help_heading = "Training")]
    lr: f64,
    /// constant, linear or cosine
    #[arg(long, default_value = "cosine", help_heading = "Training")]
    schedule: String,
    /// Share of the steps that warm up
    #[arg(long, default_value_t = 0.05, help_heading = "Training")]
    warmup: f64,
    /// Decoupled weight decay
    #[arg(long, default_value_t = 0.0, help_heading = "Training")]
    weight_decay: f64,
    /// Limit of the joint gradient norm; 0 for none
    #[arg(long, default_value_t = 1.0, help_heading = "Training")]
    clip: f64,
    /// none, all, or so many layers, from the lowest up, of which only the input is kept and the rest made again:
    /// less memory, more time
    #[arg(long, default_value = "none", value_name = "LAYERS", help_heading = "Training")]
    recompute: String,
    /// Of the initialisation, the order and dropout
    #[arg(long, default_value_t = 42, help_heading = "Training")]
    seed: u64,
    /// Held-out loss every so many steps, besides the end
    #[arg(long, help_heading = "Training")]
    eval_every: Option<u64>,
    /// Use only the first so many held-out rows
    #[arg(long, help_heading = "Training")]
    limit: Option<usize>,
    /// Longest sample in tokens [default: the model's context]
    #[arg(long, help_heading = "Training")]
    max_length: Option<usize>,
    /// Cut longer samples off instead of refusing them
    #[arg(long, help_heading = "Training")]
    truncate: bool,
    /// Say at the end where time and memory went, and how near it came to this machine's limit
    #[arg(long, help_heading = "Training")]
    profile: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // What is cheap to check comes first; the weights come last.
    let recipe = Recipe::parse(&args.variant, VARIANTS)?;
    let config = args.adapter_config()?;
    let training = args.train_config()?;
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let context = usize::try_from(checkpoint.config().max_positions).unwrap_or(usize::MAX);
    let options = DataOptions {
        max_length: args.max_length.map_or(context, |n| n.min(context)),
        truncate: args.truncate,
    };
    let data = Dataset::read(&args.data, &tokenizer, options)?;
    let held_out = match &args.eval {
        Some(path) => {
            let mut held_out = Dataset::read(path, &tokenizer, options)?;
            held_out.keep_first(args.limit);
            Some(held_out)
        }
        None => None,
    };
    let out = OutputFolder::create(&args.out, args.overwrite, is_adapter_file)?;

    let program = lora::tch_ext::memory::process().map_or(0, |usage| usage.current);
    let mut model = args.model.load(checkpoint.as_ref(), &recipe)?;
    tch::manual_seed(args.seed as i64);
    lora::attach(&mut model, ADAPTER, &recipe, &config)?;
    let params = lora::params(&model, ADAPTER);
    let (trained, all) = count(&model);
    say!(
        "model     {} ({} parameters, {})",
        args.model.model.display(),
        grouped(all - trained),
        args.model.dtype
    );
    let share = 100.0 * trained as f64 / all as f64;
    say!("adapter   {recipe}, rank {}: {} parameters train ({share:.3} %)", config.r, grouped(trained));
    say!(
        "data      {} rows, {} tokens, {} of them learnt{}",
        data.samples.len(),
        grouped(data.tokens()),
        grouped(data.supervised()),
        if data.truncated > 0 { format!("; {} rows cut off", data.truncated) } else { String::new() }
    );
    // Room for the result now, so that a full disk is found before hours of training and not after.
    let room = vec![0u8; params.iter().map(|p| p.tensor.numel() * 4).sum::<usize>() + (64 << 10)];
    out.write(ROOM, &room)?;

    let tokens = data.tokens() * args.batch_size / data.samples.len().max(1);
    let profile = args.profile.then(|| Profile::begin(&model, tokens as i64, program));
    let mut progress = Progress::new(&metrics_path(&args.out))?;
    let train = || {
        lora::train::train(&model, params, &data, held_out.as_ref(), &training, &mut |event| {
            progress.event(event)
        })
    };
    let (outcome, spent) = if args.profile { Profile::watch(train) } else { (train(), Vec::new()) };
    progress.finish();
    let outcome = outcome?;

    let path = out.path().join(ROOM);
    std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    let mut config = config;
    config.base_model = Some(args.model.model.display().to_string());
    lora::save(&model, ADAPTER, &recipe, &config, VARIANTS, out.path())?;
    out.write("training.json", args.summary(&recipe, &outcome))?;
    out.commit()?;
    say!(
        "\nloss {:.4} -> {:.4}{} in {} steps, {:.0} s, {:.0} tokens/s",
        outcome.first_loss,
        outcome.last_loss,
        outcome.eval_loss.map_or(String::new(), |l| format!(", held out {l:.4},")),
        outcome.steps,
        outcome.seconds,
        outcome.tokens as f64 / outcome.seconds.max(1e-9)
    );
    say!("adapter written to {}", args.out.display());
    if let Some(profile) = profile {
        profile.print(&model, &outcome, &spent);
    }
    Ok(())
}

/// A file that keeps disk space free for the adapter while it trains.
const ROOM: &str = "space-kept-for-the-adapter";

/// What a folder written by `train` may hold.
fn is_adapter_file(path: &Path) -> bool {
    let ours = [lora::CONFIG_FILE, lora::WEIGHTS_FILE, "training.json", "README.md"];
    ours.contains(&&*path.to_string_lossy())
}

fn metrics_path(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".metrics.jsonl");
    name.into()
}

impl Args {
    fn adapter_config(&self) -> Result<AdapterConfig> {
        let config = AdapterConfig {
            r: self.rank,
            lora_alpha: self.alpha.unwrap_or(2.0 * self.rank.max(1) as f64),
            lora_dropout: self.dropout,
            target_modules: targets(&self.targets),
            exclude_modules: self.exclude.as_deref().map(targets),
            layers_to_transform: (!self.layers.is_empty()).then(|| self.layers.clone()),
            rank_pattern: self.rank_pattern.clone(),
            alpha_pattern: self.alpha_pattern.clone(),
            init: if self.init == "gaussian" { Init::Gaussian } else { Init::Kaiming },
            ..AdapterConfig::default()
        };
        config.check()?;
        Ok(config)
    }

    fn train_config(&self) -> Result<TrainConfig> {
        let config = TrainConfig {
            epochs: self.epochs,
            max_steps: self.max_steps,
            batch_size: self.batch_size,
            accumulate: self.accumulate,
            learning_rate: self.lr,
            schedule: Schedule::from_str(&self.schedule)?,
            warmup: self.warmup,
            adamw: AdamWConfig { weight_decay: self.weight_decay, ..AdamWConfig::default() },
            clip: (self.clip != 0.0).then_some(self.clip),
            recompute: match self.recompute.as_str() {
                "none" => 0,
                "all" => usize::MAX,
                layers => layers.parse().map_err(|_| {
                    Error::usage(format!("--recompute takes none, all or a number of layers, not `{layers}`"))
                })?,
            },
            seed: self.seed,
            eval_every: self.eval_every,
        };
        config.check()?;
        Ok(config)
    }

    /// What was done, for whoever finds the folder later.
    fn summary(&self, recipe: &Recipe, outcome: &Outcome) -> Vec<u8> {
        let summary = serde_json::json!({
            "program": concat!("lora ", env!("CARGO_PKG_VERSION")),
            "variant": recipe.to_string(),
            "model": self.model.model.display().to_string(),
            "data": self.data.display().to_string(),
            "dtype": self.model.dtype,
            "base_storage": self.model.base_storage,
            "skip": self.model.skip,
            "seed": self.seed,
            "learning_rate": self.lr,
            "schedule": self.schedule,
            "warmup": self.warmup,
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            "recompute": self.recompute,
            "outcome": outcome,
        });
        format!("{summary:#}\n").into_bytes()
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
