//! Rounds of which the coordinator sees the sum alone.

#[allow(dead_code)]
#[path = "common/cast.rs"]
mod cast;

use std::path::Path;

use cast::{Cast, DOUBLE, Learner, NAMES, RULES, TEN, difference, federation, names, plain, settings};
use lora_core::Error;
use lora_fed::aggregate::{Bounds, Robust};
use lora_fed::engine::{
    Claims, Coordinator, InProcess, Letter, Parties, Settings, Task, Trains, Weights, Worker,
};
use lora_fed::secagg::wire::Kind;
use lora_fed::secagg::{Directory, Own, PartyId, Plan, Ring, RoundId, Session};
use lora_fed::store::Store;
use tch::Tensor;

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

/// Nor may what went wrong name rows: an error travels in plain.
#[test]
fn what_training_failed_of_stays_with_the_client() {
    let clients = ["a", "b", "c", "broken"];
    let mut cast = Cast::new(&clients);
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    let told: Vec<_> = round.clients.iter().filter_map(|told| told.refused.as_deref()).collect();
    assert!(told.len() == 1 && told[0].contains("training failed") && !told[0].contains("17"), "{told:?}");
    assert!(difference(&f, &plain("ffa", &[&["a", "b", "c"]])) < 1e-11);
}

/// Nor does what a party says begin a line of ours.
#[test]
fn what_parties_say_is_text() {
    let mut cast = Cast::new(&NAMES);
    let mut engine = cast.between(|client, kind, _| match client == "b" && kind == Some(Kind::Plan) {
        true => Err(Error::data("no\nround 1/10\u{202e}")),
        false => Ok(()),
    });
    let round = cast.round(&mut federation(settings("ffa")), &mut engine).unwrap();
    assert_eq!(round.clients[1].refused.as_deref(), Some("no\\nround 1/10\\u{202e}"));
    // And no more of it is kept than people read.
    let mut cast = Cast::new(&NAMES);
    let mut engine = cast.between(|client, kind, _| match client == "b" && kind == Some(Kind::Plan) {
        true => Err(Error::data("no".repeat(1 << 20))),
        false => Ok(()),
    });
    let round = cast.round(&mut federation(settings("ffa")), &mut engine).unwrap();
    assert_eq!((round.lost, round.clients[1].refused.as_ref().map(String::len)), (None, Some(1000)));
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
    let refused = cast.round(&mut f, &mut engine).unwrap_err();
    assert!(refused.to_string().contains("was joined before"), "{refused}");
    assert!(refused.hint_text().is_some_and(|hint| hint.contains("begins anew")), "{refused}");
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
    let meddles: [fn(&mut Task); 6] = [
        |task| drop(task.adapter.values_mut().next().unwrap().get(0).fill_(0.5)),
        |task| task.round += 1,
        |task| task.run.push('x'),
        |task| task.scales.values_mut().for_each(|scale| *scale = 1e-9),
        |task| task.scales.extend([("another".to_owned(), 1.0)]),
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

/// Rules that are sums lay nothing beside the weights: a plan that names a task which does is refused by all.
#[test]
fn nothing_is_laid_beside_a_partys_weights() {
    let mut cast = Cast::new(&NAMES);
    let mut f = federation(settings("ffa"));
    let zeros = (Tensor::zeros([1, 6], DOUBLE), Tensor::zeros([5, 1], DOUBLE));
    f.model.beside.insert("m".into(), zeros);
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    assert!(round.lost.is_some());
    for told in &round.clients {
        let refused = told.refused.clone().unwrap_or_default();
        assert!(refused.contains("m: the task lays something beside a weight"), "{refused}");
    }
}

#[test]
fn nothing_is_given_in_plain_and_not_to_two() {
    let cast = Cast::new(&NAMES);
    let mut f = federation(settings("ffa"));
    let mut engine = InProcess::new(names(&NAMES), vec![cast.worker()]);
    let refused = f.round(&mut engine).unwrap_err().to_string();
    assert!(refused.contains("secure sums alone"), "{refused}");
    drop(engine);
    let task = Task {
        run: "a run".into(),
        round: 1,
        rounds: 1,
        trains: Trains::B,
        sends: Trains::B,
        scales: [].into(),
        base: None,
        adapter: [].into(),
        beside: [].into(),
    };
    let refused = cast.worker().evaluate("a", &task).unwrap_err().to_string();
    assert!(refused.contains("tells no loss"), "{refused}");

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

/// Whom a plan names is the coordinator's choice: of ten three may be on its side, and all three of them in a plan of few.
#[test]
fn a_plan_of_few_of_many_is_refused() {
    let server = Own::generate(None).unwrap();
    let own: Vec<Own> = (1..=10).map(|i| Own::generate(Some(PartyId(i))).unwrap()).collect();
    let parties = own.iter().map(|own| (own.party.unwrap(), own.key.public())).collect();
    let directory = Directory { server: server.key.public(), parties };
    let asked = |least: Option<usize>, parties: u32, threshold: usize| {
        let party = Parties::new(Learner, directory.clone()).at_least(least).unwrap();
        let mut party = party.with("a", own[0].clone(), Claims::default()).unwrap();
        let round = RoundId { run: [7; 16], number: 1 };
        let plan = Plan::new(round, (1..=parties).map(PartyId).collect(), Ring::U64, 1);
        let session = Session::new(Plan { threshold, ..plan }, &directory).unwrap();
        let letter = Letter { bytes: session.propose(&server.key).unwrap(), task: None, noise: None };
        party.answer("a", &letter).map(drop).map_err(|e| e.to_string())
    };
    // Two of three stay: the party, and one that tells the coordinator its vector.
    for (parties, threshold) in [(3, 2), (3, 3), (4, 4)] {
        let refused = asked(None, parties, threshold).unwrap_err();
        assert!(refused.contains("takes part with 5 and more"), "{parties}, {threshold}: {refused}");
    }
    for (parties, threshold, need) in [(5, 4, 5), (6, 4, 5), (7, 5, 6), (9, 6, 7)] {
        let refused = asked(None, parties, threshold).unwrap_err();
        assert!(refused.contains(&format!("of so many {need} must stay")), "{refused}");
        asked(None, parties, need).unwrap();
    }
    asked(None, 10, 7).unwrap();
    // More and fewer, if the party says so.
    assert!(asked(Some(10), 9, 9).is_err() && asked(Some(10), 10, 7).is_ok());
    assert!(asked(Some(3), 3, 2).is_err() && asked(Some(3), 3, 3).is_ok());
    assert!(Parties::new(Learner, directory.clone()).at_least(Some(2)).is_err());
    let refused = Parties::new(Learner, directory.clone()).at_least(Some(11)).map(drop).unwrap_err();
    assert!(refused.to_string().contains("of 10 in the directory"), "{refused}");
}

/// Too few a round are refused before anybody is asked. If the coordinator would, the parties do not, but by their own will.
#[test]
fn rounds_draw_no_fewer_than_take_part() {
    let round = |asked: usize, coordinator: Option<usize>, parties: Option<usize>| {
        let mut cast = Cast::new(&TEN);
        cast.least = parties;
        cast.coordinator = cast.coordinator.at_least(coordinator).unwrap();
        let mut f = federation(Settings { per_round: Some(asked), ..settings("ffa") });
        let mut engine = cast.between(|_, _, _| Ok(()));
        let round = cast.round(&mut f, &mut engine);
        (round.map(|round| round.lost).map_err(|e| e.to_string()), engine.asked.len())
    };
    let (refused, letters) = round(3, None, None);
    assert!(refused.unwrap_err().contains("3 clients a round") && letters == 0);
    let (refused, letters) = round(3, Some(3), None);
    assert!(refused.unwrap_err().contains("takes part with 5 and more") && letters == 6);
    assert_eq!(round(3, Some(3), Some(3)).0, Ok(None));
    assert_eq!(round(5, None, None).0, Ok(None));
    assert!(round(5, None, Some(6)).0.unwrap_err().contains("takes part with 6 and more"));
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
