//! Shamir's sharing of 32-byte secrets, byte by byte over GF(2^8), and shares sealed for their receivers.
//!
//! Bytes over GF(2^8) share any 32 bytes as they are, X25519 keys too, which no field near 2^255 does. The
//! arithmetic is written out here: it is short, and uses neither tables nor branches on secrets, as the crates that
//! do it with logarithm tables do. Field and evaluation are those of `vsss-rs`, whose shares the tests put together.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Nonce};
use zeroize::{Zeroize, Zeroizing};

use super::error::{Result, SecAggError};
use super::keys::{Entropy, Secret};
use super::messages::{SEALED, View};
use super::plan::PartyId;

/// The product modulo x^8 + x^4 + x^3 + x + 1.
fn mul(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    for _ in 0..8 {
        product ^= a & (b & 1).wrapping_neg();
        let carry = (a >> 7).wrapping_neg();
        a = (a << 1) ^ (0x1b & carry);
        b >>= 1;
    }
    product
}

/// `a^254`, which is `1/a` for all but 0.
fn inverse(a: u8) -> u8 {
    let mut power = a;
    let mut product = 1;
    for _ in 0..7 {
        power = mul(power, power);
        product = mul(product, power);
    }
    product
}

/// A polynomial per byte of the secret, of degree `threshold - 1`.
pub(crate) struct Sharing {
    /// Rising powers; the secret is the first.
    coefficients: Vec<[u8; 32]>,
}

impl Drop for Sharing {
    fn drop(&mut self) {
        self.coefficients.zeroize();
    }
}

impl Sharing {
    /// `threshold` must be 1 or more.
    pub(crate) fn new(secret: &Secret, threshold: usize, entropy: &mut Entropy) -> Result<Self> {
        // Allocated whole: growing would leave copies behind.
        let mut sharing = Self { coefficients: vec![[0; 32]; threshold] };
        for row in sharing.coefficients.iter_mut().skip(1) {
            entropy.fill(row)?;
        }
        if let Some(first) = sharing.coefficients.first_mut() {
            first.copy_from_slice(secret.expose());
        }
        Ok(sharing)
    }

    /// The share at `point`, which is not 0.
    pub(crate) fn at(&self, point: u8) -> Secret {
        let mut share = Zeroizing::new([0; 32]);
        for row in self.coefficients.iter().rev() {
            for (byte, coefficient) in share.iter_mut().zip(row) {
                *byte = mul(*byte, point) ^ coefficient;
            }
        }
        Secret::new(*share)
    }
}

/// The secret whose shares lie at these points, which must be distinct and not 0.
pub(crate) fn combine<'a>(shares: impl Iterator<Item = (u8, &'a Secret)> + Clone) -> Secret {
    let mut secret = Zeroizing::new([0; 32]);
    for (point, share) in shares.clone() {
        // Lagrange at 0: the product of x_j / (x_j - x_i).
        let others = shares.clone().map(|(other, _)| other).filter(|other| *other != point);
        let weight = others.fold(1, |w, other| mul(w, mul(other, inverse(other ^ point))));
        for (byte, share) in secret.iter_mut().zip(share.expose()) {
            *byte ^= mul(weight, *share);
        }
    }
    Secret::new(*secret)
}

/// A party's shares of two secrets of one dealer.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) seed: Secret,
    pub(crate) mask_key: Secret,
}

/// Seals them for `to`. `key` is for this dealer, this receiver and this round alone, so the nonce may be fixed.
pub(crate) fn seal(
    held: &Held,
    key: &Secret,
    view: &View,
    from: PartyId,
    to: PartyId,
) -> Result<[u8; SEALED]> {
    let mut plain = Zeroizing::new([0; 64]);
    plain[..32].copy_from_slice(held.seed.expose());
    plain[32..].copy_from_slice(held.mask_key.expose());
    let aad = associated(view, from, to);
    let payload = Payload { msg: plain.as_ref(), aad: &aad };
    let sealed = ChaCha20Poly1305::new(key.expose().into()).encrypt(&Nonce::default(), payload);
    sealed.ok().and_then(|bytes| bytes.try_into().ok()).ok_or(SecAggError::Sealed(from))
}

/// Opens what [`seal`] sealed, by the same view, dealer and receiver.
pub(crate) fn unseal(
    bytes: &[u8; SEALED],
    key: &Secret,
    view: &View,
    from: PartyId,
    to: PartyId,
) -> Result<Held> {
    let aad = associated(view, from, to);
    let payload = Payload { msg: bytes.as_slice(), aad: &aad };
    let plain = ChaCha20Poly1305::new(key.expose().into())
        .decrypt(&Nonce::default(), payload)
        .map(Zeroizing::new)
        .map_err(|_| SecAggError::Sealed(from))?;
    let part = |range| {
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(&plain[range]);
        Secret::new(*bytes)
    };
    Ok(Held { seed: part(0..32), mask_key: part(32..64) })
}

fn associated(view: &View, from: PartyId, to: PartyId) -> Vec<u8> {
    [b"lora-fed secagg 1 share\0".as_slice(), view, &from.0.to_le_bytes(), &to.0.to_le_bytes()].concat()
}
