//! Long-lived identities (Ed25519), keys of one round (X25519), and what is derived from them (HKDF-SHA256).

use std::fmt;

use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::error::{Result, SecAggError};
use super::plan::PartyId;

/// Thirty-two secret bytes: wiped when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Takes the bytes over.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes; whoever takes them has to keep them.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The randomness of one round: a ChaCha20 stream whose key comes from the operating system, once.
pub(crate) struct Entropy(ChaCha20);

impl Entropy {
    pub(crate) fn system() -> Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|_| SecAggError::Entropy)?;
        Ok(Self::from_seed(&seed))
    }

    pub(crate) fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ChaCha20::new(&(*seed).into(), &[0; 12].into()))
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        self.0.try_apply_keystream(bytes).map_err(|_| SecAggError::Entropy)
    }

    pub(crate) fn secret(&mut self) -> Result<Secret> {
        let mut secret = Secret([0; 32]);
        self.fill(&mut secret.0)?;
        Ok(secret)
    }
}

/// The signing key by which a party (or the server) is known.
#[derive(Clone)]
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// A new one, from the operating system's randomness.
    pub fn generate() -> Result<Self> {
        Ok(Self::from_secret(&Entropy::system()?.secret()?))
    }

    /// The key of a stored secret.
    pub fn from_secret(secret: &Secret) -> Self {
        Self(SigningKey::from_bytes(secret.expose()))
    }

    /// The secret, to be stored with mode 0600.
    pub fn to_secret(&self) -> Secret {
        Secret(self.0.to_bytes())
    }

    /// What the others pin.
    pub fn public(&self) -> Identity {
        Identity(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for IdentityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IdentityKey(.., {:?})", self.public())
    }
}

/// The public half of an [`IdentityKey`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Identity(VerifyingKey);

impl Identity {
    /// Reads 32 bytes; refuses what is no point of the curve, and points of small order, for which one signature
    /// would fit many messages.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self> {
        let weak = || SecAggError::WeakKey("an identity".to_owned());
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| weak())?;
        if key.is_weak() { Err(weak()) } else { Ok(Self(key)) }
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub(crate) fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(")?;
        self.as_bytes()[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..)")
    }
}

/// An X25519 key that lives for one round.
pub(crate) struct RoundKey(StaticSecret);

impl RoundKey {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self(StaticSecret::from(*secret.expose()))
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        PublicKey::from(&self.0).to_bytes()
    }

    /// The secret shared with `peer`'s key; a key of small order, which would make it known to all, is refused.
    pub(crate) fn agree(&self, peer: &[u8; 32], whose: PartyId) -> Result<Secret> {
        let shared = self.0.diffie_hellman(&PublicKey::from(*peer));
        if !shared.was_contributory() {
            return Err(SecAggError::WeakKey(format!("party {whose}")));
        }
        Ok(Secret(shared.to_bytes()))
    }
}

/// What a derived key is for. One name, one use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Seals the shares that the first party deals to the second.
    Seal,
    /// The mask of a pair, the lower number first.
    PairMask,
    /// A party's own mask.
    SelfMask,
}

impl Use {
    const fn label(self) -> &'static [u8] {
        match self {
            Self::Seal => b"seal\0",
            Self::PairMask => b"pair mask\0",
            Self::SelfMask => b"self mask\0",
        }
    }
}

/// A key for one use between two parties of one round. `view` is the digest of the plan, all identities and all
/// keys of the round.
pub(crate) fn derive(
    purpose: Use,
    view: &[u8; 32],
    from: (PartyId, &Identity),
    to: (PartyId, &Identity),
    secret: &Secret,
) -> Result<Secret> {
    let mut key = Secret([0; 32]);
    let (from_id, to_id) = (from.0.0.to_le_bytes(), to.0.0.to_le_bytes());
    let info: [&[u8]; 6] =
        [b"lora-fed secagg 1 key\0", purpose.label(), &from_id, from.1.as_bytes(), &to_id, to.1.as_bytes()];
    Hkdf::<Sha256>::new(Some(view), secret.expose())
        .expand_multi_info(&info, &mut key.0)
        .map_err(|_| SecAggError::Entropy)?;
    Ok(key)
}

/// What a party publishes about its own seed, so that a seed put together from wrong shares is noticed. A seed has
/// 256 bits of entropy, so its hash says nothing about it.
pub(crate) fn commitment(view: &[u8; 32], party: PartyId, seed: &Secret) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"lora-fed secagg 1 seed\0");
    hash.update(view);
    hash.update(party.0.to_le_bytes());
    hash.update(seed.expose());
    hash.finalize().into()
}
