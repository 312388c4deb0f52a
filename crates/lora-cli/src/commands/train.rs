//! `lora train`

mod record;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use lora::model::{Keep, parameters};
use lora::train::{Event, Fit, Load, SavePoint, Setting, TrainConfig, may_share};
use lora::{AdapterConfig, Error, OutputFolder, Recipe, VARIANTS};

use super::{bare, say};
use crate::open::{ADAPTER, ModelArgs, chosen, grouped, share};
use crate::origin::TRAINING;
use crate::planning::{self, Size, Way};
use crate::privacy::{PrivacyArgs, ledger_of};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::settings::{MethodArgs, TrainingArgs};
use crate::stop::Heard;

/// Train an adapter on a JSONL file
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora train --model SmolLM2.gguf --data train.jsonl --out my-adapter
  lora train --model models/Llama-3.2-1B --data train.jsonl --eval heldout.jsonl \\
      --variant qlora+dora+rslora --rank 16 --alpha 32 --out my-adapter
  lora train ... --recompute all --profile
  lora train ... --auto --memory 8GB
  lora train ... --save-every 100                                 stopped, the same command goes on
  lora train --model start/base --adapter start/adapter ...       after `lora init`, or to go on
  lora train ... --dp-epsilon 8 --batch-size 8 --accumulate 16    with differential privacy
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
    /// Go on with this adapter instead of a fresh one: of --variant only the storage counts then
    #[arg(
        long,
        value_name = "FOLDER",
        conflicts_with_all = ["rank", "alpha", "dropout", "targets", "exclude", "layers", "rank_pattern", "alpha_pattern", "init"]
    )]
    adapter: Option<PathBuf>,
    /// The adapter folder to write (PEFT's format); metrics go to OUT.metrics.jsonl (those of an adapter that it is to
    /// replace stay in OUT.metrics.earlier.jsonl until it is replaced)
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace an adapter folder that is there
    #[arg(long)]
    overwrite: bool,

    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    privacy: PrivacyArgs,
    /// The file of all that was given away of these rows: always the same one for the same rows [default: DATA.privacy.jsonl]
    #[arg(long, value_name = "FILE", help_heading = "Privacy", requires = "dp_epsilon")]
    dp_ledger: Option<PathBuf>,
    /// Choose the fastest setting that fits into memory: how weights are kept (unless --variant or --base-storage say
    /// it), texts in a pass, layers recomputed. What is learnt stays the same, unless only rounding the base to 4 bits makes
    /// it fit
    #[arg(long, help_heading = "Training", conflicts_with = "recompute")]
    auto: bool,
    /// With --auto the memory that it may take, as 8GB; otherwise it is told where it may not fit [default: what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Training")]
    memory: Option<Size>,
    /// Write the adapter as it starts and every step's texts as token ids and labels: to repeat the run elsewhere
    #[arg(long, value_name = "FOLDER", help_heading = "Training")]
    trace: Option<PathBuf>,
    /// Write the run down to OUT.resume.safetensors every so many steps, and where it is stopped (Ctrl-C, SIGTERM): the same
    /// command goes on from there, killed or stopped, to the adapter that it would have come to
    #[arg(long, value_name = "STEPS", help_heading = "Training", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(conflicts_with_all = ["dp_epsilon", "trace", "auto"])]
    save_every: Option<u64>,
    /// Use only the first so many held-out rows
    #[arg(long, help_heading = "Training", requires = "eval")]
    limit: Option<usize>,
    /// Say at the end where time and memory went, and how near it came to this machine's limit
    #[arg(long, help_heading = "Training")]
    profile: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let begin = Instant::now();
    // What is cheap to check comes first; the weights come last.
    args.apart()?;
    if args.training.eval_every.is_some() && args.eval.is_none() {
        return Err(Error::usage("--eval-every without held-out rows").hint("give them by --eval").into());
    }
    let mut training = args.training.train_config()?;
    let promise = args.privacy.promise(args.dp_ledger.clone().unwrap_or_else(|| ledger_of(&args.data)));
    if promise.is_some() && args.trace.is_some() {
        return Err(Error::usage("--trace writes batches, and private ones are drawn in secret").into());
    }
    let asked = Way::asked(&args.model, &args.method)?;
    let config = match &args.adapter {
        Some(folder) => {
            let config = AdapterConfig::read(folder)?;
            lora::weights_file(folder)?;
            chosen(&args.method.variant, Some(&config))?;
            config
        }
        None => args.method.adapter_config()?,
    };
    args.method.is_for_train(args.adapter.is_some())?;
    if promise.is_some() && config.lora_dropout > 0.0 {
        return Err(lora::train::no_dropout("lora_dropout").into());
    }
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let context = checkpoint.config().max_positions;
    args.training.step.text.tell_longest(context);
    let data = args.training.step.text.read(&args.data, &tokenizer, context)?;
    let held_out = match &args.eval {
        Some(path) => {
            let mut held_out = args.training.step.text.read(path, &tokenizer, context)?;
            held_out.keep_first(args.limit);
            Some(held_out)
        }
        None => None,
    };
    let batch = training.batch_size * training.accumulate.max(1);
    let rows = data.samples.len();
    let terms =
        promise.as_ref().map(|promise| promise.terms(rows, batch, training.steps(rows))).transpose()?;
    // Before the saved run is looked at: what lies beside OUT is another's, as long as that one lives.
    let out = OutputFolder::create(&args.out, args.overwrite, is_adapter_file)?.alone()?;
    let saved = lora::sibling(&args.out, "resume.safetensors");
    if args.save_every.is_none() && saved.exists() {
        return Err(Error::usage("an interrupted run is to go on here, and this one would take its metrics")
            .at(saved.display())
            .hint("with --save-every it goes on; delete the file to give it up, or take another --out")
            .into());
    }

    let device = args.model.device()?;
    let program = planning::program(args.model.kind(), device)?;
    let mut ways = if args.auto {
        Way::all(checkpoint.as_ref(), &args.model, &args.method)?
    } else {
        vec![asked.resolved(checkpoint.as_ref())?]
    };
    if args.adapter.is_some() {
        let parts = Recipe::from_flags(&config.flags, VARIANTS)?;
        ways.iter_mut().for_each(|way| way.recipe = parts.clone().stored_as(&way.recipe));
    }
    // Of a method that does not say what it holds there is no plan.
    let fit = if args.auto || ways[0].recipe.footprint()?.is_some() {
        let planners =
            planning::planners(&ways, checkpoint.as_ref(), &args.model, &config, (device, program))?;
        let load = match &promise {
            // What is chosen is told with the adapter: not by the rows' lengths.
            Some(_) if args.auto => Load::even(args.training.step.text.longest(context) as i64, &training),
            _ => {
                let share =
                    promise.is_none() && may_share(device, args.model.kind(), config.lora_dropout > 0.0);
                Load::of_data(&data.samples, &training, share)
            }
        };
        let limit = planning::limit(args.memory, device, program);
        let limit = if args.auto { Some(limit?) } else { limit.ok() };
        let fit = match limit.filter(|_| args.auto) {
            Some(limit) => Some(planning::fastest(&ways, &planners, &load, limit)?),
            None => Fit::of(&planners, planning::setting(0, &training), &load),
        };
        let fit = fit.ok_or_else(|| Error::internal("no plan for this setting"))?;
        let planner = fit.setting.planner;
        say!("plan      {}", planning::told(&ways[planner].name, &fit, limit, planners[planner].blocks()));
        Some(fit)
    } else {
        None
    };
    let setting = fit.map_or(planning::setting(0, &training), |fit| fit.setting);
    let Setting { planner, recompute, batch_size, accumulate } = setting;
    training = TrainConfig { recompute, batch_size, accumulate, ..training };
    let Way { recipe, packed, .. } = ways.swap_remove(planner);

    if let Some(every) = args.save_every {
        let (run, settings) = args.run((&recipe, packed), &config, &training, &data)?;
        training.save = Some(SavePoint { path: saved.clone(), every, run, settings });
    }
    let done = training.save.as_ref().map(SavePoint::steps).transpose()?.flatten();
    if let Some(done) = done {
        say!("resumed   after step {done} of {}: {}", training.steps(rows), saved.display());
    }

    let keep = Keep { storage: recipe.storage(), packed, skip: &args.model.skip };
    let base = args.base(checkpoint.as_ref(), (&recipe, packed));
    let mut model = args.model.load(checkpoint.as_ref(), keep)?;
    tch::manual_seed(training.seed as i64);
    let mut written = config.clone();
    match &args.adapter {
        Some(folder) => drop(lora::load(&mut model, ADAPTER, folder, VARIANTS)?),
        None => {
            lora::attach(&mut model, ADAPTER, &recipe, &config)?;
            written = lora::targets_by_name(&model, &config)?;
        }
    }
    let params = lora::params(&model, ADAPTER);
    let trained: usize = params.iter().map(|p| p.tensor.numel()).sum();
    let frozen = parameters(checkpoint.config());
    say!("model     {} ({} parameters, {})", args.model.model.display(), grouped(frozen), args.model.dtype);
    let loaded = begin.elapsed().as_secs_f64();
    if let Some(path) = &args.trace {
        trace::write((path, args.overwrite), (&data, &training), |folder| {
            lora::save(&model, ADAPTER, &recipe, &written, VARIANTS, folder)
        })?;
    }
    let share = 100.0 * share(trained, frozen);
    let ranked = params.iter().any(|p| p.name.starts_with("lora_A"));
    let rank = if ranked { format!(", rank {}", config.r) } else { String::new() };
    say!("adapter   {recipe}{rank}: {} parameters train ({share:.3} %)", grouped(trained));
    say!(
        "data      {} rows, {} tokens, {} of them learnt{}",
        data.samples.len(),
        grouped(data.tokens()),
        grouped(data.supervised()),
        if data.truncated > 0 { format!("; {} rows cut off", data.truncated) } else { String::new() }
    );
    let mut release = match (&promise, terms) {
        (Some(promise), Some(terms)) => {
            let settings = args.bound_to((&recipe, packed), &config, &training)?;
            let run = bare(&args.out).display().to_string();
            let release = promise.release(&data, (batch, terms), trained, &run, &settings)?;
            say!(
                "privacy   epsilon {} at delta {:.1e} a row: noise {:.3}, {:.2} % of the rows a step; {}",
                promise.epsilon,
                terms.delta,
                terms.noise,
                100.0 * terms.rate,
                promise.ledger.display()
            );
            Some(release)
        }
        _ => None,
    };
    // Room for the result now, so that a full disk is found before hours of training and not after.
    let room = vec![0u8; trained * 4 + (64 << 10)];
    out.write(ROOM, &room)?;

    let tokens = data.tokens() * batch_size / data.samples.len().max(1);
    let profile = args.profile.then(|| Profile::begin(&model, tokens as i64, program));
    // A run that fails leaves the adapter that is there, and what was told of it.
    let earlier = lora::sibling(&args.out, "metrics.earlier.jsonl");
    let kept = (done.is_none() && args.out.exists()).then_some(earlier.as_path());
    let mut progress = Progress::new(&lora::sibling(&args.out, "metrics.jsonl"), kept, done)?;
    let mut each = |event: &Event| progress.event(event);
    // What comes before has learnt nothing yet: a signal ends it at once.
    let heard = Heard::asking(training.stop.get_or_insert_default().clone())?;
    let train = || match &mut release {
        Some(release) => lora::train::train_privately(
            &model,
            params,
            &data,
            held_out.as_ref(),
            &training,
            release,
            &mut each,
        ),
        None => lora::train::train(&model, params, &data, held_out.as_ref(), &training, &mut each),
    };
    let (outcome, spent) = if args.profile { Profile::watch(train) } else { (train(), Vec::new()) };
    progress.finish();
    let outcome = outcome?;
    if let Some(stopped) =
        args.stopped(&heard, training.save.as_ref(), (outcome.steps, training.steps(rows)))?
    {
        return Err(stopped.into());
    }

    let path = out.path().join(ROOM);
    std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
    written.base_model = Some(args.model.model.display().to_string());
    lora::save(&model, ADAPTER, &recipe, &written, VARIANTS, out.path())?;
    let private = match (&release, &terms) {
        (Some(release), Some(terms)) => Some(serde_json::json!({
            "epsilon": release.ledger().spent()?,
            "delta": terms.delta,
            "unit": "example",
            "noise": terms.noise,
            "rate": terms.rate,
            "clip": release.config().clip,
            "steps": outcome.steps,
        })),
        _ => None,
    };
    let outcome_of = (&outcome, trained, loaded);
    let summary = args.summary((&recipe, packed), &base, &training, outcome_of, private.clone());
    out.write(TRAINING, summary)?;
    out.commit()?;
    if earlier.exists() {
        std::fs::remove_file(&earlier)
            .map_err(|e| Error::io("remove the metrics of what was replaced", &earlier, e))?;
    }
    if training.save.is_some() && saved.exists() {
        std::fs::remove_file(&saved).map_err(|e| Error::io("remove what the run was saved in", &saved, e))?;
    }
    if let Some(private) = private {
        let planned = training.steps(rows);
        let early = if outcome.steps < planned { ", and the budget allows no more" } else { "" };
        say!(
            "privacy   epsilon {:.4} spent in {} of {planned} steps{early}",
            private["epsilon"].as_f64().unwrap_or(f64::NAN),
            outcome.steps
        );
        say!(
            "          the losses here and in the metrics are of the rows themselves: keep them where the rows are"
        );
    }
    say!(
        "\nloss {:.4} at first, {:.4} over the last tenth{}, in {} steps, {:.0} s, {:.0} tokens/s",
        outcome.first_loss,
        outcome.last_loss,
        outcome.eval_loss.map_or(String::new(), |l| format!(", held out {l:.4}")),
        outcome.steps,
        outcome.seconds,
        outcome.tokens as f64 / outcome.seconds.max(1e-9)
    );
    say!("adapter written to {}", args.out.display());
    if let Some(profile) = profile {
        profile.print(&model, (&outcome, done), &spent, fit.map(|fit| fit.plan.total()));
    }
    Ok(())
}

/// A file that keeps disk space free for the adapter while it trains.
const ROOM: &str = "space-kept-for-the-adapter";

/// What a folder written by `train` may hold. A model card is nothing of that, though PEFT begins one beside each adapter:
/// people write on.
pub(crate) fn is_adapter_file(path: &Path) -> bool {
    let ours = [lora::CONFIG_FILE, lora::WEIGHTS_FILE, TRAINING];
    ours.contains(&&*path.to_string_lossy())
}
