//! Where the figures come from: the runs' machines, threads and builds, which may be several.

use super::gather::Ended;
use super::report::text::{count, list};
use crate::bench;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// More builds than these are counted.
const MOST: usize = 6;

/// Where a run was done, as far as it tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) machine: String,
    /// A peer tells none.
    pub(crate) device: Option<String>,
    /// With others beside it, each with its part of the processors.
    pub(crate) shared: bool,
}

impl Place {
    pub(crate) fn of(run: &Value) -> Self {
        Self {
            machine: run["machine"].as_str().map_or_else(bench::cpu, str::to_owned),
            device: run["train"]["device"].as_str().map(str::to_owned),
            shared: run["threads"].is_u64(),
        }
    }
}

/// For the report, in a line; `present`: the build at hand.
pub(crate) fn line<'a>(ended: impl IntoIterator<Item = &'a Ended>, present: &str) -> String {
    let runs: Vec<&Value> =
        ended.into_iter().filter_map(|e| e.outcome.as_ref().ok().map(|(found, _)| found)).collect();
    let mut machines = BTreeMap::<String, BTreeSet<String>>::new();
    for run in &runs {
        machines.entry(Place::of(run).machine).or_default().extend(device(run));
    }
    if machines.is_empty() {
        machines.insert(bench::cpu(), BTreeSet::new());
    }
    let with = |(name, devices): (String, BTreeSet<String>)| {
        [name].into_iter().chain(devices).collect::<Vec<_>>().join(", ")
    };
    let mut said = machines.into_iter().map(with).collect::<Vec<_>>().join("; ");

    let threads: BTreeSet<Option<u64>> = runs.iter().map(|run| run["threads"].as_u64()).collect();
    if threads.iter().any(Option::is_some) {
        let threads = threads.iter().map(|n| n.map_or_else(|| "all".to_owned(), |n| n.to_string()));
        said += &format!("; threads of a run: {}", list(&threads.collect::<Vec<_>>(), MOST));
    }

    let builds = runs.iter().map(|run| run["build"].as_str().unwrap_or("one not told"));
    let others: Vec<String> = builds.filter(|build| *build != present).map(str::to_owned).collect();
    if !others.is_empty() {
        let names: BTreeSet<&String> = others.iter().collect();
        let names: Vec<String> = names.into_iter().cloned().collect();
        let (some, all) = (others.len(), count(runs.len(), "run"));
        said += &format!("; {some} of {all} by other builds than the present one: {}", list(&names, MOST));
    }
    said
}

/// As training told it.
fn device(run: &Value) -> Option<String> {
    let device = run["train"]["device"].as_str().filter(|device| *device != "Cpu")?;
    let number = device.strip_prefix("Cuda(").and_then(|rest| rest.strip_suffix(')'));
    Some(number.map_or_else(|| device.to_owned(), |number| format!("CUDA device {number}")))
}

#[cfg(test)]
mod tests {
    use super::super::jobs::tests::{grid, plan};
    use super::super::outcome::Failure;
    use super::super::{carry, gather};
    use super::*;
    use serde_json::json;
    use std::fs;

    fn ended(found: Vec<Value>) -> Vec<Ended> {
        let plan = plan("variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]");
        let settings = grid(&plan).grid(|_, _| 1e-3).remove(0).settings;
        let outcome = |found: Value| Ended { settings: settings.clone(), outcome: Ok((found, "x".into())) };
        let mut all: Vec<_> = found.into_iter().map(outcome).collect();
        let failure = Failure { why: "killed".into(), diverged: false };
        all.push(Ended { settings, outcome: Err(failure) });
        all
    }

    #[test]
    fn all_that_the_runs_tell_is_said() {
        let here = json!({"machine": "A, 2 cores, AVX2", "build": "now", "threads": null, "train": {"device": "Cpu"}});
        assert_eq!(line(&ended(vec![here.clone()]), "now"), "A, 2 cores, AVX2", "nothing but the machine");
        assert_eq!(line(&ended(vec![]), "now"), bench::cpu());
        let old = json!({"machine": "A, 2 cores"});
        assert_eq!(
            line(&ended(vec![old.clone()]), "now"),
            "A, 2 cores; 1 of 1 run by other builds than the present one: one not told"
        );
        let there =
            json!({"machine": "B, 8 cores", "build": "b", "threads": 1, "train": {"device": "Cuda(0)"}});
        let floor = json!({"machine": "B, 8 cores", "build": "c", "threads": 1});
        assert_eq!(
            line(&ended(vec![here, old, there, floor]), "now"),
            "A, 2 cores; A, 2 cores, AVX2; B, 8 cores, CUDA device 0; threads of a run: all and 1; \
             3 of 4 runs by other builds than the present one: b, c and one not told"
        );
    }

    #[test]
    fn a_place_is_what_the_run_tells() {
        let there =
            json!({"machine": "B, 8 cores", "build": "b", "threads": 1, "train": {"device": "Cuda(0)"}});
        let place = Place { machine: "B, 8 cores".into(), device: Some("Cuda(0)".into()), shared: true };
        assert_eq!(Place::of(&there), place);
        let peer = json!({"machine": "B, 8 cores", "threads": null, "train": {"parameters": 7}});
        assert_eq!(Place::of(&peer), Place { device: None, shared: false, ..place });
    }

    /// Those behind the document are of earlier days, and tell less.
    #[test]
    fn old_runs_load_and_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let (runs, settings) = (dir.path().join("runs"), ended(vec![]).remove(0).settings);
        for (file, said) in [("peft.zip", "CUDA device 0"), ("ceiling.zip", "7 of 7 runs by other builds")] {
            let put = carry::load(&crate::sh::root().join("docs/comparison/runs").join(file), &runs).unwrap();
            let mut found = Vec::<Value>::new();
            for home in fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().path()) {
                let text = fs::read_to_string(home.join("result.json")).unwrap();
                found.push(serde_json::from_str(&text).unwrap());
                gather::read(settings.seed, &found[found.len() - 1], &home).unwrap();
            }
            assert_eq!((put, put > 0), (found.len(), true), "{file}");
            let line = line(&ended(found), "now");
            assert!(line.contains(said) && line.contains("threads of a run: all and 1"), "{line}");
            fs::remove_dir_all(&runs).unwrap();
        }
    }
}
