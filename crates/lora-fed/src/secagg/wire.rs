//! The envelope of every message: who, which round, which kind, signed.
//!
//! ```text
//! version 1 | kind 1 | run 16 | number 8 | sender 4 | signature 64 | body (postcard)
//! ```
//!
//! Integers are little-endian. The signature covers the session's digest, the header and SHA-256 of the body; but
//! for the plan, on which the session rests, a body is decoded only after its signature held.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Result, SecAggError};
use super::keys::IdentityKey;
use super::plan::{PartyId, RoundId, SERVER, Session};

/// The version of the wire; any change of a message, a derivation or a mask raises it.
pub const VERSION: u8 = 1;

/// Bytes before the signature.
const SIGNED: usize = 30;

/// Bytes before the body.
pub const HEADER: usize = SIGNED + 64;

/// The kinds of messages, in the order of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Server, to all: the plan.
    Plan = 0,
    /// Party: its keys of this round.
    Advertise = 1,
    /// Server, to all: everybody's keys.
    KeyList = 2,
    /// Party: shares of its two secrets, sealed for each peer.
    Deal = 3,
    /// Server, to one: the shares meant for it.
    Bundle = 4,
    /// Party: its masked vector.
    Masked = 5,
    /// Server, to all: whose vectors came.
    Survivors = 6,
    /// Party: its signature under that list.
    Consent = 7,
    /// Server, to all: the signatures.
    Unmask = 8,
    /// Party: its shares of the survivors' seeds and of the others' mask keys.
    Reveal = 9,
}

impl Kind {
    /// In the order of a round.
    pub const ALL: [Self; 10] = [
        Self::Plan,
        Self::Advertise,
        Self::KeyList,
        Self::Deal,
        Self::Bundle,
        Self::Masked,
        Self::Survivors,
        Self::Consent,
        Self::Unmask,
        Self::Reveal,
    ];

    /// Is it the server that sends it?
    pub const fn from_server(self) -> bool {
        (self as u8).is_multiple_of(2)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Advertise => "advertise",
            Self::KeyList => "key list",
            Self::Deal => "deal",
            Self::Bundle => "bundle",
            Self::Masked => "masked",
            Self::Survivors => "survivors",
            Self::Consent => "consent",
            Self::Unmask => "unmask",
            Self::Reveal => "reveal",
        })
    }
}

/// A message taken apart, nothing in it verified.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    /// What it says it is.
    pub kind: Kind,
    /// Of which round.
    pub round: RoundId,
    /// From which party; of no meaning where the server sends.
    pub sender: PartyId,
    signature: &'a [u8; 64],
    header: &'a [u8],
    /// The encoded message.
    pub body: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes a message apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let short = SecAggError::Malformed("it is too short");
        let (header, rest) = bytes.split_at_checked(SIGNED).ok_or(short.clone())?;
        let (signature, body) = rest.split_first_chunk::<64>().ok_or(short)?;
        if header[0] != VERSION {
            return Err(SecAggError::Malformed("it is of another version of the protocol"));
        }
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == header[1]);
        let kind = kind.ok_or(SecAggError::Malformed("there is no such kind"))?;
        let round =
            RoundId { run: array(&header[2..18]), number: u64::from_le_bytes(array(&header[18..26])) };
        let sender = PartyId(u32::from_le_bytes(array(&header[26..30])));
        Ok(Self { kind, round, sender, signature, header, body })
    }
}

/// The slice is of that length.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

/// A message whose signature held.
pub(crate) struct Opened<'a> {
    pub(crate) sender: PartyId,
    /// SHA-256 of the body.
    pub(crate) digest: [u8; 32],
    body: &'a [u8],
}

impl<'a> Opened<'a> {
    pub(crate) fn decode<T: Deserialize<'a>>(&self) -> Result<T> {
        decode(self.body)
    }
}

/// Encodes and signs. Public for other engines and for tests that play the villain.
pub fn seal<T: Serialize>(
    session: &Session,
    kind: Kind,
    sender: PartyId,
    key: &IdentityKey,
    body: &T,
) -> Result<Vec<u8>> {
    let round = session.plan().round;
    let sender = if kind.from_server() { SERVER } else { sender };
    let mut message = Vec::with_capacity(HEADER);
    message.extend([VERSION, kind as u8]);
    message.extend(round.run);
    message.extend(round.number.to_le_bytes());
    message.extend(sender.0.to_le_bytes());
    message.extend([0; 64]);
    let mut message = postcard::to_extend(body, message)
        .map_err(|_| SecAggError::Malformed("the body cannot be encoded"))?;
    let (header, body) = message.split_at(HEADER);
    let signature = key.sign(&signed(session, &header[..SIGNED], &Sha256::digest(body).into()));
    message[SIGNED..HEADER].copy_from_slice(&signature);
    Ok(message)
}

/// Verifies round, kind, sender and signature.
pub(crate) fn open<'a>(session: &Session, kind: Kind, bytes: &'a [u8]) -> Result<Opened<'a>> {
    let envelope = Envelope::parse(bytes)?;
    if bytes.len() > limit(session, kind) {
        return Err(SecAggError::Malformed("it is too long"));
    }
    if envelope.round != session.plan().round {
        return Err(SecAggError::WrongRound(envelope.round));
    }
    if envelope.kind != kind {
        return Err(SecAggError::WrongKind { got: envelope.kind, want: kind });
    }
    let sender = envelope.sender;
    let (identity, who) = match (kind.from_server(), sender) {
        (true, SERVER) => (session.server(), "the server".to_owned()),
        (true, _) => return Err(SecAggError::UnknownParty(sender)),
        (false, _) => (session.identity(sender)?, format!("party {sender}")),
    };
    let digest = Sha256::digest(envelope.body).into();
    if !identity.verify(&signed(session, envelope.header, &digest), envelope.signature) {
        return Err(SecAggError::Signature(who));
    }
    Ok(Opened { sender, digest, body: envelope.body })
}

/// The most bytes that a message of this kind can have; a transport should read no more.
pub fn limit(session: &Session, kind: Kind) -> usize {
    let plan = session.plan();
    HEADER
        + match kind {
            Kind::Masked => 64 + plan.len * plan.ring.bytes(),
            // Per party at most: its signed keys, 160 bytes.
            _ => 128 + 192 * plan.parties.len(),
        }
}

/// Decodes a body, all of it.
pub(crate) fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(SecAggError::Malformed("bytes follow the message")),
        Err(_) => Err(SecAggError::Malformed("the body does not decode")),
    }
}

fn signed(session: &Session, header: &[u8], digest: &[u8; 32]) -> Vec<u8> {
    [b"lora-fed secagg 1 message\0", session.digest().as_slice(), header, digest].concat()
}
