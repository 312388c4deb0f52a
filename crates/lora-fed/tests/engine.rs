//! Rounds: what a federation knows after them is what its clients learnt.

#[path = "common/learner.rs"]
mod learner;

use std::collections::BTreeMap;
use std::str::FromStr;

use lora_fed::aggregate::{Robust, Rule, ServerRule};
use lora_fed::engine::{InProcess, Settings, Trains, Weights, Worker};
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
