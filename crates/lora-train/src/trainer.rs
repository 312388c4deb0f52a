//! The loop.

use std::fmt;
use std::time::Instant;

use lora_core::{Error, ErrorKind, Param, Result};
use lora_model::Model;
use tch::Kind;
use tch_ext::Region;

use crate::arena::{Arena, Norms};
use crate::batches::{Batch, Batches};
use crate::data::{Dataset, Sample};
use crate::eval::mean_loss_within;
use crate::limit::Work;
use crate::optim::{AdamW, AdamWConfig};
use crate::recorder::Recorder;
use crate::report::{Event, Outcome, StepReport};
use crate::save::{Done, SavePoint, Tally};
use crate::schedule::Schedule;
use crate::sharing::{drops_out, may_share};
use crate::stop::Stop;

static DATA: Region = Region::new("data");

/// How to train. In `Debug` there is what shapes the run, and not [`stop`](Self::stop): runs that were saved, and ledgers of
/// private ones, know them by that text.
#[derive(Clone)]
pub struct TrainConfig {
    /// Passes over the data; parts of one are possible.
    pub epochs: f64,
    /// Stop after so many optimiser steps at the latest.
    pub max_steps: Option<u64>,
    /// Samples in one forward pass.
    pub batch_size: usize,
    /// Forward passes a step. Gradients are normalised by the supervised tokens of the whole step.
    pub accumulate: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Its course.
    pub schedule: Schedule,
    /// Share of the steps that warm up.
    pub warmup: f64,
    /// The optimiser's constants.
    pub adamw: AdamWConfig,
    /// Limit of the joint gradient norm.
    pub clip: Option<f64>,
    /// μ of `μ/2 ‖w - w₀‖²`, added to the loss: pulls the parameters to where they began (FedProx; Li et al. 2020,
    /// arXiv 1812.06127). Not clipped.
    pub proximal: Option<f64>,
    /// Layers, from the lowest up, of which only the input is kept: see [`Model::backward`].
    pub recompute: usize,
    /// Whether a GPU may be told small passes at once: see [`Recorder`]. They keep memory of their own.
    pub record: bool,
    /// Of the order and of dropout.
    pub seed: u64,
    /// Evaluate every so many steps (and at the end).
    pub eval_every: Option<u64>,
    /// Where the run is written down, and taken up again.
    pub save: Option<SavePoint>,
    /// Looked at behind every step: what was learnt until then is in the parameters.
    pub stop: Option<Stop>,
}

impl fmt::Debug for TrainConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("TrainConfig");
        shown.field("epochs", &self.epochs).field("max_steps", &self.max_steps);
        shown.field("batch_size", &self.batch_size).field("accumulate", &self.accumulate);
        shown.field("learning_rate", &self.learning_rate).field("schedule", &self.schedule);
        shown.field("warmup", &self.warmup).field("adamw", &self.adamw).field("clip", &self.clip);
        shown.field("proximal", &self.proximal).field("recompute", &self.recompute);
        shown.field("record", &self.record).field("seed", &self.seed);
        shown.field("eval_every", &self.eval_every).field("save", &self.save).finish()
    }
}

/// Those of `lora train`.
impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 2.0,
            max_steps: None,
            batch_size: 8,
            accumulate: 1,
            learning_rate: 2e-4,
            schedule: Schedule::Cosine,
            warmup: 0.05,
            adamw: AdamWConfig::default(),
            clip: Some(1.0),
            proximal: None,
            recompute: 0,
            record: true,
            seed: 42,
            eval_every: None,
            save: None,
            stop: None,
        }
    }
}

/// Trains `params`, leaves of `model`, on `data`.
///
/// # Errors
/// [`Error::usage`] for settings that make no sense; [`Error::non_finite`], with step and lines, as soon as a
/// loss or gradient is not finite (the parameters are then as after the step before); what `each` returns.
pub fn train(
    model: &dyn Model,
    params: Vec<Param>,
    data: &Dataset,
    held_out: Option<&Dataset>,
    config: &TrainConfig,
    each: &mut dyn FnMut(&Event) -> Result<()>,
) -> Result<Outcome> {
    config.check()?;
    [Some(data), held_out].into_iter().flatten().try_for_each(|d| d.check(model.config().vocab_size))?;
    let batches = Batches::new(&data.samples, config.batch_size, config.seed);
    let recorder = Recorder::new(model, config.record);
    let share = may_share(model.device(), model.kind(), drops_out(model).is_some());
    let mut source = Shuffled { model, data, batches, config, recorder, share };
    let outcome = run(&mut source, model, params, held_out, config, each)?;
    Ok(Outcome { replayed: source.recorder.replayed(), ..outcome })
}

/// Where a step's gradients come from.
pub(crate) trait Source {
    /// Steps in all.
    fn steps(&self) -> u64;

    /// Passes over the data a step.
    fn epochs(&self) -> f64;

    /// As [`TrainConfig::tokens_a_pass`].
    fn tokens_a_pass(&self) -> usize;

    /// Leaves out the first so many steps, which are done.
    fn skip(&mut self, steps: u64) -> Result<()>;

    /// Leaves the gradient of step `step`, from 0, in `arena`; none: there are to be no more steps.
    fn gradients(&mut self, step: u64, arena: &mut Arena, optimiser: &AdamW) -> Result<Option<Gradient>>;
}

/// What a step's gradient was made of.
#[derive(Debug)]
pub(crate) struct Gradient {
    /// As [`StepReport::loss`].
    pub(crate) loss: f64,
    /// Before clipping.
    pub(crate) norms: Norms,
    /// What was to be done.
    pub(crate) work: Work,
    /// How many texts counted as zeros, and what the first of them failed of.
    pub(crate) left_out: (usize, Option<String>),
}

/// The loop: gradients, optimiser, reports.
pub(crate) fn run(
    source: &mut dyn Source,
    model: &dyn Model,
    params: Vec<Param>,
    held_out: Option<&Dataset>,
    config: &TrainConfig,
    each: &mut dyn FnMut(&Event) -> Result<()>,
) -> Result<Outcome> {
    let mut arena = Arena::new(params)?;
    let begin = config.proximal.map(|mu| (mu, arena.values().detach().copy()));
    let steps = source.steps();
    // The first step of a warm-up has rate 0: of a single step nothing would be learnt.
    let warmup = if steps > 1 { (config.warmup * steps as f64).ceil() as u64 } else { 0 };
    let mut optimiser = AdamW::new(&arena, config.adamw);
    let saved = config.save.as_ref().map(|save| save.read(&mut arena, &mut optimiser)).transpose()?.flatten();
    let mut done = saved.unwrap_or_default();
    if held_out.is_none() {
        // One of rows that nobody asks for any more, and of an earlier step.
        done.tally.eval_loss = None;
    }
    source.skip(done.losses.len() as u64)?;

    for step in done.losses.len() as u64..steps {
        let start = Instant::now();
        tch::manual_seed(config.seed.wrapping_add(step) as i64);
        let lr = config.learning_rate * config.schedule.factor(step, warmup, steps);
        let Some(gradient) = source.gradients(step, &mut arena, &optimiser)? else { break };
        if let Some((mu, begin)) = &begin {
            arena.pull(*mu, begin);
        }
        optimiser.step(&mut arena, lr);

        let report = StepReport {
            step: step + 1,
            steps,
            epoch: (step + 1) as f64 * source.epochs(),
            loss: gradient.loss,
            grad_norm: gradient.norms.joint,
            grad_norms: gradient.norms.layers,
            lr,
            tokens: gradient.work.tokens as usize,
            supervised: gradient.work.supervised as usize,
            seconds: start.elapsed().as_secs_f64(),
            left_out: gradient.left_out.0,
            left_out_for: gradient.left_out.1,
        };
        done.losses.push(gradient.loss);
        done.tally.work += gradient.work;
        done.tally.tokens += report.tokens;
        done.tally.seconds += report.seconds;
        each(&Event::Step(report))?;

        let due = config.eval_every.is_some_and(|n| (step + 1) % n.max(1) == 0) || step + 1 == steps;
        if let (true, Some(held_out)) = (due, held_out) {
            // What is planned is a step: what is read here is not to take more, but where privacy has it so.
            let loss = mean_loss_within(model, held_out, (config.batch_size, source.tokens_a_pass()))?;
            done.tally.eval_loss = Some(loss);
            each(&Event::Eval { step: step + 1, loss })?;
        }
        // Behind the evaluation: a run that goes on misses none.
        let stopped = step + 1 < steps && config.stop.as_ref().is_some_and(Stop::is_asked);
        if let Some(save) = config.save.as_ref().filter(|save| stopped || save.is_due(step + 1)) {
            let failed = save.write(&arena, &optimiser, &done).err().map(|e| e.to_string());
            each(&Event::Saved { step: step + 1, failed })?;
        }
        if stopped {
            break;
        }
    }
    let Done { losses, tally: Tally { tokens, seconds, eval_loss, work } } = done;
    let told: Vec<f64> = losses.iter().copied().filter(|loss| !loss.is_nan()).collect();
    let tail = &told[told.len() - told.len().div_ceil(10)..];
    Ok(Outcome {
        steps: losses.len() as u64,
        first_loss: told.first().copied().unwrap_or(f64::NAN),
        last_loss: tail.iter().sum::<f64>() / tail.len() as f64,
        eval_loss,
        tokens,
        seconds,
        work,
        replayed: 0,
    })
}

/// Every sample once an epoch, in a seeded order.
struct Shuffled<'a> {
    model: &'a dyn Model,
    data: &'a Dataset,
    batches: Batches<'a>,
    config: &'a TrainConfig,
    recorder: Recorder,
    /// Whether texts that begin alike share that.
    share: bool,
}

impl Source for Shuffled<'_> {
    fn steps(&self) -> u64 {
        self.config.steps(self.data.samples.len())
    }

    fn epochs(&self) -> f64 {
        1.0 / self.config.steps_an_epoch(self.data.samples.len()) as f64
    }

    fn tokens_a_pass(&self) -> usize {
        self.config.tokens_a_pass(&self.data.samples)
    }

    fn skip(&mut self, steps: u64) -> Result<()> {
        (0..steps).for_each(|_| drop(self.batches.next_step(self.config.accumulate)));
        Ok(())
    }

    fn gradients(&mut self, step: u64, arena: &mut Arena, _: &AdamW) -> Result<Option<Gradient>> {
        let batches: Vec<_> = {
            let _inside = DATA.enter();
            let step = self.batches.next_step(self.config.accumulate);
            step.iter().map(|samples| Batch::sharing(samples, self.share, self.model.device())).collect()
        };
        let mut work = Work::default();
        batches.iter().for_each(|batch| work += batch.work());
        let (loss, norms) = gradients(self.model, &mut self.recorder, arena, &batches, self.config)
            .map_err(|e| e.at(format!("step {} ({})", step + 1, lines(self.data, &batches))))?;
        Ok(Some(Gradient { loss, norms, work, left_out: (0, None) }))
    }
}

/// Leaves the clipped gradient of the step's mean loss in the parameters; that loss, and the norms before.
fn gradients(
    model: &dyn Model,
    recorder: &mut Recorder,
    arena: &mut Arena,
    batches: &[Batch],
    config: &TrainConfig,
) -> Result<(f64, Norms)> {
    let supervised: usize = batches.iter().map(|b| b.supervised).sum();
    // In f16 a mean over many tokens falls below the smallest number: there the sum is what goes backward.
    let mean = 1.0 / supervised as f64;
    let (before, after) = if model.kind() == Kind::Half { (1.0, mean) } else { (mean, 1.0) };
    let result = (|| {
        let mut total = 0.0;
        for batch in batches {
            total += recorder.backward(model, arena.params(), batch, before, config.recompute)?;
        }
        if after != 1.0 {
            arena.scale_grads(after);
        }
        Ok((total * after, arena.clip(config.clip)?))
    })();
    if result.is_err() {
        arena.zero_grads();
    }
    result
}

fn lines(data: &Dataset, batches: &[Batch]) -> String {
    let lines: Vec<_> = batches.iter().flat_map(|b| &b.lines).map(usize::to_string).collect();
    format!("{}, lines {}", data.path.display(), lines.join(", "))
}

/// Texts of a step: more is a slip, and takes long to plan.
const MOST_TEXTS: usize = 1 << 24;

impl TrainConfig {
    fn texts(&self) -> usize {
        self.batch_size.max(1).saturating_mul(self.accumulate.max(1))
    }

    /// Tokens that a pass over some of these samples has in the mean: the largest has no fewer.
    pub(crate) fn tokens_a_pass(&self, samples: &[Sample]) -> usize {
        let tokens: usize = samples.iter().map(|sample| sample.ids.len()).sum();
        tokens / samples.len().div_ceil(self.batch_size.max(1)).max(1)
    }

    /// Optimiser steps in a pass over so many samples; the last of them may be of fewer.
    pub fn steps_an_epoch(&self, samples: usize) -> u64 {
        samples.div_ceil(self.texts()) as u64
    }

    /// Optimiser steps on so many samples.
    pub fn steps(&self, samples: usize) -> u64 {
        let steps = (self.steps_an_epoch(samples) as f64 * self.epochs).ceil().max(1.0) as u64;
        self.max_steps.map_or(steps, |most| steps.min(most.max(1)))
    }

    /// Whether one can train so; [`train`] asks too, but only once everything is loaded.
    ///
    /// # Errors
    /// [`Error::usage`] listing every setting that makes no sense.
    pub fn check(&self) -> Result<()> {
        let mut faults = Vec::new();
        let mut refuse = |bad: bool, what: &str| {
            if bad {
                faults.push(what.to_owned());
            }
        };
        refuse(!(self.epochs > 0.0 && self.epochs.is_finite()), "epochs must be positive");
        refuse(self.batch_size == 0, "the batch size must be positive");
        refuse(self.accumulate == 0, "accumulate must be positive");
        refuse(
            self.texts() > MOST_TEXTS,
            "the batch size times accumulate is more than 16,777,216 texts a step",
        );
        let lr = self.learning_rate;
        refuse(!(lr > 0.0 && lr.is_finite()), "the learning rate must be positive");
        let decay = self.adamw.weight_decay;
        refuse(!(decay >= 0.0 && decay.is_finite()), "the weight decay must be 0 or more");
        refuse(!(0.0..=1.0).contains(&self.warmup), "warmup is a share of the steps, from 0 to 1");
        refuse(self.clip.is_some_and(|c| !(c > 0.0)), "the clipping norm must be positive");
        let mu = self.proximal.unwrap_or(0.0);
        refuse(!(mu >= 0.0 && mu.is_finite()), "the proximal term's factor must be 0 or more");
        refuse(self.save.as_ref().is_some_and(|save| save.every == 0), "to save every 0 steps is never");
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::faults(ErrorKind::Usage, "these settings cannot train", faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_pass_has_no_fewer_tokens_than_the_mean() {
        let sample = |length: usize| Sample { ids: vec![1; length], labels: vec![1; length], line: 1 };
        let samples: Vec<_> = [8, 100, 8, 8, 50].map(sample).into();
        for (batch_size, tokens) in [(1, 34), (2, 58), (4, 87), (5, 174), (9, 174)] {
            let config = TrainConfig { batch_size, ..TrainConfig::default() };
            assert_eq!(config.tokens_a_pass(&samples), tokens);
            let drawn = Batches::new(&samples, batch_size, 1).next_step(samples.len());
            let largest = drawn.iter().map(|pass| pass.iter().map(|s| s.ids.len()).sum::<usize>()).max();
            assert!(largest >= Some(tokens), "{batch_size}");
        }
    }
}
