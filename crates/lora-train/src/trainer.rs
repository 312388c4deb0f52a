//! The loop.

use std::time::Instant;

use lora_core::{Error, ErrorKind, Param, Result};
use lora_model::Model;
use serde::Serialize;
use tch_ext::Region;

use crate::arena::{Arena, Norms};
use crate::batches::{Batch, Batches};
use crate::data::Dataset;
use crate::eval::mean_loss;
use crate::limit::Work;
use crate::optim::{AdamW, AdamWConfig};
use crate::schedule::Schedule;

static DATA: Region = Region::new("data");

/// How to train.
#[derive(Debug, Clone)]
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
    /// Layers, from the lowest up, of which only the input is kept: see [`Model::backward`].
    pub recompute: usize,
    /// Of the order and of dropout.
    pub seed: u64,
    /// Evaluate every so many steps (and at the end).
    pub eval_every: Option<u64>,
}

/// One step, as it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean cross-entropy over the step's supervised tokens.
    pub loss: f64,
    /// Joint norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The same of each layer that trains: see [`Norms`].
    pub grad_norms: Vec<f64>,
    /// The rate of this step.
    pub lr: f64,
    /// Tokens read, padding not counted.
    pub tokens: usize,
    /// Of them supervised.
    pub supervised: usize,
    /// Wall time of the step.
    pub seconds: f64,
}

/// What the loop tells while it runs.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step is done.
    Step(StepReport),
    /// The held-out loss after a step.
    Eval {
        /// After this step.
        step: u64,
        /// Mean cross-entropy over the supervised tokens.
        loss: f64,
    },
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Steps done.
    pub steps: u64,
    /// Loss of the first step.
    pub first_loss: f64,
    /// Mean loss of the last tenth of the steps.
    pub last_loss: f64,
    /// Last held-out loss.
    pub eval_loss: Option<f64>,
    /// Tokens read.
    pub tokens: usize,
    /// Wall time of the steps.
    pub seconds: f64,
    /// What was to be done in them.
    #[serde(skip)]
    pub work: Work,
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
    let mut arena = Arena::new(params)?;
    let mut batches = Batches::new(&data.samples, config.batch_size, config.seed);
    let accumulate = config.accumulate.max(1);
    let per_epoch = batches.per_epoch() as f64 / accumulate as f64;
    let steps = config.steps(data.samples.len());
    let warmup = (config.warmup * steps as f64).ceil() as u64;
    let mut optimiser = AdamW::new(&arena, config.adamw);
    let (mut losses, mut tokens, mut seconds, mut eval_loss) = (Vec::new(), 0, 0.0, None);
    let mut work = Work::default();

    for step in 0..steps {
        let start = Instant::now();
        tch::manual_seed(config.seed.wrapping_add(step) as i64);
        let step_batches: Vec<_> = {
            let _inside = DATA.enter();
            (0..accumulate).map(|_| Batch::new(&batches.next_samples(), model.device())).collect()
        };
        step_batches.iter().for_each(|batch| work += batch.work());
        let lr = config.learning_rate * config.schedule.factor(step, warmup, steps);
        let (loss, norms) = gradients(model, &mut arena, &step_batches, config.clip, config.recompute)
            .map_err(|e| e.at(format!("step {} ({})", step + 1, lines(data, &step_batches))))?;
        optimiser.step(&mut arena, lr);

        let report = StepReport {
            step: step + 1,
            steps,
            epoch: (step + 1) as f64 / per_epoch,
            loss,
            grad_norm: norms.joint,
            grad_norms: norms.layers,
            lr,
            tokens: step_batches.iter().map(|b| b.tokens).sum(),
            supervised: step_batches.iter().map(|b| b.supervised).sum(),
            seconds: start.elapsed().as_secs_f64(),
        };
        losses.push(loss);
        tokens += report.tokens;
        seconds += report.seconds;
        each(&Event::Step(report))?;

        let due = config.eval_every.is_some_and(|n| (step + 1) % n.max(1) == 0) || step + 1 == steps;
        if let (true, Some(held_out)) = (due, held_out) {
            let loss = mean_loss(model, held_out, config.batch_size)?;
            eval_loss = Some(loss);
            each(&Event::Eval { step: step + 1, loss })?;
        }
    }
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    Ok(Outcome {
        steps,
        first_loss: losses.first().copied().unwrap_or(f64::NAN),
        last_loss: tail.iter().sum::<f64>() / tail.len().max(1) as f64,
        eval_loss,
        tokens,
        seconds,
        work,
    })
}

/// Leaves the clipped gradient of the step's mean loss in the parameters; that loss, and the norms before.
fn gradients(
    model: &dyn Model,
    arena: &mut Arena,
    batches: &[Batch],
    clip: Option<f64>,
    recompute: usize,
) -> Result<(f64, Norms)> {
    let supervised: usize = batches.iter().map(|b| b.supervised).sum();
    let result = (|| {
        let mut total = 0.0;
        for batch in batches {
            let scale = 1.0 / supervised as f64;
            total += model.backward(batch.texts(), &batch.labels, scale, recompute).map_err(|e| {
                match e.kind() {
                    ErrorKind::NonFinite => Error::non_finite(format!("{e}; {}", culprit(arena.params())))
                        .hint("lower the learning rate; with bf16, try --dtype f32; look at the lines named"),
                    _ => e,
                }
            })?;
        }
        Ok((total, arena.clip(clip)?))
    })();
    if result.is_err() {
        arena.zero_grads();
    }
    result
}

/// What is not finite, as far as one can see.
fn culprit(params: &[Param]) -> String {
    let bad = params.iter().find(|p| !p.tensor.norm().double_value(&[]).is_finite());
    match bad {
        Some(p) => format!("the parameter {} is not finite", p.key()),
        None => "all parameters are finite, so it arose in the forward pass".to_owned(),
    }
}

fn lines(data: &Dataset, batches: &[Batch]) -> String {
    let lines: Vec<_> = batches.iter().flat_map(|b| &b.lines).map(usize::to_string).collect();
    format!("{}, lines {}", data.path.display(), lines.join(", "))
}

impl TrainConfig {
    /// Optimiser steps on so many samples.
    pub fn steps(&self, samples: usize) -> u64 {
        let per_epoch = samples.div_ceil(self.batch_size.max(1)) as f64 / self.accumulate.max(1) as f64;
        let steps = (per_epoch * self.epochs).ceil().max(1.0) as u64;
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
        let lr = self.learning_rate;
        refuse(!(lr > 0.0 && lr.is_finite()), "the learning rate must be positive");
        refuse(!(0.0..=1.0).contains(&self.warmup), "warmup is a share of the steps, from 0 to 1");
        refuse(self.clip.is_some_and(|c| !(c > 0.0)), "the clipping norm must be positive");
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::faults(ErrorKind::Usage, "these settings cannot train", faults))
    }
}
