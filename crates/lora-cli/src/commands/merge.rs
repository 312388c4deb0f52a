//! `lora merge`

mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use lora::model::{Checkpoint, Export, OnDisk, Pack, is_model_file};
use lora::qlora::Options;
use lora::{AdapterConfig, Error, Linears, OutputFolder, Recipe, VARIANTS};
use tch::{Kind, Tensor};

use super::{aside, say};
use crate::open::{ADAPTER, ModelArgs, chosen, name_of};
use crate::origin;
use crate::paths;
use crate::rounding::Rounding;

/// Fold an adapter into its base: an ordinary Hugging Face model folder
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora merge --model SmolLM2.gguf --adapter my-adapter --out merged --verify
  lora merge --model models/Qwen3-0.6B --adapter my-adapter --out merged --verify heldout.jsonl

Merged weights are written in --dtype, tensor by tensor, so that a model larger than memory can be merged. A base of \
bitsandbytes is dequantised. --requantize rounds the result to 4 bits again, which loses a part of what was learnt; it \
says how much, and --verify what it does to the answers.

An adapter that was trained beside a rounded base is somewhat another model beside the original \
one. --verify measures it if --variant says how the base was kept, as in `--variant qlora`; that \
figure is told and refuses nothing: the tolerance is for what merging itself changes.

A base stored in a float type that --dtype does not hold (f32 in bf16) is rounded, also where the \
adapter changes nothing; a note says so, and which --dtype keeps it.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The adapter folder (PEFT's format)
    #[arg(long, value_name = "FOLDER")]
    adapter: PathBuf,
    /// The model folder to write
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace a model folder that is there
    #[arg(long)]
    overwrite: bool,
    /// Write the merged weights in 4 bits, as bitsandbytes does [options: nf4 or fp4, block size, single]
    #[arg(long, value_name = "OPTIONS")]
    requantize: Option<Option<String>>,
    /// Compare adapter and merged model on these rows, or on built-in texts, before the folder appears
    #[arg(long, value_name = "JSONL")]
    verify: Option<Option<PathBuf>>,
    /// How the base was kept in training, for --verify: lora (as it is) or qlora (4 bits)
    #[arg(long, default_value = "lora", requires = "verify")]
    variant: String,
    /// Refuse if the mean KL divergence exceeds this (nats a token)
    #[arg(long, default_value_t = 0.01, requires = "verify")]
    tolerance: f64,
    /// What --verify found as one JSON object
    #[arg(long, requires = "verify")]
    json: bool,
    /// Verify on the first so many of the rows [default: 16]
    #[arg(long, requires = "verify")]
    limit: Option<usize>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !(args.tolerance >= 0.0) {
        return Err(Error::usage("--tolerance must be at least 0").into());
    }
    let inputs = [
        ("the model", Some(args.model.model.as_path())),
        ("the adapter", Some(args.adapter.as_path())),
        ("the rows", args.verify.as_ref().and_then(Option::as_deref)),
    ];
    paths::apart(&[("--out", Some(args.out.as_path()))], &inputs)?;
    if args.limit.is_some() && matches!(args.verify, Some(None)) {
        return Err(Error::usage("--limit is of rows, and --verify names no file of them").into());
    }
    let packing = args.requantize.as_ref().map(|o| Options::parse(o.as_deref().unwrap_or(""))).transpose()?;
    let trained = chosen(&args.variant, Some(&AdapterConfig::read(&args.adapter)?))?;
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let texts = args.texts(&tokenizer, checkpoint.config())?;
    let ours = is_model_file(&args.model.model, &args.out);
    let out = OutputFolder::create(&args.out, args.overwrite, ours)?;
    let kind = args.model.kind();
    if let Some(note) = rounded(checkpoint.as_ref(), kind).filter(|_| !args.json) {
        aside(format_args!("note: {note}"));
    }
    let mut model = OnDisk::new(lora::open(&args.model.model)?, kind)?;
    lora::load(&mut model, ADAPTER, &args.adapter, VARIANTS)?;
    model.check()?;
    if !args.json {
        // Who verifies beside the base that was trained knows of it.
        let dense = Recipe::default();
        let kept = trained.is_dense().then_some((&dense, Some(false)));
        origin::tell(&args.adapter, checkpoint.as_ref(), kept);
    }
    let rounding = Rounding::default();
    {
        let layers: BTreeMap<_, _> = model.linears().into_iter().collect();
        let replaced = |name: &str| {
            let layer = name.strip_suffix(".weight").and_then(|n| layers.get(n));
            let Some(layer) = layer.filter(|l| l.adapter().is_some()) else { return Ok(None) };
            let w = layer.effective(kind);
            model.check()?;
            match lora::all_finite(&w) {
                true => Ok(Some(w)),
                false => Err(Error::non_finite("the merged weight is not finite").at(name).hint(
                    "the adapter holds extreme values; `lora inspect` shows the norms; try --dtype f32",
                )),
            }
        };
        let update = |name: &str, merged: &Tensor| -> Option<Tensor> {
            let layer = name.strip_suffix(".weight").and_then(|n| layers.get(n));
            layer.filter(|l| l.adapter().is_some()).map(|l| merged - l.base().dense(kind))
        };
        let seen = |name: &str, w: &Tensor, kept: &dyn lora::BaseWeight| {
            rounding.add(w, kept, update(name, w).as_ref());
        };
        let skip = &args.model.skip;
        let packed = packing.as_ref().map(|storage| Pack { storage, skip, seen: &seen });
        let (checkpoint, tokenizer) = (checkpoint.as_ref(), Some(&tokenizer));
        Export { checkpoint, tokenizer, kind, replaced: &replaced, packed }.write(&out)?;
        model.check()?;
    }
    drop(model);
    if packing.is_some() && !args.json {
        say!("{rounding}");
    }
    if let Some(texts) = texts {
        args.verify(out.path(), &texts, &trained, packing.is_some().then_some(&rounding))?;
    }
    out.commit()?;
    if !args.json {
        say!("merged model written to {}", args.out.display());
    }
    Ok(())
}

/// Said where the base's matrices are stored as something that `kind` does not hold. Packed ones are of no float type.
fn rounded(checkpoint: &dyn Checkpoint, kind: Kind) -> Option<String> {
    let holds = |wide: Kind, kind: Kind| wide == kind || (wide == Kind::Float && kind != Kind::Double);
    let mut kinds: Vec<Kind> = Vec::new();
    for name in checkpoint.names() {
        let matrix = checkpoint.shape(&name).is_some_and(|shape| shape.len() > 1);
        let dense = matrix && checkpoint.packed_bytes(&name).is_none();
        kinds.extend(checkpoint.kind(&name).filter(|_| dense));
    }
    let stored = kinds.iter().copied().find(|&stored| !holds(kind, stored))?;
    let all = |wide: &Kind| kinds.iter().all(|&kind| holds(*wide, kind));
    let keeps = [Kind::BFloat16, Kind::Half, Kind::Float].into_iter().find(all);
    let advice = keeps.map(|kind| format!("; --dtype {} keeps it", name_of(kind))).unwrap_or_default();
    let (stored, kind) = (name_of(stored), name_of(kind));
    let what = "what the adapter leaves alone, too";
    Some(format!("the base is stored as {stored}, and --dtype {kind} rounds {what}{advice}"))
}
