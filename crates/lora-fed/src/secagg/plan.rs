//! What a round is, as all parties must agree: its number, its parties, its ring.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Result, SecAggError};
use super::keys::{Identity, IdentityKey};
use super::wire::{self, Kind};

/// The most parties in a round: shares are points of a field of 256 elements. The graph is complete, so each
/// party expands a mask per peer: meant for some tens.
pub const MAX_PARTIES: usize = 255;

/// The most coordinates of a vector.
pub const MAX_LEN: usize = 1 << 28;

/// A party's number in the federation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartyId(pub u32);

impl fmt::Display for PartyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A round of a run. Numbers only rise within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoundId {
    /// The run: random, or a hash of what it is about.
    pub run: [u8; 16],
    /// The round within it.
    pub number: u64,
}

impl fmt::Display for RoundId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of run ", self.number)?;
        self.run[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where vectors are added: integers modulo a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ring {
    /// Modulo 2^32, four bytes a coordinate.
    U32,
    /// Modulo 2^64, eight bytes a coordinate.
    U64,
}

impl Ring {
    /// Bits of a coordinate.
    pub const fn bits(self) -> u32 {
        match self {
            Self::U32 => 32,
            Self::U64 => 64,
        }
    }

    /// Bytes of a coordinate on the wire.
    pub const fn bytes(self) -> usize {
        self.bits() as usize / 8
    }

    /// The representative of `x` in `0..2^bits`.
    pub const fn reduce(self, x: u64) -> u64 {
        match self {
            Self::U32 => x as u32 as u64,
            Self::U64 => x,
        }
    }
}

/// The public parameters of a round. The server proposes them; every party checks them and binds all its keys,
/// masks and signatures to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Which round.
    pub round: RoundId,
    /// A hash of whatever else must be agreed on: model, clip, scale, noise, data use.
    pub context: [u8; 32],
    /// Who takes part, in rising order.
    pub parties: Vec<PartyId>,
    /// How many must stay to the end, and how many shares make a secret; more than half of the parties.
    pub threshold: usize,
    /// Where the vectors live.
    pub ring: Ring,
    /// Coordinates of a vector.
    pub len: usize,
}

impl Plan {
    /// A plan with [`Plan::usual_threshold`] and no context.
    pub fn new(round: RoundId, parties: Vec<PartyId>, ring: Ring, len: usize) -> Self {
        let threshold = Self::usual_threshold(parties.len());
        Self { round, context: [0; 32], parties, threshold, ring, len }
    }

    /// Two thirds, rounded up, and never half or less: a server that colludes with fewer than a third of the
    /// parties then learns nothing but the sum. Of three it is all: of a sum of two each party takes its own part off.
    pub const fn usual_threshold(parties: usize) -> usize {
        let two_thirds = (2 * parties).div_ceil(3);
        match parties {
            3 => 3,
            _ if 2 * two_thirds > parties => two_thirds,
            _ => parties / 2 + 1,
        }
    }

    /// Does it make sense?
    pub fn check(&self) -> Result<()> {
        let n = self.parties.len();
        let fault = |what: String| Err(SecAggError::Plan(what));
        if !(2..=MAX_PARTIES).contains(&n) {
            return fault(format!("{n} parties: 2 to {MAX_PARTIES} can take part"));
        }
        if !rising(&self.parties) {
            return fault("the parties are not in rising order, each once".to_owned());
        }
        if self.parties.last() == Some(&SERVER) {
            return fault(format!("{SERVER} is no party's number"));
        }
        if self.threshold > n || 2 * self.threshold <= n {
            let t = self.threshold;
            return fault(format!("a threshold of {t} for {n} parties: more than half, and at most all"));
        }
        if self.len > MAX_LEN {
            return fault(format!("{} coordinates: at most {MAX_LEN}", self.len));
        }
        Ok(())
    }
}

/// Stands for the server where a sender is named.
pub(crate) const SERVER: PartyId = PartyId(u32::MAX);

/// In rising order, each once?
pub(crate) fn rising(parties: &[PartyId]) -> bool {
    parties.is_sorted_by(|a, b| a < b)
}

/// Identities pinned beforehand, over a channel that the server does not control.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The server's.
    pub server: Identity,
    /// The parties'.
    pub parties: BTreeMap<PartyId, Identity>,
}

/// A plan together with the identities of those who take part, and the digest of it all.
#[derive(Debug, Clone)]
pub struct Session {
    plan: Plan,
    server: Identity,
    members: BTreeMap<PartyId, Identity>,
    digest: [u8; 32],
}

impl Session {
    /// Checks the plan and finds every party in the directory.
    pub fn new(plan: Plan, directory: &Directory) -> Result<Self> {
        plan.check()?;
        let pinned = |id: &PartyId| {
            let identity = directory.parties.get(id).ok_or(SecAggError::UnknownParty(*id))?;
            Ok((*id, *identity))
        };
        let members: BTreeMap<_, _> = plan.parties.iter().map(pinned).collect::<Result<_>>()?;
        let distinct: BTreeSet<_> = members.values().map(Identity::as_bytes).collect();
        if distinct.len() < members.len() {
            return Err(SecAggError::Plan("two parties have one identity".to_owned()));
        }
        let digest = digest(&plan, &directory.server, &members);
        Ok(Self { plan, server: directory.server, members, digest })
    }

    /// The plan as a message, signed by the server.
    pub fn propose(&self, server: &IdentityKey) -> Result<Vec<u8>> {
        wire::seal(self, Kind::Plan, SERVER, server, &self.plan)
    }

    /// Reads a plan that the server has signed, for these very identities. Whether it is one to take part in (the
    /// context, the threshold, who the others are) is for the caller to judge.
    pub fn accept(message: &[u8], directory: &Directory) -> Result<Self> {
        if message.len() > wire::HEADER + 128 + 5 * MAX_PARTIES {
            return Err(SecAggError::Malformed("it is too long"));
        }
        let session = Self::new(wire::decode(wire::Envelope::parse(message)?.body)?, directory)?;
        wire::open(&session, Kind::Plan, message)?;
        Ok(session)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// SHA-256 of the plan and of all identities. Every key, mask and signature depends on it.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// The pinned identity of a party of this round.
    pub fn identity(&self, party: PartyId) -> Result<&Identity> {
        self.members.get(&party).ok_or(SecAggError::UnknownParty(party))
    }

    /// The pinned identity of the server.
    pub fn server(&self) -> &Identity {
        &self.server
    }

    /// Where the party's shares are evaluated: its place in the plan, counted from 1.
    pub(crate) fn point(&self, party: PartyId) -> Result<u8> {
        let place = self.plan.parties.binary_search(&party).map_err(|_| SecAggError::UnknownParty(party))?;
        u8::try_from(place + 1).map_err(|_| SecAggError::UnknownParty(party))
    }
}

fn digest(plan: &Plan, server: &Identity, members: &BTreeMap<PartyId, Identity>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"lora-fed secagg 1 plan\0");
    hash.update(plan.round.run);
    hash.update(plan.round.number.to_le_bytes());
    hash.update(plan.context);
    hash.update((plan.threshold as u64).to_le_bytes());
    hash.update(plan.ring.bits().to_le_bytes());
    hash.update((plan.len as u64).to_le_bytes());
    hash.update(server.as_bytes());
    hash.update((members.len() as u64).to_le_bytes());
    for (id, identity) in members {
        hash.update(id.0.to_le_bytes());
        hash.update(identity.as_bytes());
    }
    hash.finalize().into()
}
