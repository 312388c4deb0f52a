//! Parties of secure rounds, and an engine between them that meddles.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use lora_core::{Error, Result};
use lora_fed::aggregate::Rule;
use lora_fed::engine::{
    Claims, Coordinator, Engine, Federation, InProcess, Letter, Model, Noise, Parties, Reply, Round,
    Settings, Task, Worker,
};
use lora_fed::privacy::{Accounting, Budget, Ledger, Unit};
use lora_fed::secagg::wire::{Envelope, Kind};
use lora_fed::secagg::{Directory, Own, PartyId};
use lora_fed::store::Store;
use tch::{Device, Kind as Dtype, Tensor};

pub(crate) const DOUBLE: (Dtype, Device) = (Dtype::Double, Device::Cpu);
pub(crate) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
pub(crate) const TEN: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
pub(crate) const RULES: [&str; 5] = ["fedit", "ffa", "rolora", "fedsvd", "fedsa"];

pub(crate) fn start() -> BTreeMap<String, Tensor> {
    let ramp = |size: &[i64]| Tensor::arange(size.iter().product::<i64>(), DOUBLE).view(size) / 50.0 - 0.1;
    [
        ("m.lora_A.weight".to_owned(), ramp(&[2, 6])),
        ("m.lora_B.weight".to_owned(), ramp(&[5, 2]) * 0.3),
        ("m.lora_magnitude_vector".to_owned(), ramp(&[5])),
    ]
    .into()
}

/// What each learns depends on who it is, on the round, and on the model.
pub(crate) struct Learner;

impl Worker for Learner {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        // As `lora::Local` tells it.
        let on_rows = |cause: Error| Err(Error::data("work on its rows failed").because(cause));
        match client {
            "broken" => return Err(Error::data("step 3 (bank.jsonl, lines 17, 4): the loss is NaN")),
            "overflows" => return on_rows(Error::non_finite("step 3: the loss is inf")),
            "full" => return on_rows(Error::io("write", Path::new("kept"), std::io::Error::other("full"))),
            _ => {}
        }
        let step = f64::from(client.as_bytes()[0] - 90) / 70.0;
        let factor = match client {
            "far" => 1e4,
            "nan" => f64::NAN,
            _ => 1.0,
        };
        let learn = |t: &Tensor| (t * 3.0 + step + task.round as f64).sin() * factor;
        let moved = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
        let adapter = moved.map(|(name, t)| (name.clone(), learn(t))).collect();
        Ok(Reply { adapter, examples: 7, metrics: BTreeMap::from([("loss".into(), 1.0)]) })
    }
}

pub(crate) fn settings(rule: &str) -> Settings {
    Settings::new("a run", Rule::from_str(rule).unwrap(), 9)
}

pub(crate) fn federation(settings: Settings) -> Federation {
    Federation::new(settings, Model::new(start()), |_, r| 4.0 / r as f64).unwrap()
}

pub(crate) fn names(clients: &[&str]) -> Vec<String> {
    clients.iter().map(|c| (*c).to_owned()).collect()
}

/// Does something to a letter, or to its answer.
pub(crate) type Meddle<'a> = Box<dyn FnMut(&str, Option<Kind>, &mut Letter) -> Result<()> + 'a>;

/// An engine between the coordinator and its clients, which meddles.
pub(crate) struct Between<'a> {
    pub(crate) inner: InProcess<'a>,
    pub(crate) before: Meddle<'a>,
    pub(crate) asked: Vec<(String, Option<Kind>)>,
}

impl Engine for Between<'_> {
    fn clients(&mut self) -> Result<Vec<String>> {
        self.inner.clients()
    }

    fn run(&mut self, _: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        Err(Error::internal("nothing is asked in plain"))
    }

    fn exchange(&mut self, letters: Vec<(String, Letter)>) -> Result<Vec<(String, Result<Vec<u8>>)>> {
        let mut answers = Vec::new();
        for (client, mut letter) in letters {
            let kind = Envelope::parse(&letter.bytes).ok().map(|e| e.kind);
            self.asked.push((client.clone(), kind));
            match (self.before)(&client, kind, &mut letter) {
                Ok(()) => answers.extend(self.inner.exchange(vec![(client, letter)])?),
                // Of this kind it is the engine that breaks.
                Err(e) if e.to_string().contains("engine") => return Err(e),
                Err(e) => answers.push((client, Err(e))),
            }
        }
        Ok(answers)
    }
}

/// A coordinator, its clients, and their memories.
pub(crate) struct Cast {
    pub(crate) coordinator: Coordinator,
    pub(crate) directory: Directory,
    pub(crate) own: BTreeMap<String, Own>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) budget: Option<Budget>,
    /// With how many parties take part, if they say so.
    pub(crate) least: Option<usize>,
}

impl Cast {
    pub(crate) fn new(clients: &[&str]) -> Self {
        let server = Own::generate(None).unwrap();
        let own =
            (1..).zip(clients).map(|(i, c)| ((*c).to_owned(), Own::generate(Some(PartyId(i))).unwrap()));
        let own: BTreeMap<String, Own> = own.collect();
        let parties = own.values().map(|own| (own.party.unwrap(), own.key.public())).collect();
        let directory = Directory { server: server.key.public(), parties };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        let coordinator = Coordinator::new(server, directory.clone()).unwrap();
        Self { coordinator, directory, own, dir, store, budget: None, least: None }
    }

    /// The same with noise, and a ledger each.
    pub(crate) fn noised(clients: &[&str], noise: Noise, epsilon: f64) -> Self {
        let mut cast = Self::new(clients);
        cast.budget = Some(Budget { unit: Unit::Client, epsilon, delta: 1e-5, accounting: Accounting::Pld });
        cast.coordinator = cast.coordinator.with(noise);
        cast
    }

    pub(crate) fn ledger(&self, client: &str) -> Ledger {
        let path = self.dir.path().join(format!("ledger of {client}"));
        Ledger::open(&path, &self.budget.unwrap()).unwrap()
    }

    /// Everybody's rounds, but not their ledgers.
    pub(crate) fn forget(&mut self) {
        self.store = Store::open(&self.dir.path().join("another state")).unwrap();
        for client in self.own.keys() {
            for ending in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(self.dir.path().join(format!("claims of {client}{ending}")));
            }
        }
    }

    /// The clients, as they are after a start: with nothing but what is on the disk.
    pub(crate) fn worker(&self) -> Box<dyn Worker> {
        let all = Parties::new(Learner, self.directory.clone()).at_least(self.least).unwrap();
        let claims = |c: &str| Claims::open(&self.dir.path().join(format!("claims of {c}"))).unwrap();
        let all = self.own.iter().fold(all, |all, (c, own)| all.with(c, own.clone(), claims(c)).unwrap());
        let promising = |all: Parties<Learner>, c: &String| all.promising(c, self.ledger(c)).unwrap();
        Box::new(if self.budget.is_some() { self.own.keys().fold(all, promising) } else { all })
    }

    pub(crate) fn between<'a>(
        &self,
        before: impl FnMut(&str, Option<Kind>, &mut Letter) -> Result<()> + 'a,
    ) -> Between<'a> {
        let clients = self.own.keys().cloned().collect();
        Between {
            inner: InProcess::new(clients, vec![self.worker()]),
            before: Box::new(before),
            asked: vec![],
        }
    }

    pub(crate) fn round(&mut self, f: &mut Federation, engine: &mut dyn Engine) -> Result<Round> {
        f.secure_round_in(&mut self.store, &self.coordinator, engine)
    }
}

pub(crate) fn plain(rule: &str, rounds: &[&[&str]]) -> Federation {
    let mut f = federation(settings(rule));
    for clients in rounds {
        f.round(&mut InProcess::new(names(clients), vec![Box::new(Learner)])).unwrap();
    }
    f
}

/// The largest difference between two models' numbers.
pub(crate) fn difference(a: &Federation, b: &Federation) -> f64 {
    let of = |(x, y): (&Tensor, &Tensor)| (x - y).abs().max().double_value(&[]);
    a.model.adapter.values().zip(b.model.adapter.values()).map(of).fold(0.0, f64::max)
}
