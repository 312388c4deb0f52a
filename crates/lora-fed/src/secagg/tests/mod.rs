//! What only the inside can be asked.

mod golden;
mod pairs;
mod shamir;

use super::keys::{Entropy, IdentityKey, RoundKey, Secret};
use super::plan::PartyId;

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    assert_eq!(hex.len(), 2 * N);
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap();
    }
    bytes
}

fn secret(hex: &str) -> Secret {
    Secret::new(bytes(hex))
}

#[test]
fn nothing_secret_is_printed() {
    let secret = Secret::new([0xab; 32]);
    let key = IdentityKey::from_secret(&secret);
    let share = super::messages::Share { of: PartyId(1), share: secret.clone() };
    let reveal =
        super::messages::Reveal { view: [0; 32], seeds: vec![share.clone()], keys: vec![share.clone()] };
    let held = super::shamir::Held { seed: secret.clone(), mask_key: secret.clone() };
    for text in [
        format!("{secret:?}{share:?}{held:#?}"),
        format!("{key:?}"),
        format!("{reveal:#?}"),
        format!("{:#?}", (Some(&secret), [&held])),
    ] {
        assert!(!text.contains("171") && !text.to_lowercase().contains("abab"), "{text}");
    }
}

#[test]
fn entropy_is_fresh() {
    let mut system = Entropy::system().unwrap();
    let first = *system.secret().unwrap().expose();
    assert_ne!(first, *system.secret().unwrap().expose());
    assert_ne!(first, *Entropy::system().unwrap().secret().unwrap().expose());
    assert_ne!(IdentityKey::generate().unwrap().public(), IdentityKey::generate().unwrap().public());
    // Drawing overwrites what the buffer held.
    let mut buffer = [0xff; 32];
    Entropy::from_seed(&[1; 32]).fill(&mut buffer).unwrap();
    assert_eq!(buffer, *Entropy::from_seed(&[1; 32]).secret().unwrap().expose());
}

/// RFC 7748, 6.1.
#[test]
fn x25519() {
    let alice = RoundKey::new(&secret("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
    let bob = RoundKey::new(&secret("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
    assert_eq!(alice.public(), bytes("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"));
    let shared = bytes("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    assert_eq!(*alice.agree(&bob.public(), PartyId(1)).unwrap().expose(), shared);
    assert_eq!(*bob.agree(&alice.public(), PartyId(1)).unwrap().expose(), shared);
}
