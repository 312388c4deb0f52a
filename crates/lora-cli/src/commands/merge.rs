//! `lora merge`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::model::{
    Checkpoint, Export, Keep, Llama, Model, ModelConfig, OnDisk, Pack, Texts, Tokenizer, is_model_file,
};
use lora::qlora::Options;
use lora::train::read_ids;
use lora::{Error, Linears, Mode, OutputFolder, VARIANTS};
use tch::{Device, Kind, Tensor};

use super::{aside, emit, say};
use crate::open::{ADAPTER, ModelArgs};
use crate::paths;
use crate::rounding::Rounding;

/// Fold an adapter into its base: an ordinary Hugging Face model folder
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora merge --model SmolLM2.gguf --adapter my-adapter --out merged --verify
  lora merge --model models/Qwen3-0.6B --adapter my-adapter --out merged --verify heldout.jsonl

Merged weights are written in --dtype, tensor by tensor, so that a model larger than memory can be merged. A base of
bitsandbytes is dequantised. --requantize rounds the result to 4 bits again, which loses a part of what was learnt; it
says how much, and --verify what it does to the answers.

An adapter that was trained beside a rounded base is somewhat another model beside the original
one. --verify measures it if --variant says how the base was kept, as in `--variant qlora`; the
tolerance is for merging alone, and may be too small for that.

A base stored in a float type that --dtype does not hold (f32 in bf16) is rounded, also where the
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

/// Texts to compare on where no data is named.
const TEXTS: [&str; 4] = [
    "The central bank left its main interest rate unchanged on Thursday, as most economists had expected.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2\n",
    "Le petit chat dort sur le canapé pendant que la pluie tombe dehors.",
    "Question: What is 17 + 25?\nAnswer: 42. Question: What is the capital of Japan?\nAnswer: Tokyo.",
];

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
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let ours = is_model_file(&args.model.model, &args.out);
    let out = OutputFolder::create(&args.out, args.overwrite, ours)?;
    let kind = args.model.kind();
    if let Some(note) = rounded(checkpoint.as_ref(), kind).filter(|_| !args.json) {
        aside(format_args!("note: {note}"));
    }
    let mut model = OnDisk::new(lora::open(&args.model.model)?, kind)?;
    lora::load(&mut model, ADAPTER, &args.adapter, VARIANTS)?;
    model.check()?;
    let expected = match &args.verify {
        Some(rows) => {
            let opened = args.model.open(Some(&args.adapter), &args.variant)?;
            let texts = texts(rows.as_deref(), &tokenizer, args.limit.unwrap_or(16), opened.model.config())?;
            let logits: Vec<_> = texts.iter().map(|ids| logits(&opened.model, ids)).collect::<Result<_>>()?;
            Some((texts, logits))
        }
        None => None,
    };
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
    if let Some((texts, expected)) = expected {
        let difference = compare(&reopen(out.path(), args)?, &texts, &expected)?;
        if args.json {
            let mut found = difference.json();
            if packing.is_some() {
                found["rounding"] = rounding.json();
            }
            emit(found);
        } else {
            say!("{difference}");
        }
        if !(difference.mean_kl <= args.tolerance) {
            return Err(Error::data(format!(
                "the merged model differs by a mean KL of {:.2e}, above the tolerance of {:.2e}; it was not kept",
                difference.mean_kl, args.tolerance
            ))
            .hint("merge in --dtype f32 and not to 4 bits, or raise --tolerance")
            .into());
        }
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

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bf16",
        Kind::Half => "f16",
        Kind::Double => "f64",
        _ => "f32",
    }
}

fn reopen(folder: &Path, args: &Args) -> Result<Llama> {
    let checkpoint = lora::open(folder)?;
    args.model.load(checkpoint.as_ref(), Keep { packed: args.model.packed(), ..Keep::DENSE })
}

/// Token ids to compare on: of the rows, or of the built-in texts.
fn texts(
    rows: Option<&Path>,
    tokenizer: &Tokenizer,
    limit: usize,
    config: &ModelConfig,
) -> Result<Vec<Vec<i64>>> {
    let Some(rows) = rows else {
        return Ok(TEXTS.iter().map(|t| tokenizer.encode(t, true)).collect::<lora::Result<_>>()?);
    };
    let longest = usize::try_from(config.max_positions).unwrap_or(usize::MAX).min(1024);
    let mut texts = read_ids(rows, tokenizer, limit, longest)?;
    // Logits of all of them are kept: at most so many.
    let mut tokens = 0;
    texts.retain(|ids| {
        let fits = tokens == 0 || (tokens + ids.len()) as i64 * config.vocab_size <= LOGITS;
        tokens += if fits { ids.len() } else { 0 };
        fits
    });
    Ok(texts)
}

/// A gigabyte of f32.
const LOGITS: i64 = 1 << 28;

/// Kept on the CPU, whatever computes them.
fn logits(model: &Llama, ids: &[i64]) -> Result<Tensor> {
    let _guard = tch::no_grad_guard();
    let ids = Tensor::from_slice(ids).unsqueeze(0).to_device(model.device());
    Ok(model.logits(Texts::Rows(&ids), None, Mode::Eval)?.squeeze_dim(0).to_device(Device::Cpu))
}

/// How far two models are apart.
struct Difference {
    positions: i64,
    largest: f64,
    mean_kl: f64,
    max_kl: f64,
    agree: f64,
}

fn compare(merged: &Llama, texts: &[Vec<i64>], expected: &[Tensor]) -> Result<Difference> {
    let mut d = Difference { positions: 0, largest: 0.0, mean_kl: 0.0, max_kl: 0.0, agree: 0.0 };
    for (a, ids) in expected.iter().zip(texts) {
        let b = logits(merged, ids)?;
        let (p, q) = (a.log_softmax(-1, Kind::Double), b.log_softmax(-1, Kind::Double));
        let kl = (p.exp() * (&p - q)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Double);
        d.positions += kl.size()[0];
        d.mean_kl += kl.sum(Kind::Double).double_value(&[]);
        d.max_kl = d.max_kl.max(kl.max().double_value(&[]));
        d.largest = d.largest.max((a - &b).abs().max().double_value(&[]));
        d.agree += a.argmax(-1, false).eq_tensor(&b.argmax(-1, false)).sum(Kind::Double).double_value(&[]);
    }
    d.mean_kl /= d.positions.max(1) as f64;
    d.agree /= d.positions.max(1) as f64;
    Ok(d)
}

impl Difference {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({ "positions": self.positions, "largest": self.largest, "mean_kl": self.mean_kl,
            "max_kl": self.max_kl, "same": self.agree })
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "adapter against merged model, {} positions:", self.positions)?;
        writeln!(f, "  largest logit difference  {:.3e}", self.largest)?;
        writeln!(f, "  KL divergence             mean {:.3e}, largest {:.3e}", self.mean_kl, self.max_kl)?;
        write!(f, "  same likeliest token      {:.2} %", 100.0 * self.agree)
    }
}
