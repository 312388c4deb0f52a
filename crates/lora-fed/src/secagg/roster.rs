//! The keys of a round as both sides read them, and the masks of its pairs.

use std::collections::BTreeMap;

use serde_bytes::Bytes;

use super::error::{Result, SecAggError};
use super::keys::{RoundKey, Secret, Use, derive};
use super::mask::Sign;
use super::messages::{Advertise, View, keys_view};
use super::plan::{PartyId, Session};
use super::wire::{self, Kind};

/// Who advertised which keys.
#[derive(Debug, Clone)]
pub(crate) struct Roster {
    pub(crate) keys: BTreeMap<PartyId, Advertise>,
    pub(crate) view: View,
}

impl Roster {
    pub(crate) fn new(session: &Session, keys: BTreeMap<PartyId, Advertise>) -> Self {
        let view = keys_view(session, keys.iter());
        Self { keys, view }
    }

    /// Verifies each message by the identity pinned for its sender.
    pub(crate) fn read(session: &Session, adverts: &[&Bytes]) -> Result<Self> {
        let mut keys = BTreeMap::new();
        for message in adverts {
            let opened = wire::open(session, Kind::Advertise, message)?;
            if keys.insert(opened.sender, opened.decode()?).is_some() {
                return Err(SecAggError::Parties { kind: Kind::KeyList, why: "a party stands in it twice" });
            }
        }
        Ok(Self::new(session, keys))
    }

    pub(crate) fn get(&self, party: PartyId) -> Result<&Advertise> {
        self.keys.get(&party).ok_or(SecAggError::UnknownParty(party))
    }

    /// The seed of the mask that `me`, whose key this is, and `peer` share.
    pub(crate) fn pair_seed(
        &self,
        session: &Session,
        key: &RoundKey,
        me: PartyId,
        peer: PartyId,
    ) -> Result<Secret> {
        let shared = key.agree(&self.get(peer)?.mask, peer)?;
        let (low, high) = (me.min(peer), me.max(peer));
        let (low, high) = ((low, session.identity(low)?), (high, session.identity(high)?));
        derive(Use::PairMask, &self.view, low, high, &shared)
    }

    /// The mask that comes of a party's own seed.
    pub(crate) fn self_seed(&self, session: &Session, party: PartyId, seed: &Secret) -> Result<Secret> {
        let party = (party, session.identity(party)?);
        derive(Use::SelfMask, &self.view, party, party, seed)
    }
}

/// How `me` applies the mask shared with `peer`; the peer does the opposite.
pub(crate) fn pair_sign(me: PartyId, peer: PartyId) -> Sign {
    if me < peer { Sign::Plus } else { Sign::Minus }
}

/// Enough of them?
pub(crate) fn enough(session: &Session, kind: Kind, have: usize) -> Result<()> {
    let need = session.plan().threshold;
    if have < need { Err(SecAggError::BelowThreshold { kind, have, need }) } else { Ok(()) }
}
