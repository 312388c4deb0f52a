//! A server that cheats with its own valid signature learns nothing from an honest party.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;

use common::{Run, client, decode, id, key, plan, session, vectors};
use lora_fed::secagg::messages::{
    Advertise, Bundle, Consent, Deal, KeyList, Reveal, Survivors, Unmask, parties_view,
};
use lora_fed::secagg::{Kind, PartyId, Plan, Ring, SecAggError, wire};
use serde_bytes::Bytes;

type Expected = Box<dyn Fn(SecAggError) -> bool>;

fn refused(kind: Kind) -> impl Fn(SecAggError) -> bool {
    move |e| matches!(e, SecAggError::Parties { kind: k, .. } if k == kind)
}

/// Keys made by the server in a party's name, signed by any key but the pinned one.
#[test]
fn swapped_keys() {
    let plan = Plan { threshold: 2, ..plan(3, Ring::U64, 1) };
    let mut run = Run::new(&plan);
    let own = run.client(0).advertise().unwrap();
    let mut theirs = client(&session(&plan), 1);
    let good = theirs.advertise().unwrap();
    let keys: Advertise = decode(&good);
    for forger in [common::server_key(), key(id(0).0), key(77)] {
        let swapped = wire::seal(&run.session, Kind::Advertise, id(1), &forger, &keys).unwrap();
        let adverts = vec![Bytes::new(&own), Bytes::new(&swapped)];
        let list = run.forge(Kind::KeyList, &KeyList { adverts });
        let signature = SecAggError::Signature(format!("party {}", id(1)));
        assert_eq!(run.client(0).deal(&list), Err(signature));
    }
    // A party of the server's own making, which nobody pinned.
    let sybil = wire::seal(&run.session, Kind::Advertise, PartyId(6), &key(6), &keys).unwrap();
    let list = run.forge(Kind::KeyList, &KeyList { adverts: vec![Bytes::new(&own), Bytes::new(&sybil)] });
    assert_eq!(run.client(0).deal(&list), Err(SecAggError::UnknownParty(PartyId(6))));
    let adverts = vec![Bytes::new(&own), Bytes::new(&good)];
    let list = run.forge(Kind::KeyList, &KeyList { adverts });
    assert!(run.client(0).deal(&list).is_ok());
}

#[test]
fn lists_of_keys_that_break_a_rule() {
    let mut run = Run::new(&plan(4, Ring::U64, 1));
    let keys = run.keys().unwrap();
    let adverts = decode::<KeyList<'_>>(&keys).adverts;
    let list = |places: &[usize]| {
        let adverts = places.iter().map(|i| adverts[*i]).collect();
        run.forge(Kind::KeyList, &KeyList { adverts })
    };
    let few = list(&[0, 1]);
    let twice = list(&[0, 1, 2, 2]);
    let without_us = list(&[1, 2, 3]);
    let another_us = client(&run.session, 0).advertise().unwrap();
    let mut other = adverts.clone();
    other[0] = Bytes::new(&another_us);
    let other = run.forge(Kind::KeyList, &KeyList { adverts: other });
    let below = SecAggError::BelowThreshold { kind: Kind::KeyList, have: 2, need: 3 };
    assert_eq!(run.client(0).deal(&few), Err(below));
    for list in [twice, without_us, other] {
        assert!(run.client(0).deal(&list).is_err_and(refused(Kind::KeyList)));
    }
    assert!(run.client(0).deal(&keys).is_ok());
    // Once dealt, no second list.
    assert_eq!(run.client(0).deal(&keys), Err(SecAggError::OutOfOrder(Kind::KeyList)));
}

/// Parties that were shown different keys cannot even exchange shares.
#[test]
fn two_lists_of_keys() {
    let mut run = Run::new(&plan(4, Ring::U64, 1));
    let keys = run.keys().unwrap();
    let three = decode::<KeyList<'_>>(&keys).adverts[..3].to_vec();
    let three = run.forge(Kind::KeyList, &KeyList { adverts: three });
    let lists = [&three, &keys, &keys, &keys];
    let deals: Vec<Vec<u8>> = (0..4).map(|i| run.client(i).deal(lists[i]).unwrap()).collect();
    assert_eq!(run.server.receive(&deals[0]), Err(SecAggError::View(format!("party {}", id(0)))));
    // Even passed on by hand, the share does not open.
    let deal: Deal = decode(&deals[0]);
    let mut share = *deal.shares.iter().find(|share| share.party == id(1)).unwrap();
    share.party = id(0);
    let mut shares = vec![share];
    for i in [2, 3] {
        let deal: Deal = decode(&deals[i]);
        let mut share = *deal.shares.iter().find(|share| share.party == id(1)).unwrap();
        share.party = id(i);
        shares.push(share);
    }
    let mine: Deal = decode(&deals[1]);
    let bundle = run.forge(Kind::Bundle, &Bundle { to: id(1), view: mine.view, shares });
    assert_eq!(run.client(1).mask(&bundle, &[0]), Err(SecAggError::Sealed(id(0))));
}

#[test]
fn bundles_that_break_a_rule() {
    let mut run = Run::new(&plan(4, Ring::U64, 1));
    let bundles = run.deals().unwrap();
    let good: Bundle = decode(&bundles[&id(0)]);
    let other: Bundle = decode(&bundles[&id(1)]);
    let with = |change: &dyn Fn(&mut Bundle)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        run.forge(Kind::Bundle, &bundle)
    };
    let sealed = |from| move |e| e == SecAggError::Sealed(id(from));
    let wrong: Vec<(Vec<u8>, Expected)> = vec![
        (with(&|b| b.to = id(1)), Box::new(refused(Kind::Bundle))),
        (with(&|b| b.shares.swap(0, 1)), Box::new(refused(Kind::Bundle))),
        (with(&|b| b.shares[1] = b.shares[0]), Box::new(refused(Kind::Bundle))),
        (with(&|b| b.view[0] ^= 1), Box::new(|e| matches!(e, SecAggError::View(_)))),
        (with(&|b| b.shares.truncate(1)), Box::new(|e| matches!(e, SecAggError::BelowThreshold { .. }))),
        (with(&|b| b.shares[0].party = id(0)), Box::new(|e| e == SecAggError::UnknownParty(id(0)))),
        (with(&|b| b.shares[0].party = PartyId(0)), Box::new(|e| e == SecAggError::UnknownParty(PartyId(0)))),
        (with(&|b| b.shares[1].bytes[79] ^= 1), Box::new(sealed(2))),
        (with(&|b| b.shares[1].bytes[0] ^= 1), Box::new(sealed(2))),
        // Shares swapped between dealers, or meant for another receiver.
        (with(&|b| b.shares[0].bytes = b.shares[1].bytes), Box::new(sealed(1))),
        (with(&|b| b.shares[1].bytes = other.shares[1].bytes), Box::new(sealed(2))),
    ];
    for (i, (message, expected)) in wrong.iter().enumerate() {
        let refusal = run.client(0).mask(message, &[0]).unwrap_err();
        assert!(expected(refusal.clone()), "{i}: {refusal}");
    }
    assert!(run.client(0).mask(&bundles[&id(0)], &[0]).is_ok());
}

/// Parties that were told of different dealers do not fit together; the pairs would not cancel.
#[test]
fn two_lists_of_dealers() {
    let mut run = Run::new(&plan(4, Ring::U64, 1));
    let bundles = run.deals().unwrap();
    let mut short: Bundle = decode(&bundles[&id(0)]);
    short.shares.pop();
    let short = run.forge(Kind::Bundle, &short);
    let masked = run.client(0).mask(&short, &[0]).unwrap();
    let other_view = SecAggError::View(format!("party {}", id(0)));
    assert_eq!(run.server.receive(&masked), Err(other_view));
    for i in 1..4 {
        let masked = run.client(i).mask(&bundles[&id(i)], &[0]).unwrap();
        run.server.receive(&masked).unwrap();
    }
    // A consent of another view is no consent.
    let survivors = run.server.close_masked().unwrap();
    let wrong = run.forge_from(1, Kind::Consent, &Consent { view: [0; 32] });
    assert_eq!(run.server.receive(&wrong), Err(SecAggError::View(format!("party {}", id(1)))));
    let right = run.client(1).consent(&survivors).unwrap();
    assert!(run.server.receive(&right).unwrap().fresh);
}

#[test]
fn survivors_that_break_a_rule() {
    let mut run = Run::with_drops(&plan(5, Ring::U64, 1), &[None, None, None, None, Some(Kind::Deal)]);
    let good = run.masked(&vectors(5, 1, 3)).unwrap();
    let view = decode::<Survivors>(&good).view;
    let list = |places: &[usize]| {
        let parties = places.iter().map(|i| id(*i)).collect();
        run.forge(Kind::Survivors, &Survivors { view, parties })
    };
    let below = list(&[0, 1, 2]);
    // No dealer; unknown to the plan; twice; in the wrong order; without the party asked.
    let wrong = [&[0, 1, 2, 4][..], &[0, 1, 2, 9], &[0, 1, 1, 2, 3], &[1, 0, 2, 3], &[1, 2, 3]].map(list);
    let other_view =
        run.forge(Kind::Survivors, &Survivors { view: [0; 32], parties: (0..4).map(id).collect() });
    let too_few = SecAggError::BelowThreshold { kind: Kind::Survivors, have: 3, need: 4 };
    assert_eq!(run.client(0).consent(&below), Err(too_few));
    for list in wrong {
        assert!(run.client(0).consent(&list).is_err_and(refused(Kind::Survivors)));
    }
    assert_eq!(run.client(0).consent(&other_view), Err(SecAggError::View("the server".to_owned())));
    assert!(run.client(0).consent(&good).is_ok());
}

/// The attack that the consents are for: with one list that a party is in and one that it is not, the server would
/// get its seed and its mask key, and so its vector.
#[test]
fn both_secrets_of_a_party() {
    let vectors = vectors(5, 1, 3);
    let mut run = Run::new(&plan(5, Ring::U64, 1));
    let all = run.masked(&vectors).unwrap();
    let view = decode::<Survivors>(&all).view;
    let four: Vec<PartyId> = (0..4).map(id).collect();
    let without = run.forge(Kind::Survivors, &Survivors { view, parties: four.clone() });

    let consents: Vec<Vec<u8>> = (0..5).map(|i| run.client(i).consent(&all).unwrap()).collect();
    for i in 0..4 {
        assert_eq!(run.client(i).consent(&without), Err(SecAggError::SecondSurvivors));
    }
    fn unmask<'a>(messages: &[&'a [u8]]) -> Unmask<'a> {
        Unmask { consents: messages.iter().map(|message| Bytes::new(message)).collect() }
    }
    let first: Vec<&[u8]> = consents.iter().map(Vec::as_slice).collect();
    let asked = run.forge(Kind::Unmask, &unmask(&first));

    // Colluding parties sign the second list; the honest one is asked by it, before and after it has answered.
    let second = parties_view(Kind::Survivors, &view, four.iter());
    let signed: Vec<Vec<u8>> =
        (1..5).map(|i| run.forge_from(i, Kind::Consent, &Consent { view: second })).collect();
    let colluding: Vec<&[u8]> = signed.iter().map(Vec::as_slice).collect();
    let other = run.forge(Kind::Unmask, &unmask(&colluding));
    let mixed = run.forge(Kind::Unmask, &unmask(&[first[0], first[1], first[2], colluding[2]]));
    let mut learnt = Vec::new();
    for message in [&other, &mixed, &asked, &other, &mixed, &asked] {
        match run.client(0).reveal(message) {
            Ok(reveal) => learnt.push(reveal),
            Err(e) => assert!(matches!(e, SecAggError::View(_)), "{e}"),
        }
    }
    assert_eq!(learnt.len(), 2);
    assert_eq!(learnt[0], learnt[1]);
    let reveal: Reveal = decode(&learnt[0]);
    let seeds: BTreeSet<PartyId> = reveal.seeds.iter().map(|share| share.of).collect();
    let keys: BTreeSet<PartyId> = reveal.keys.iter().map(|share| share.of).collect();
    assert!(seeds.is_disjoint(&keys));
    assert_eq!((seeds.len(), keys.len()), (5, 0));
}

#[test]
fn consents_that_break_a_rule() {
    let drops = [None, None, None, None, Some(Kind::Masked)];
    let mut run = Run::with_drops(&plan(5, Ring::U64, 1), &drops);
    let survivors = run.masked(&vectors(5, 1, 3)).unwrap();
    let before = run.forge(Kind::Unmask, &Unmask { consents: vec![] });
    assert_eq!(run.client(0).reveal(&before), Err(SecAggError::OutOfOrder(Kind::Unmask)));
    let signed: Vec<Vec<u8>> = (0..4).map(|i| run.client(i).consent(&survivors).unwrap()).collect();
    let view = decode::<Consent>(&signed[0]).view;
    let dropped = run.forge_from(4, Kind::Consent, &Consent { view });
    let forged = wire::seal(&run.session, Kind::Consent, id(3), &key(id(4).0), &Consent { view }).unwrap();
    let ask = |messages: &[&Vec<u8>]| {
        let consents = messages.iter().map(|message| Bytes::new(message)).collect();
        run.forge(Kind::Unmask, &Unmask { consents })
    };
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| &signed[i]);
    let few = ask(&[a, b, c]);
    let twice = ask(&[a, b, c, c]);
    let no_survivor = ask(&[a, b, c, &dropped]);
    let not_theirs = ask(&[a, b, c, &forged]);
    let good = ask(&[a, b, c, d]);
    let below = SecAggError::BelowThreshold { kind: Kind::Unmask, have: 3, need: 4 };
    assert_eq!(run.client(0).reveal(&few), Err(below));
    assert!(run.client(0).reveal(&twice).is_err_and(refused(Kind::Unmask)));
    assert!(run.client(0).reveal(&no_survivor).is_err_and(refused(Kind::Unmask)));
    let signature = SecAggError::Signature(format!("party {}", id(3)));
    assert_eq!(run.client(0).reveal(&not_theirs), Err(signature));
    let reveal = run.client(0).reveal(&good).unwrap();
    let reveal: Reveal = decode(&reveal);
    assert_eq!(
        reveal.seeds.iter().map(|share| share.of).collect::<Vec<_>>(),
        (0..4).map(id).collect::<Vec<_>>()
    );
    assert_eq!(reveal.keys.iter().map(|share| share.of).collect::<Vec<_>>(), [id(4)]);
}
