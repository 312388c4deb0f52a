//! Rounds over Flower: a node's side and the coordinator's.
//!
//! A task travels as Flower's own strategies send theirs: arrays named `arrays`, settings named `config` with
//! `server-round`. What is ours stands beside it, so that a node of ours also works for Flower's FedAvg (all is trained, all
//! is sent), and any node that trains all of the arrays and sends them works for us.

mod letter;
mod node;
mod server;
mod slices;

use super::model::{A, B};
use super::{Reply, Task, Trains};
use crate::flower::tensors::{to_arrays, to_tensors};
use crate::flower::{Record, Records, Value, Values, metric};
use lora_core::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

pub use node::Joined;
pub use server::Server;

const ARRAYS: &str = "arrays";
/// What lies beside, in slices, and the modules' ranks there.
const BESIDE: &str = "lora.beside";
const RANKS: &str = "lora.beside.ranks";
/// How each module is scaled.
const SCALES: &str = "lora.scales";
/// The first module's alone, which is all that versions before knew.
const SCALE: &str = "lora.scale";
const CONFIG: &str = "config";
/// What the base model is known by.
const BASE: &str = "lora.base";
/// Its coordinator's name for the run.
const RUN: &str = "lora.run";
const METRICS: &str = "metrics";
const EXAMPLES: &str = "num-examples";
/// What Flower's strategies call the round.
const ROUND: &str = "server-round";

fn of_task(task: &Task) -> Result<Records> {
    let mut records = Records::new();
    records.insert(ARRAYS.into(), Record::Arrays(to_arrays(&task.adapter)?));
    if !task.beside.is_empty() {
        let (ranks, slices) = slices::of_beside(&task.beside)?;
        records.insert(BESIDE.into(), Record::Arrays(to_arrays(&slices)?));
        records.insert(RANKS.into(), Record::Config(ranks));
    }
    let number = |n: u64| Value::Int(i64::try_from(n).unwrap_or(i64::MAX));
    let text = |trains: Trains| Value::Text(trains.name().to_owned());
    let mut config = Values::from_iter([
        (ROUND.to_owned(), number(task.round)),
        (RUN.to_owned(), Value::Text(task.run.clone())),
        ("lora.trains".to_owned(), text(task.trains)),
        ("lora.sends".to_owned(), text(task.sends)),
    ]);
    if let Some(base) = &task.base {
        config.insert(BASE.to_owned(), Value::Text(base.clone()));
    }
    // 0: it does not say.
    if task.rounds != 0 {
        config.insert("lora.rounds".to_owned(), number(task.rounds));
    }
    if let Some(scale) = first_module(&task.adapter).and_then(|module| task.scales.get(module)) {
        config.insert(SCALE.to_owned(), Value::Float(*scale));
    }
    records.insert(CONFIG.into(), Record::Config(config));
    if !task.scales.is_empty() {
        let scales = task.scales.iter().map(|(module, scale)| (module.clone(), Value::Float(*scale)));
        records.insert(SCALES.into(), Record::Config(scales.collect()));
    }
    Ok(records)
}

/// The first module that has factors.
fn first_module(adapter: &BTreeMap<String, Tensor>) -> Option<&str> {
    adapter.keys().find_map(|name| name.strip_suffix(A))
}

/// How a task's modules are scaled; by a coordinator of a version before, the first.
fn scales_of(records: &Records, adapter: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, f64>> {
    let number = |(module, value): (&String, &Value)| {
        let number = value.number().ok_or_else(|| Error::data("it is no scale").at(module).at(SCALES))?;
        Ok((module.clone(), number))
    };
    match (records.get(SCALES), records.get(CONFIG)) {
        (Some(Record::Config(scales)), _) => scales.iter().map(number).collect(),
        (Some(_), _) => Err(Error::data("it holds no numbers").at(SCALES)),
        (None, Some(Record::Config(config))) => {
            let one = config.get(SCALE).and_then(Value::number).zip(first_module(adapter));
            Ok(one.map(|(scale, module)| (module.to_owned(), scale)).into_iter().collect())
        }
        (None, _) => Ok(BTreeMap::new()),
    }
}

/// Whether a coordinator of ours sent the task.
fn is_ours(records: &Records) -> bool {
    matches!(records.get(CONFIG), Some(Record::Config(config)) if config.contains_key(RUN))
}

/// `run`: what to call it where the message does not say.
fn to_task(records: &Records, run: &str) -> Result<Task> {
    let arrays = |name: &str| match records.get(name) {
        Some(Record::Arrays(arrays)) => to_tensors(arrays).map(Some),
        Some(_) => Err(Error::data("it holds no arrays").at(name)),
        None => Ok(None),
    };
    let adapter = arrays(ARRAYS)?.ok_or_else(|| Error::data("there is no adapter in the task").at(ARRAYS))?;
    let nothing = Values::new();
    let settings = |name: &str| match records.get(name) {
        Some(Record::Config(config)) => config,
        _ => &nothing,
    };
    let config = settings(CONFIG);
    let width = |module: &str, factor: &str, dim: usize| {
        adapter.get(&format!("{module}{factor}")).and_then(|t| t.size().get(dim).copied())
    };
    let widths = |module: &str| width(module, A, 1).zip(width(module, B, 0));
    let beside = match arrays(BESIDE)? {
        Some(slices) => slices::to_beside(settings(RANKS), &slices, widths).map_err(|e| e.at(BESIDE))?,
        None => BTreeMap::new(),
    };
    let count = |name: &str| -> Result<Option<u64>> {
        let Some(value) = config.get(name) else { return Ok(None) };
        let number = value.number().filter(|n| (1.0..=9e15).contains(n) && n.fract() == 0.0);
        number.map(|n| Some(n as u64)).ok_or_else(|| Error::data("it is no number of rounds").at(name))
    };
    let which = |name: &str| match config.get(name).map(Value::text) {
        None => Ok(Trains::All),
        Some(text) => Trains::parse(text.unwrap_or_default()).map_err(|e| e.at(name)),
    };
    // It is shown to people.
    let is_name = |name: &&str| name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric());
    let base = |value: &Value| {
        let name = value.text().filter(is_name).map(str::to_owned);
        name.ok_or_else(|| Error::data("it is no name of a base model").at(BASE))
    };
    let round = count(ROUND)?.unwrap_or(1);
    Ok(Task {
        run: config.get(RUN).and_then(Value::text).unwrap_or(run).to_owned(),
        round,
        rounds: count("lora.rounds")?.unwrap_or(0),
        trains: which("lora.trains")?,
        sends: which("lora.sends")?,
        scales: scales_of(records, &adapter)?,
        base: config.get(BASE).map(base).transpose()?,
        adapter,
        beside,
    })
}

fn of_reply(reply: &Reply) -> Result<Records> {
    let mut records = Records::new();
    records.insert(ARRAYS.into(), Record::Arrays(to_arrays(&reply.adapter)?));
    let examples = Value::Int(i64::try_from(reply.examples).unwrap_or(i64::MAX));
    let metrics = reply.metrics.iter().map(|(name, value)| (name.clone(), Value::Float(*value)));
    let metrics = [(EXAMPLES.to_owned(), examples)].into_iter().chain(metrics).collect();
    records.insert(METRICS.into(), Record::Metrics(metrics));
    Ok(records)
}

fn to_reply(records: &Records) -> Result<Reply> {
    let adapter: BTreeMap<String, Tensor> = to_tensors(crate::flower::only_arrays(records)?)?;
    let examples = metric(records, EXAMPLES).filter(|n| (0.0..=9e15).contains(n) && n.fract() == 0.0);
    let examples = examples.ok_or_else(|| Error::data("it is no number of examples").at(EXAMPLES))? as u64;
    let mut metrics = BTreeMap::new();
    for record in records.values() {
        if let Record::Metrics(values) = record {
            let numbers = values.iter().filter_map(|(name, value)| Some((name.clone(), value.number()?)));
            metrics.extend(numbers.filter(|(name, _)| name != EXAMPLES));
        }
    }
    Ok(Reply { adapter, examples, metrics })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn task() -> Task {
        let random = |size: &[i64]| Tensor::rand(size, (Kind::Float, Device::Cpu));
        Task {
            run: "a run".into(),
            round: 3,
            rounds: 7,
            trains: Trains::All,
            sends: Trains::A,
            scales: [("m".to_owned(), 0.7)].into(),
            base: Some("3fa9c1d2e4b5a697".into()),
            adapter: [
                ("m.lora_A.weight".to_owned(), random(&[2, 5])),
                ("m.lora_B.weight".to_owned(), random(&[4, 2])),
            ]
            .into(),
            beside: [("m".to_owned(), (random(&[3, 5]), random(&[4, 3])))].into(),
        }
    }

    /// Sends what it got, and tells a loss.
    struct Still;

    impl crate::engine::Worker for Still {
        fn train(&mut self, _: &str, task: &Task) -> Result<Reply> {
            let adapter = task.share().adapter;
            Ok(Reply { adapter, examples: 3, metrics: [("loss".to_owned(), 0.5)].into() })
        }
    }

    /// Flower's strategies average metrics that all nodes send: ours are for a coordinator of ours alone.
    #[test]
    fn metrics_go_to_our_own_coordinator_alone() {
        use crate::flower::{App, Incoming};
        for ours in [true, false] {
            let mut content = of_task(&task()).unwrap();
            if let (false, Some(Record::Config(config))) = (ours, content.get_mut(CONFIG)) {
                config.shift_remove(RUN);
            }
            let incoming =
                Incoming { id: "0".repeat(64), run: 1, group: String::new(), kind: "train".into(), content };
            let reply = Joined::new(&mut Still, "me", &mut |_| {}).handle(&incoming).unwrap();
            let Some(Record::Metrics(metrics)) = reply.get(METRICS) else { panic!("no metrics") };
            assert_eq!((metrics.contains_key(EXAMPLES), metrics.contains_key("loss")), (true, ours));
        }
    }

    #[test]
    fn letters_come_back_as_they_were() {
        use crate::engine::{Letter, Noise};
        for (length, with) in [(0, false), (1, true), (8, false), (1001, true)] {
            let bytes: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let noise = with.then_some(Noise { clip: 0.1, sigma: 3.7 });
            let letter = Letter { bytes: bytes.clone(), task: with.then(task), noise };
            let mut records = letter.task.as_ref().map_or_else(|| Ok(Records::new()), of_task).unwrap();
            records.extend(letter::of_letter(&letter).unwrap());
            let again = letter::to_letter(&records, "").unwrap();
            assert_eq!((again.bytes, again.task.is_some(), again.noise), (bytes, with, noise));
            if let Some(task) = &again.task {
                assert_eq!(task.fingerprint().unwrap(), letter.task.unwrap().fingerprint().unwrap());
            }
            for length in [-1, 9000] {
                let wrong = Values::from_iter([("length".to_owned(), Value::Int(length))]);
                records.insert("lora.letter.length".into(), Record::Config(wrong));
                assert!(letter::to_letter(&records, "").is_err());
            }
            records.shift_remove("lora.letter");
            assert!(letter::to_letter(&records, "").is_err());
        }
    }

    #[test]
    fn tasks_and_replies_come_back_as_they_were() {
        for rounds in [7, 0] {
            let task = Task { rounds, ..task() };
            let again = to_task(&of_task(&task).unwrap(), "another").unwrap();
            assert_eq!(format!("{task:?}"), format!("{again:?}"));
            assert_eq!((&task.adapter, &task.beside), (&again.adapter, &again.beside));
        }
        let task = task();
        let reply = Reply { adapter: task.adapter, examples: 12, metrics: [("loss".to_owned(), 0.5)].into() };
        let again = to_reply(&of_reply(&reply).unwrap()).unwrap();
        assert_eq!(
            (reply.adapter, reply.examples, reply.metrics),
            (again.adapter, again.examples, again.metrics)
        );
    }

    /// As Flower's FedAvg asks.
    #[test]
    fn a_task_of_flowers_own_is_understood() {
        let mut records = of_task(&task()).unwrap();
        records.shift_remove(BESIDE);
        records.shift_remove(RANKS);
        records.shift_remove(SCALES);
        records
            .insert(CONFIG.into(), Record::Config([(ROUND.to_owned(), Value::Int(2))].into_iter().collect()));
        let task = to_task(&records, "run 9").unwrap();
        assert_eq!((&*task.run, task.round, task.trains, task.sends), ("run 9", 2, Trains::All, Trains::All));
        assert!(task.beside.is_empty() && task.scales.is_empty() && task.base.is_none());
        // It does not say of how many rounds.
        assert_eq!(task.rounds, 0);
    }

    /// A node and a coordinator of which one is older speak of the first module's scale.
    #[test]
    fn a_task_of_a_version_before_says_one_scale() {
        let (mut task, other) = (task(), task());
        task.adapter.extend(other.adapter.into_iter().map(|(name, t)| (format!("first.{name}"), t)));
        task.scales.insert("first.m".into(), 0.3);
        let mut records = of_task(&task).unwrap();
        assert_eq!(to_task(&records, "").unwrap().scales, task.scales);
        records.shift_remove(SCALES);
        assert_eq!(to_task(&records, "").unwrap().scales, BTreeMap::from([("first.m".to_owned(), 0.3)]));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let with = |name: &str, value: Value| {
            let mut records = of_task(&task()).unwrap();
            if let Some(Record::Config(config)) = records.get_mut(CONFIG) {
                config.insert(name.to_owned(), value);
            }
            to_task(&records, "").map(drop).unwrap_err().to_string()
        };
        assert!(with("lora.trains", Value::Text("everything".into())).contains("lora.trains"));
        assert!(with("lora.sends", Value::Int(3)).contains("lora.sends"));
        assert!(with(ROUND, Value::Float(f64::NAN)).contains(ROUND));
        assert!(with("lora.rounds", Value::Int(-1)).contains("lora.rounds"));
        for bad in [Value::Int(3), Value::Text("\u{1b}[2J".into()), Value::Text("a".repeat(65))] {
            assert!(with(BASE, bad).contains(BASE));
        }
        let no_number = Values::from_iter([("m".to_owned(), Value::Bool(true))]);
        for bad in [Record::Metrics(Values::new()), Record::Config(no_number)] {
            let mut records = of_task(&task()).unwrap();
            records.insert(SCALES.into(), bad);
            assert!(to_task(&records, "").unwrap_err().to_string().contains(SCALES));
        }
        let mut records = of_task(&task()).unwrap();
        records.shift_remove(ARRAYS);
        assert!(to_task(&records, "").is_err());
        let mut records = of_task(&task()).unwrap();
        if let Some(Record::Arrays(arrays)) = records.get_mut(BESIDE) {
            arrays.clear();
        }
        assert!(to_task(&records, "").unwrap_err().to_string().contains('m'));
        let reply = Reply { adapter: task().adapter, examples: 1, metrics: BTreeMap::new() };
        let mut records = of_reply(&reply).unwrap();
        records.shift_remove(METRICS);
        assert!(to_reply(&records).is_err());
    }
}
