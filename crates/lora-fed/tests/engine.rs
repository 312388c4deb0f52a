//! Rounds: what a federation knows after them is what its clients learnt.

#[path = "common/learner.rs"]
mod learner;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::str::FromStr;

use lora_core::{Error, ErrorKind, Result};
use lora_fed::aggregate::{Robust, Rule, ServerRule};
use lora_fed::engine::{Engine, Federation, InProcess, Reply, Settings, Task, Trains, Weights, Worker};
use tch::{Kind, Tensor};

use learner::*;

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

/// What lies beside grows at its end alone until it is made anew, and a client is told only what it lacks. Nothing is lost, however
/// often.
#[test]
fn what_lies_beside_stays_as_it_is() {
    for rule in [Rule::FedEx, Rule::Flora] {
        let mut f = federation(Settings::new("long", rule, 20), 2);
        let clients = ["a", "bb", "ccc"];
        let bytes = |f: &Federation| {
            f.model.beside.values().map(|(a, b)| 8 * (a.numel() + b.numel()) as u64).sum::<u64>()
        };
        let mut had = 0;
        for number in 1..=20 {
            let (before, made) = (f.model.beside.keys().cloned().collect::<Vec<_>>(), f.model.made);
            let before: Vec<_> = before.iter().map(|name| f.model.beside[name].0.copy()).collect();
            let sent = bytes(&f);
            // One of them is away in every other round, and lacks more then.
            let asked = if number % 2 == 0 { &clients[..2] } else { &clients };
            let adapter: u64 = f.model.adapter.values().map(|t| 8 * t.numel() as u64).sum();
            let mut learner = Learner::default();
            let told = round(&mut f, asked, &mut learner).unwrap();
            let last = told.clients.last().unwrap();
            if asked.len() == 3 {
                assert!(last.bytes_down >= told.clients[0].bytes_down, "{rule:?}, round {number}");
            }
            assert_eq!(told.clients[0].bytes_down, adapter + sent - had, "{rule:?}, round {number}");
            if f.model.made == made {
                for (old, (a, _)) in before.iter().zip(f.model.beside.values()) {
                    assert_eq!(a.narrow(0, 0, old.size()[0]), *old, "{rule:?}, round {number}");
                }
                had = sent;
            } else {
                had = 0;
            }
            let now = dense(&f.model.adapter, &f.model.beside);
            for module in MODULES {
                let mean = learner.learnt.iter().map(|(_, all)| &all[module] / asked.len() as f64);
                let error = error(&now[module], &mean.reduce(|a, b| a + b).unwrap());
                assert!(error < 1e-12, "{rule:?}, round {number}, {module}: {error:e}");
            }
        }
        // FLoRA adds more in a round than there is room for in these small weights.
        let most = if rule == Rule::FedEx { 10 } else { 20 };
        assert!((2..=most).contains(&f.model.made), "{rule:?}: {}", f.model.made);
    }
}

/// Carries so many bytes a task; of what it was asked whether it does, and how many tasks it carried.
struct Narrow {
    inner: InProcess<'static>,
    most: u64,
    seen: RefCell<Vec<u64>>,
    tasks: usize,
}

impl Narrow {
    fn new(most: u64) -> Self {
        let inner = InProcess::new(names(&["a", "bb", "ccc"]), vec![Box::new(Learner::default())]);
        Self { inner, most, seen: RefCell::default(), tasks: 0 }
    }
}

impl Engine for Narrow {
    fn clients(&mut self) -> Result<Vec<String>> {
        self.inner.clients()
    }

    fn carries(&self, bytes: u64) -> Result<()> {
        self.seen.borrow_mut().push(bytes);
        if bytes <= self.most { Ok(()) } else { Err(Error::unsupported(format!("{bytes} are too many"))) }
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        self.tasks += tasks.len();
        self.inner.run(tasks)
    }
}

/// Before anybody has worked: later, what was learnt could not leave the coordinator. A run that is under way goes as far as it
/// goes.
#[test]
fn a_run_that_will_outgrow_its_engine_is_refused_at_once() {
    let run = |rounds| federation(Settings::new("long", Rule::FedEx, rounds), 2);
    // 680 bytes of an adapter, and 1056 more in each round.
    let mut engine = Narrow::new(2000);
    let refused = run(5).round(&mut engine).unwrap_err();
    assert!(refused.to_string().contains("round 3 would be too large: 2792 are too many"), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "it is not tried again");
    let hint = refused.hint_text().unwrap();
    assert!(hint.contains("with 3 clients a round, it can have 2 rounds (--rounds 2)"), "{hint}");
    assert_eq!(engine.tasks, 0);
    let mut short = run(2);
    (0..2).for_each(|_| drop(short.round(&mut engine).unwrap()));
    let mut long = run(5);
    long.round(&mut Narrow::new(u64::MAX)).unwrap();
    long.round(&mut engine).unwrap();
    let refused = long.round(&mut engine).unwrap_err().to_string();
    assert_eq!((&*refused, long.model.rounds, engine.tasks), ("2792 are too many", 2, 9));
}

/// Behind a round in which all is made anew too, as FLoRA's second here.
#[test]
fn what_is_foreseen_comes() {
    for rule in [Rule::FedEx, Rule::Flora] {
        let mut engine = Narrow::new(u64::MAX);
        let mut f = federation(Settings::new("long", rule, 3), 2);
        f.round(&mut engine).unwrap();
        let foreseen = engine.seen.take();
        (0..2).for_each(|_| drop(f.round(&mut engine).unwrap()));
        // It is asked of each of three tasks, and at the start of the rounds to come.
        let met = engine.seen.take();
        assert_eq!(foreseen[3..], [met[0], met[3]], "{rule}");
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

/// Under another's name.
struct Called(Learner, BTreeMap<String, String>);

impl Worker for Called {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        self.0.train(&self.1[client], task)
    }
}

/// Whatever clients are called, and so in whatever order they come: the same bits.
#[test]
fn names_change_nothing() {
    let own = ["a", "bb", "ccc", "dd"];
    for rule in ["fedit", "ffa", "fedex", "flora", "flexlora", "fedsvd"] {
        let run = |called: [&str; 4]| {
            let mut f = federation(Settings::new("names", Rule::from_str(rule).unwrap(), 3), 2);
            let names =
                called.iter().zip(own).map(|(name, own)| (name.to_string(), own.to_owned())).collect();
            let called = called.iter().map(|name| name.to_string()).collect();
            let mut engine = InProcess::new(called, vec![Box::new(Called(Learner::default(), names))]);
            (0..3).for_each(|_| drop(f.round(&mut engine).unwrap()));
            (f.model.adapter, f.model.beside)
        };
        let first = run(["a", "bb", "ccc", "dd"]);
        assert!(first == run(["4", "3", "2", "1"]), "{rule}");
        assert!(first == run(["3", "1", "4", "2"]), "{rule}");
    }
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

/// A share that is somebody of five is nobody of the four whose replies are good: one of each side goes all the same, and no
/// client ends a round by a bad reply. Where it is nobody of those that there are, none is asked.
#[test]
fn a_robust_rule_has_enough_to_ask_and_bears_a_bad_reply() {
    let robust = Some(Robust::TrimmedMean(0.2));
    let mut f = federation(Settings { robust, ..Settings::new("few", Rule::Ffa, 3) }, 2);
    let clients = ["a", "b", "c", "d", "e"];
    let mut learner = Learner::default();
    round(&mut f, &clients, &mut learner).unwrap();
    learner.wrong.insert("e".into(), |r| r.adapter.clear());
    let report = round(&mut f, &clients, &mut learner).unwrap();
    assert_eq!((report.clients[4].refused.is_some(), f.model.rounds), (true, 2));
    let refused = round(&mut f, &clients[..4], &mut learner).unwrap_err();
    assert!(refused.to_string().contains("of 4 uploads"), "{refused}");
    assert!(refused.hint_text().unwrap().contains("takes 5 uploads"), "{refused:?}");
    assert_eq!((learner.learnt.len(), f.model.rounds), (10, 2));
    let krum = Robust::Krum { lying: 1 };
    for (robust, per_round, said) in [
        (Robust::TrimmedMean(0.2), Some(4), "nothing is cut"),
        (Robust::TrimmedMean(0.7), None, "0.7 of each side cannot be cut"),
        (Robust::TrimmedMean(f64::NAN), None, "cannot be cut"),
        (krum, Some(4), "needs 5"),
    ] {
        let settings = Settings { robust: Some(robust), per_round, ..Settings::new("no", Rule::Ffa, 1) };
        let e = settings.check().unwrap_err().to_string();
        assert!(e.contains(said), "{e}");
    }
    let settings = Settings { robust: Some(krum), ..Settings::new("no", Rule::Ffa, 1) };
    assert!(settings.check().is_ok() && settings.check_clients(5).is_ok());
    assert!(settings.check_clients(4).is_err());
}

/// Enough were asked, and too few replies are good: who failed of what is said, and what to do.
#[test]
fn too_few_replies_for_a_robust_rule_are_told_of() {
    let mut learner = Learner::default();
    learner.wrong.insert("d".into(), |r| r.adapter.clear());
    learner.wrong.insert("c".into(), |r| r.adapter.clear());
    for (robust, said) in [
        (Robust::Krum { lying: 1 }, "round 1 has 2 good replies of 5, and Krum with 1 lying takes 5"),
        (
            Robust::TrimmedMean(0.2),
            "round 1 has 2 good replies of 5, and the mean without 0.2 of each side takes 3",
        ),
    ] {
        let mut f = federation(Settings { robust: Some(robust), ..Settings::new("few", Rule::Ffa, 1) }, 2);
        let e = round(&mut f, &["a", "b", "c", "d", "broken"], &mut learner).unwrap_err();
        let text = e.to_string();
        assert!(text.contains(said), "{text}");
        assert!(text.contains("  - broken: the disk is gone") && text.contains("  - d: "), "{text}");
        assert!(text.contains("  - c: ") && text.lines().count() == 4, "{text}");
        assert!(e.hint_text().is_some_and(|hint| hint.contains("ask more")), "{e:?}");
        assert_eq!((e.kind(), f.model.rounds), (ErrorKind::Data, 0), "it is tried again");
    }
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

/// A client's words are its own, and so are the names that it gives: they begin no line of ours, and turn none round.
#[test]
fn what_clients_say_is_text() {
    const WORDS: &str = "no\nround 1/10  2 of 2 clients\u{202e}";
    struct Talks;
    impl Worker for Talks {
        fn train(&mut self, _: &str, _: &Task) -> Result<Reply> {
            Err(Error::data(WORDS))
        }
    }
    let settings = || Settings::new("words", Rule::Ffa, 1);
    let reason = federation(settings(), 2).round(&mut InProcess::new(names(&["a"]), vec![Box::new(Talks)]));
    let mut learner = Learner::default();
    learner.wrong.insert("a".into(), |r| drop(r.adapter.insert(WORDS.into(), Tensor::from(0.0))));
    let name = round(&mut federation(settings(), 2), &["a"], &mut learner);
    for refused in [reason, name] {
        let e = refused.unwrap_err().to_string();
        assert!(e.contains("  - a: no\\nround 1/10") && e.lines().count() == 2, "{e}");
        assert!(!e.contains('\u{202e}'), "{e}");
    }
}
