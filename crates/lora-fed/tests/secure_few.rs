//! Of how few a secure sum may be.

#[allow(dead_code)]
#[path = "common/cast.rs"]
mod cast;

use cast::{Cast, Learner, NAMES, difference, federation, plain, settings};
use lora_core::Error;
use lora_fed::engine::{Claims, Letter, Parties, Worker};
use lora_fed::secagg::wire::Kind;
use lora_fed::secagg::{Directory, Own, PartyId, Plan, Ring, RoundId, Session};

/// One of three that drops out takes the sum with it: of two each would have the other's part, less its own.
#[test]
fn of_three_all_must_stay() {
    let stages = [
        (Kind::Plan, false),
        (Kind::KeyList, false),
        (Kind::Bundle, true),
        (Kind::Survivors, true),
        (Kind::Unmask, true),
    ];
    for (stage, lost) in stages {
        let mut cast = Cast::new(&NAMES[..3]);
        let mut f = federation(settings("ffa"));
        let mut engine = cast.between(move |client, kind, _| match client == "c" && kind == Some(stage) {
            true => Err(Error::data("gone")),
            false => Ok(()),
        });
        let round = cast.round(&mut f, &mut engine);
        let (is_lost, rounds) = (round.as_ref().is_ok_and(|round| round.lost.is_some()), f.model.rounds);
        assert_eq!((is_lost, rounds), (lost, u64::from(lost)), "{stage}: {round:?}");
        assert_eq!(difference(&f, &federation(settings("ffa"))), 0.0, "{stage}: the model is as before");
        // Nobody takes masks off, before all three have agreed to.
        let unmasked = engine.asked.iter().any(|(_, kind)| *kind == Some(Kind::Unmask));
        assert_eq!(unmasked, stage == Kind::Unmask, "{stage}");
    }
    let mut cast = Cast::new(&NAMES[..3]);
    let mut f = federation(settings("ffa"));
    let mut engine = cast.between(|_, _, _| Ok(()));
    assert_eq!(cast.round(&mut f, &mut engine).unwrap().lost, None);
    assert!(difference(&f, &plain("ffa", &[&NAMES[..3]])) < 1e-11);
}

/// A coordinator that plans otherwise finds no party.
#[test]
fn a_plan_of_three_of_whom_two_must_stay_is_refused() {
    let server = Own::generate(None).unwrap();
    let own: Vec<Own> = (1..=3).map(|i| Own::generate(Some(PartyId(i))).unwrap()).collect();
    let parties = own.iter().map(|own| (own.party.unwrap(), own.key.public())).collect();
    let directory = Directory { server: server.key.public(), parties };
    let asked = |least: Option<usize>, threshold: usize| {
        let party = Parties::new(Learner, directory.clone()).at_least(least).unwrap();
        let mut party = party.with("a", own[0].clone(), Claims::default()).unwrap();
        let round = RoundId { run: [7; 16], number: 1 };
        let plan = Plan::new(round, (1..=3).map(PartyId).collect(), Ring::U64, 1);
        let session = Session::new(Plan { threshold, ..plan }, &directory).unwrap();
        let letter = Letter { bytes: session.propose(&server.key).unwrap(), task: None, noise: None };
        party.answer("a", &letter).map(drop).map_err(|e| e.to_string())
    };
    for least in [None, Some(3)] {
        let refused = asked(least, 2).unwrap_err();
        assert!(refused.contains("of so many 3 must stay"), "{refused}");
        asked(least, 3).unwrap();
    }
}
