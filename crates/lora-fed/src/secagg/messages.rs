//! The bodies of the nine messages, and the views that tie them together.
//!
//! A view is the digest of everything a party has agreed to so far: plan and identities, then keys, then dealers,
//! then survivors. Two parties that were shown different lists have different views, and nothing of the one is
//! accepted by the other.

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, Bytes};
use sha2::{Digest, Sha256};

use super::keys::Secret;
use super::plan::{PartyId, Session};

/// Bytes of two sealed shares: 64, and the tag.
pub const SEALED: usize = 80;

/// A digest of what was agreed to so far.
pub type View = [u8; 32];

/// The X25519 keys of a party for one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertise {
    /// Seals shares.
    pub seal: [u8; 32],
    /// Agrees on masks; its secret half is what is shared out.
    pub mask: [u8; 32],
}

/// Everybody's [`Advertise`], as signed by its party.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList<'a> {
    /// Whole messages.
    #[serde(borrow)]
    pub adverts: Vec<&'a Bytes>,
}

/// A share of a party's seed and one of its mask key, sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The other party: the receiver in a [`Deal`], the dealer in a [`Bundle`].
    pub party: PartyId,
    /// ChaCha20-Poly1305.
    pub bytes: ByteArray<SEALED>,
}

/// A party's shares for all its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deal {
    /// [`keys_view`].
    pub view: View,
    /// Of the seed: what the shares must add up to.
    pub commitment: [u8; 32],
    /// One for each peer.
    pub shares: Vec<Sealed>,
}

/// All shares dealt to one party.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Whose.
    pub to: PartyId,
    /// [`keys_view`].
    pub view: View,
    /// One from each peer that dealt, in rising order.
    pub shares: Vec<Sealed>,
}

/// A masked vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Masked<'a> {
    /// [`parties_view`] of the dealers.
    pub view: View,
    /// The coordinates, little-endian, 4 or 8 bytes each.
    #[serde(borrow)]
    pub vector: &'a Bytes,
}

/// Whose masked vectors came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivors {
    /// [`parties_view`] of the dealers.
    pub view: View,
    /// In rising order.
    pub parties: Vec<PartyId>,
}

/// A party saw this list of survivors, and will see no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// [`parties_view`] of the survivors.
    pub view: View,
}

/// The consents of at least a threshold of survivors, as signed by each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmask<'a> {
    /// Whole messages.
    #[serde(borrow)]
    pub consents: Vec<&'a Bytes>,
}

/// One share of a party's secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Share {
    /// Whose secret.
    pub of: PartyId,
    /// The share.
    pub share: Secret,
}

/// What takes the masks off the sum. No party is in both lists.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reveal {
    /// [`parties_view`] of the survivors.
    pub view: View,
    /// Of the survivors' seeds, in rising order.
    pub seeds: Vec<Share>,
    /// Of the mask keys of those who dealt and then dropped out, in rising order.
    pub keys: Vec<Share>,
}

/// The view after keys were exchanged. The parties must be in rising order.
pub fn keys_view<'a>(
    session: &Session,
    keys: impl ExactSizeIterator<Item = (&'a PartyId, &'a Advertise)>,
) -> View {
    let mut hash = Sha256::new();
    hash.update(b"lora-fed secagg 1 keys\0");
    hash.update(session.digest());
    hash.update((keys.len() as u64).to_le_bytes());
    for (party, advert) in keys {
        hash.update(party.0.to_le_bytes());
        hash.update(advert.seal);
        hash.update(advert.mask);
    }
    hash.finalize().into()
}

/// The view after a list of parties was settled; `kind` is the message that settled it. The parties must be in
/// rising order.
pub fn parties_view<'a>(
    kind: super::Kind,
    before: &View,
    parties: impl ExactSizeIterator<Item = &'a PartyId>,
) -> View {
    let mut hash = Sha256::new();
    hash.update(b"lora-fed secagg 1 parties\0");
    hash.update([kind as u8]);
    hash.update(before);
    hash.update((parties.len() as u64).to_le_bytes());
    parties.for_each(|party| hash.update(party.0.to_le_bytes()));
    hash.finalize().into()
}
