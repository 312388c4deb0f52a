//! `lora plan`

use std::path::PathBuf;

use anyhow::Result;
use lora::Error;
use lora::model::StepSize;
use lora::train::{Fit, Load, Plan, Planner, Setting, TrainConfig, may_share};

use super::{emit, say};
use crate::open::ModelArgs;
use crate::planning::{self, Size, Way};
use crate::settings::{MethodArgs, TrainingArgs};

/// Say what training will take of memory, and what fits; loads no weights
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora plan --model SmolLM2.gguf --length 1024 --batch-size 8
  lora plan --model models/Llama-3-8B --variant qlora --data train.jsonl --memory 8GB
  lora plan --model models/Llama-3-8B --variant full --layers 30,31

It takes `lora train`'s options of model, method and training; `lora train` plans the same before it loads the model, and \
with --auto chooses the fastest setting that fits. Every number is counted from the configuration; the time is an estimate, to compare by. Rows that begin alike are \
counted as they are trained without --dp-epsilon: the beginning once. Where nothing fits it says so behind the plan, and \
the exit code is 2, as `lora train --auto`'s.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Training rows: plan for the batches that they make
    #[arg(long, value_name = "JSONL", conflicts_with = "length")]
    data: Option<PathBuf>,
    /// Plan for texts of so many tokens [default: 1024, or the model's context if that is less]
    #[arg(long, value_name = "TOKENS")]
    length: Option<i64>,
    /// The memory that there is, as 8GB [default: what is free]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Plan for a federation's client, with frozen factors of so many ranks beside each weight that has an adapter: fedex
    /// and flora lay down more each round
    #[arg(long, value_name = "RANK", default_value_t = 0)]
    beside: u16,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let asked = Way::asked(&args.model, &args.method)?;
    let config = args.method.adapter_config()?;
    let training = args.training.train_config()?;
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let context = checkpoint.config().max_positions;
    args.training.step.text.tell_longest(context);
    let data =
        args.data.as_ref().map(|path| args.training.step.text.read(path, &tokenizer, context)).transpose()?;
    let length = match (&data, args.length) {
        (Some(data), _) => data.samples.iter().map(|s| s.ids.len() as i64).max().unwrap_or(1),
        (None, Some(length)) if (1..=context).contains(&length) => length,
        (None, Some(length)) => {
            let what = format!("a text of {length} tokens does not fit the model's context of {context}");
            return Err(Error::usage(what).into());
        }
        (None, None) => context.min(1024),
    };
    let asked = asked.resolved(checkpoint.as_ref())?;
    let device = args.model.device()?;
    let program = planning::program(args.model.kind(), device)?;
    let mut ways = Way::all(checkpoint.as_ref(), &args.model, &args.method)?;
    // The one that is asked for comes first.
    ways.sort_by_key(|way| way.name != asked.name);
    let planners = planning::planners(&ways, checkpoint.as_ref(), &args.model, &config, (device, program))?;
    let planners: Vec<_> = planners.into_iter().map(|planner| planner.beside(args.beside.into())).collect();
    let share = may_share(device, args.model.kind(), config.lora_dropout > 0.0);
    let load = data
        .as_ref()
        .map_or_else(|| Load::even(length, &training), |data| Load::of_data(&data.samples, &training, share));
    let limit = planning::limit(args.memory, device, program)?;
    let fit = Fit::of(&planners, planning::setting(0, &training), &load);
    let fit = fit.ok_or_else(|| Error::internal("no plan for this setting"))?;
    let fastest = planning::fastest(&ways, &planners, &load, limit);
    let rows = rows(&ways, &planners, &load, &training, (length, context, limit));
    if args.json {
        let chosen = fastest.as_ref().ok().map(|fit| {
            let Setting { planner, recompute, batch_size, accumulate } = fit.setting;
            serde_json::json!({
                "weights": ways[planner].name, "recompute": recompute, "batch_size": batch_size,
                "accumulate": accumulate, "bytes": fit.plan.total(),
            })
        });
        let rows: Vec<_> = rows.iter().map(|row| row.json(fit.effort)).collect();
        emit(serde_json::json!({
            "bytes": fit.plan.total(), "parts": fit.plan, "limit": limit, "fastest": chosen, "settings": rows,
        }));
        return Ok(fastest.map(drop)?);
    }
    print_parts(&fit.plan, limit);
    say!("\nwhat fits in {:.2} GB (the time is an estimate)", gb(limit));
    say!("  weights    recompute     memory   time   texts of {length} at once   longest text");
    rows.iter().for_each(|row| row.print(fit.effort, context));
    let fastest = fastest?;
    let Setting { planner, recompute, batch_size, accumulate } = fastest.setting;
    say!(
        "\nfastest   {} weights, {accumulate} x {batch_size} texts a step, --recompute {recompute}: {:.2} GB \
         (`lora train --auto` does it)",
        ways[planner].name,
        gb(fastest.plan.total())
    );
    Ok(())
}

fn gb(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn print_parts(plan: &Plan, limit: u64) {
    let moment = if plan.in_loss { "loss" } else { "backward pass" };
    say!("memory    at the highest point, in the {moment}:");
    let buffers = if plan.in_loss { "logits" } else { "gradients" };
    for (name, bytes) in [
        ("program, libraries, data", plan.program),
        ("weights", plan.weights),
        ("adapters", plan.adapters),
        ("optimiser", plan.optimiser),
        ("activations", plan.activations),
        (buffers, plan.buffers),
    ] {
        say!("  {name:24} {:9.1} MB", bytes as f64 / 1e6);
    }
    if plan.loading == plan.total() {
        say!("  {:24} {:9.1} MB, more than that", "while loading", plan.loading as f64 / 1e6);
    }
    let verdict = if plan.fits(limit) { "" } else { ": it may not fit" };
    say!("  {:24} {:9.1} MB of {:.1} MB{verdict}", "sum", plan.total() as f64 / 1e6, limit as f64 / 1e6);
}

/// One way to keep the weights, with a choice of what is recomputed.
struct Row {
    weights: String,
    recompute: usize,
    blocks: usize,
    fit: Fit,
    texts: i64,
    longest: i64,
}

fn rows(
    ways: &[Way],
    planners: &[Planner],
    load: &Load,
    training: &TrainConfig,
    (length, context, limit): (i64, i64, u64),
) -> Vec<Row> {
    const MOST_TEXTS: i64 = 1 << 14;
    let mut rows = Vec::new();
    for (at, (way, planner)) in ways.iter().zip(planners).enumerate() {
        let blocks = planner.blocks();
        let mut choices = vec![0, training.recompute.min(blocks), blocks];
        choices.dedup();
        for recompute in choices {
            let setting = Setting { recompute, ..planning::setting(at, training) };
            let size = |tokens: i64| StepSize { recompute, ..StepSize::of(tokens) };
            rows.extend(Fit::of(planners, setting, load).map(|fit| Row {
                weights: way.name.clone(),
                recompute,
                blocks,
                fit,
                texts: planner.largest(MOST_TEXTS, limit, |n| size(n * length)),
                longest: planner.largest(context, limit, size),
            }));
        }
    }
    rows
}

impl Row {
    fn print(&self, asked: f64, context: i64) {
        let recompute = match self.recompute {
            0 => "none".to_owned(),
            n if n == self.blocks => "all".to_owned(),
            n => format!("{n} of {}", self.blocks),
        };
        let longest = if self.longest == context { "the context" } else { "" };
        say!(
            "  {:10} {recompute:10} {:7.2} GB   {:4.2} {:22}   {:12} {longest}",
            self.weights,
            gb(self.fit.plan.total()),
            self.fit.effort / asked,
            self.texts,
            self.longest
        );
    }

    fn json(&self, asked: f64) -> serde_json::Value {
        serde_json::json!({
            "weights": self.weights, "recompute": self.recompute, "bytes": self.fit.plan.total(),
            "time": self.fit.effort / asked, "texts_at_once": self.texts, "longest_text": self.longest,
        })
    }
}
