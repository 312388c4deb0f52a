//! `lora eval`

use std::path::PathBuf;

use anyhow::Result;
use lora::train::{DataOptions, Dataset, Evaluation, answers, mean_loss};

use super::say;
use crate::open::ModelArgs;

/// Measure a model, with or without an adapter, on held-out rows: loss, and right answers
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora eval --model SmolLM2.gguf --data heldout.jsonl --samples 5
  lora eval --model SmolLM2.gguf --adapter my-adapter --data heldout.jsonl --json

An answer is right if, generated greedily, it equals the row's own but for surrounding white space.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// An adapter folder (PEFT's format)
    #[arg(long, value_name = "FOLDER")]
    adapter: Option<PathBuf>,
    /// How the base is kept: lora (as it is) or qlora (4 bits)
    #[arg(long, default_value = "lora")]
    variant: String,
    /// Held-out rows, as for training
    #[arg(long, value_name = "JSONL")]
    data: PathBuf,
    /// Only the first so many rows
    #[arg(long)]
    limit: Option<usize>,
    /// Show so many answers
    #[arg(long, default_value_t = 0)]
    samples: usize,
    /// Generate at most so many tokens an answer, but as many as the reference has; 0: loss only
    #[arg(long, default_value_t = 24)]
    max_tokens: usize,
    /// Samples in one forward pass
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let opened = args.model.open(args.adapter.as_deref(), &args.variant)?;
    let context = usize::try_from(opened.checkpoint.config().max_positions).unwrap_or(usize::MAX);
    let options = DataOptions { max_length: context, truncate: false };
    let mut data = Dataset::read(&args.data, &opened.tokenizer, options)?;
    data.keep_first(args.limit);
    let loss = mean_loss(&opened.model, &data, args.batch_size)?;
    let mut shown = 0;
    let answers = match args.max_tokens {
        0 => Vec::new(),
        most => answers(&opened.model, &opened.tokenizer, &data.rows, most, |a| {
            if shown < args.samples {
                shown += 1;
                let mark = if a.right { "right" } else { "wrong" };
                say!(
                    "  question  {}\n  answer    {}\n  expected  {}  ({mark})\n",
                    one_line(&a.prompt),
                    one_line(&a.answer),
                    one_line(&a.reference)
                );
            }
        })?,
    };
    let right = answers.iter().filter(|a| a.right).count();
    let evaluation = Evaluation {
        examples: data.rows.len(),
        loss,
        perplexity: loss.exp(),
        accuracy: (!answers.is_empty()).then(|| right as f64 / answers.len() as f64),
    };
    if args.json {
        say!("{}", serde_json::to_string(&evaluation)?);
        return Ok(());
    }
    say!("rows        {}", evaluation.examples);
    say!("loss        {loss:.4}");
    say!("perplexity  {:.3}", evaluation.perplexity);
    if let Some(accuracy) = evaluation.accuracy {
        say!("right       {right} of {} ({:.1} %)", answers.len(), 100.0 * accuracy);
    }
    Ok(())
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}
