//! `lora eval`

mod former;
mod rows;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use lora::tch_ext::memory;
use lora::train::{Classified, DataOptions, Dataset, Evaluation, Long, labels_of, macro_f1, reference};
use lora::{Error, OutputFile};

use super::{emit, say};
use crate::open::ModelArgs;
use crate::paths;

/// Measure a model, with or without an adapter, on held-out rows: loss, and right answers
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora eval --model SmolLM2.gguf --data heldout.jsonl --samples 5
  lora eval --model SmolLM2.gguf --adapter my-adapter --data heldout.jsonl --labels auto --json

An answer is right if, generated greedily, it equals the row's own but for surrounding white space. With --labels, the \
label with the highest total log-probability as the answer, its end included, is a second answer: it needs no luck with \
the wording, and says how sure the model is.")]
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
    /// Generate at most so many tokens an answer, or as many as its reference and one, if that is more; 0: no answers
    #[arg(long, default_value_t = 24)]
    max_tokens: usize,
    /// Choose among these answers by their scores, too; auto: all that the rows have; few: the same, if they are no more than 64
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<String>,
    /// Write what came of each row, as JSON lines
    #[arg(long, value_name = "JSONL")]
    rows: Option<PathBuf>,
    /// Write each row's token ids, and what is learnt of them, as JSON lines: with each label as its answer, if there are
    /// labels; what another program needs to judge alike
    #[arg(long, value_name = "JSONL")]
    trace: Option<PathBuf>,
    /// Rows in one pass; of long ones fewer, so that a pass has no more than 4096 tokens
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// More answers than these are no labels.
const MOST_LABELS: usize = 64;

pub(crate) fn run(args: &Args) -> Result<()> {
    let begin = Instant::now();
    let outputs = [("--rows", args.rows.as_deref()), ("--trace", args.trace.as_deref())];
    let inputs = [
        ("the data", Some(args.data.as_path())),
        ("the model", Some(args.model.model.as_path())),
        ("the adapter", args.adapter.as_deref()),
    ];
    paths::apart(&outputs, &inputs)?;
    for output in outputs {
        let former = former::check(output);
        if !matches!(former, Ok(true)) {
            paths::spares(output, &inputs)?;
        }
        former?;
    }
    let opened = args.model.open(args.adapter.as_deref(), &args.variant)?;
    let loaded = begin.elapsed().as_secs_f64();
    opened.tell_of(args.adapter.as_deref());
    let context = usize::try_from(opened.checkpoint.config().max_positions).unwrap_or(usize::MAX);
    let options = DataOptions { max_length: context, long: Long::BeyondContext };
    let mut data = Dataset::read(&args.data, &opened.tokenizer, options)?;
    // Of all rows: the first ones may have fewer answers, and choosing among these is easier.
    let labels = args.labels(&data)?;
    data.keep_first(args.limit);
    if !labels.is_empty() {
        args.has_truths(&data, &labels)?;
    }
    data.check(opened.checkpoint.config().vocab_size)?;
    // That one cannot be written is found now and not in the end.
    let [rows_file, trace] =
        [&args.rows, &args.trace].map(|path| path.as_deref().map(OutputFile::create).transpose());
    let (rows_file, trace) = (rows_file?, trace?);
    if let Some(file) = trace {
        args.trace(file, &opened.tokenizer, &data, &labels)?;
    }
    let begin = Instant::now();
    let seen = args.look(&opened, &data, &labels)?;
    let loss = args.loss(&opened, &data, &seen)?;
    let seconds = begin.elapsed().as_secs_f64();

    let answers: Vec<_> = seen.iter().filter_map(|s| s.answer.as_ref()).collect();
    let right = answers.iter().filter(|a| a.right).count();
    let number = |text: &str| labels.iter().position(|label| label.trim() == text.trim());
    let pairs: Vec<_> =
        answers.iter().filter_map(|a| Some((number(&a.reference)?, number(&a.answer)))).collect();
    let scored: Vec<_> = seen.iter().filter_map(|s| s.scores.clone()).collect();
    let evaluation = Evaluation {
        examples: data.rows.len(),
        loss,
        perplexity: loss.exp(),
        accuracy: (!answers.is_empty()).then(|| right as f64 / answers.len() as f64),
        macro_f1: (!pairs.is_empty()).then(|| macro_f1(&pairs)),
        labels: (!scored.is_empty()).then(|| Classified::new(&scored)),
    };
    if let Some(file) = rows_file {
        rows::write(file, &seen, &labels)?;
    }
    if args.json {
        let mut object = serde_json::to_value(&evaluation)?;
        object["load_seconds"] = loaded.into();
        object["seconds"] = seconds.into();
        object["peak_bytes"] = memory::process().map(|m| m.peak).into();
        emit(object);
        return Ok(());
    }
    say!("rows        {}", evaluation.examples);
    say!("loss        {loss:.4}");
    say!("perplexity  {:.3}", evaluation.perplexity);
    let percent = |x: f64| 100.0 * x;
    if let Some(accuracy) = evaluation.accuracy {
        let f1 = evaluation.macro_f1.map_or(String::new(), |f1| format!(", macro-F1 {f1:.3}"));
        say!("right       {right} of {} ({:.1} %{f1})", answers.len(), percent(accuracy));
    }
    if let Some(c) = evaluation.labels {
        say!("by scores   {:.1} % right, macro-F1 {:.3}", percent(c.accuracy), c.macro_f1);
        say!("            calibration error {:.3}, Brier score {:.3}", c.calibration_error, c.brier);
    }
    Ok(())
}

impl Args {
    /// The labels, of all that the rows have or as they are named.
    fn labels(&self, data: &Dataset) -> Result<Vec<String>> {
        match self.labels.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["auto"] => {}
            ["few"] => return Ok(labels_of(&data.rows, MOST_LABELS).unwrap_or_default()),
            [] => return Ok(Vec::new()),
            _ => return Ok(self.labels.clone()),
        }
        let labels = labels_of(&data.rows, MOST_LABELS).ok_or_else(|| {
            Error::data(format!("the rows have more than {MOST_LABELS} different answers"))
                .at(self.data.display())
                .hint("labels are for rows with few answers; leave --labels out")
        })?;
        if labels.is_empty() {
            let e = Error::data("no row has an answer").at(self.data.display());
            return Err(e.hint("leave --labels out").into());
        }
        Ok(labels)
    }

    /// Each row's own answer is among the labels.
    fn has_truths(&self, data: &Dataset, labels: &[String]) -> Result<()> {
        let answers = data.rows.iter().zip(&data.samples).filter(|(row, _)| reference(row).is_some());
        for (row, sample) in answers {
            let at = format!("{}:{}", self.data.display(), sample.line);
            rows::truth(row, labels).map_err(|e| e.at(at))?;
        }
        Ok(())
    }
}
