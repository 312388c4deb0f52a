//! Rounds: what a federation knows after them is what its clients learnt.

use std::collections::BTreeMap;
use std::str::FromStr;

use lora_core::{Error, Result};
use lora_fed::aggregate::{Bounds, Robust, Rule, ServerRule};
use lora_fed::engine::{
    Engine, Federation, InProcess, Model, Reply, Settings, Task, Trains, Weights, Worker,
};
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);
const MODULES: [&str; 2] = ["base_model.model.one", "base_model.model.two"];

fn scale(_: &str, rank: i64) -> f64 {
    6.0 / rank as f64
}

/// By a hash of who and when, not by libtorch's generator: threads share that one.
fn noise(seed: &str, size: &[i64]) -> Tensor {
    let mut state =
        seed.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let count: i64 = size.iter().product();
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let values: Vec<f64> = (0..count).map(|_| next()).collect();
    Tensor::from_slice(&values).view(size)
}

fn start(rank: i64) -> BTreeMap<String, Tensor> {
    let mut adapter = BTreeMap::new();
    for (module, (out, inp)) in MODULES.iter().zip([(7, 9), (12, 5)]) {
        adapter.insert(format!("{module}.lora_A.weight"), noise(module, &[rank, inp]));
        adapter.insert(format!("{module}.lora_B.weight"), Tensor::zeros([out, rank], DOUBLE));
        adapter.insert(format!("{module}.lora_magnitude_vector"), noise("m", &[out]));
    }
    adapter
}

/// "Trains" by adding noise of its own; remembers what every client's whole model would be.
#[derive(Default)]
struct Learner {
    learnt: Vec<(String, BTreeMap<String, Tensor>)>,
    wrong: BTreeMap<String, fn(&mut Reply)>,
}

fn dense(
    adapter: &BTreeMap<String, Tensor>,
    beside: &BTreeMap<String, (Tensor, Tensor)>,
) -> BTreeMap<String, Tensor> {
    let of = |module: &&str| {
        let [a, b] = ["A", "B"].map(|f| &adapter[&format!("{module}.lora_{f}.weight")]);
        let mut w = b.matmul(a) * scale(module, a.size()[0]);
        if let Some((a, b)) = beside.get(*module) {
            w += b.matmul(a);
        }
        (module.to_string(), w)
    };
    MODULES.iter().map(of).collect()
}

impl Worker for Learner {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        if client == "broken" {
            return Err(Error::data("the disk is gone"));
        }
        let learn = |(name, t): (&String, &Tensor)| {
            let seed = format!("{client} {name} {}", task.round);
            let delta = if task.trains.holds(name) { noise(&seed, &t.size()) } else { t.zeros_like() };
            (name.clone(), t + delta)
        };
        let now: BTreeMap<_, _> = task.adapter.iter().map(learn).collect();
        self.learnt.push((client.to_owned(), dense(&now, &task.beside)));
        let adapter = now.into_iter().filter(|(name, _)| task.sends.holds(name)).collect();
        let examples = client.len() as u64;
        let mut reply = Reply { adapter, examples, metrics: BTreeMap::from([("loss".into(), 1.0)]) };
        if let Some(wrong) = self.wrong.get(client) {
            wrong(&mut reply);
        }
        Ok(reply)
    }
}

fn names(clients: &[&str]) -> Vec<String> {
    clients.iter().map(|c| (*c).to_owned()).collect()
}

fn federation(settings: Settings, rank: i64) -> Federation {
    Federation::new(settings, Model::new(start(rank)), scale).unwrap()
}

fn round(f: &mut Federation, clients: &[&str], learner: &mut Learner) -> Result<lora_fed::engine::Round> {
    struct Lent<'a>(&'a mut Learner);
    impl Worker for Lent<'_> {
        fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
            self.0.train(client, task)
        }
    }
    f.round(&mut InProcess::new(names(clients), vec![Box::new(Lent(learner))]))
}

fn error(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm().clamp_min(1e-300)).double_value(&[])
}

/// Over three rounds: what all share is the weighted mean of what each had.
#[test]
fn exact_rules_lose_nothing() {
    for rule in ["ffa", "rolora", "fedex", "flora", "fedsvd"] {
        let settings = Settings {
            weights: Weights::Examples { most: 5 },
            ..Settings::new("exact", Rule::from_str(rule).unwrap(), 3)
        };
        let mut f = federation(settings, 2);
        let clients = ["a", "bb", "ccc", "dddddddd"];
        for number in 1..=3 {
            let mut learner = Learner::default();
            let report = round(&mut f, &clients, &mut learner).unwrap();
            assert_eq!((report.round, f.model.rounds), (number, number));
            let now = dense(&f.model.adapter, &f.model.beside);
            for module in MODULES {
                let share = |client: &str| (client.len().min(5)) as f64 / 11.0;
                let parts = learner.learnt.iter().map(|(client, all)| &all[module] * share(client));
                let mean = parts.reduce(|a, b| a + b).unwrap();
                let error = error(&now[module], &mean);
                assert!(error < 1e-12, "{rule}, round {number}, {module}: {error:e}");
            }
        }
    }
}

/// And the plain mean of factors does lose, or the test above could not fail.
#[test]
fn fedit_is_not_exact() {
    let mut f = federation(Settings::new("inexact", Rule::FedIt, 2), 2);
    let mut learner = Learner::default();
    round(&mut f, &["a", "b", "c"], &mut learner).unwrap();
    let mean = learner.learnt.iter().map(|(_, all)| &all[MODULES[0]] / 3.0).reduce(|a, b| a + b).unwrap();
    let now = dense(&f.model.adapter, &f.model.beside);
    assert!(error(&now[MODULES[0]], &mean) > 0.01);
}

#[test]
fn ranks_may_differ_where_the_rule_allows_it() {
    for rule in [Rule::Flora, Rule::FlexLora] {
        let ranks = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 3)]);
        let mut f = federation(Settings { ranks, ..Settings::new("ranks", rule, 2) }, 5);
        for _ in 0..2 {
            let mut learner = Learner::default();
            round(&mut f, &["a", "b", "c"], &mut learner).unwrap();
            let now = dense(&f.model.adapter, &f.model.beside);
            let mean =
                learner.learnt.iter().map(|(_, all)| &all[MODULES[1]] / 3.0).reduce(|a, b| a + b).unwrap();
            // Module two is 12 x 5: rank 5 holds any sum.
            assert!(error(&now[MODULES[1]], &mean) < 1e-12, "{rule}");
        }
    }
    let ranks = BTreeMap::from([("a".to_owned(), 1)]);
    let settings = Settings { ranks, ..Settings::new("ranks", Rule::FedIt, 1) };
    assert!(settings.check().unwrap_err().to_string().contains("needs one rank"));
}

/// However many workers there are, and however the engine lists its clients: the same bits.
#[test]
fn side_by_side_is_one_after_another() {
    let clients = ["a", "bb", "ccc", "dd", "e", "f", "g"];
    let run = |workers: usize, reversed: bool| {
        let mut f = federation(Settings { per_round: Some(5), ..Settings::new("same", Rule::FedEx, 3) }, 2);
        let mut listed = names(&clients);
        if reversed {
            listed.reverse();
        }
        let workers = (0..workers).map(|_| Box::new(Learner::default()) as Box<dyn Worker>).collect();
        let mut engine = InProcess::new(listed, workers);
        let rounds: Vec<_> = (0..3).map(|_| f.round(&mut engine).unwrap()).collect();
        (rounds, f.model.adapter, f.model.beside)
    };
    let one = run(1, false);
    assert!(one.0.iter().any(|r| r.clients != one.0[0].clients), "the same five every time");
    assert_eq!(one, run(3, false));
    assert_eq!(one, run(2, true));
}

#[test]
fn a_bad_reply_does_not_count() {
    let name = || format!("{}.lora_A.weight", MODULES[0]);
    let mut learner = Learner::default();
    let mut wrong = |client: &str, how: fn(&mut Reply)| {
        learner.wrong.insert(client.to_owned(), how);
    };
    wrong("nan", |r| r.adapter.values_mut().take(1).for_each(|t| *t = t.full_like(f64::NAN)));
    wrong("infinite", |r| r.adapter.values_mut().skip(3).for_each(|t| *t = t.full_like(f64::INFINITY)));
    wrong("missing", |r| drop(r.adapter.pop_first()));
    wrong("more", |r| drop(r.adapter.insert("what".into(), Tensor::zeros([2], DOUBLE))));
    wrong("shape", |r| r.adapter.values_mut().for_each(|t| *t = t.unsqueeze(0)));
    wrong("whole", |r| r.adapter.values_mut().for_each(|t| *t = t.to_kind(Kind::Int64)));
    wrong("huge", |r| r.adapter.values_mut().for_each(|t| *t = &*t * 1e6));
    wrong("none", |r| r.examples = 0);
    let bounds = Some(Bounds { factor: 100.0, update: 100.0 });
    let weights = Weights::Examples { most: 100 };
    let settings = || Settings { bounds, weights, ..Settings::new("bad", Rule::FedIt, 1) };
    let bad = ["broken", "nan", "infinite", "missing", "more", "shape", "whole", "huge", "none"];

    let mut f = federation(settings(), 2);
    let report = round(&mut f, &[&bad[..], &["a", "b"]].concat(), &mut learner).unwrap();
    for told in &report.clients {
        assert_eq!(told.refused.is_some(), bad.contains(&&*told.client), "{told:?}");
    }
    let mut only = federation(settings(), 2);
    round(&mut only, &["a", "b"], &mut Learner::default()).unwrap();
    assert_eq!(f.model.adapter, only.model.adapter);

    // Too few good ones: nothing has changed, and every reason is given.
    let mut f = federation(Settings { minimum: 2, ..settings() }, 2);
    let e = round(&mut f, &[&bad[..], &["a"]].concat(), &mut learner).unwrap_err().to_string();
    assert!(bad.iter().all(|client| e.contains(&format!("{client}: "))), "{e}");
    assert_eq!((f.model.rounds, &f.model.adapter[&name()]), (0, &start(2)[&name()]));
}

/// Without bounds too: one that sends no numbers does not end the round for all.
#[test]
fn what_is_not_finite_is_one_clients_fault() {
    for rule in ["fedit", "ffa", "fedsvd"] {
        let mut learner = Learner::default();
        learner.wrong.insert("nan".into(), |r| {
            r.adapter.values_mut().for_each(|t| *t = t.full_like(f64::NAN));
        });
        let mut f = federation(Settings::new("nan", Rule::from_str(rule).unwrap(), 1), 2);
        let report = round(&mut f, &["a", "nan", "b"], &mut learner).unwrap();
        let refused = report.clients.iter().filter(|told| told.refused.is_some());
        assert_eq!(refused.map(|told| &*told.client).collect::<Vec<_>>(), ["nan"], "{rule}");
    }
}

/// An engine that answers for one client twice.
#[test]
fn a_client_counts_once() {
    struct Twice(Learner);
    impl Engine for Twice {
        fn clients(&mut self) -> Result<Vec<String>> {
            Ok(names(&["a", "a", "b"]))
        }
        fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
            assert_eq!(tasks.len(), 2);
            Ok(tasks.iter().map(|(_, task)| ("a".to_owned(), self.0.train("a", task))).collect())
        }
    }
    let mut f = federation(Settings::new("twice", Rule::FedIt, 1), 2);
    let report = f.round(&mut Twice(Learner::default())).unwrap();
    assert_eq!(report.clients.iter().filter(|t| t.refused.is_none()).count(), 1);
}

/// A fifth of the clients sends the opposite, tenfold: the mean follows them, robust rules do not.
#[test]
fn robust_rules_bear_liars() {
    let clients = ["a", "b", "c", "d", "e", "f", "g", "h", "liar 1", "liar 2"];
    let run = |robust: Option<Robust>, liars: bool| {
        let mut learner = Learner::default();
        if liars {
            for liar in ["liar 1", "liar 2"] {
                learner.wrong.insert(liar.into(), |r| {
                    r.adapter
                        .iter_mut()
                        .filter(|(n, _)| n.contains("lora_B"))
                        .for_each(|(_, t)| *t = &*t * -10.0);
                });
            }
        }
        let mut f = federation(Settings { robust, ..Settings::new("liars", Rule::Ffa, 1) }, 2);
        round(&mut f, &clients, &mut learner).unwrap();
        let all = dense(&f.model.adapter, &f.model.beside);
        all[MODULES[0]].shallow_clone()
    };
    let clean = run(None, false);
    let size = clean.norm().double_value(&[]);
    let off = |robust: Option<Robust>| (run(robust, true) - &clean).norm().double_value(&[]) / size;
    assert!(off(None) > 3.0, "{}", off(None));
    for robust in [Robust::Median, Robust::TrimmedMean(0.2)] {
        assert!(off(Some(robust)) < 1.5, "{robust:?}: {}", off(Some(robust)));
    }
    let settings = Settings { robust: Some(Robust::Median), ..Settings::new("no", Rule::FedEx, 1) };
    assert!(settings.check().is_err());
}

#[test]
fn fedsa_shares_a_alone() {
    let mut f = federation(Settings::new("own", Rule::FedSa, 2), 2);
    let mut learner = Learner::default();
    let report = round(&mut f, &["a", "b"], &mut learner).unwrap();
    let zero = |t: &Tensor| t.abs().sum(Kind::Double).double_value(&[]) == 0.0;
    assert!(f.model.adapter.iter().filter(|(n, _)| n.contains("lora_B")).all(|(_, t)| zero(t)));
    assert!(report.clients[0].bytes_up < report.clients[0].bytes_down / 2);
    assert_eq!(Rule::FedSa.trains(), (Trains::All, Trains::A));
}

/// FedAvgM with rate 1 and no momentum is the mean; with momentum it goes on.
#[test]
fn a_server_optimiser_moves_the_factors() {
    let run = |server: Option<ServerRule>, rounds| {
        let mut f = federation(Settings { server, ..Settings::new("moves", Rule::Ffa, rounds) }, 2);
        for _ in 0..rounds {
            round(&mut f, &["a", "b"], &mut Learner::default()).unwrap();
        }
        f.model.adapter
    };
    let plain = Some(ServerRule::Momentum { rate: 1.0, momentum: 0.0 });
    for (name, t) in run(plain, 2) {
        assert!(error(&t, &run(None, 2)[&name]) < 1e-12 || t == t.zeros_like(), "{name}");
    }
    assert_ne!(run(Some(ServerRule::Momentum { rate: 1.0, momentum: 0.5 }), 2), run(None, 2));
    let refused =
        |rule, server| Settings { server: Some(server), ..Settings::new("no", rule, 1) }.check().is_err();
    let adam = ServerRule::Adam { rate: 0.1, betas: (0.9, 0.99), tau: 1e-3 };
    assert!(refused(Rule::FedSvd, adam) && refused(Rule::Flora, adam) && !refused(Rule::Ffa, adam));
}

/// `u = β u + Σ p_k W_k - W`, `W += η u`, of whole weights, whatever basis the factors are in.
#[test]
fn fedsvds_momentum_is_that_of_the_whole_weights() {
    let (rate, momentum) = (0.7, 0.6);
    let server = Some(ServerRule::Momentum { rate, momentum });
    let mut f = federation(Settings { server, ..Settings::new("turns", Rule::FedSvd, 6) }, 3);
    let mut whole = dense(&f.model.adapter, &BTreeMap::new());
    let mut speed: BTreeMap<String, Tensor> =
        whole.iter().map(|(m, w)| (m.clone(), w.zeros_like())).collect();
    for _ in 0..6 {
        let mut learner = Learner::default();
        round(&mut f, &["a", "b"], &mut learner).unwrap();
        let now = dense(&f.model.adapter, &BTreeMap::new());
        for (module, w) in &mut whole {
            let learnt = learner.learnt.iter().fold(w.zeros_like(), |sum, (_, one)| sum + &one[module] * 0.5);
            let u = &speed[module] * momentum + learnt - &*w;
            *w += &u * rate;
            speed.insert(module.clone(), u);
            assert!(error(&now[module], w) < 1e-12, "{module}: {}", error(&now[module], w));
        }
    }
}

#[test]
fn too_few_clients_are_said() {
    let mut f = federation(Settings { per_round: Some(3), ..Settings::new("few", Rule::FedIt, 1) }, 2);
    assert!(round(&mut f, &["a", "b"], &mut Learner::default()).is_err());
    let nothing =
        Settings { minimum: 0, rounds: 0, run: String::new(), ..Settings::new("x", Rule::FedIt, 1) };
    let text = nothing.check().unwrap_err().to_string();
    assert_eq!(text.lines().count(), 4, "{text}");
}
