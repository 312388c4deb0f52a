//! The masks of pairs depend on everything they should, each apart; in a round the parties' own masks would hide it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::keys::{IdentityKey, RoundKey, Secret, Use, derive};
use super::super::mask::{Sign, apply};
use super::super::messages::Advertise;
use super::super::plan::{Directory, PartyId, Plan, Ring, RoundId, Session};
use super::super::roster::Roster;

fn session(number: u64) -> Session {
    let identity = |i: u8| IdentityKey::from_secret(&Secret::new([i; 32])).public();
    let parties = (1..=3).map(|i| (PartyId(i), identity(i as u8))).collect();
    let plan = Plan::new(RoundId { run: [0; 16], number }, (1..=3).map(PartyId).collect(), Ring::U64, 1);
    Session::new(plan, &Directory { server: identity(9), parties }).unwrap()
}

fn key(salt: u8, party: PartyId) -> RoundKey {
    RoundKey::new(&Secret::new([salt + party.0 as u8; 32]))
}

fn roster(session: &Session, salt: u8) -> Roster {
    let advert = |party| {
        let public = key(salt, party).public();
        (party, Advertise { seal: public, mask: public })
    };
    Roster::new(session, session.plan().parties.iter().copied().map(advert).collect::<BTreeMap<_, _>>())
}

#[test]
fn a_pair_has_its_own_seed_in_every_round() {
    let mut seen = BTreeSet::new();
    let mut cases = 0;
    for (number, salt) in [(0, 10), (1, 10), (0, 50)] {
        let session = session(number);
        let roster = roster(&session, salt);
        for (low, high) in [(1, 2), (1, 3), (2, 3)].map(|(low, high)| (PartyId(low), PartyId(high))) {
            let ours = roster.pair_seed(&session, &key(salt, low), low, high).unwrap();
            let theirs = roster.pair_seed(&session, &key(salt, high), high, low).unwrap();
            assert_eq!(ours.expose(), theirs.expose());
            seen.insert(*ours.expose());
            cases += 1;
        }
    }
    assert_eq!(seen.len(), cases);
}

/// The same view and the same numbers: only a secret key that the server has not makes the difference.
#[test]
fn a_seed_depends_on_the_secret() {
    let session = session(0);
    let roster = roster(&session, 10);
    let (one, two) = (PartyId(1), PartyId(2));
    let ours = roster.pair_seed(&session, &key(10, one), one, two).unwrap();
    let guessed = roster.pair_seed(&session, &key(11, one), one, two).unwrap();
    assert_ne!(ours.expose(), guessed.expose());
}

#[test]
fn a_key_depends_on_every_part() {
    let [a, b, c] = [1, 2, 3].map(|i| IdentityKey::from_secret(&Secret::new([i; 32])).public());
    let (one, two, three) = (PartyId(1), PartyId(2), PartyId(3));
    let (secret, other) = (Secret::new([7; 32]), Secret::new([8; 32]));
    let keys = [
        derive(Use::Seal, &[0; 32], (one, &a), (two, &b), &secret),
        derive(Use::PairMask, &[0; 32], (one, &a), (two, &b), &secret),
        derive(Use::SelfMask, &[0; 32], (one, &a), (two, &b), &secret),
        derive(Use::Seal, &[1; 32], (one, &a), (two, &b), &secret),
        derive(Use::Seal, &[0; 32], (three, &a), (two, &b), &secret),
        derive(Use::Seal, &[0; 32], (one, &c), (two, &b), &secret),
        derive(Use::Seal, &[0; 32], (one, &a), (three, &b), &secret),
        derive(Use::Seal, &[0; 32], (one, &a), (two, &c), &secret),
        derive(Use::Seal, &[0; 32], (two, &b), (one, &a), &secret),
        derive(Use::Seal, &[0; 32], (one, &a), (two, &b), &other),
    ];
    let distinct: BTreeSet<[u8; 32]> = keys.iter().map(|key| *key.as_ref().unwrap().expose()).collect();
    assert_eq!(distinct.len(), keys.len());
}

/// All 256 bits of a seed count.
#[test]
fn a_mask_depends_on_every_bit_of_its_seed() {
    let mask = |seed: [u8; 32]| {
        let mut vector = [0; 2];
        apply(&mut vector, Ring::U64, [(&Secret::new(seed), Sign::Plus)]).unwrap();
        vector
    };
    let mut masks = BTreeSet::from([mask([0; 32])]);
    for bit in 0..256 {
        let mut seed = [0; 32];
        seed[bit / 8] = 1 << (bit % 8);
        masks.insert(mask(seed));
    }
    assert_eq!(masks.len(), 257);
}
