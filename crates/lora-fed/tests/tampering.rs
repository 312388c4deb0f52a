//! Changed, swapped, replayed and repeated messages are refused, and a refusal changes nothing.
#![allow(missing_docs)]

mod common;

use common::{Run, client, decode, directory, id, key, plan, session, vectors};
use lora_fed::secagg::messages::{Advertise, Deal, Masked, Reveal};
use lora_fed::secagg::{
    Client, Kind, PartyId, Plan, Result, Ring, RoundId, RoundLog, Rounds, SecAggError, Server, Session,
    plain_sum, wire,
};
use serde_bytes::Bytes;

/// Every bit of a short message, and of a long one every bit of its header and some of its body.
fn flips(message: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let bits = (0..message.len() * 8).filter(|bit| *bit < 96 * 8 || bit % 61 == 0);
    bits.map(|bit| {
        let mut flipped = message.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        flipped
    })
}

#[test]
fn a_flipped_bit_in_any_message_to_the_server() {
    let vectors = vectors(4, 3, 1);
    let mut done = Run::new(&plan(4, Ring::U64, 3));
    done.finish(&vectors).unwrap();
    // The same messages again, to a server that stands before each.
    for awaited in [Kind::Advertise, Kind::Deal, Kind::Masked, Kind::Consent, Kind::Reveal] {
        let mut run = Run::new(&plan(4, Ring::U64, 3));
        let message = match awaited {
            Kind::Advertise => run.client(2).advertise(),
            Kind::Deal => run.keys().and_then(|m| run.client(2).deal(&m)),
            Kind::Masked => run.deals().and_then(|m| run.client(2).mask(&m[&id(2)], &vectors[2])),
            Kind::Consent => run.masked(&vectors).and_then(|m| run.client(2).consent(&m)),
            _ => run.consents(&vectors).and_then(|m| run.client(2).reveal(&m)),
        };
        let message = message.unwrap();
        for flipped in flips(&message) {
            assert!(run.server.receive(&flipped).is_err(), "{awaited}");
        }
        assert!(run.server.receive(&message).unwrap().fresh, "{awaited}: a refusal changed something");
    }
}

#[test]
fn a_flipped_bit_in_any_message_to_a_party() {
    let vectors = vectors(4, 3, 1);
    for awaited in [Kind::KeyList, Kind::Bundle, Kind::Survivors, Kind::Unmask] {
        let mut run = Run::new(&plan(4, Ring::U64, 3));
        let message = match awaited {
            Kind::KeyList => run.keys(),
            Kind::Bundle => run.deals().map(|bundles| bundles[&id(2)].clone()),
            Kind::Survivors => run.masked(&vectors),
            _ => run.consents(&vectors),
        };
        let message = message.unwrap();
        let mut answer = |message: &[u8]| {
            let client = run.client(2);
            match awaited {
                Kind::KeyList => client.deal(message),
                Kind::Bundle => client.mask(message, &vectors[2]),
                Kind::Survivors => client.consent(message),
                _ => client.reveal(message),
            }
        };
        for flipped in flips(&message) {
            assert!(answer(&flipped).is_err(), "{awaited}");
        }
        assert!(answer(&message).is_ok(), "{awaited}: a refusal changed something");
    }
}

#[test]
fn a_plan_that_the_server_did_not_sign() {
    let session = session(&plan(4, Ring::U64, 3));
    let message = session.propose(&common::server_key()).unwrap();
    let accepted = Session::accept(&message, &directory(4)).unwrap();
    assert_eq!((accepted.plan(), accepted.digest()), (session.plan(), session.digest()));
    for flipped in flips(&message) {
        assert!(Session::accept(&flipped, &directory(4)).is_err());
    }
    let forged = session.propose(&key(id(0).0)).unwrap();
    let unsigned = SecAggError::Signature("the server".to_owned());
    assert_eq!(Session::accept(&forged, &directory(4)).unwrap_err(), unsigned);
    // Another pin for one of the parties, and the signature is for another session.
    let mut other = directory(4);
    other.parties.insert(id(2), key(1).public());
    assert_eq!(Session::accept(&message, &other).unwrap_err(), unsigned);
    let long = [message, vec![0; 2000]].concat();
    assert_eq!(Session::accept(&long, &directory(4)).unwrap_err(), SecAggError::Malformed("it is too long"));
    // The most parties still fit.
    let most = common::session(&plan(255, Ring::U64, 1));
    let message = most.propose(&common::server_key()).unwrap();
    assert!(Session::accept(&message, &directory(255)).is_ok());
}

#[test]
fn another_sender() {
    let mut run = Run::new(&plan(4, Ring::U64, 3));
    let mut message = run.client(0).advertise().unwrap();
    message[26..30].copy_from_slice(&id(1).0.to_le_bytes());
    assert_eq!(run.server.receive(&message), Err(SecAggError::Signature(format!("party {}", id(1)))));
    // Signed by one party in the name of another.
    let advert: Advertise = decode(&message);
    let forged = wire::seal(&run.session, Kind::Advertise, id(1), &key(id(0).0), &advert).unwrap();
    assert_eq!(run.server.receive(&forged), Err(SecAggError::Signature(format!("party {}", id(1)))));
    // A party that is not in the plan, or that plays the server.
    let unknown = wire::seal(&run.session, Kind::Advertise, PartyId(2), &key(2), &advert).unwrap();
    assert_eq!(run.server.receive(&unknown), Err(SecAggError::UnknownParty(PartyId(2))));
    let list = wire::seal(&run.session, Kind::KeyList, id(0), &key(id(0).0), &advert).unwrap();
    assert_eq!(run.client(0).deal(&list), Err(SecAggError::Signature("the server".to_owned())));
    assert!(matches!(run.server.receive(&list), Err(SecAggError::WrongKind { .. })));
}

#[test]
fn a_party_that_is_not_who_it_says() {
    let session = session(&plan(3, Ring::U64, 1));
    let mut rounds = Rounds::default();
    let stranger = Client::join(key(id(1).0), id(0), session.clone(), &mut rounds);
    assert_eq!(stranger.unwrap_err(), SecAggError::WrongIdentity(format!("party {}", id(0))));
    // And the failed attempt has not used the round up.
    assert!(Client::join(key(id(0).0), id(0), session.clone(), &mut rounds).is_ok());
    assert!(Server::open(key(3), session).is_err());
}

#[test]
fn messages_of_another_round_or_plan() {
    let first = plan(4, Ring::U64, 3);
    let next = Plan { round: RoundId { number: 2, ..first.round }, ..first.clone() };
    let mut old = Run::new(&first);
    let replayed = old.client(0).advertise().unwrap();
    let mut run = Run::new(&next);
    assert_eq!(run.server.receive(&replayed), Err(SecAggError::WrongRound(first.round)));
    let keys = old.server.receive(&replayed).and_then(|_| old.keys_of_the_rest()).unwrap();
    run.client(0).advertise().unwrap();
    assert_eq!(run.client(0).deal(&keys), Err(SecAggError::WrongRound(first.round)));

    // The same round, but one thing in it differs: the signature holds for no other plan.
    let others = [
        Plan { context: [1; 32], ..first.clone() },
        Plan { threshold: 4, ..first.clone() },
        Plan { ring: Ring::U32, ..first.clone() },
        Plan { len: 4, ..first.clone() },
        Plan { parties: first.parties[..3].to_vec(), threshold: 3, ..first.clone() },
    ];
    for other in others {
        let mut run = Run::new(&other);
        assert_eq!(run.server.receive(&replayed), Err(SecAggError::Signature(format!("party {}", id(0)))));
    }
}

#[test]
fn no_round_is_joined_twice() {
    let plan = plan(3, Ring::U64, 1);
    let mut rounds = Rounds::default();
    let mut join = |run: [u8; 16], number| {
        let plan = Plan { round: RoundId { run, number }, ..plan.clone() };
        Client::join(key(id(0).0), id(0), session(&plan), &mut rounds).map(|_| ())
    };
    join([1; 16], 4).unwrap();
    for number in [0, 3, 4] {
        let round = RoundId { run: [1; 16], number };
        assert_eq!(join([1; 16], number), Err(SecAggError::Replayed(round)));
    }
    join([1; 16], 5).unwrap();
    join([2; 16], 4).unwrap();
    // Stored and read back, it still knows.
    let stored = postcard::to_allocvec(&rounds).unwrap();
    let mut read: Rounds = postcard::from_bytes(&stored).unwrap();
    assert!(read.claim(RoundId { run: [1; 16], number: 5 }).is_err());
    assert!(read.claim(RoundId { run: [1; 16], number: 6 }).is_ok());
}

#[test]
fn repeated_messages() {
    let vectors = vectors(3, 4, 5);
    let mut run = Run::new(&plan(3, Ring::U64, 4));
    let sum = {
        let bundles = run.deals().unwrap();
        // A late message of an earlier stage, seen before: acknowledged; never seen: refused.
        let again = run.sent[0].2.clone();
        assert!(!run.server.receive(&again).unwrap().fresh);
        let first = run.client(0).mask(&bundles[&id(0)], &vectors[0]).unwrap();
        assert!(run.server.receive(&first).unwrap().fresh);
        for _ in 0..3 {
            assert!(!run.server.receive(&first).unwrap().fresh, "counted twice");
        }
        // Another vector from the same party.
        let Masked { view, vector } = decode(&first);
        let mut other = vector.to_vec();
        other[0] ^= 1;
        let other = run.forge_from(0, Kind::Masked, &Masked { view, vector: Bytes::new(&other) });
        let conflict = SecAggError::Conflict { from: id(0), kind: Kind::Masked };
        assert_eq!(run.server.receive(&other), Err(conflict));
        // A party masks no second vector, by the same bundle or another.
        assert!(run.client(0).mask(&bundles[&id(0)], &vectors[1]).is_err());
        assert_eq!(run.server.missing(), [id(1), id(2)]);
        for i in [1, 2] {
            let message = run.client(i).mask(&bundles[&id(i)], &vectors[i]).unwrap();
            run.server.receive(&message).unwrap();
        }
        let survivors = run.server.close_masked().unwrap();
        // The same question gets the same answer.
        let consent = run.client(0).consent(&survivors).unwrap();
        assert_eq!(run.client(0).consent(&survivors).unwrap(), consent);
        run.all(Kind::Consent, |client| client.consent(&survivors));
        let unmask = run.server.close_consents().unwrap();
        let reveal = run.client(0).reveal(&unmask).unwrap();
        assert_eq!(run.client(0).reveal(&unmask).unwrap(), reveal);
        run.all(Kind::Reveal, |client| client.reveal(&unmask));
        run.server.finish().unwrap()
    };
    assert_eq!(sum.vector, plain_sum(vectors.iter().map(Vec::as_slice), Ring::U64, 4));
}

#[test]
fn late_and_early_messages() {
    let vectors = vectors(4, 1, 5);
    let mut run = Run::with_drops(&plan(4, Ring::U64, 1), &[None, None, None, Some(Kind::Deal)]);
    let keys = run.keys().unwrap();
    let early = run.forge_from(0, Kind::Consent, &[0u8; 32]);
    assert_eq!(run.server.receive(&early), Err(SecAggError::OutOfOrder(Kind::Consent)));
    assert_eq!(run.server.close_masked(), Err(SecAggError::OutOfOrder(Kind::Masked)));
    let late = run.client(3).deal(&keys).unwrap();
    run.all(Kind::Deal, |client| client.deal(&keys));
    let bundles = run.server.close_deals().unwrap();
    assert_eq!(run.server.receive(&late), Err(SecAggError::OutOfOrder(Kind::Deal)));
    // A party that dropped out of the dealing cannot come back with a vector.
    let masked = Masked { view: [0; 32], vector: Bytes::new(&[0; 8]) };
    let back = run.forge_from(3, Kind::Masked, &masked);
    assert_eq!(run.server.receive(&back), Err(SecAggError::OutOfOrder(Kind::Masked)));
    assert_eq!(bundles.len(), 3);
    assert!(run.client(0).advertise().is_err() && run.client(0).reveal(&keys).is_err());
    assert!(run.client(0).mask(&bundles[0].1, &vectors[0]).is_ok());
}

#[test]
fn vectors_of_the_wrong_length() {
    let mut run = Run::new(&plan(3, Ring::U32, 4));
    let bundles = run.deals().unwrap();
    for len in [0, 3, 5] {
        let refused = run.client(0).mask(&bundles[&id(0)], &vec![0; len]);
        assert_eq!(refused, Err(SecAggError::WrongLength { got: len, want: 4 }));
    }
    let message = run.client(0).mask(&bundles[&id(0)], &[1, 2, 3, 4]).unwrap();
    let Masked { view, vector } = decode(&message);
    for bytes in [0, 15, 17, 20, 32] {
        let mut vector = vector.to_vec();
        vector.resize(bytes, 0);
        let wrong = run.forge_from(0, Kind::Masked, &Masked { view, vector: Bytes::new(&vector) });
        assert!(
            matches!(run.server.receive(&wrong), Err(SecAggError::WrongLength { want: 4, .. })),
            "{bytes}"
        );
    }
    // Refused vectors are not in the sum.
    assert!(run.server.receive(&message).unwrap().fresh);
    let huge = vec![0; wire::limit(&run.session, Kind::Masked)];
    let huge = run.forge_from(1, Kind::Masked, &Masked { view, vector: Bytes::new(&huge) });
    assert_eq!(run.server.receive(&huge), Err(SecAggError::Malformed("it is too long")));
}

#[test]
fn deals_and_reveals_that_are_not_one_share_for_each() {
    let vectors = vectors(4, 1, 5);
    let mut run = Run::new(&plan(4, Ring::U64, 1));
    let keys = run.keys().unwrap();
    let message = run.client(0).deal(&keys).unwrap();
    let deal: Deal = decode(&message);
    let with = |change: fn(&mut Deal)| {
        let mut deal = deal.clone();
        change(&mut deal);
        deal
    };
    for wrong in [
        with(|deal| deal.shares.truncate(2)),
        with(|deal| deal.shares.swap(0, 1)),
        with(|deal| deal.shares[0].party = id(0)),
        with(|deal| deal.shares.push(deal.shares[0])),
        with(|deal| deal.view[0] ^= 1),
    ] {
        let wrong = run.forge_from(0, Kind::Deal, &wrong);
        assert!(run.server.receive(&wrong).is_err());
    }
    run.server.receive(&message).unwrap();

    let mut run = Run::with_drops(&plan(4, Ring::U64, 1), &[None, None, None, Some(Kind::Masked)]);
    let unmask = run.consents(&vectors).unwrap();
    let message = run.client(0).reveal(&unmask).unwrap();
    let reveal: Reveal = decode(&message);
    assert_eq!((reveal.seeds.len(), reveal.keys.len()), (3, 1));
    let with = |change: fn(&mut Reveal)| {
        let mut reveal = reveal.clone();
        change(&mut reveal);
        reveal
    };
    for wrong in [
        with(|reveal| reveal.seeds.truncate(2)),
        with(|reveal| reveal.keys.clear()),
        with(|reveal| reveal.keys.push(reveal.seeds[0].clone())),
        with(|reveal| reveal.seeds[0].of = id(3)),
        with(|reveal| reveal.view[0] ^= 1),
    ] {
        let wrong = run.forge_from(0, Kind::Reveal, &wrong);
        assert!(run.server.receive(&wrong).is_err());
    }
    run.server.receive(&message).unwrap();
}

/// One wrong share among more than a threshold is left out; where it counts, there is no sum rather than a wrong one.
#[test]
fn wrong_shares_give_no_wrong_sum() {
    let vectors = vectors(4, 2, 5);
    for (liar, stays, dropped) in [(0, true, false), (2, true, false), (1, false, false), (1, false, true)] {
        let mut drops = vec![None; 4];
        if dropped {
            drops[3] = Some(Kind::Masked);
        } else if !stays {
            drops[3] = Some(Kind::Reveal);
        }
        let mut run = Run::with_drops(&plan(4, Ring::U64, 2), &drops);
        let unmask = run.consents(&vectors).unwrap();
        let honest = run.client(liar).reveal(&unmask).unwrap();
        let mut lie: Reveal = decode(&honest);
        let share = if dropped { &mut lie.keys[0] } else { &mut lie.seeds[1] };
        let of = share.of;
        share.share = lora_fed::secagg::Secret::new([3; 32]);
        let lie = run.forge_from(liar, Kind::Reveal, &lie);
        run.all(
            Kind::Reveal,
            |client| {
                if client.me() == id(liar) { Ok(lie.clone()) } else { client.reveal(&unmask) }
            },
        );
        let end = run.server.finish();
        if stays {
            assert_eq!(end.unwrap().vector, plain_sum(vectors.iter().map(Vec::as_slice), Ring::U64, 2));
        } else {
            assert_eq!(end, Err(SecAggError::BadShares(of)));
        }
    }
}

impl Run {
    /// Ends the exchange of keys after the first party has sent its own.
    fn keys_of_the_rest(&mut self) -> Result<Vec<u8>> {
        for i in 1..self.clients.len() {
            let message = client(&self.session.clone(), i).advertise()?;
            self.server.receive(&message)?;
        }
        self.server.close_keys()
    }
}
