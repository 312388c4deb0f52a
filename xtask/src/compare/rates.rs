//! The learning rates: which of those that were tried each variant goes on with.

use super::gather::{self, Ended};
use super::plan::{Data, Plan};
use super::results::{End, Tried};
use anyhow::{Result, bail};
use serde_json::Value;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// By set and variant.
type Rates = BTreeMap<(String, String), f64>;

/// The rates, and all that were tried. `all` runs are to choose them: chosen from fewer, a rate might be another, and every run
/// after it as well, so that it is an error unless all that is asked for is a `report` of what is there.
pub(crate) fn choose(plan: &Plan, tuning: &[Ended], all: usize, report: bool) -> Result<(Rates, Vec<Tried>)> {
    // A rate at which it diverged was tried.
    let untried = tuning.iter().filter_map(|e| Some((e, e.outcome.as_ref().err()?)));
    let untried = untried.filter(|(_, failure)| !failure.diverged);
    let untried: Vec<_> = untried.map(|(e, failure)| format!("{}: {failure}", e.settings.title())).collect();
    let who = match untried.len() {
        0 => None,
        1 => Some("1 run that chooses a rate failed; the same command tries it again".to_owned()),
        n => Some(format!("{n} runs that choose a rate failed; the same command tries them again")),
    };
    if let Some(who) = who {
        bail!("{who}\n{}", untried.join("\n"));
    }
    if tuning.len() < all && !report {
        bail!(
            "the time was up when {} of {all} runs that choose the learning rates were there\nhint: the same command goes on \
             with the others; there is nothing to report before",
            tuning.len()
        );
    }
    Ok(rates(plan, tuning))
}

/// The learning rate of each set and variant, and all that were tried.
fn rates(plan: &Plan, ended: &[Ended]) -> (BTreeMap<(String, String), f64>, Vec<Tried>) {
    let mut tried: Vec<Tried> = Vec::new();
    for e in ended.iter().filter(|e| e.settings.lr.is_some()) {
        let number =
            |path: &str| e.outcome.as_ref().ok().and_then(|(v, _)| v.pointer(path)).and_then(Value::as_f64);
        tried.push(Tried {
            set: e.settings.set.clone(),
            method: gather::method(&e.settings),
            rank: e.settings.rank,
            lr: e.settings.lr.unwrap_or_default(),
            loss: number("/eval/loss").filter(|loss| loss.is_finite()),
            accuracy: number("/eval/labels/accuracy"),
            chosen: false,
            at_end: None,
        });
    }
    let rate = |t: &Tried| (t.set.clone(), t.method.clone(), t.lr);
    let all: Vec<_> = tried.iter().map(rate).collect();
    for t in &mut tried {
        let beside = |beyond: fn(f64, f64) -> bool| {
            all.iter().any(|(set, method, lr)| *set == t.set && *method == t.method && beyond(*lr, t.lr))
        };
        t.at_end = match (beside(|lr, of| lr < of), beside(|lr, of| lr > of)) {
            (true, false) => Some(End::Highest),
            (false, true) => Some(End::Lowest),
            _ => None,
        };
    }
    let mut best: BTreeMap<(String, String), f64> = BTreeMap::new();
    for set in plan.data.iter().map(Data::name) {
        for variant in &plan.variants {
            let mine = tried.iter_mut().filter(|t| t.set == set && t.method == *variant && t.loss.is_some());
            if let Some(chosen) = mine.min_by(|a, b| a.loss.partial_cmp(&b.loss).unwrap_or(Ordering::Equal)) {
                chosen.chosen = true;
                best.insert((set.clone(), variant.clone()), chosen.lr);
            }
        }
    }
    (best, tried)
}

#[cfg(test)]
mod tests {
    use super::super::jobs::tests::{grid, plan};
    use super::super::outcome::Failure;
    use super::*;
    use serde_json::json;

    /// Losses of the two variants' two rates, in the plan's order.
    fn tuned(plan: &Plan, outcomes: [Result<Value, Failure>; 4]) -> Vec<Ended> {
        let mut jobs = grid(plan).tuning();
        let first = plan.data[0].name();
        jobs.retain(|job| job.settings.set == first);
        assert_eq!(jobs.len(), 4);
        let ended = |(job, outcome): (super::super::jobs::Job, Result<Value, Failure>)| Ended {
            settings: job.settings,
            outcome: outcome.map(|found| (found, "a folder".into())),
        };
        jobs.into_iter().zip(outcomes).map(ended).collect()
    }

    #[test]
    fn the_rate_of_the_lowest_loss_is_chosen_when_all_were_tried() {
        let plan =
            plan("variants = ['lora', 'dora']\nranks = [8]\nlearning_rates = [1e-3, 1e-4]\nseeds = [1]");
        let loss = |loss: f64| Ok(json!({"eval": {"loss": loss, "labels": {"accuracy": 0.5}}}));
        let failed = |why: &str, diverged| Failure { why: why.into(), diverged };
        // As the trainer says it: of the words one cannot tell.
        let diverged = failed("the loss is NaN; all parameters are finite", true);
        let mut all = tuned(&plan, [loss(0.3), loss(0.2), loss(0.4), Err(diverged)]);
        let (rates, tried) = choose(&plan, &all, 4, false).unwrap();
        let chosen: Vec<f64> = rates.into_values().collect();
        assert_eq!(chosen, [1e-3, 1e-4], "dora, lora");
        assert_eq!(tried.iter().map(|t| t.chosen).collect::<Vec<_>>(), [false, true, true, false]);
        // A rate at which it diverged is one that was tried.
        let (high, low) = (Some(End::Highest), Some(End::Lowest));
        assert_eq!(tried.iter().map(|t| t.at_end).collect::<Vec<_>>(), [high, low, high, low]);

        // Without the last, dora's rate might be another.
        let last = all.pop();
        let error = choose(&plan, &all, 4, false).unwrap_err().to_string();
        assert!(error.contains("the time was up when 3 of 4 runs") && error.contains("hint: "), "{error}");
        assert_eq!(choose(&plan, &all, 4, true).unwrap().1.len(), 3);

        all.extend(last);
        all[0].outcome = Err(failed("no space left", false));
        for report in [false, true] {
            let error = choose(&plan, &all, 4, report).unwrap_err().to_string();
            assert!(error.starts_with("1 run that chooses a rate failed; "), "{error}");
            assert!(error.ends_with(": no space left"), "{error}");
        }
        all[1].outcome = Err(failed("a file that is not finite", false));
        let error = choose(&plan, &all, 4, false).unwrap_err().to_string();
        assert!(error.starts_with("2 runs that choose a rate failed; "), "{error}");
    }
    #[test]
    fn a_rate_between_others_is_at_no_end() {
        let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3, 1e-2, 1e-4]\nseeds = [1]");
        let ended = |job: super::super::jobs::Job| Ended {
            settings: job.settings,
            outcome: Ok((json!({"eval": {"loss": 0.5}}), "a folder".into())),
        };
        let all: Vec<_> = grid(&plan).tuning().into_iter().map(ended).collect();
        let (_, tried) = rates(&plan, &all);
        let ends: Vec<_> = tried.iter().map(|t| t.at_end).collect();
        assert_eq!(ends[..3], [None, Some(End::Highest), Some(End::Lowest)]);
    }
}
