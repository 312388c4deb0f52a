//! `lora eval`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use lora::Error;
use lora::tch_ext::memory;
use lora::train::{
    Answer, Choices, Classified, DataOptions, Dataset, Evaluation, Question, Row, Sample, answers,
    label_scores, labels_of, likeliest, macro_f1, reference, summed_loss,
};
use serde_json::{Value, json};

use super::say;
use crate::open::{ModelArgs, Opened};

/// Measure a model, with or without an adapter, on held-out rows: loss, and right answers
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora eval --model SmolLM2.gguf --data heldout.jsonl --samples 5
  lora eval --model SmolLM2.gguf --adapter my-adapter --data heldout.jsonl --labels auto --rows rows.jsonl --json

An answer is right if, generated greedily, it equals the row's own but for surrounding white space. With --labels, the
label with the highest total log-probability as the answer, its end included, is a second answer: it needs no luck with
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
    /// Samples in one forward pass
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
    let opened = args.model.open(args.adapter.as_deref(), &args.variant)?;
    let loaded = begin.elapsed().as_secs_f64();
    let context = usize::try_from(opened.checkpoint.config().max_positions).unwrap_or(usize::MAX);
    let options = DataOptions { max_length: context, truncate: false };
    let mut data = Dataset::read(&args.data, &opened.tokenizer, options)?;
    data.keep_first(args.limit);
    let labels = args.labels(&data)?;
    let begin = Instant::now();
    data.check(opened.checkpoint.config().vocab_size)?;
    let seen = args.look(&opened, &data, &labels)?;
    let loss = args.loss(&opened, &data, (&seen, &labels))?;
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
    if let Some(path) = &args.rows {
        write_rows(path, &seen, &labels)?;
    }
    if args.json {
        let mut object = serde_json::to_value(&evaluation)?;
        object["load_seconds"] = loaded.into();
        object["seconds"] = seconds.into();
        object["peak_bytes"] = memory::process().map(|m| m.peak).into();
        say!("{object}");
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

/// What came of a row.
struct Seen {
    line: usize,
    answer: Option<Answer>,
    /// The right label's number, and the labels' scores.
    scores: Option<(usize, Vec<f64>)>,
}

/// What of a row is asked: an answer, and which label, with the right one's number.
struct Asked {
    line: usize,
    question: Option<Question>,
    choices: Option<(Choices, usize)>,
}

impl Args {
    fn labels(&self, data: &Dataset) -> Result<Vec<String>> {
        match self.labels.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["auto"] => {}
            ["few"] => return Ok(labels_of(&data.rows, MOST_LABELS).unwrap_or_default()),
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

    /// Answers and scores, row by row.
    fn look(&self, opened: &Opened, data: &Dataset, labels: &[String]) -> Result<Vec<Seen>> {
        let (model, tokenizer) = (&opened.model, &opened.tokenizer);
        let rows: Vec<_> = data.rows.iter().zip(&data.samples).collect();
        let (mut seen, mut shown) = (Vec::new(), 0);
        for rows in rows.chunks(self.batch_size.max(1)) {
            let asked = rows.iter().map(|row| self.ask(opened, *row, labels)).collect::<Result<Vec<_>>>()?;
            let at = |e: Error| e.at(self.data.display());
            let questions: Vec<_> = asked.iter().filter_map(|a| a.question.as_ref()).collect();
            let mut answers = answers(model, tokenizer, &questions).map_err(at)?.into_iter();
            let choices: Vec<_> = asked.iter().filter_map(|a| Some(&a.choices.as_ref()?.0)).collect();
            let mut scores = label_scores(model, &choices).map_err(at)?.into_iter();
            for asked in asked {
                let answer = asked.question.and_then(|_| answers.next());
                if let Some(a) = answer.as_ref().filter(|_| shown < self.samples) {
                    shown += 1;
                    let mark = if a.right { "right" } else { "wrong" };
                    let [prompt, text, reference] = [&a.prompt, &a.answer, &a.reference].map(|s| one_line(s));
                    say!("  question  {prompt}\n  answer    {text}\n  expected  {reference}  ({mark})\n");
                }
                let scores = asked.choices.and_then(|(_, truth)| Some((truth, scores.next()?)));
                seen.push(Seen { line: asked.line, answer, scores });
            }
        }
        Ok(seen)
    }

    /// The mean over the supervised tokens. A row's answer that was scored as a label is not read again.
    fn loss(&self, opened: &Opened, data: &Dataset, (seen, labels): (&[Seen], &[String])) -> Result<f64> {
        let (mut sum, mut count, mut unread) = (0.0, 0, Vec::new());
        for ((row, sample), seen) in data.rows.iter().zip(&data.samples).zip(seen) {
            match &seen.scores {
                Some((truth, scores)) if reference(row) == Some(&labels[*truth]) => {
                    sum -= scores[*truth];
                    count += sample.supervised() as i64;
                }
                _ => unread.push(sample),
            }
        }
        let (rest, n) = summed_loss(&opened.model, &unread, self.batch_size)?;
        Ok((sum + rest) / (count + n).max(1) as f64)
    }

    /// What is asked of the model about a row.
    fn ask(&self, opened: &Opened, (row, sample): (&Row, &Sample), labels: &[String]) -> Result<Asked> {
        let context = usize::try_from(opened.checkpoint.config().max_positions).unwrap_or(usize::MAX);
        let at = |e: Error| e.at(format!("{}:{}", self.data.display(), sample.line));
        let question = match self.max_tokens {
            0 => None,
            most => Question::of(&opened.tokenizer, row, most).map_err(at)?,
        };
        let choices = Choices::of(&opened.tokenizer, row, labels).map_err(at)?;
        if let Some(n) = choices.as_ref().map(Choices::longest).filter(|n| *n > context) {
            let what =
                format!("{n} tokens with the longest answer do not fit the model's context of {context}");
            return Err(at(Error::data(what).hint("shorten the text")).into());
        }
        let truth = choices.as_ref().map(|_| truth(row, labels).map_err(at)).transpose()?;
        Ok(Asked { line: sample.line, question, choices: choices.zip(truth) })
    }
}

/// The number of the row's own answer among the labels.
fn truth(row: &Row, labels: &[String]) -> lora::Result<usize> {
    let reference = reference(row).unwrap_or_default();
    labels.iter().position(|label| label.trim() == reference.trim()).ok_or_else(|| {
        Error::data(format!("its answer `{}` is none of the labels", one_line(reference)))
            .hint("name all of them, or use --labels auto")
    })
}

fn write_rows(path: &Path, seen: &[Seen], labels: &[String]) -> Result<()> {
    let mut text = Vec::new();
    for row in seen {
        let mut object = json!({ "line": row.line });
        if let Some(a) = &row.answer {
            object["reference"] = a.reference.clone().into();
            object["answer"] = a.answer.clone().into();
            object["right"] = a.right.into();
        }
        if let Some((truth, scores)) = &row.scores {
            object["reference"] = labels[*truth].clone().into();
            object["label"] = likeliest(scores).map_or(Value::Null, |best| labels[best].clone().into());
            let scores = labels.iter().cloned().zip(scores.iter().map(|s| Value::from(*s)));
            object["scores"] = Value::Object(scores.collect());
        }
        writeln!(text, "{object}")?;
    }
    lora::write_file(path, &text)?;
    Ok(())
}

fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text,
    }
}
