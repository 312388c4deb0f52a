//! All that ended, put together.

use super::gather::{self, Ended, Read};
use super::plan::{FULL, NONE, Plan};
use super::results::{Cell, Comparison, Measure, Pair, Set, Tried};
use super::run::Settings;
use super::split::Parts;
use super::stats::{self, Difference};
use super::{judge, machines};
use crate::bench;
use anyhow::Result;

/// Runs of one cell.
struct Group {
    settings: Settings,
    runs: Vec<Read>,
    failures: Vec<String>,
}

/// `build`: the present one; `tuning`: the runs that chose the rates, and those that were tried.
pub(crate) fn comparison(
    plan: &Plan,
    text: &str,
    command: String,
    build: &str,
    parts: &[Parts],
    ended: &[Ended],
    tuning: (&[Ended], Vec<Tried>),
) -> Result<Comparison> {
    let mut groups: Vec<Group> = Vec::new();
    for e in ended {
        let alike = |s: &Settings| Settings { seed: None, measure: e.settings.measure, ..s.clone() };
        let at = groups.iter().position(|g| alike(&g.settings) == alike(&e.settings));
        let group = at.unwrap_or_else(|| {
            groups.push(Group { settings: e.settings.clone(), runs: Vec::new(), failures: Vec::new() });
            groups.len() - 1
        });
        let read = match &e.outcome {
            Ok((found, dir)) => gather::read(e.settings.seed, found, dir).map_err(|e| format!("{e:#}")),
            Err(failure) => Err(failure.why.clone()),
        };
        match read {
            Ok(run) => groups[group].runs.push(run),
            Err(why) => groups[group].failures.push(format!("{}: {why}", e.settings.title())),
        }
    }
    let order = |g: &Group| {
        let set = parts.iter().position(|p| p.name == g.settings.set);
        let method = gather::method(&Settings { peer: None, ..g.settings.clone() });
        // None and full lead: what adapters lie between.
        let variant = plan.variants.iter().position(|v| *v == method).map_or(0, |at| at + 2);
        let variant = match method.as_str() {
            NONE => 0,
            FULL => 1,
            _ => variant,
        };
        (set, variant, g.settings.rank, g.settings.alpha.map(f64::to_bits), g.settings.peer.is_some())
    };
    groups.sort_by_key(order);

    let mut comparison = Comparison {
        name: plan.name.clone(),
        command,
        date: bench::today()?,
        machine: machines::line(ended.iter().chain(tuning.0), build),
        model: groups.first().map_or(String::new(), |g| {
            g.settings.model.path.file_name().map_or(String::new(), |n| n.to_string_lossy().into_owned())
        }),
        plan: text.to_owned(),
        tuning: tuning.1,
        ..Comparison::default()
    };
    for part in parts {
        let mine: Vec<&Group> = groups.iter().filter(|g| g.settings.set == part.name).collect();
        let (set, cells) = one_set(part, &mine);
        comparison.pairs.extend(pairs(&mine));
        comparison.sets.push(set);
        comparison.cells.extend(cells);
    }
    Ok(comparison)
}

fn one_set(part: &Parts, groups: &[&Group]) -> (Set, Vec<Cell>) {
    let floor = groups.iter().find(|g| g.settings.variant == NONE).and_then(|g| g.runs.first());
    let general = floor.and_then(|run| run.measures.get(&Measure::Forgetting).copied());
    let finals = groups.iter().flat_map(|g| &g.runs).filter_map(|run| {
        gather::smooth(&run.steps.iter().map(|s| s.loss).collect::<Vec<_>>()).last().copied()
    });
    // The loss that half of the runs reach in the end.
    let target = stats::median(finals.collect());
    let mut cells: Vec<Cell> = Vec::new();
    for group in groups {
        let mut cell = gather::cell(&group.settings, &group.runs, group.failures.clone());
        // A run without a floor beside it has no forgetting.
        match (cell.measures.remove(&Measure::Forgetting), general) {
            (Some(loss), Some(before)) if group.settings.variant != NONE => {
                let less = loss.each.iter().map(|l| l - before).collect();
                cell.measures.insert(Measure::Forgetting, stats::values(less));
            }
            _ => {}
        }
        let times: Vec<f64> = group.runs.iter().filter_map(|run| gather::seconds_to(run, target?)).collect();
        if !times.is_empty() && times.len() == group.runs.len() {
            cell.measures.insert(Measure::SecondsToTarget, stats::values(times));
        }
        cells.push(cell);
    }
    let runs: Vec<&[Read]> = groups.iter().map(|g| g.runs.as_slice()).collect();
    judge::judge(&mut cells, &runs);
    let labels = groups.iter().flat_map(|g| &g.runs).map(|run| run.labels.clone()).find(|l| !l.is_empty());
    let set = Set {
        name: part.name.clone(),
        train: part.train_rows,
        held_out: part.held_out_rows,
        common: part.common,
        labels: labels.unwrap_or_default(),
        commonest: groups.iter().flat_map(|g| &g.runs).find_map(|run| run.commonest.clone()),
        target_loss: target,
    };
    (set, cells)
}

/// Ours and a peer's, where both are there.
fn pairs(groups: &[&Group]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for theirs in groups.iter().filter(|g| g.settings.peer.is_some()) {
        let measure = theirs.settings.measure;
        let alike = |s: &Settings| Settings { seed: None, peer: None, general: None, measure, ..s.clone() };
        let ours = |g: &&&Group| g.settings.peer.is_none() && alike(&g.settings) == alike(&theirs.settings);
        let Some(ours) = groups.iter().find(ours) else { continue };
        let mut both: Vec<(&Read, &Read)> = Vec::new();
        for run in &ours.runs {
            both.extend(theirs.runs.iter().find(|r| r.seed == run.seed).map(|r| (run, r)));
        }
        let ratio = |measure: Measure| {
            let of = |(a, b): &(&Read, &Read)| Some(a.measures.get(&measure)? / b.measures.get(&measure)?);
            stats::median(both.iter().filter_map(of).collect())
        };
        let worst = both
            .iter()
            .flat_map(|(a, b)| a.steps.iter().zip(&b.steps))
            .map(|(a, b)| (a.loss / b.loss - 1.0).abs());
        let right = |pick: fn(&(&Read, &Read)) -> Vec<bool>| both.iter().map(pick).collect::<Vec<_>>();
        let settings = &theirs.settings;
        pairs.push(Pair {
            set: settings.set.clone(),
            method: gather::method(&Settings { peer: None, ..settings.clone() }),
            peer: settings.peer.clone().unwrap_or_default(),
            rank: settings.rank.unwrap_or_default(),
            dtype: settings.dtype.clone(),
            seeds: both.iter().filter_map(|(a, _)| a.seed).collect(),
            accuracy: Difference::of(&right(|(a, _)| a.right.clone()), &right(|(_, b)| b.right.clone()))
                .map(|difference| difference.interval()),
            worst_loss_difference: worst.reduce(f64::max),
            speed_ratio: ratio(Measure::TokensPerSecond),
            memory_ratio: ratio(Measure::PeakBytes),
            losses: both.first().map_or(Vec::new(), |(a, b)| {
                a.steps.iter().zip(&b.steps).map(|(a, b)| [a.loss, b.loss]).collect()
            }),
        });
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::super::jobs::tests::{grid, plan};
    use super::*;
    use serde_json::json;

    /// They are behind the figures as much as those that they chose for.
    #[test]
    fn the_runs_that_chose_the_rates_are_named_too() {
        let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3, 1e-4]\nseeds = [1]");
        let settings = grid(&plan).tuning().remove(0).settings;
        let found = json!({ "machine": "B, 8 cores", "build": "b" });
        let tuning = [Ended { settings, outcome: Ok((found, "a folder".into())) }];
        let made = comparison(&plan, "", String::new(), "now", &[], &[], (&tuning[..], Vec::new())).unwrap();
        assert_eq!(made.machine, "B, 8 cores; 1 of 1 run by other builds than the present one: b");
    }
}
