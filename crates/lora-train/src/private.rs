//! Training with a bound on what the adapter says of any one text: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).
//!
//! Each step draws every text by its own coin, clips each text's gradient over all trained numbers together, adds them
//! as integers with noise, and divides by the expected batch, never by the true one ([`lora_fed::privacy`]). A text's
//! loss is the mean over its own learnt tokens. Gradients of single texts come from the factors, many texts in a pass
//! ([`lora_core::each_text`]); where a layer cannot give them, texts pass one by one.

use lora_core::{Error, Param, Result, all_finite, each_text};
use lora_fed::privacy::{PrivacyError, Release, Step};
use lora_model::Model;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use tch_ext::elements;

use crate::arena::{Arena, Norms};
use crate::batches::Batch;
use crate::data::{Dataset, Sample};
use crate::limit::Work;
use crate::optim::AdamW;
use crate::recorder::backward;
use crate::sharing::drops_out;
use crate::trainer::{Event, Gradient, Outcome, Source, TrainConfig, run};

/// Trains as [`crate::train`] does, privately: `release` says how (its records are the data's samples). It ends early,
/// with what was learnt so far, where the budget allows no further step.
///
/// `batch_size` texts are in a pass; `batch_size * accumulate` is the expected batch, and `epochs` and `max_steps` count
/// by it. `clip` of the configuration is not used: each text is clipped.
///
/// The losses and norms that `each` is told are computed from the texts and carry no noise: they are for whoever holds
/// the data, the guarantee is about the parameters.
///
/// A text whose loss or gradient is not finite adds zeros, and the step is charged and released like any other: were it an
/// error, whoever chose the parameters could ask by it for single texts, as often as he likes.
///
/// # Errors
/// Those of [`crate::train`], but for numbers that are not finite: of them the parameters' alone, at the start;
/// [`Error::usage`] for dropout; those of the ledger, but for a spent budget after the first step.
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
    [Some(data), held_out].into_iter().flatten().try_for_each(|d| d.check(model.config().vocab_size))?;
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

impl Source for Drawn<'_> {
    fn steps(&self) -> u64 {
        self.config.steps(self.data.samples.len())
    }

    fn epochs(&self) -> f64 {
        let expected = self.config.batch_size * self.config.accumulate.max(1);
        expected as f64 / self.data.samples.len() as f64
    }

    /// The file of a run holds losses of rows, and what a ledger has seen is not done again.
    fn skip(&mut self, _: u64) -> Result<()> {
        match self.config.save {
            Some(_) => Err(Error::usage("a private run is not written down on its way")),
            None => Ok(()),
        }
    }

    fn gradients(&mut self, step: u64, arena: &mut Arena, optimiser: &AdamW) -> Result<Option<Gradient>> {
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
        let mut pass = Pass { model, arena, sum, recompute, one_by_one, largest: 0.0, left_out: 0 };
        let (mut loss, mut work) = (0.0, Work::default());
        for texts in drawn.chunks(config.batch_size) {
            let samples: Vec<&Sample> = texts.iter().map(|(_, sample)| *sample).collect();
            let batch = Batch::new(&samples, model.device());
            work += batch.work();
            let all = if pass.one_by_one { None } else { pass.together(texts, &batch)? };
            loss += match all {
                Some(all) => all,
                None => pass.singly(texts)?,
            };
        }
        let Pass { sum, one_by_one, largest, left_out, .. } = pass;
        self.one_by_one = one_by_one;
        arena.set_grads(&sum.release()?)?;
        let norms = Norms { joint: largest, layers: Vec::new() };
        Ok(Some(Gradient { loss: loss / work.supervised.max(1.0), norms, work, left_out }))
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
    /// Texts that added zeros.
    left_out: usize,
}

impl Pass<'_, '_> {
    /// The sum of the texts' losses, in one pass; none, and nothing added, if not every gradient came, or the pass failed.
    fn together(&mut self, texts: &[Text<'_>], batch: &Batch) -> Result<Option<f64>> {
        let (rows, sinks) = self.arena.each(texts.len());
        let lengths: Vec<i64> = texts.iter().map(|(_, sample)| sample.ids.len() as i64).collect();
        let params = self.arena.params();
        let sinks: Vec<(&Tensor, Tensor)> = params.iter().map(|p| &p.tensor).zip(sinks).collect();
        let pass = || backward(self.model, params, batch, 1.0, self.recompute);
        let (loss, every) = each_text(&lengths, &sinks, pass);
        // Where it was not every one, the others went to the leaves themselves.
        self.arena.zero_grads();
        // Text by text it shows which one it is of.
        let Ok(loss) = loss else { return Ok(None) };
        if !every {
            self.one_by_one = true;
            return Ok(None);
        }
        let mut bad = Vec::new();
        for (t, text) in texts.iter().enumerate() {
            if !self.add(*text, &rows.select(0, t as i64))? {
                bad.push(*text);
            }
        }
        // What is not finite in one text can make another's numbers NaN, and nothing else: those that are finite are its own.
        self.singly(&bad)?;
        Ok(Some(loss))
    }

    /// The same in a pass for each. A text of which that fails, for whatever reason, adds zeros: see [`train_privately`].
    fn singly(&mut self, texts: &[Text<'_>]) -> Result<f64> {
        let mut loss = 0.0;
        for text in texts {
            let batch = Batch::new(&[text.1], self.model.device());
            let its = backward(self.model, self.arena.params(), &batch, 1.0, self.recompute);
            let gradient = self.arena.grads().shallow_clone();
            let counts = its.is_ok() && self.add(*text, &gradient)?;
            self.arena.zero_grads();
            match its {
                Ok(its) if counts => loss += its,
                _ => {
                    self.left_out += 1;
                    self.sum.add(text.0, &vec![0f32; gradient.numel()], 1.0)?;
                }
            }
        }
        Ok(loss)
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
