//! `lora export`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::model::{EMBEDDING, Gguf, GgufKind, GgufOut, OnDisk, tensor_shapes};
use lora::{Error, Linears, Recipe, VARIANTS};
use tch::{Kind, Tensor};

use super::{aside, say};
use crate::open::ADAPTER;
use crate::origin;
use crate::paths;

/// Write an adapter, or a merged model, as a GGUF file for llama.cpp
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora export --model SmolLM2.gguf --adapter my-adapter --out my-adapter.gguf    the adapter alone
  lora export --model SmolLM2.gguf --adapter my-adapter --merged --outtype q8_0 --out merged.gguf
  lora export --model models/Qwen3-0.6B --merged --out Qwen3-0.6B.gguf           a folder as it is

An adapter's file works beside any GGUF file of the same model. A merged model takes its metadata, tokenizer and chat \
template from --model: copied from a GGUF file, made from the files of a folder.")]
pub(crate) struct Args {
    /// The base: a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// The adapter folder (PEFT's format)
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// Write the whole model, with the adapter merged into it, if one is named
    #[arg(long)]
    merged: bool,
    /// The file format
    #[arg(long, default_value = "gguf", value_parser = ["gguf"])]
    format: String,
    /// How matrices are written; vectors are f32
    #[arg(long, default_value = "f16", value_parser = ["f32", "f16", "bf16", "q8_0"])]
    outtype: String,
    /// llama.cpp's name for how a folder's tokenizer splits text, where the folder does not show it
    #[arg(long, value_name = "NAME", requires = "merged")]
    pre: Option<String>,
    /// The .gguf file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let out = ("--out", Some(args.out.as_path()));
    let inputs = [("the model", Some(args.model.as_path())), ("the adapter", args.adapter.as_deref())];
    paths::apart(&[out], &inputs)?;
    // A folder's model is read of other files than these.
    if !args.model.is_dir() || args.out.extension().is_none_or(|ending| ending != "gguf") {
        paths::spares(out, &inputs)?;
    }
    if args.out.exists() && !args.overwrite {
        return Err(Error::usage("is there already")
            .at(args.out.display())
            .hint("name another file, or replace it with --overwrite")
            .into());
    }
    match (&args.adapter, args.merged) {
        (None, false) => {
            Err(Error::usage("nothing to export: neither --adapter nor --merged is given").into())
        }
        (Some(folder), false) => adapter(args, folder),
        (_, true) => merged(args),
    }
}

impl Args {
    fn kind(&self) -> GgufKind {
        match self.outtype.as_str() {
            "f32" => GgufKind::F32,
            "bf16" => GgufKind::BF16,
            "q8_0" => GgufKind::Q8_0,
            _ => GgufKind::F16,
        }
    }
}

/// llama.cpp adds `alpha / rank` times `lora_b lora_a` (`llama-adapter.cpp`): where our scale is another, as rsLoRA's,
/// B makes up for it.
fn adapter(args: &Args, folder: &Path) -> Result<()> {
    let mut model = OnDisk::new(lora::open(&args.model)?, Kind::Float)?;
    let (recipe, config) = lora::load(&mut model, ADAPTER, folder, VARIANTS)?;
    model.check()?;
    let shapes: Vec<_> = model.linears().iter().map(|(n, l)| (n.clone(), l.base().shape())).collect();
    let chosen = config.select(&shapes, model.output_head())?;
    let mut params: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
    for p in lora::params(&model, ADAPTER) {
        params.entry(p.module).or_default().insert(p.name.to_owned(), p.tensor.detach());
    }
    let checkpoint = lora::open(&args.model)?;
    origin::tell(folder, checkpoint.as_ref(), None);
    let mut out = GgufOut::new(checkpoint.config(), args.kind());
    out.text("general.type", "adapter");
    out.text("adapter.type", "lora");
    out.number("adapter.lora.alpha", config.lora_alpha);
    for s in &chosen {
        if checkpoint.config().tie_word_embeddings && model.output_head() == Some(&s.name) {
            return Err(Error::unsupported(
                "llama.cpp knows no adapter of an output head that is the embedding",
            )
            .at(&s.name)
            .hint("write the merged model instead: --merged")
            .into());
        }
        let tensors = params.remove(&s.name).unwrap_or_default();
        let (Some(a), Some(b), 2) =
            (tensors.get("lora_A.weight"), tensors.get("lora_B.weight"), tensors.len())
        else {
            return Err(Error::unsupported(format!("llama.cpp knows no adapter of the kind `{recipe}`"))
                .at(&s.name)
                .hint("write the merged model instead: --merged")
                .into());
        };
        let by = recipe.scale(s.alpha, s.r) * s.r as f64 / config.lora_alpha;
        let (a, b) = (a.shallow_clone(), b * by);
        let name = format!("{}.weight", s.name);
        let (a_shape, b_shape) = (a.size(), b.size());
        out.tensor(&name, ".lora_a", &a_shape, false, move || Ok(a))?;
        out.tensor(&name, ".lora_b", &b_shape, true, move || Ok(b))?;
    }
    out.write(&args.out)?;
    say!("adapter of {} modules written to {}", chosen.len(), args.out.display());
    Ok(())
}

fn merged(args: &Args) -> Result<()> {
    let mut model = OnDisk::new(lora::open(&args.model)?, Kind::Float)?;
    if let Some(folder) = &args.adapter {
        lora::load(&mut model, ADAPTER, folder, VARIANTS)?;
        model.check()?;
    }
    let checkpoint = lora::open(&args.model)?;
    if let Some(folder) = &args.adapter {
        origin::tell(folder, checkpoint.as_ref(), Some((&Recipe::default(), Some(false))));
    }
    let layers: BTreeMap<_, _> = model.linears().into_iter().collect();
    let base = if args.model.is_dir() { None } else { Some(Gguf::open(&args.model)?) };
    let mut out = match &base {
        Some(_) if args.pre.is_some() => {
            return Err(Error::usage("a GGUF file says itself how text is split")
                .hint("leave out --pre")
                .into());
        }
        Some(base) => GgufOut::like(base, checkpoint.config(), args.kind())?,
        None => GgufOut::of_folder(checkpoint.as_ref(), args.kind(), args.pre.as_deref())?,
    };
    let adapted = |name: &str| {
        let layer = name.strip_suffix(".weight").and_then(|n| layers.get(n).copied());
        layer.filter(|layer| layer.adapter().is_some())
    };
    // What the model is computed with: llama.cpp computes with whatever it finds, or refuses it.
    let mut shapes: BTreeMap<_, _> = tensor_shapes(checkpoint.as_ref())?.into_iter().collect();
    // Of a tied head some folders hold a copy; a head with an adapter is tied no more. Old ones hold rotary tables.
    let head = "lm_head.weight";
    let tied = checkpoint.config().tie_word_embeddings;
    let copied = |name: &str| tied && name == head || name.ends_with(".rotary_emb.inv_freq");
    let mut rest = checkpoint.names();
    rest.retain(|name| !shapes.contains_key(name) && !copied(name));
    if let Some(one) = rest.first() {
        let count = rest.len();
        aside(format_args!(
            "note: tensors that the configuration has no place for are not written: {count}, the first of them {one}"
        ));
    }
    if tied && adapted(head).is_some() {
        let shape = shapes.get(EMBEDDING).cloned().unwrap_or_default();
        shapes.insert(head.to_owned(), shape);
    }
    for (name, shape) in shapes {
        let (layer, checkpoint, model) = (adapted(&name), checkpoint.as_ref(), &model);
        let key = name.clone();
        out.tensor(&name, "", &shape, true, move || match layer {
            Some(layer) => {
                let w = layer.effective(Kind::Float);
                model.check().map(|()| w)
            }
            None => checkpoint.read(&key, Kind::Float),
        })?;
    }
    out.write(&args.out)?;
    say!("model written to {}", args.out.display());
    Ok(())
}
