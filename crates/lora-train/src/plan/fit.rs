//! What fits a limit, and the fastest of it.

use std::collections::BTreeMap;

use lora_model::StepSize;

use super::{Plan, Planner};
use crate::batches::{Batches, size_of};
use crate::data::Sample;
use crate::limit::Work;
use crate::trainer::TrainConfig;

/// How the steps of a run are done; what is learnt is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Which of the planners: of the ways to keep the weights.
    pub planner: usize,
    /// Layers of which only the input is kept.
    pub recompute: usize,
    /// Texts in one pass.
    pub batch_size: usize,
    /// Passes in a step.
    pub accumulate: usize,
}

/// A setting, and what it takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// How it is done.
    pub setting: Setting,
    /// The memory.
    pub plan: Plan,
    /// The time, see [`Planner::effort`].
    pub effort: f64,
}

/// The batches of a run.
#[derive(Debug, Clone)]
pub struct Load {
    /// By the texts in a pass: every number of them that divides a step's into passes of equal size.
    passes: BTreeMap<usize, Passes>,
    batch_size: usize,
    accumulate: usize,
}

#[derive(Debug, Clone, Copy)]
struct Passes {
    largest: StepSize,
    /// All passes of a step.
    work: Work,
}

impl Load {
    /// Those that training with `config` on `samples` will draw, which share what they begin with if they `may`.
    pub fn of_data(samples: &[Sample], config: &TrainConfig, may: bool) -> Self {
        let (steps, epoch) = (config.steps(samples.len()), config.steps_an_epoch(samples.len()).max(1));
        let pass = |size: usize| {
            let (of_epoch, of_step) =
                (samples.len().div_ceil(size), config.accumulate * config.batch_size / size);
            let rest = (steps % epoch) * of_step as u64;
            let count = steps / epoch * of_epoch as u64 + rest.min(of_epoch as u64);
            (size, drawn((samples, size), config.seed, (count, steps), may))
        };
        Self::new(divisors(config.batch_size).map(pass).collect(), config)
    }

    /// Texts of `length` tokens, all of them supervised.
    pub fn even(length: i64, config: &TrainConfig) -> Self {
        let texts = (config.batch_size * config.accumulate) as f64;
        let tokens = texts * length as f64;
        let work = Work { tokens, positions: tokens, supervised: tokens, squares: tokens * length as f64 };
        let pass = |n: usize| (n, Passes { largest: StepSize::of_texts(n, length), work });
        Self::new(divisors(config.batch_size).map(pass).collect(), config)
    }

    fn new(passes: BTreeMap<usize, Passes>, config: &TrainConfig) -> Self {
        Self { passes, batch_size: config.batch_size, accumulate: config.accumulate }
    }
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

/// The first `count` batches, which are those of so many steps: the most positions in one, and the most supervised ones;
/// and what a step comes to.
fn drawn((samples, size): (&[Sample], usize), seed: u64, (count, steps): (u64, u64), may: bool) -> Passes {
    let mut batches = Batches::new(samples, size, seed);
    let (mut largest, mut work) = (StepSize::of_pieces(&[], 0), Work::default());
    for _ in 0..count {
        let (size, part) = size_of(&batches.next_samples(), may);
        largest = largest.most(size);
        work += part;
    }
    Passes { largest, work: work.over(steps.max(1) as f64) }
}

impl Fit {
    /// One setting; `None` if the load is not divided so, or there is no such planner.
    pub fn of(planners: &[Planner], setting: Setting, load: &Load) -> Option<Self> {
        let planner = planners.get(setting.planner)?;
        let passes = load.passes.get(&setting.batch_size)?;
        let step = StepSize { recompute: setting.recompute, ..passes.largest };
        let effort = planner.effort(passes.work, setting.accumulate as f64, setting.recompute);
        Some(Self { setting, plan: planner.plan(step), effort })
    }

    /// The fastest setting that fits into `limit` bytes: every way to keep the weights that `may` be taken, smaller passes,
    /// more of them, and as little recomputation as does it.
    ///
    /// # Errors
    /// None fits: the one that takes least.
    pub fn fastest(
        planners: &[Planner],
        may: impl Fn(usize) -> bool,
        load: &Load,
        limit: u64,
    ) -> Result<Self, Option<Self>> {
        let (mut best, mut least) = (None::<Self>, None::<Self>);
        for &batch_size in load.passes.keys() {
            let accumulate = load.accumulate * (load.batch_size / batch_size);
            for (planner, blocks) in
                planners.iter().map(Planner::blocks).enumerate().filter(|(at, _)| may(*at))
            {
                let settings =
                    (0..=blocks).map(|recompute| Setting { planner, recompute, batch_size, accumulate });
                for fit in settings.filter_map(|s| Self::of(planners, s, load)) {
                    if least.is_none_or(|least| fit.plan.total() < least.plan.total()) {
                        least = Some(fit);
                    }
                    if fit.plan.fits(limit) {
                        if best.is_none_or(|best| fit.effort < best.effort) {
                            best = Some(fit);
                        }
                        break;
                    }
                }
            }
        }
        best.ok_or(least)
    }
}

impl Planner {
    /// The largest n up to `most` for which a step of the size `step(n)` fits into `limit` bytes; 0: none.
    pub fn largest(&self, most: i64, limit: u64, step: impl Fn(i64) -> StepSize) -> i64 {
        let fits = |n: i64| self.plan(step(n)).fits(limit);
        let (mut fitting, mut beyond) = (0, most + 1);
        while beyond - fitting > 1 {
            let middle = fitting + (beyond - fitting) / 2;
            if fits(middle) { fitting = middle } else { beyond = middle }
        }
        fitting
    }
}
