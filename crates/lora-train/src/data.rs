//! Rows to token ids and loss masks.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use lora_core::{Error, Result};
use lora_model::{ChatTemplate, IGNORE, Tokenizer};

use crate::rows::{Conversation, Faults, Row, each_row, read_rows};

/// One example, ready to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What the model reads.
    pub ids: Vec<i64>,
    /// What it should say next at each position, or [`IGNORE`]; as long as `ids`.
    pub labels: Vec<i64>,
    /// The line it came from.
    pub line: usize,
}

impl Sample {
    /// How many of its tokens are learnt.
    pub fn supervised(&self) -> usize {
        self.labels.iter().filter(|&&l| l != IGNORE).count()
    }
}

/// How rows become samples.
#[derive(Debug, Clone, Copy)]
pub struct DataOptions {
    /// The longest sample in tokens.
    pub max_length: usize,
    /// What becomes of longer ones.
    pub long: Long,
}

/// What becomes of a sample that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Long {
    /// It is refused.
    #[default]
    Refused,
    /// It is refused, and there is nothing to choose: the model itself takes no more.
    BeyondContext,
    /// It is cut off at the end.
    Cut,
    /// It is left out.
    LeftOut,
}

/// The samples of one file.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// The file.
    pub path: PathBuf,
    /// Its rows, in order, as written but for what ends them: a text has none, a completion has it apart.
    pub rows: Vec<Row>,
    /// Its samples, in the same order.
    pub samples: Vec<Sample>,
    /// How many were cut off.
    pub truncated: usize,
    /// How many rows were left out: they were too long.
    pub left_out: usize,
}

impl Dataset {
    /// Reads and encodes a JSONL file.
    ///
    /// # Errors
    /// Those of [`read_rows`]; [`Error::data`] listing file and line of samples that are longer than
    /// `max_length` (unless cut or left out), or teach nothing; and for a file of which all is left out.
    pub fn read(path: &Path, tokenizer: &Tokenizer, options: DataOptions) -> Result<Self> {
        let (rows, samples) = (Vec::new(), Vec::new());
        let mut data = Self { path: path.to_owned(), rows, samples, truncated: 0, left_out: 0 };
        let (ends, mut faults) = (ends(tokenizer), Faults::of(path));
        let mut add = |line: usize, row: Row| {
            let encoded = encode(&row, tokenizer)?;
            if options.long == Long::LeftOut && encoded.0.len() > options.max_length {
                data.left_out += 1;
                return Ok(());
            }
            let (ids, labels, cut) = fit(encoded, options)?;
            data.truncated += usize::from(cut);
            data.samples.push(Sample { ids, labels, line });
            data.rows.push(row);
            Ok::<_, Error>(())
        };
        each_row(path, |line, row| match row.and_then(|row| add(line, apart(row, &ends))) {
            Ok(()) => ControlFlow::Continue(()),
            Err(e) => faults.add(line, &e),
        })?;
        faults.check()?;
        if data.samples.is_empty() {
            let what =
                format!("all of its {} rows have more than {} tokens", data.left_out, options.max_length);
            return Err(Error::data(what).at(path.display()).hint("raise --max-length, or shorten the rows"));
        }
        Ok(data)
    }

    /// Whether a model of so many tokens can read it.
    ///
    /// # Errors
    /// [`Error::data`], with file and line, for a token that the model does not have.
    pub fn check(&self, vocabulary: i64) -> Result<()> {
        let unknown = |id: &i64| *id >= vocabulary || (*id < 0 && *id != IGNORE);
        for sample in &self.samples {
            if let Some(id) = sample.ids.iter().chain(&sample.labels).copied().find(unknown) {
                let what = format!("a token has the number {id}, and the model has {vocabulary} of them");
                return Err(Error::data(what).at(format!("{}:{}", self.path.display(), sample.line)).hint(
                    "the tokenizer is another model's, or has a token that the model was not made for",
                ));
            }
        }
        Ok(())
    }

    /// Keeps only the first `limit` rows, if a limit is given.
    pub fn keep_first(&mut self, limit: Option<usize>) {
        if let Some(limit) = limit {
            self.rows.truncate(limit.max(1));
            self.samples.truncate(limit.max(1));
        }
    }

    /// Supervised tokens in all.
    pub fn supervised(&self) -> usize {
        self.samples.iter().map(Sample::supervised).sum()
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.samples.iter().map(|s| s.ids.len()).sum()
    }
}

/// Token ids of the first `rows` rows of a JSONL file, each cut to `longest` of them: to read, whatever is learnt of it.
///
/// # Errors
/// Those of [`read_rows`], and of encoding.
pub fn read_ids(path: &Path, tokenizer: &Tokenizer, rows: usize, longest: usize) -> Result<Vec<Vec<i64>>> {
    let ends = ends(tokenizer);
    let ids = |(line, row): (usize, Row)| {
        let row = apart(row, &ends);
        let (mut ids, _) = encode(&row, tokenizer).map_err(|e| e.at(format!("{}:{line}", path.display())))?;
        ids.truncate(longest);
        Ok(ids)
    };
    read_rows(path)?.into_iter().take(rows.max(1)).map(ids).collect()
}

/// Token ids of a row whose end is [`apart`], and which of them are learnt.
pub(crate) fn encode(row: &Row, tokenizer: &Tokenizer) -> Result<(Vec<i64>, Vec<bool>)> {
    // A completion may bring its end along, and a tokenizer put it behind every text: there is no second one then.
    let ended = |mut ids: Vec<i64>, given: usize| {
        let end = tokenizer.eos_ids().first().copied().ok_or_else(|| {
            Error::unsupported("the tokenizer has no end-of-text token")
                .hint("set eos_token in tokenizer_config.json")
        })?;
        if ids.len() == given || ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok::<_, Error>(ids)
    };
    match row {
        Row::Text(text) => {
            let ids = ended(tokenizer.encode(text, true)?, 0)?;
            let learnt = vec![true; ids.len()];
            Ok((ids, learnt))
        }
        Row::Pair { prompt, completion, end } => {
            // Apart, so that the prompt is the very ids that generation starts from; and nothing comes between.
            let mut ids = tokenizer.encode(prompt, true)?;
            let given = ids.len();
            ids.extend(tokenizer.encode_after(&format!("{completion}{end}"))?);
            let ids = ended(ids, given)?;
            let learnt = (0..ids.len()).map(|i| i >= given).collect();
            Ok((ids, learnt))
        }
        Row::Chat(chat) => {
            let (text, spans) = template(tokenizer, chat)?.render_with_spans(&chat.messages)?;
            let encoding = tokenizer.encode_with_offsets(&text, false)?;
            let learnt = encoding.mask(&spans);
            Ok((encoding.ids, learnt))
        }
    }
}

/// How rows may write each token that ends a generation, the tokenizer's own first; none for one that no text gives.
fn ends(tokenizer: &Tokenizer) -> Vec<Option<String>> {
    let text = |&id: &i64| {
        let text = tokenizer.decode(&[id], false).ok().filter(|text| !text.is_empty())?;
        let ids = tokenizer.encode(&text, false).ok()?;
        (ids == [id]).then_some(text)
    };
    tokenizer.eos_ids().iter().map(text).collect()
}

/// The row with what ends it apart: no answer is asked to say it. Its own end is put behind it again when it is [`encode`]d.
fn apart(row: Row, ends: &[Option<String>]) -> Row {
    let all: Vec<&str> = ends.iter().flatten().map(String::as_str).collect();
    let own = ends.first().and_then(Option::as_deref);
    match row {
        // Another end is said before its own.
        Row::Text(text) => Row::Text(before(&text, own.as_slice()).to_owned()),
        Row::Pair { prompt, completion, end } => {
            let answer = before(&completion, &all);
            let end = format!("{}{end}", before(&completion[answer.len()..], own.as_slice()));
            Row::Pair { prompt, completion: answer.to_owned(), end }
        }
        Row::Chat(chat) => Row::Chat(chat),
    }
}

/// What stands before the `ends` of a text, and before white space behind them, which nobody says: an end is the last word.
fn before<'a>(mut text: &'a str, ends: &[&str]) -> &'a str {
    // An end may be white space itself.
    let unended =
        |text: &'a str, end: &str| text.strip_suffix(end).or_else(|| text.trim_end().strip_suffix(end));
    while let Some(rest) = ends.iter().find_map(|&end| unended(text, end)) {
        text = rest;
    }
    text
}

/// The model's chat template, for one conversation.
pub(crate) fn template(tokenizer: &Tokenizer, chat: &Conversation) -> Result<ChatTemplate> {
    let mut template = tokenizer.chat_template_for(chat.tools.as_ref()).cloned().ok_or_else(|| {
        Error::unsupported("the row has `messages`, but the model has no chat template")
            .hint("use `prompt` + `completion` rows, or add chat_template.jinja to the model's folder")
    })?;
    if let Some(time) = chat.time {
        template = template.at_time(time);
    }
    let tools = chat.tools.iter().map(|tools| ("tools", tools));
    let variables = chat.variables.iter().map(|(name, value)| (name.as_str(), value));
    Ok(tools.chain(variables).fold(template, |of, (name, value)| of.with_variable(name, value.clone())))
}

/// What is learnt at each position but the last: the token that follows, or [`IGNORE`].
pub(crate) fn next_tokens(ids: &[i64], learnt: &[bool]) -> Vec<i64> {
    ids.iter().zip(learnt).skip(1).map(|(&id, &learnt)| if learnt { id } else { IGNORE }).collect()
}

/// Input, labels, and whether it was cut.
fn fit(
    (mut ids, mut learnt): (Vec<i64>, Vec<bool>),
    options: DataOptions,
) -> Result<(Vec<i64>, Vec<i64>, bool)> {
    let longer = ids.len() > options.max_length;
    let teaches = learnt.iter().take(options.max_length).skip(1).any(|&learnt| learnt);
    if longer && (options.long != Long::Cut || !teaches) {
        let what = format!("{} tokens, but at most {} fit", ids.len(), options.max_length);
        return Err(if options.long == Long::BeyondContext {
            Error::data(what).hint("shorten the sample, or leave it out: the model takes no more")
        } else if teaches {
            Error::data(what).hint(
                "shorten the sample, raise --max-length up to the model's context, or pass --truncate (to cut it) or \
                 --drop-long (to leave it out)",
            )
        } else {
            Error::data(format!("{what}, and nothing of those is learnt")).hint(
                "shorten what the sample begins with, raise --max-length up to the model's context, or pass \
                 --drop-long (to leave it out)",
            )
        });
    }
    if !teaches {
        return Err(Error::data("no token of it is learnt")
            .hint("a conversation needs an assistant turn, a completion some text"));
    }
    ids.truncate(options.max_length);
    learnt.truncate(options.max_length);
    let labels = next_tokens(&ids, &learnt);
    ids.pop();
    Ok((ids, labels, longer))
}
