//! Bytes in, bytes out: round trips, and bytes from nowhere.
#![allow(missing_docs)]

mod common;

use std::sync::OnceLock;

use common::{Run, decode, id, plan, vectors};
use lora_fed::secagg::messages::{
    Advertise, Bundle, Consent, Deal, KeyList, Masked, Reveal, Survivors, Unmask,
};
use lora_fed::secagg::{Kind, Plan, Ring, Session, wire};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

/// One message of each kind, of a real round.
fn messages() -> &'static Vec<(Kind, Vec<u8>)> {
    static MESSAGES: OnceLock<Vec<(Kind, Vec<u8>)>> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let vectors = vectors(4, 3, 1);
        let drops = [None, None, None, Some(Kind::Masked)];
        let mut run = Run::with_drops(&plan(4, Ring::U64, 3), &drops);
        let keys = run.keys().unwrap();
        run.all(Kind::Deal, |client| client.deal(&keys));
        let bundles = run.server.close_deals().unwrap();
        let bundle = |party| bundles.iter().find(|(to, _)| *to == party).unwrap().1.clone();
        run.all(Kind::Masked, |client| client.mask(&bundle(client.me()), &vectors[0]));
        let survivors = run.server.close_masked().unwrap();
        run.all(Kind::Consent, |client| client.consent(&survivors));
        let unmask = run.server.close_consents().unwrap();
        run.all(Kind::Reveal, |client| client.reveal(&unmask));
        let sent = run.sent.iter().filter(|(party, ..)| *party == id(0));
        let mut messages: Vec<_> = sent.map(|(_, kind, message)| (*kind, message.clone())).collect();
        messages.extend([
            (Kind::Plan, run.session.propose(&common::server_key()).unwrap()),
            (Kind::KeyList, keys),
            (Kind::Bundle, bundle(id(0))),
            (Kind::Survivors, survivors),
            (Kind::Unmask, unmask),
        ]);
        messages.sort();
        messages
    })
}

fn again<'a, T: Serialize + Deserialize<'a>>(message: &'a [u8]) {
    let body = wire::Envelope::parse(message).unwrap().body;
    assert_eq!(postcard::to_allocvec(&decode::<T>(message)).unwrap(), body);
}

#[test]
fn every_message_comes_back() {
    let messages = messages();
    assert!(messages.iter().map(|(kind, _)| *kind).eq(Kind::ALL));
    for (kind, message) in messages {
        match kind {
            Kind::Plan => again::<Plan>(message),
            Kind::Advertise => again::<Advertise>(message),
            Kind::KeyList => again::<KeyList<'_>>(message),
            Kind::Deal => again::<Deal>(message),
            Kind::Bundle => again::<Bundle>(message),
            Kind::Masked => again::<Masked<'_>>(message),
            Kind::Survivors => again::<Survivors>(message),
            Kind::Consent => again::<Consent>(message),
            Kind::Unmask => again::<Unmask<'_>>(message),
            Kind::Reveal => again::<Reveal>(message),
        }
        let envelope = wire::Envelope::parse(message).unwrap();
        assert_eq!(envelope.kind, *kind);
        assert_eq!(kind.from_server(), envelope.sender != id(0));
    }
    let plan = plan(4, Ring::U32, 3);
    let bytes = postcard::to_allocvec(&plan).unwrap();
    assert_eq!(postcard::from_bytes::<Plan>(&bytes).unwrap(), plan);
}

/// The limit leaves no honest message out, for the most parties and for few.
#[test]
fn limits_are_above_what_is_sent() {
    for (n, len) in [(2, 0), (2, 1), (4, 3), (40, 100)] {
        let mut run = Run::new(&plan(n, Ring::U64, len));
        let vectors = vectors(n, len, 1);
        let session: Session = run.session.clone();
        let unmask = run.consents(&vectors).unwrap();
        assert!(unmask.len() <= wire::limit(&session, Kind::Unmask));
        run.all(Kind::Reveal, |client| client.reveal(&unmask));
        for (_, kind, message) in &run.sent {
            assert!(message.len() <= wire::limit(&session, *kind), "{kind} of {n}");
        }
        run.server.finish().unwrap();
    }
}

/// Whatever the bytes are, an error and no panic; with signatures left out of it, too.
fn swallow(bytes: &[u8]) {
    let _ = wire::Envelope::parse(bytes);
    assert!(Session::accept(bytes, &common::directory(3)).is_err());
    let _ = postcard::from_bytes::<Advertise>(bytes);
    let _ = postcard::from_bytes::<KeyList<'_>>(bytes);
    let _ = postcard::from_bytes::<Deal>(bytes);
    let _ = postcard::from_bytes::<Bundle>(bytes);
    let _ = postcard::from_bytes::<Masked<'_>>(bytes);
    let _ = postcard::from_bytes::<Survivors>(bytes);
    let _ = postcard::from_bytes::<Consent>(bytes);
    let _ = postcard::from_bytes::<Unmask<'_>>(bytes);
    let _ = postcard::from_bytes::<Reveal>(bytes);
    if let Ok(plan) = postcard::from_bytes::<Plan>(bytes) {
        let _ = plan.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn bytes_from_nowhere(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        swallow(&bytes);
    }

    /// Lengths that claim gigabytes, with nothing behind them.
    #[test]
    fn lengths_that_lie(
        before in prop::collection::vec(any::<u8>(), 0..100),
        length in prop::collection::vec(0x80u8..=0xff, 1..10),
        last in 0u8..0x80,
    ) {
        let mut bytes = before;
        bytes.extend(length);
        bytes.push(last);
        swallow(&bytes);
    }

    #[test]
    fn real_messages_changed(
        which in 0usize..10,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        grown in prop::collection::vec(any::<u8>(), 0..4),
    ) {
        let (_, message) = &messages()[which];
        let mut changed = message.clone();
        for (place, byte) in &edits {
            changed[place.index(message.len())] = *byte;
        }
        changed.truncate(cut.index(message.len()) + 1);
        changed.extend(&grown);
        swallow(&changed);
        swallow(&changed[wire::HEADER.min(changed.len())..]);
        if changed != *message {
            let session = common::session(&plan(4, Ring::U64, 3));
            let mut server = lora_fed::secagg::Server::open(common::server_key(), session).unwrap();
            prop_assert!(server.receive(&changed).is_err());
        }
    }
}

/// As the properties above, but signed as they should be, so that bodies from nowhere reach the state machines.
#[test]
fn signed_nonsense() {
    let mut seed = vectors(1, 4000, 77).remove(0).into_iter();
    for kind in Kind::ALL {
        let mut run = Run::new(&plan(4, Ring::U64, 3));
        let vectors = vectors(4, 3, 1);
        match kind {
            Kind::Plan | Kind::Advertise => {}
            Kind::KeyList | Kind::Deal => drop(run.keys().unwrap()),
            Kind::Bundle | Kind::Masked => drop(run.deals().unwrap()),
            Kind::Survivors | Kind::Consent => drop(run.masked(&vectors).unwrap()),
            Kind::Unmask | Kind::Reveal => drop(run.consents(&vectors).unwrap()),
        }
        for _ in 0..60 {
            let Some(n) = seed.next() else { return };
            let body: Vec<u8> =
                (0..n % 300).map(|i| (n.rotate_left(i as u32) ^ i.wrapping_mul(n)) as u8).collect();
            let raw = Raw(&body);
            let refused = if kind.from_server() {
                let message = run.forge(kind, &raw);
                let client = run.client(0);
                match kind {
                    Kind::Plan => Session::accept(&message, &common::directory(4)).map(|_| message),
                    Kind::KeyList => client.deal(&message),
                    Kind::Bundle => client.mask(&message, &vectors[0]),
                    Kind::Survivors => client.consent(&message),
                    _ => client.reveal(&message),
                }
                .is_err()
            } else {
                let message = run.forge_from(0, kind, &raw);
                run.server.receive(&message).is_err()
            };
            assert!(refused || (kind == Kind::Advertise && body.len() == 64), "{kind}");
        }
    }
}

/// Bytes that are encoded as themselves.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeTuple;
        let mut tuple = serializer.serialize_tuple(self.0.len())?;
        self.0.iter().try_for_each(|byte| tuple.serialize_element(byte))?;
        tuple.end()
    }
}
