//! Training with a bound on what the adapter says of any one text: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).
//!
//! Each step draws every text by its own coin, clips each text's gradient over all trained numbers together, adds them
//! as integers with noise, and divides by the expected batch, never by the true one ([`lora_fed::privacy`]). A text's
//! loss is the mean over its own learnt tokens. Gradients of single texts come from the factors, many texts in a pass
//! ([`lora_core::each_text`]); where a layer cannot give them, texts pass one by one.

use lora_core::{Error, ErrorKind, Param, Result, all_finite, each_text};
use lora_fed::privacy::{PrivacyError, Release, Step};
use lora_model::Model;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use tch_ext::elements;

use crate::arena::{Arena, Norms};
use crate::batches::Batch;
use crate::data::{Dataset, Sample};
use crate::eval::MOST_TOKENS;
use crate::limit::Work;
use crate::optim::AdamW;
use crate::recorder::backward;
use crate::report::{Event, Outcome};
use crate::sharing::drops_out;
use crate::trainer::{Gradient, Source, TrainConfig, run};

/// Trains as [`crate::train`] does, privately: `release` says how (its records are the data's samples). It ends early,
/// with what was learnt so far, where the budget allows no further step.
///
/// `batch_size` texts are in a pass; `batch_size * accumulate` is the expected batch, and `epochs` and `max_steps` count
/// by it. `clip` of the configuration is not used: each text is clipped.
///
/// The losses and norms that `each` is told are computed from the texts and carry no noise: they are for whoever holds
/// the data, the guarantee is about the parameters.
///
/// A text whose pass fails, whose loss or gradient is not finite say, adds zeros, and the step is charged and released like
/// any other: were it an error, whoever chose the parameters could ask by it for single texts, as often as he likes. Only the
/// [`StepReport`](crate::StepReport) says that there were some, and why. Its loss is of the texts that count, NaN where none
/// does.
///
/// # Errors
/// Those of [`check_rows`], and of [`crate::train`], but for what a single text fails of; before anything is charged, what any
/// text whatever would fail of; before a step is charged, parameters that are not finite; [`Error::usage`] for dropout; those of
/// the ledger, but for a spent budget after the first step.
pub fn train_privately(
    model: &dyn Model,
    params: Vec<Param>,
    data: &Dataset,
    held_out: Option<&Dataset>,
    config: &TrainConfig,
    release: &mut Release,
    each: &mut dyn FnMut(&Event) -> Result<()>,
) -> Result<Outcome> {
    config.check()?;
    [Some(data), held_out].into_iter().flatten().try_for_each(|d| check_rows(model, d))?;
    // Texts of a pass share one draw: a text that leaves would change the others' gradients, and they are not bounded by that.
    if let Some(name) = drops_out(model) {
        return Err(no_dropout(&name));
    }
    // Whoever gave them knows it: that may be said.
    if let Some(p) = params.iter().find(|p| !all_finite(&p.tensor)) {
        return Err(Error::non_finite("the parameter is not finite, so no text has a gradient").at(p.key()));
    }
    run(&mut Drawn { model, data, release, config, one_by_one: false }, model, params, held_out, config, each)
}

/// What [`train_privately`] says of dropout, at that place.
pub fn no_dropout(place: &str) -> Error {
    Error::usage("dropout, where a text's gradient must not hang on the other texts that are drawn")
        .at(place)
        .hint("train privately without: --dropout 0, or `lora_dropout` 0 in adapter_config.json")
}

/// Whether a model can read all of the rows, as [`train_privately`] asks: that is of these two alone, so whoever gives the
/// parameters learns nothing by it.
///
/// # Errors
/// Those of [`Dataset::check`]; [`Error::data`], with file and line, for a text beyond the model's context.
pub fn check_rows(model: &dyn Model, data: &Dataset) -> Result<()> {
    data.check(model.config().vocab_size)?;
    let most = model.config().max_positions;
    let Some(long) = data.samples.iter().find(|sample| sample.ids.len() as i64 > most) else { return Ok(()) };
    let what = format!("{} tokens do not fit the model's context of {most}", long.ids.len());
    Err(Error::data(what)
        .at(format!("{}:{}", data.path.display(), long.line))
        .hint("shorten the row, or pass --truncate and a --max-length that fits"))
}

/// A name for the data, as it is trained on: equal for equal samples in equal order.
pub fn fingerprint(data: &Dataset) -> [u8; 32] {
    let mut hash = Sha256::new();
    for sample in &data.samples {
        for row in [&sample.ids, &sample.labels] {
            hash.update((row.len() as u64).to_le_bytes());
            row.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
    }
    hash.finalize().into()
}

struct Drawn<'a> {
    model: &'a dyn Model,
    data: &'a Dataset,
    release: &'a mut Release,
    config: &'a TrainConfig,
    /// A layer could not give gradients text by text.
    one_by_one: bool,
}

impl Drawn<'_> {
    /// Whether a pass of some text goes at all. What does not hang on the rows may be said, and would spend the whole budget on
    /// zeros.
    fn passes(&self, arena: &mut Arena) -> Result<()> {
        let text = Sample { ids: vec![0; 2], labels: vec![0; 2], line: 0 };
        let batch = Batch::new(&[&text], self.model.device());
        let passed = backward(self.model, arena.params(), &batch, 1.0, self.config.recompute);
        arena.zero_grads();
        match passed {
            Err(e) if e.kind() != ErrorKind::NonFinite => Err(e),
            _ => Ok(()),
        }
    }
}

impl Source for Drawn<'_> {
    fn steps(&self) -> u64 {
        self.config.steps(self.data.samples.len())
    }

    fn epochs(&self) -> f64 {
        let expected = self.config.batch_size * self.config.accumulate.max(1);
        expected as f64 / self.data.samples.len() as f64
    }

    /// The lengths of private rows decide nothing that is shown, and so not how held-out rows are read.
    fn tokens_a_pass(&self) -> usize {
        MOST_TOKENS
    }

    /// The file of a run holds losses of rows, and what a ledger has seen is not done again.
    fn skip(&mut self, _: u64) -> Result<()> {
        match self.config.save {
            Some(_) => Err(Error::usage("a private run is not written down on its way")),
            None => Ok(()),
        }
    }

    fn gradients(&mut self, step: u64, arena: &mut Arena, optimiser: &AdamW) -> Result<Option<Gradient>> {
        if step == 0 {
            self.passes(arena)?;
        }
        // No text would have a gradient, and zeros would spend the budget. What was released so far tells it anyway.
        if !all_finite(arena.values()) {
            return Err(Error::non_finite(format!("step {step} left parameters that are not finite"))
                .hint("lower the learning rate; the ledger holds what the steps before gave away"));
        }
        let Self { model, data, config, .. } = *self;
        let state = optimiser.fingerprint(arena)?;
        let sum = match self.release.step(step, &state) {
            Ok(sum) => sum,
            // What was learnt before is kept; a budget that was spent from the start is an error.
            Err(PrivacyError::Exceeded { .. }) if step > 0 => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let drawn: Vec<Text<'_>> = sum.drawn().iter().map(|&i| (i, &data.samples[i])).collect();
        let (recompute, one_by_one) = (config.recompute, self.one_by_one);
        let (largest, loss, counted, left_out, why) = Default::default();
        let mut pass =
            Pass { model, arena, sum, recompute, one_by_one, largest, loss, counted, left_out, why };
        let mut work = Work::default();
        for texts in drawn.chunks(config.batch_size) {
            let samples: Vec<&Sample> = texts.iter().map(|(_, sample)| *sample).collect();
            let batch = Batch::new(&samples, model.device());
            work += batch.work();
            if pass.one_by_one || !pass.together(texts, &batch)? {
                pass.singly(texts)?;
            }
        }
        let Pass { sum, one_by_one, largest, loss, counted, left_out, why, .. } = pass;
        self.one_by_one = one_by_one;
        arena.set_grads(&sum.release()?)?;
        let norms = Norms { joint: largest, layers: Vec::new() };
        // Of none that counts it is NaN.
        let loss = loss / counted as f64;
        Ok(Some(Gradient { loss, norms, work, left_out: (left_out, why) }))
    }
}

/// A record's number, and the text.
type Text<'a> = (usize, &'a Sample);

/// A step's way through the drawn texts.
struct Pass<'a, 'b> {
    model: &'a dyn Model,
    arena: &'a mut Arena,
    sum: Step<'b>,
    recompute: usize,
    /// See [`Drawn`].
    one_by_one: bool,
    /// The largest norm of a text's gradient before clipping.
    largest: f64,
    /// The losses of the texts that count, and their supervised tokens.
    loss: f64,
    counted: usize,
    /// Texts that added zeros.
    left_out: usize,
    /// What the first of them failed of.
    why: Option<String>,
}

impl Pass<'_, '_> {
    /// Adds the texts, of one pass, and says whether it did: not if not every gradient came, or the pass failed.
    fn together(&mut self, texts: &[Text<'_>], batch: &Batch) -> Result<bool> {
        let (rows, sinks) = self.arena.each(texts.len());
        let lengths: Vec<i64> = texts.iter().map(|(_, sample)| sample.ids.len() as i64).collect();
        let params = self.arena.params();
        let sinks: Vec<(&Tensor, Tensor)> = params.iter().map(|p| &p.tensor).zip(sinks).collect();
        let pass = || backward(self.model, params, batch, 1.0, self.recompute);
        let (loss, every) = each_text(&lengths, &sinks, pass);
        // Where it was not every one, the others went to the leaves themselves.
        self.arena.zero_grads();
        // Text by text it shows which one it is of.
        let Ok(loss) = loss else { return Ok(false) };
        if !every {
            self.one_by_one = true;
            return Ok(false);
        }
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for (t, text) in texts.iter().enumerate() {
            match self.add(*text, &rows.select(0, t as i64))? {
                true => good.push(*text),
                false => bad.push(*text),
            }
        }
        if bad.is_empty() {
            self.tell(loss, batch.supervised);
            return Ok(true);
        }
        // What is not finite in one text can make another's numbers NaN, and nothing else: those that are finite are its own.
        // But the loss is of all.
        for text in good {
            if let Ok(its) = self.own(text) {
                self.tell(its, text.1.supervised());
            }
            self.arena.zero_grads();
        }
        self.singly(&bad)?;
        Ok(true)
    }

    /// The same in a pass for each. A text of which that fails, for whatever reason, adds zeros: see [`train_privately`].
    fn singly(&mut self, texts: &[Text<'_>]) -> Result<()> {
        for text in texts {
            let its = self.own(*text);
            let gradient = self.arena.grads().shallow_clone();
            let counts = match its {
                Ok(loss) if self.add(*text, &gradient)? => Ok(loss),
                Ok(_) => Err("its gradient is not finite".to_owned()),
                Err(e) => Err(e.to_string()),
            };
            self.arena.zero_grads();
            match counts {
                Ok(loss) => self.tell(loss, text.1.supervised()),
                Err(why) => {
                    self.left_out += 1;
                    self.why.get_or_insert(why);
                    self.sum.add(text.0, &vec![0f32; gradient.numel()], 1.0)?;
                }
            }
        }
        Ok(())
    }

    /// A text's loss in a pass of its own; the leaves have the gradient.
    fn own(&self, (_, sample): Text<'_>) -> Result<f64> {
        let batch = Batch::new(&[sample], self.model.device());
        backward(self.model, self.arena.params(), &batch, 1.0, self.recompute)
    }

    fn tell(&mut self, loss: f64, tokens: usize) {
        self.loss += loss;
        self.counted += tokens;
    }

    /// Adds a text's gradient, and says whether it did: not if it is not finite.
    fn add(&mut self, (record, sample): Text<'_>, gradient: &Tensor) -> Result<bool> {
        let here = gradient.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let numbers = elements::<f32>(&here).ok_or_else(|| Error::internal("a gradient is not at hand"))?;
        match self.sum.add(record, numbers, 1.0 / sample.supervised().max(1) as f64) {
            Ok(norm) => {
                self.largest = self.largest.max(norm);
                Ok(true)
            }
            Err(PrivacyError::NonFinite { .. }) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}
