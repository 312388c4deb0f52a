//! Rounds of which the coordinator sees the sum alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use lora_core::{Error, Result};
use lora_fed::aggregate::{Bounds, Robust, Rule};
use lora_fed::engine::{
    Claims, Coordinator, Engine, Federation, InProcess, Letter, Model, Parties, Reply, Round, Settings, Task,
    Weights, Worker,
};
use lora_fed::secagg::wire::{Envelope, Kind};
use lora_fed::secagg::{Directory, Own, PartyId};
use lora_fed::store::Store;
use tch::{Device, Kind as Dtype, Tensor};

const DOUBLE: (Dtype, Device) = (Dtype::Double, Device::Cpu);
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const RULES: [&str; 5] = ["fedit", "ffa", "rolora", "fedsvd", "fedsa"];

fn start() -> BTreeMap<String, Tensor> {
    let ramp = |size: &[i64]| Tensor::arange(size.iter().product::<i64>(), DOUBLE).view(size) / 50.0 - 0.1;
    [
        ("m.lora_A.weight".to_owned(), ramp(&[2, 6])),
        ("m.lora_B.weight".to_owned(), ramp(&[5, 2]) * 0.3),
        ("m.lora_magnitude_vector".to_owned(), ramp(&[5])),
    ]
    .into()
}

/// What each learns depends on who it is, on the round, and on the model.
struct Learner;

impl Worker for Learner {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        let step = f64::from(client.as_bytes()[0] - 90) / 70.0;
        let learn =
            |t: &Tensor| (t * 3.0 + step + task.round as f64).sin() * if client == "far" { 1e4 } else { 1.0 };
        let moved = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
        let adapter = moved.map(|(name, t)| (name.clone(), learn(t))).collect();
        Ok(Reply { adapter, examples: 7, metrics: BTreeMap::from([("loss".into(), 1.0)]) })
    }
}

fn settings(rule: &str) -> Settings {
    Settings::new("a run", Rule::from_str(rule).unwrap(), 9)
}

fn federation(settings: Settings) -> Federation {
    Federation::new(settings, Model::new(start()), |_, r| 4.0 / r as f64).unwrap()
}

fn names(clients: &[&str]) -> Vec<String> {
    clients.iter().map(|c| (*c).to_owned()).collect()
}

/// Does something to a letter, or to its answer.
type Meddle<'a> = Box<dyn FnMut(&str, Option<Kind>, &mut Letter) -> Result<()> + 'a>;

/// An engine between the coordinator and its clients, which meddles.
struct Between<'a> {
    inner: InProcess<'a>,
    before: Meddle<'a>,
    asked: Vec<(String, Option<Kind>)>,
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
struct Cast {
    coordinator: Coordinator,
    directory: Directory,
    own: BTreeMap<String, Own>,
    dir: tempfile::TempDir,
    store: Store,
}

impl Cast {
    fn new(clients: &[&str]) -> Self {
        let server = Own::generate(None).unwrap();
        let own =
            (1..).zip(clients).map(|(i, c)| ((*c).to_owned(), Own::generate(Some(PartyId(i))).unwrap()));
        let own: BTreeMap<String, Own> = own.collect();
        let parties = own.values().map(|own| (own.party.unwrap(), own.key.public())).collect();
        let directory = Directory { server: server.key.public(), parties };
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        Self { coordinator: Coordinator::new(server, directory.clone()).unwrap(), directory, own, dir, store }
    }

    /// The clients, as they are after a start: with nothing but what is on the disk.
    fn worker(&self) -> Box<dyn Worker> {
        let all = Parties::new(Learner, self.directory.clone());
        let claims = |c: &str| Claims::open(&self.dir.path().join(format!("claims of {c}"))).unwrap();
        Box::new(self.own.iter().fold(all, |all, (c, own)| all.with(c, own.clone(), claims(c)).unwrap()))
    }

    fn between<'a>(
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

    fn round(&mut self, f: &mut Federation, engine: &mut dyn Engine) -> Result<Round> {
        f.secure_round_in(&mut self.store, &self.coordinator, engine)
    }
}

fn plain(rule: &str, rounds: &[&[&str]]) -> Federation {
    let mut f = federation(settings(rule));
    for clients in rounds {
        f.round(&mut InProcess::new(names(clients), vec![Box::new(Learner)])).unwrap();
    }
    f
}

/// The largest difference between two models' numbers.
fn difference(a: &Federation, b: &Federation) -> f64 {
    let of = |(x, y): (&Tensor, &Tensor)| (x - y).abs().max().double_value(&[]);
    a.model.adapter.values().zip(b.model.adapter.values()).map(of).fold(0.0, f64::max)
}

#[test]
fn the_sum_is_what_replies_in_plain_would_have_given() {
    for rule in RULES {
        let mut cast = Cast::new(&NAMES);
        let mut f = federation(settings(rule));
        let mut engine = cast.between(|_, _, _| Ok(()));
        for number in 1..=3 {
            let round = cast.round(&mut f, &mut engine).unwrap();
            assert_eq!((round.round, round.lost.as_deref(), round.clients.len()), (number, None, 5));
            assert!(round.clients.iter().all(|told| told.refused.is_none() && told.metrics.is_empty()));
            assert!(round.clients.iter().all(|told| told.examples == 0 && told.bytes_up > 0));
        }
        let want = plain(rule, &[&NAMES, &NAMES, &NAMES]);
        assert!(difference(&f, &want) < 1e-11, "{rule}: {:e}", difference(&f, &want));
        assert!(difference(&f, &plain(rule, &[&NAMES, &NAMES])) > 1e-3, "or the bound would say nothing");
    }
}

#[test]
fn who_drops_out_before_its_vector_left_is_not_in_the_sum() {
    for stage in [None, Some(Kind::Plan), Some(Kind::KeyList), Some(Kind::Bundle)] {
        let mut cast = Cast::new(&NAMES);
        let mut f = federation(settings("ffa"));
        let mut engine = cast.between(move |client, kind, _| match client == "b" && kind == stage {
            true => Err(Error::data("gone")),
            false => Ok(()),
        });
        let round = cast.round(&mut f, &mut engine).unwrap();
        assert_eq!(
            round.clients[1].refused.as_deref().map(|why| why.contains("gone")),
            Some(true),
            "{stage:?}"
        );
        assert!(difference(&f, &plain("ffa", &[&["a", "c", "d", "e"]])) < 1e-11, "{stage:?}");
    }
}

#[test]
fn who_drops_out_later_is_in_it() {
    for stage in [Kind::Survivors, Kind::Unmask] {
        let mut cast = Cast::new(&NAMES);
        let mut f = federation(settings("fedit"));
        let mut engine = cast.between(move |client, kind, _| match client == "b" && kind == Some(stage) {
            true => Err(Error::data("gone")),
            false => Ok(()),
        });
        cast.round(&mut f, &mut engine).unwrap();
        assert!(difference(&f, &plain("fedit", &[&NAMES])) < 1e-11, "{stage}");
    }
}

/// Two of five are too few to stay; before vectors left the round is tried again, later it is lost.
#[test]
fn a_round_that_breaks_is_tried_again_or_lost() {
    for (stage, lost) in [
        (None, false),
        (Some(Kind::Plan), false),
        (Some(Kind::KeyList), false),
        (Some(Kind::Bundle), true),
        (Some(Kind::Survivors), true),
        (Some(Kind::Unmask), true),
    ] {
        let mut cast = Cast::new(&NAMES);
        let mut f = federation(settings("ffa"));
        let mut engine = cast.between(move |client, kind, _| match kind == stage && client < "d" {
            true => Err(Error::data("gone")),
            false => Ok(()),
        });
        let round = cast.round(&mut f, &mut engine);
        assert_eq!(difference(&f, &federation(settings("ffa"))), 0.0, "{stage:?}: the model is as before");
        assert_eq!((round.is_ok(), f.model.rounds), (lost, u64::from(lost)), "{stage:?}: {round:?}");
        match round {
            Ok(round) => assert!(round.lost.is_some() && round.clients.iter().all(|t| t.refused.is_some())),
            Err(e) => assert!(e.to_string().contains("gone"), "{e}"),
        }
        // All are back.
        drop(engine);
        let mut engine = cast.between(|_, _, _| Ok(()));
        let round = cast.round(&mut f, &mut engine).unwrap();
        assert_eq!((round.round, round.lost), (1 + u64::from(lost), None), "{stage:?}");
    }
}

/// Wherever the coordinator, or the engine, dies, another process goes on; a round that may have been seen in part is not
/// asked for again.
#[test]
fn a_coordinator_that_dies_goes_on() {
    for die in 1..=30 {
        let mut cast = Cast::new(&NAMES);
        let open = |store: &mut Store| {
            let mut f = federation(settings("ffa"));
            f.resume(store).unwrap();
            f
        };
        let mut letters = 0;
        let mut engine = cast.between(move |_, _, _| {
            letters += 1;
            if letters == die { Err(Error::data("the engine is gone")) } else { Ok(()) }
        });
        let mut f = open(&mut cast.store);
        let died = cast.round(&mut f, &mut engine);
        // 5 letters for each of 6 stages, in each of which all are asked.
        assert!(died.is_err(), "{die}");
        let asked = engine.asked.iter().any(|(_, kind)| *kind == Some(Kind::Bundle));
        drop(engine);
        let mut engine = cast.between(|_, _, _| Ok(()));
        let mut f = open(&mut cast.store);
        let round = cast.round(&mut f, &mut engine).unwrap();
        assert_eq!((round.round, round.lost.is_some()), (1, asked), "{die}");
        assert_eq!(engine.asked.is_empty(), asked, "{die}: nobody is asked again");
        let round = cast.round(&mut f, &mut engine).unwrap();
        assert_eq!((round.round, round.lost, f.model.rounds), (2, None, 2), "{die}");
    }
}

/// A coordinator that forgets, or pretends to, gets no second sum of the same round.
#[test]
fn a_vector_leaves_once_a_round() {
    let mut cast = Cast::new(&NAMES);
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, _, _| Ok(()));
    cast.round(&mut f, &mut engine).unwrap();
    drop(engine);
    // Another store, and so the same round again; but the parties have their memories.
    cast.store = Store::open(&cast.dir.path().join("again")).unwrap();
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, _, _| Ok(()));
    let refused = cast.round(&mut f, &mut engine).unwrap_err().to_string();
    assert!(refused.contains("was joined before"), "{refused}");
    drop(engine);
    // With a number that none has seen.
    cast.store = Store::open(&cast.dir.path().join("new number")).unwrap();
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, kind, _| match kind {
        Some(Kind::Plan) => Err(Error::data("gone")),
        _ => Ok(()),
    });
    for _ in 0..3 {
        cast.round(&mut f, &mut engine).unwrap_err();
    }
    drop(engine);
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    assert!(round.lost.is_some());
    let refused = round.clients[0].refused.clone().unwrap();
    assert!(refused.contains("has sent its vector for round 1 before"), "{refused}");
}

/// One party is given another model than the others (Pasquini et al. 2022).
#[test]
fn another_model_for_one_party_is_noticed() {
    let meddles: [fn(&mut Task); 5] = [
        |task| drop(task.adapter.values_mut().next().unwrap().get(0).fill_(0.5)),
        |task| task.round += 1,
        |task| task.run.push('x'),
        |task| task.scale = Some(1e-9),
        |task| {
            drop(
                task.beside
                    .insert("m".into(), (Tensor::zeros([1, 6], DOUBLE), Tensor::zeros([5, 1], DOUBLE))),
            )
        },
    ];
    for (number, meddle) in meddles.into_iter().enumerate() {
        let mut cast = Cast::new(&NAMES);
        let mut f = federation(settings("ffa"));
        let mut engine = cast.between(move |client, _, letter| {
            if let (Some(task), "c") = (&mut letter.task, client) {
                for t in task.adapter.values_mut() {
                    *t = t.copy();
                }
                meddle(task);
            }
            Ok(())
        });
        let round = cast.round(&mut f, &mut engine).unwrap();
        let refused = round.clients[2].refused.clone().unwrap_or_default();
        assert!(refused.contains("not the one that the plan names"), "{number}: {refused}");
        assert!(difference(&f, &plain("ffa", &[&["a", "b", "d", "e"]])) < 1e-11);
    }
}

#[test]
fn nothing_is_given_in_plain_and_not_to_two() {
    let cast = Cast::new(&NAMES);
    let mut f = federation(settings("ffa"));
    let mut engine = InProcess::new(names(&NAMES), vec![cast.worker()]);
    let refused = f.round(&mut engine).unwrap_err().to_string();
    assert!(refused.contains("secure sums alone"), "{refused}");

    let mut cast = Cast::new(&["a", "b"]);
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, _, _| Ok(()));
    let refused = cast.round(&mut f, &mut engine).unwrap_err().to_string();
    assert!(refused.contains("2 parties are there, and 3 are needed"), "{refused}");
    // Plain clients answer no letters.
    let mut cast = Cast::new(&NAMES);
    let mut engine = InProcess::new(names(&NAMES), vec![Box::new(Learner)]);
    let refused = cast.round(&mut f, &mut engine).unwrap_err().to_string();
    assert!(refused.contains("takes no part in secure rounds"), "{refused}");
}

#[test]
fn what_is_too_far_away_is_refused_and_named() {
    let mut cast = Cast::new(&["a", "b", "c", "far"]);
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    let refused = round.clients[3].refused.clone().unwrap();
    assert!(refused.contains("lora_B") && refused.contains("±1024"), "{refused}");
    assert!(difference(&f, &plain("ffa", &[&["a", "b", "c"]])) < 1e-11);
}

#[test]
fn what_does_not_go_together_is_refused_at_once() {
    let refused = |settings: Settings, words: &[&str]| {
        let mut cast = Cast::new(&NAMES);
        let mut f = federation(settings);
        let mut engine = cast.between(|_, _, _| Ok(()));
        let error = cast.round(&mut f, &mut engine).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        assert!(engine.asked.is_empty());
    };
    for rule in ["fedex", "flora", "flexlora"] {
        refused(settings(rule), &[rule, "no sum"]);
    }
    let bounds = Some(Bounds { factor: 1.0, update: 1.0 });
    let weights = Weights::Examples { most: 5 };
    refused(
        Settings { bounds, weights, per_round: Some(2), ..settings("ffa") },
        &["bounds look", "no weights", "fewer than 3"],
    );
    refused(Settings { robust: Some(Robust::Median), ..settings("ffa") }, &["robust"]);
}

#[test]
fn keys_must_be_those_of_the_directory() {
    let cast = Cast::new(&NAMES);
    let stranger = Own::generate(Some(PartyId(1))).unwrap();
    let with =
        |own: Own| Parties::new(Learner, cast.directory.clone()).with("a", own, Claims::default()).map(drop);
    assert!(with(stranger).unwrap_err().to_string().contains("another key for party 1"));
    assert!(with(Own::generate(Some(PartyId(77))).unwrap()).unwrap_err().to_string().contains("no key"));
    assert!(with(Own::generate(None).unwrap()).unwrap_err().to_string().contains("coordinator"));
    let other = Coordinator::new(Own::generate(None).unwrap(), cast.directory.clone());
    assert!(other.unwrap_err().to_string().contains("another key for the coordinator"));
    assert!(Claims::open(Path::new("/no/such/folder/claims")).is_err());
}
