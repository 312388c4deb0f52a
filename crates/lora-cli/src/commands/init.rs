//! `lora init`

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::builder::Resettable;
use lora::model::{Export, OnDisk, Pack, Tokenizer, is_model_file, linear_shapes};
use lora::tch_ext::memory;
use lora::{AdapterConfig, BaseWeight, Error, OutputFolder, Recipe, Start, VARIANTS};
use tch::{Kind, Tensor};

use super::say;
use super::train::is_adapter_file;
use crate::open::{ADAPTER, kind_of};
use crate::origin::{Origin, TRAINING};
use crate::paths;
use crate::settings::MethodArgs;

/// Split a model into a base and the adapter to start from: LoftQ, PiSSA, OLoRA
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora init --model models/Llama-3-8B --init loftq --variant qlora --rank 16 --out start
  lora init --model SmolLM2.gguf --init pissa --rank 8 --out start
  lora train --model start/base --adapter start/adapter --data train.jsonl --out my-adapter
  lora merge --model start/base --adapter my-adapter --out merged

Such a start changes what is frozen: the adapter that comes of it is right on OUT/base alone. OUT/base is an ordinary \
model folder, in bitsandbytes' 4 bits if the variant says so, and OUT/adapter an ordinary PEFT adapter.")]
#[command(mut_arg("init", |arg| {
    arg.default_value(Resettable::Reset)
        .required(true)
        .hide_possible_values(true)
        .help("How they start: loftq, pissa or olora")
}))]
pub(crate) struct Args {
    /// A Hugging Face folder or a .gguf file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// The folder to write: OUT/base and OUT/adapter
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Replace a folder that is there
    #[arg(long)]
    overwrite: bool,
    /// How often LoftQ and PiSSA fit what is stored and what lies beside to each other
    #[arg(long, default_value_t = 1, value_name = "N")]
    rounds: usize,
    /// What the base is written and computed in: bf16, f16 or f32
    #[arg(long, default_value = "bf16", value_parser = ["bf16", "f16", "f32"])]
    dtype: String,
    #[command(flatten)]
    method: MethodArgs,
}

const BASE: &str = "base";
const FOLDER: &str = "adapter";

/// What `init` writes of the model at `source` into the folder `out`.
fn is_ours(source: &Path, out: &Path) -> impl Fn(&Path) -> bool + use<> {
    let of_base = is_model_file(source, &out.join(BASE));
    move |path: &Path| {
        path.strip_prefix(BASE).is_ok_and(&of_base) || path.strip_prefix(FOLDER).is_ok_and(is_adapter_file)
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    paths::apart(&[("--out", Some(args.out.as_path()))], &[("the model", Some(args.model.as_path()))])?;
    let start: Start = args.method.init.parse()?;
    let recipe = Recipe::parse(&args.method.variant, VARIANTS)?;
    let config = args.method.adapter_config()?;
    start.check(recipe.storage(), args.rounds)?;
    memory::manage();
    let checkpoint = lora::open(&args.model)?;
    let tokenizer = if args.model.is_dir() { None } else { Some(Tokenizer::open(&args.model)?) };
    let shapes = linear_shapes(checkpoint.as_ref())?;
    let head = shapes.last().map(|(name, _)| name.as_str());
    let chosen = config.select(&shapes, head)?;
    if let Some(s) = chosen.iter().find(|s| Some(s.name.as_str()) == head) {
        return Err(Error::unsupported("the output head starts as it is: it is never packed")
            .at(&s.name)
            .hint("leave it out of --targets")
            .into());
    }
    let chosen: BTreeMap<String, _> = chosen.into_iter().map(|s| (format!("{}.weight", s.name), s)).collect();

    let out = OutputFolder::create(&args.out, args.overwrite, is_ours(&args.model, &args.out))?;
    let kind = kind_of(&args.dtype);
    let given = RefCell::new(BTreeMap::new());
    let sums = RefCell::new((0.0, 0.0));
    let replaced = |name: &str| -> lora::Result<Option<Tensor>> {
        let Some(s) = chosen.get(name) else { return Ok(None) };
        let w = checkpoint.read(name, kind)?;
        let scale = recipe.scale(s.alpha, s.r);
        let started = start.of(&w, recipe.storage(), (s.r, scale), args.rounds).map_err(|e| e.at(name))?;
        let mut sums = sums.borrow_mut();
        sums.0 += started.plain;
        sums.1 += started.error;
        given.borrow_mut().insert(s.name.clone(), (started.a, started.b));
        Ok(Some(started.residual))
    };
    let pack =
        Pack { storage: recipe.storage(), skip: &[], seen: &|_: &str, _: &Tensor, _: &dyn BaseWeight| {} };
    let base_path = out.path().join(BASE);
    let base = OutputFolder::create(&base_path, false, is_model_file(&args.model, &base_path))?;
    Export {
        checkpoint: checkpoint.as_ref(),
        tokenizer: tokenizer.as_ref(),
        kind,
        replaced: &replaced,
        packed: (!recipe.is_dense()).then_some(pack),
    }
    .write(&base)?;
    base.commit()?;

    let origin = Origin::of(lora::open(&base_path)?.as_ref(), None).started(Some(start.to_string()));
    let mut model = OnDisk::new(lora::open(&base_path)?, Kind::Float)?;
    lora::attach_from(&mut model, ADAPTER, &recipe, &config, &given.into_inner())?;
    model.check()?;
    let base = Some(args.out.join(BASE).display().to_string());
    let config = AdapterConfig { base_model: base, ..lora::targets_by_name(&model, &config)? };
    let adapter = OutputFolder::create(&out.path().join(FOLDER), false, is_adapter_file)?;
    lora::save(&model, ADAPTER, &recipe, &config, VARIANTS, adapter.path())?;
    let told = serde_json::json!({
        "program": concat!("lora ", env!("CARGO_PKG_VERSION")),
        "variant": recipe.to_string(),
        "model": args.model.display().to_string(),
        "base": origin,
    });
    adapter.write(TRAINING, format!("{told:#}\n"))?;
    adapter.commit()?;
    out.commit()?;
    let ((plain, error), n) = (sums.into_inner(), chosen.len() as f64);
    say!("split     {} modules by {start}, rank {}", chosen.len(), config.r);
    let percent = |x: f64| 100.0 * x / n;
    say!(
        "error     {:.3} % of the weights' norm, base and adapter together; {:.3} % without the adapter's start",
        percent(error),
        percent(plain)
    );
    say!("written   {0}/base and {0}/adapter", args.out.display());
    Ok(())
}
