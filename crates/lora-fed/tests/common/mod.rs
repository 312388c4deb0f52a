//! Rounds in memory, with parties that drop out and servers that cheat.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;

use lora_fed::secagg::{
    Client, Directory, IdentityKey, Kind, PartyId, Plan, Result, Ring, RoundId, Rounds, Secret, Server,
    Session, Sum, wire,
};
use serde::{Deserialize, Serialize};

pub const RUN: [u8; 16] = [7; 16];

pub fn key(number: u32) -> IdentityKey {
    let mut secret = [9; 32];
    secret[..4].copy_from_slice(&number.to_le_bytes());
    IdentityKey::from_secret(&Secret::new(secret))
}

/// The number of the i-th party: not its place, so that mixing them up shows.
pub fn id(i: usize) -> PartyId {
    PartyId(3 * i as u32 + 5)
}

pub fn server_key() -> IdentityKey {
    key(u32::MAX)
}

pub fn directory(n: usize) -> Directory {
    let parties = (0..n).map(|i| (id(i), key(id(i).0).public())).collect();
    Directory { server: server_key().public(), parties }
}

pub fn plan(n: usize, ring: Ring, len: usize) -> Plan {
    Plan::new(RoundId { run: RUN, number: 1 }, (0..n).map(id).collect(), ring, len)
}

pub fn session(plan: &Plan) -> Session {
    Session::new(plan.clone(), &directory(plan.parties.len())).unwrap()
}

pub fn client(session: &Session, i: usize) -> Client {
    Client::join(key(id(i).0), id(i), session.clone(), &mut Rounds::default()).unwrap()
}

/// Pseudo-random vectors over all of 64 bits.
pub fn vectors(n: usize, len: usize, seed: u64) -> Vec<Vec<u64>> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (0..n).map(|_| (0..len).map(|_| next()).collect()).collect()
}

/// Before which of its messages a party falls silent; `None`: never.
pub type Drop = Option<Kind>;

pub const DROPS: [Drop; 6] = [
    None,
    Some(Kind::Advertise),
    Some(Kind::Deal),
    Some(Kind::Masked),
    Some(Kind::Consent),
    Some(Kind::Reveal),
];

/// A round, and all messages that the server was sent.
pub struct Run {
    pub session: Session,
    pub server: Server,
    pub clients: BTreeMap<PartyId, Client>,
    pub drops: BTreeMap<PartyId, Drop>,
    pub sent: Vec<(PartyId, Kind, Vec<u8>)>,
    /// Bytes that the server sent to a party that stayed to the end.
    pub down: usize,
}

impl Run {
    pub fn new(plan: &Plan) -> Self {
        Self::with_drops(plan, &vec![None; plan.parties.len()])
    }

    pub fn with_drops(plan: &Plan, drops: &[Drop]) -> Self {
        let session = session(plan);
        let clients = (0..plan.parties.len()).map(|i| (id(i), client(&session, i))).collect();
        let server = Server::open(server_key(), session.clone()).unwrap();
        let drops = drops.iter().enumerate().map(|(i, drop)| (id(i), *drop)).collect();
        Self { session, server, clients, drops, sent: Vec::new(), down: 0 }
    }

    pub fn client(&mut self, i: usize) -> &mut Client {
        self.clients.get_mut(&id(i)).unwrap()
    }

    /// Every party that is still there answers, and the server takes it.
    pub fn all(&mut self, kind: Kind, mut answer: impl FnMut(&mut Client) -> Result<Vec<u8>>) {
        for (party, client) in &mut self.clients {
            let there = self.drops[party].is_none_or(|drop| kind < drop);
            if !there {
                continue;
            }
            let message = answer(client).unwrap();
            let receipt = self.server.receive(&message).unwrap();
            assert!(receipt.fresh && receipt.kind == kind && receipt.from == *party);
            self.sent.push((*party, kind, message));
        }
    }

    pub fn keys(&mut self) -> Result<Vec<u8>> {
        self.all(Kind::Advertise, Client::advertise);
        self.server.close_keys()
    }

    pub fn deals(&mut self) -> Result<BTreeMap<PartyId, Vec<u8>>> {
        let keys = self.keys()?;
        self.down += keys.len();
        self.all(Kind::Deal, |client| client.deal(&keys));
        Ok(self.server.close_deals()?.into_iter().collect())
    }

    pub fn masked(&mut self, vectors: &[Vec<u64>]) -> Result<Vec<u8>> {
        let bundles = self.deals()?;
        self.down += bundles.values().map(Vec::len).max().unwrap();
        let places: BTreeMap<PartyId, usize> = (0..vectors.len()).map(|i| (id(i), i)).collect();
        self.all(Kind::Masked, |client| client.mask(&bundles[&client.me()], &vectors[places[&client.me()]]));
        self.server.close_masked()
    }

    pub fn consents(&mut self, vectors: &[Vec<u64>]) -> Result<Vec<u8>> {
        let survivors = self.masked(vectors)?;
        self.down += survivors.len();
        self.all(Kind::Consent, |client| client.consent(&survivors));
        self.server.close_consents()
    }

    pub fn finish(&mut self, vectors: &[Vec<u64>]) -> Result<Sum> {
        let unmask = self.consents(vectors)?;
        self.down += unmask.len();
        self.all(Kind::Reveal, |client| client.reveal(&unmask));
        self.server.finish()
    }

    /// Signed as the server signs.
    pub fn forge<T: Serialize>(&self, kind: Kind, body: &T) -> Vec<u8> {
        wire::seal(&self.session, kind, PartyId(0), &server_key(), body).unwrap()
    }

    /// Signed as that party signs.
    pub fn forge_from<T: Serialize>(&self, i: usize, kind: Kind, body: &T) -> Vec<u8> {
        wire::seal(&self.session, kind, id(i), &key(id(i).0), body).unwrap()
    }
}

/// The body, nothing verified.
pub fn decode<'a, T: Deserialize<'a>>(message: &'a [u8]) -> T {
    postcard::from_bytes(wire::Envelope::parse(message).unwrap().body).unwrap()
}
