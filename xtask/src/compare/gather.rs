//! From what the runs found to the cells of a comparison.

use super::machines::Place;
use super::outcome::Failure;
use super::results::{Cell, Commonest, Measure, Values};
use super::run::Settings;
use super::stats::{self, Difference};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// A run that ended, in one way or the other.
pub(crate) struct Ended {
    pub(crate) settings: Settings,
    /// What it found, and its folder; or what went wrong.
    pub(crate) outcome: Result<(Value, std::path::PathBuf), Failure>,
}

/// A finished run, read.
pub(crate) struct Read {
    /// None: nothing was trained.
    pub(crate) seed: Option<u64>,
    pub(crate) measures: BTreeMap<Measure, f64>,
    /// Right answers by scores (else generated), row by row.
    pub(crate) right: Vec<bool>,
    /// Training loss, gradient norm, seconds, tokens, step by step.
    pub(crate) steps: Vec<Step>,
    pub(crate) layers: Vec<Vec<f64>>,
    pub(crate) labels: Vec<String>,
    pub(crate) commonest: Option<Commonest>,
    pub(crate) commands: Vec<String>,
    pub(crate) place: Place,
}

pub(crate) struct Step {
    pub(crate) loss: f64,
    pub(crate) gradient: f64,
    pub(crate) seconds: f64,
    pub(crate) tokens: f64,
}

/// Steps over which a curve is smoothed.
const WINDOW: usize = 5;

/// The run in `dir`, which had this seed.
pub(crate) fn read(seed: Option<u64>, found: &Value, dir: &Path) -> Result<Read> {
    let mut steps = Vec::new();
    let mut layers = Vec::new();
    let text = fs::read_to_string(dir.join("adapter.metrics.jsonl")).unwrap_or_default();
    for line in text.lines() {
        let step: Value = serde_json::from_str(line).context("metrics")?;
        if step["event"] == "step" {
            let number = |name: &str| step[name].as_f64().unwrap_or(f64::NAN);
            let [loss, gradient, seconds, tokens] = ["loss", "grad_norm", "seconds", "tokens"].map(number);
            steps.push(Step { loss, gradient, seconds, tokens });
            layers.push(
                step["grad_norms"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect(),
            );
        }
    }
    let rows = fs::read_to_string(dir.join("rows.jsonl")).context("rows.jsonl")?;
    ensure!(!rows.is_empty(), "rows.jsonl is empty");
    let (mut right, mut labels) = (Vec::new(), Vec::new());
    let mut wanted = BTreeMap::<String, usize>::new();
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).context("rows.jsonl")?;
        let is_right = match row["label"].as_str() {
            Some(label) => Some(row["reference"] == label),
            None => row["right"].as_bool(),
        };
        right.extend(is_right);
        if let (Some(_), Some(reference)) = (row["label"].as_str(), row["reference"].as_str()) {
            *wanted.entry(reference.to_owned()).or_default() += 1;
        }
        if labels.is_empty() {
            labels = row["scores"].as_object().map_or(Vec::new(), |s| s.keys().cloned().collect());
        }
    }
    let mut measures = BTreeMap::new();
    let mut put = |measure: Measure, value: Option<f64>| {
        measures.extend(value.filter(|v| v.is_finite()).map(|value| (measure, value)));
    };
    let commands = found["commands"].as_array().into_iter().flatten();
    let commands: Vec<String> = commands.filter_map(Value::as_str).map(str::to_owned).collect();
    let number = |path: &str| found.pointer(path).and_then(Value::as_f64);
    for (measure, path) in [
        (Measure::Accuracy, "/eval/labels/accuracy"),
        (Measure::MacroF1, "/eval/labels/macro_f1"),
        (Measure::CalibrationError, "/eval/labels/calibration_error"),
        (Measure::Brier, "/eval/labels/brier"),
        (Measure::ExactMatch, "/eval/accuracy"),
        (Measure::GeneratedF1, "/eval/macro_f1"),
        (Measure::Loss, "/eval/loss"),
        (Measure::TrainSeconds, "/train/outcome/seconds"),
        (Measure::LoadSeconds, "/train/load_seconds"),
        (Measure::PeakBytes, "/train/peak_bytes"),
        (Measure::Parameters, "/train/parameters"),
        (Measure::ParameterShare, "/inspect/share"),
        (Measure::AdapterBytes, "/inspect/bytes"),
        (Measure::BytesUp, "/train/bytes_up"),
        (Measure::BytesDown, "/train/bytes_down"),
        (Measure::EffectiveRank, "/inspect/effective_rank"),
        (Measure::MergeDifference, "/merge/largest"),
        (Measure::MergeKl, "/merge/mean_kl"),
        // The loss itself; the untrained model's is taken off later.
        (Measure::Forgetting, "/general/loss"),
    ] {
        put(measure, number(path));
    }
    if of_another_base(&commands) {
        measures.retain(|measure, _| ![Measure::MergeDifference, Measure::MergeKl].contains(measure));
    }
    let mut put = |measure: Measure, value: Option<f64>| {
        measures.extend(value.filter(|v| v.is_finite()).map(|value| (measure, value)));
    };
    let over = |of: fn(&Step) -> f64| stats::median(steps.iter().map(of).collect());
    put(Measure::TokensPerSecond, over(|s| s.tokens / s.seconds));
    put(Measure::GradientNorm, over(|s| s.gradient));
    let (all, place) = (wanted.values().sum::<usize>() as f64, Place::of(found));
    let commonest = wanted.into_iter().max_by_key(|(_, rows)| *rows);
    let commonest = commonest.map(|(label, rows)| Commonest { label, share: rows as f64 / all });
    Ok(Read { seed, measures, right, steps, layers, labels, commonest, commands, place })
}

/// Whether a run's merge was verified beside another base than the one that was trained: the 16-bit one, where that had four
/// bits. Older runs did so, and are found by their settings still.
fn of_another_base(commands: &[String]) -> bool {
    let any = |wanted: &dyn Fn(&str) -> bool| commands.iter().any(|line| wanted(line));
    any(&|line| line.contains("--variant qlora") || line.contains("+qlora"))
        && any(&|line| line.contains(" merge ") && !line.contains(" --variant "))
}

/// The mean of the last steps at each step.
pub(crate) fn smooth(values: &[f64]) -> Vec<f64> {
    let mean = |window: &[f64]| window.iter().sum::<f64>() / window.len() as f64;
    (1..=values.len()).map(|end| mean(&values[end.saturating_sub(WINDOW)..end])).collect()
}

/// Step, mean, lowest, highest.
fn curve(runs: &[Read], of: fn(&Step) -> f64) -> Vec<[f64; 4]> {
    let each: Vec<Vec<f64>> =
        runs.iter().map(|run| smooth(&run.steps.iter().map(of).collect::<Vec<_>>())).collect();
    let len = each.iter().map(Vec::len).min().unwrap_or(0);
    let at = |i: usize| {
        let now: Vec<f64> = each.iter().map(|run| run[i]).collect();
        let mean = now.iter().sum::<f64>() / now.len() as f64;
        let (low, high) = now.iter().fold((f64::MAX, f64::MIN), |(l, h), &x| (l.min(x), h.max(x)));
        [(i + 1) as f64, mean, low, high]
    };
    (0..len).map(at).collect()
}

/// The cell of runs that differ in their seeds alone.
pub(crate) fn cell(settings: &Settings, runs: &[Read], failures: Vec<String>) -> Cell {
    let mut measures: BTreeMap<Measure, Values> = BTreeMap::new();
    for measure in Measure::ALL {
        let each: Vec<f64> = runs.iter().filter_map(|run| run.measures.get(&measure).copied()).collect();
        if !each.is_empty() {
            measures.insert(measure, stats::values(each));
        }
    }
    let places = |of: fn(&Place) -> Option<&String>| -> Vec<String> {
        let all: BTreeSet<&String> = runs.iter().filter_map(|run| of(&run.place)).collect();
        all.into_iter().cloned().collect()
    };
    let depth = runs.iter().flat_map(|run| run.layers.first()).map(Vec::len).min().unwrap_or(0);
    let layer = |layer: usize| {
        let of =
            |run: &Read| stats::median(run.layers.iter().filter_map(|l| l.get(layer).copied()).collect());
        let each: Vec<f64> = runs.iter().filter_map(of).collect();
        each.iter().sum::<f64>() / each.len() as f64
    };
    Cell {
        set: settings.set.clone(),
        method: method(settings),
        rank: settings.rank,
        alpha: settings.alpha,
        lr: settings.lr,
        seeds: runs.iter().filter_map(|run| run.seed).collect(),
        loss_curve: curve(runs, |s| s.loss),
        gradient_curve: curve(runs, |s| s.gradient),
        gradient_layers: (0..depth).map(layer).collect(),
        measures,
        best: false,
        behind: None,
        failures,
        commands: runs.first().map_or(Vec::new(), |run| run.commands.clone()),
        machines: places(|place| Some(&place.machine)),
        devices: places(|place| place.device.as_ref()),
        shared: runs.iter().any(|run| run.place.shared),
    }
}

/// As in the tables.
pub(crate) fn method(settings: &Settings) -> String {
    let start = settings.start.as_ref().map_or(String::new(), |start| format!("@{start}"));
    let peer = settings.peer.as_ref().map_or(String::new(), |peer| format!(" ({peer})"));
    let rule = settings.federation.as_ref().map_or(String::new(), |f| format!(" by {}", f.rule));
    format!("{}{start}{rule}{peer}", settings.variant)
}

/// The differences of right answers between two cells, seed by seed; a seed that one of them lacks does not count.
pub(crate) fn behind(a: &[Read], b: &[Read]) -> Option<Difference> {
    let partner = |run: &Read| b.iter().find(|other| [run.seed, None].contains(&other.seed));
    let pairs = if a.iter().any(|run| run.seed.is_none()) {
        b.iter().filter_map(|other| Some((a.first()?, other))).collect::<Vec<_>>()
    } else {
        a.iter().filter_map(|run| Some((run, partner(run)?))).collect()
    };
    let (a, b): (Vec<_>, Vec<_>) = pairs.iter().map(|(a, b)| (a.right.clone(), b.right.clone())).unzip();
    Difference::of(&a, &b)
}

/// Seconds of training until the mean of five steps' losses was at most `target`.
pub(crate) fn seconds_to(run: &Read, target: f64) -> Option<f64> {
    let losses = smooth(&run.steps.iter().map(|s| s.loss).collect::<Vec<_>>());
    let reached = losses.iter().enumerate().position(|(i, loss)| i + 1 >= WINDOW && *loss <= target)?;
    Some(run.steps[..=reached].iter().map(|s| s.seconds).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64, losses: &[f64]) -> Read {
        let seed = Some(seed);
        let step = |&loss: &f64| Step { loss, gradient: 1.0, seconds: 2.0, tokens: 10.0 };
        let steps = losses.iter().map(step).collect();
        Read {
            seed,
            steps,
            measures: BTreeMap::new(),
            right: vec![],
            layers: vec![],
            labels: vec![],
            commonest: None,
            commands: vec![],
            place: Place::default(),
        }
    }

    /// A seed that failed on one side is no partner of another's; no training stands beside each.
    #[test]
    fn runs_are_paired_by_seed() {
        let with = |seed, right: usize| {
            let right = (0..10).map(|row| row < right).collect();
            Read { right, seed, ..run(0, &[1.0]) }
        };
        let all = [with(Some(1), 1), with(Some(2), 5), with(Some(3), 9)];
        let two = [with(Some(2), 4), with(Some(3), 8)];
        for (a, b, mean) in [(&all[..], &two[..], 0.1), (&two, &all, -0.1)] {
            let found = behind(a, b).unwrap().interval();
            assert!((found.mean - mean).abs() < 1e-12 && found.seeds == 2, "{found:?}");
        }
        let floor = [with(None, 2)];
        assert!((behind(&floor, &all).unwrap().interval().mean + 0.3).abs() < 1e-12);
        assert!((behind(&all, &floor).unwrap().interval().mean - 0.3).abs() < 1e-12);
        assert!(behind(&[with(Some(9), 2)], &all).is_none());
    }

    #[test]
    fn the_commonest_label_is_that_of_the_rows_that_have_one() {
        let dir = tempfile::tempdir().unwrap();
        let commonest = |rows: &str| {
            fs::write(dir.path().join("rows.jsonl"), rows).unwrap();
            read(Some(1), &Value::Null, dir.path()).unwrap().commonest
        };
        let row = |label: &str| format!("{{\"reference\": \"{label}\", \"label\": \"a\"}}\n");
        let rows = [row("b"), row("a"), row("b"), row("c")].concat();
        assert_eq!(commonest(&rows), Some(Commonest { label: "b".into(), share: 0.5 }));
        assert_eq!(commonest("{\"reference\": \"free text\", \"right\": true}\n"), None);
    }

    /// One run that shared its machine, or was done on another one, is enough.
    #[test]
    fn a_cell_tells_where_its_runs_were_done() {
        let on = |machine: &str, device: Option<&str>, shared| {
            let place = Place { machine: machine.into(), device: device.map(str::to_owned), shared };
            Read { place, ..run(1, &[1.0]) }
        };
        let plan = super::super::jobs::tests::plan(
            "variants = ['lora']\nranks = [8]\nlearning_rates = [1e-3]\nseeds = [1]",
        );
        let settings = super::super::jobs::tests::grid(&plan).grid(|_, _| 1e-3).remove(0).settings;
        let runs = [on("b", None, false), on("a", Some("Cpu"), false), on("b", Some("Cpu"), true)];
        let both = cell(&settings, &runs, Vec::new());
        assert_eq!(
            (both.machines, both.devices, both.shared),
            (vec!["a".into(), "b".into()], vec!["Cpu".into()], true)
        );
        assert!(!cell(&settings, &runs[..2], Vec::new()).shared);
    }

    /// What older runs measured of a merge is not what is measured now, where the base was rounded.
    #[test]
    fn a_merge_beside_another_base_is_no_figure() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rows.jsonl"), "{\"right\": true}\n").unwrap();
        for (variant, merge, there) in [
            ("qlora", "", false),
            ("dora+qlora:fp4", "", false),
            ("qlora", " --variant qlora", true),
            ("lora", "", true),
        ] {
            let commands = [
                format!("lora train --variant {variant} --rank 4"),
                format!("lora merge --verify{merge} --json"),
            ];
            let found =
                serde_json::json!({ "commands": commands, "merge": { "largest": 0.5, "mean_kl": 0.1 } });
            let measures = read(Some(1), &found, dir.path()).unwrap().measures;
            assert_eq!(measures.contains_key(&Measure::MergeKl), there, "{variant}{merge}");
            assert_eq!(measures.contains_key(&Measure::MergeDifference), there, "{variant}{merge}");
        }
    }

    #[test]
    fn curves_and_times() {
        let runs = [run(1, &[4.0, 2.0, 3.0]), run(2, &[2.0, 2.0, 1.0])];
        let curve = curve(&runs, |s| s.loss);
        assert_eq!(curve[0], [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(curve[2], [3.0, (3.0 + 5.0 / 3.0) / 2.0, 5.0 / 3.0, 3.0]);
        let run = run(1, &[9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(seconds_to(&run, 1.0), Some(12.0));
        assert_eq!(seconds_to(&run, 0.5), None);
    }
}
