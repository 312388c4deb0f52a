//! `lora quantize`

use std::path::PathBuf;

use anyhow::Result;
use lora::model::{Export, Pack, Tokenizer, is_model_file};
use lora::qlora::Options;
use lora::tch_ext::memory;
use lora::{BaseWeight, OutputFolder};
use tch::Tensor;

use super::say;
use crate::open::kind_of;
use crate::paths;
use crate::rounding::{self, Rounding};

/// Write a model in 4 bits, as bitsandbytes does: transformers and `lora train` load it as it is
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora quantize models/Llama-3-8B Llama-3-8B-nf4
  lora quantize SmolLM2.gguf out --type fp4 --block-size 128 --no-double-quant

Linear layers inside the blocks are packed; embeddings, norms, the output head and what --skip names stay dense. The \
model is read tensor by tensor and written file by file: memory holds one tensor and one file of the result.")]
pub(crate) struct Args {
    /// A Hugging Face folder or a .gguf file
    model: PathBuf,
    /// The model folder to write
    out: PathBuf,
    /// Replace a model folder that is there
    #[arg(long)]
    overwrite: bool,
    /// What the 4 bits stand for
    #[arg(long = "type", default_value = "nf4", value_parser = ["nf4", "fp4"])]
    code: String,
    /// Weights that share a scale: a power of two from 32 to 4096
    #[arg(long, default_value_t = 64, value_name = "N")]
    block_size: usize,
    /// Keep the scales in f32 instead of 8 bits
    #[arg(long)]
    no_double_quant: bool,
    /// What weights are computed in, and the rest is written in: bf16, f16 or f32
    #[arg(long, default_value = "bf16", value_parser = ["bf16", "f16", "f32"])]
    dtype: String,
    /// Further modules that stay dense, by the end of their path
    #[arg(long, value_name = "MODULES", value_delimiter = ',')]
    skip: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    paths::apart(&[("OUT", Some(args.out.as_path()))], &[("the model", Some(args.model.as_path()))])?;
    let single = if args.no_double_quant { "single" } else { "" };
    let options = Options::parse(&format!("{}:{}:{single}", args.code, args.block_size))?;
    memory::manage();
    let checkpoint = lora::open(&args.model)?;
    let tokenizer = if args.model.is_dir() { None } else { Some(Tokenizer::open(&args.model)?) };
    let ours = is_model_file(&args.model, &args.out);
    let out = OutputFolder::create(&args.out, args.overwrite, ours)?;
    rounding::tell_twice(checkpoint.as_ref());
    let rounding = Rounding::default();
    let seen = |_: &str, weight: &Tensor, kept: &dyn BaseWeight| rounding.add(weight, kept, None);
    Export {
        checkpoint: checkpoint.as_ref(),
        tokenizer: tokenizer.as_ref(),
        kind: kind_of(&args.dtype),
        replaced: &|_| Ok(None),
        packed: Some(Pack { storage: &options, skip: &args.skip, seen: &seen }),
    }
    .write(&out)?;
    out.commit()?;
    let written = lora::open(&args.out)?.stored_bytes();
    say!("{rounding}");
    say!("size      {:.1} MB -> {:.1} MB", checkpoint.stored_bytes() as f64 / 1e6, written as f64 / 1e6);
    if let Some(usage) = memory::process() {
        say!("memory    {:.0} MB at the highest point", usage.peak as f64 / 1e6);
    }
    say!("4-bit model written to {}", args.out.display());
    Ok(())
}
