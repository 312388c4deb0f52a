//! A comparison as one would come out: two sets, five methods, three seeds, a failure, a peer.

use crate::compare::results::{Cell, Commonest, Comparison, Interval, Measure, Pair, Set, Tried, Values};
use std::collections::BTreeMap;

const RANKS: [u64; 7] = [4, 8, 16, 32, 64, 128, 256];
const SEEDS: [u64; 3] = [1, 2, 3];
const METHODS: [&str; 6] = ["lora", "rslora", "dora", "qlora", "qlora+dora+rslora", "lora (peft)"];

/// Numbers that look measured, the same at every run: about ±1.
fn noise(of: &str) -> f64 {
    let hash =
        of.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    ((hash >> 32) as f64 / f64::from(u32::MAX)) * 2.0 - 1.0
}

pub(super) fn values(each: Vec<f64>) -> Values {
    let n = each.len() as f64;
    let mean = each.iter().sum::<f64>() / n;
    let sd =
        (each.len() > 1).then(|| (each.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt());
    Values { mean, sd, each }
}

/// Every measure, around what a method at a rank would have.
fn measures(set: &str, method: &str, rank: Option<u64>) -> BTreeMap<Measure, Values> {
    let r = rank.map_or(512.0, |rank| rank as f64);
    let (dora, q, rs) = (method.contains("dora"), method.contains("qlora"), method.contains("rslora"));
    let gain = (r.log2() - 2.0) * 0.012 - if !rs && r > 64.0 { (r.log2() - 6.0) * 0.02 } else { 0.0 };
    let start = if method == "none" { 0.34 } else { 0.76 + gain };
    let accuracy = start + if dora { 0.008 } else { 0.0 } - if q { 0.011 } else { 0.0 };
    let norm = if rs { 1.4 * r.powf(0.04) } else { 2.2 / r.powf(0.42) };
    let parameters = 4.9e6 * r / 16.0;
    let of = |measure: Measure, level: f64, spread: f64| {
        let each = SEEDS.map(|seed| level + spread * noise(&format!("{set}{method}{r}{measure:?}{seed}")));
        // What is not trained does not depend on a seed.
        (measure, values(if method == "none" { vec![level] } else { each.to_vec() }))
    };
    let mut all = BTreeMap::from([
        of(Measure::Accuracy, accuracy, 0.008),
        of(Measure::MacroF1, accuracy - 0.03, 0.01),
        of(Measure::ExactMatch, accuracy - 0.01, 0.009),
        of(Measure::GeneratedF1, accuracy - 0.045, 0.01),
        of(Measure::Loss, 0.62 - accuracy * 0.3, 0.008),
        of(Measure::CalibrationError, 0.05 + 0.00005 * r, 0.008),
        of(Measure::Brier, 0.42 - accuracy * 0.2, 0.01),
    ]);
    if method != "none" {
        all.extend([
            of(Measure::Forgetting, 0.02 + 0.0003 * r, 0.01),
            of(Measure::TokensPerSecond, 1480.0 - r * 0.9 - if dora { 260.0 } else { 0.0 }, 25.0),
            of(Measure::TrainSeconds, 410.0 + r * 0.3 + if dora { 90.0 } else { 0.0 }, 6.0),
            of(Measure::SecondsToTarget, 130.0 + r * 0.1, 20.0),
            of(Measure::LoadSeconds, if q { 2.4 } else { 0.9 }, 0.05),
            of(
                Measure::PeakBytes,
                if q { 1.1e9 } else { 1.55e9 } + parameters * 14.0 + if dora { 9e7 } else { 0.0 },
                4e6,
            ),
            of(Measure::Parameters, parameters, 0.0),
            of(Measure::ParameterShare, parameters / 1.35e8, 0.0),
            of(Measure::AdapterBytes, parameters * 2.0, 0.0),
            of(Measure::MergeDifference, 3.1e-5 * if q { 900.0 } else { 1.0 }, 1e-6),
            of(Measure::MergeKl, 2.2e-9 * if q { 4e3 } else { 1.0 }, 1e-10),
            of(Measure::GradientNorm, norm, 0.04 * norm),
            of(Measure::EffectiveRank, r.powf(0.72), 0.1),
        ]);
    }
    all
}

fn curve(seed: &str, low: f64, start: f64, noisy: f64) -> Vec<[f64; 4]> {
    let pace = 40.0 + 15.0 * noise(seed);
    (1..=300)
        .map(|step| {
            let fall = low + (start - low) * (-f64::from(step) / pace).exp();
            let mean = fall * (1.0 + noisy * noise(&format!("{seed}{step}")));
            [f64::from(step), mean, mean * 0.93, mean * 1.06]
        })
        .collect()
}

fn cell(set: &str, method: &str, rank: Option<u64>) -> Cell {
    let trains = method != "none";
    let measures = measures(set, method, rank);
    let (loss, norm) =
        (measures[&Measure::Loss].mean, measures.get(&Measure::GradientNorm).map_or(0.0, |v| v.mean));
    let seed = format!("{set}{method}{rank:?}");
    Cell {
        set: set.into(),
        method: method.into(),
        rank,
        alpha: rank.map(|rank| 2.0 * rank as f64),
        lr: trains.then_some(if method == "full" { 2e-5 } else { 1e-3 }),
        seeds: if trains { SEEDS.to_vec() } else { Vec::new() },
        loss_curve: if trains {
            curve(&seed, loss * (1.1 + 0.4 * noise(method)), 2.4, 0.03)
        } else {
            Vec::new()
        },
        gradient_curve: if trains { curve(&seed, norm, norm * 4.0, 0.1) } else { Vec::new() },
        gradient_layers: if trains {
            (0..30).map(|i| norm * (1.2 - 0.02 * f64::from(i))).collect()
        } else {
            Vec::new()
        },
        commands: vec![
            format!(
                "lora train --model model.gguf --data {set}.jsonl --variant {method} --seed 1 --out 'a & b'"
            ),
            "lora eval --model model.gguf --adapter 'a & b' --json".into(),
        ],
        measures,
        ..Cell::default()
    }
}

fn pair(set: &str, method: &str) -> Pair {
    let losses = curve(method, 0.3, 2.4, 0.08);
    Pair {
        set: set.into(),
        method: method.into(),
        peer: "peft".into(),
        rank: 16,
        dtype: "bf16".into(),
        seeds: SEEDS.to_vec(),
        accuracy: Some(Interval { mean: 0.002, low: -0.006, high: 0.011, seeds: 3 }),
        worst_loss_difference: Some(0.0042),
        speed_ratio: Some(1.31),
        memory_ratio: Some(0.84),
        losses: losses.iter().map(|[_, loss, ..]| [*loss, loss * 1.002]).collect(),
    }
}

/// The best is marked and the others get intervals, as the statistics would.
fn judge(cells: &mut [Cell]) {
    let score = |cell: &Cell| cell.measures.get(&Measure::Accuracy).map(|values| values.mean);
    let ours = |cell: &Cell| !cell.method.ends_with(')');
    let scores = cells
        .iter()
        .enumerate()
        .filter(|(_, cell)| ours(cell))
        .filter_map(|(i, cell)| Some((i, score(cell)?)));
    let scores = scores.filter(|(i, _)| !["none", "full"].contains(&cells[*i].method.as_str()));
    let Some((best, most)) = scores.max_by(|a, b| a.1.total_cmp(&b.1)) else { return };
    for (i, cell) in cells.iter_mut().enumerate() {
        cell.best = i == best;
        let behind = score(cell).filter(|_| i != best).map(|score| score - most);
        cell.behind = behind.map(|mean| Interval { mean, low: mean - 0.011, high: mean + 0.012, seeds: 3 });
    }
}

pub(super) fn sample() -> Comparison {
    let mut comparison = Comparison {
        name: "sentiment".into(),
        command: "cargo xtask compare --plan sentiment.toml".into(),
        date: "2026-11-24".into(),
        machine: "A processor of 8 cores, 32 GB".into(),
        model: "SmolLM2-135M-Instruct, Q8_0".into(),
        plan: "name = \"sentiment\"\nranks = [4, 8, 16, 32, 64, 128, 256]\nseeds = [1, 2, 3]\n".into(),
        ..Comparison::default()
    };
    let commonest = Commonest { label: "neutral".into(), share: 0.559 };
    for (name, labels) in [("fpb", vec!["negative", "neutral", "positive"]), ("banking", Vec::new())] {
        comparison.sets.push(Set {
            name: name.into(),
            train: 3876,
            held_out: 970,
            common: 0,
            commonest: (!labels.is_empty()).then(|| commonest.clone()),
            labels: labels.into_iter().map(String::from).collect(),
            target_loss: Some(0.5),
        });
        let mut cells = vec![cell(name, "none", None), cell(name, "full", None)];
        for method in METHODS {
            let ranks = RANKS.iter().filter(|rank| !method.ends_with(')') || **rank == 16);
            cells.extend(ranks.map(|rank| cell(name, method, Some(*rank))));
        }
        judge(&mut cells);
        comparison.cells.extend(cells);
        for (lr, loss) in [(3e-4, 0.52), (1e-3, 0.44), (3e-3, 0.61)] {
            let chosen = lr == 1e-3;
            let (set, method) = (name.into(), "lora".into());
            comparison.tuning.push(Tried {
                set,
                method,
                rank: Some(16),
                lr,
                loss: Some(loss),
                accuracy: Some(0.79),
                chosen,
                at_end: None,
            });
        }
    }
    comparison.pairs = vec![pair("fpb", "lora"), pair("fpb", "dora")];
    let failing = comparison.cells.iter_mut().find(|cell| cell.method == "dora" && cell.rank == Some(256));
    let failing = failing.expect("it is there");
    failing.failures = vec!["seed 3: killed for want of memory <after step 120>".into()];
    failing.seeds.pop();
    for values in failing.measures.values_mut() {
        *values = self::values(values.each[..2].to_vec());
    }
    comparison
}

/// All that may come: odd names, one seed, no numbers, failures alone, many cells.
pub(super) fn awkward() -> Comparison {
    let single = |measure, mean| (measure, Values { mean, sd: None, each: vec![mean] });
    let named = |set: &str, method: &str, rank| Cell {
        set: set.into(),
        method: method.into(),
        rank,
        alpha: Some(16.0),
        lr: Some(1e-4),
        seeds: vec![7],
        ..Cell::default()
    };
    let odd = "<b>\"odd\" & 'named' | *set*</b>";
    let mut diverged = named(odd, "lora@<start>", Some(12));
    diverged.measures = BTreeMap::from([
        single(Measure::Accuracy, 0.25),
        single(Measure::Loss, f64::NAN),
        single(Measure::PeakBytes, f64::INFINITY),
    ]);
    diverged.loss_curve = vec![[1.0, 2.0, 2.0, 2.0], [2.0, f64::NAN, f64::NAN, f64::NAN]];
    diverged.best = true;
    let mut cells = vec![diverged, named(odd, "dora", Some(8))];
    let mut failed = named("failures only", "lora", Some(4));
    failed.failures = vec!["seed 7: ".to_owned() + &"a_long_line_without_blanks/".repeat(8)];
    cells.push(failed);
    for (nth, method) in
        ["lora", "rslora", "dora", "qlora", "qlora+dora", "qlora+rslora", "qlora+dora+rslora"]
            .into_iter()
            .chain(["dora+rslora", "lora@pissa", "qlora@loftq"])
            .enumerate()
    {
        for rank in [2, 4, 8, 12, 16, 24, 32, 48, 64] {
            for alpha in [rank, 2 * rank] {
                let mut cell = cell("many", method, Some(rank));
                cell.alpha = Some(alpha as f64);
                cell.failures = if nth == 3 { vec!["seed 2: no\nreason".into()] } else { Vec::new() };
                cells.push(cell);
            }
        }
    }
    judge(&mut cells[3..]);
    let labels = ["one", "two", "three", "four", "five", "six", "seven"].map(String::from).to_vec();
    let sets = [odd, "failures only", "many"].map(|name| Set {
        name: name.into(),
        labels: labels.clone(),
        ..Set::default()
    });
    let mut empty = pair(odd, "lora@<start>");
    (empty.losses, empty.accuracy, empty.speed_ratio) = (Vec::new(), None, Some(f64::NAN));
    Comparison {
        name: "a & b <c>".into(),
        sets: sets.to_vec(),
        cells,
        pairs: vec![empty],
        ..Comparison::default()
    }
}
