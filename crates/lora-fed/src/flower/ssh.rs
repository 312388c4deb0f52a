//! Keys as OpenSSH writes them: Flower's tools take nothing else.
//!
//! RFC 4251 (strings), RFC 5656 (EC keys), OpenSSH's `PROTOCOL.key` (private files, here without a passphrase).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lora_core::{Error, Result};
use zeroize::Zeroizing;

/// The curves that both we and Flower take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nist {
    P256,
    P384,
}

impl Nist {
    const ALL: [Self; 2] = [Self::P256, Self::P384];

    fn name(self) -> &'static str {
        match self {
            Self::P256 => "nistp256",
            Self::P384 => "nistp384",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

/// The public line; `point` is uncompressed SEC1.
pub(crate) fn public(curve: Nist, point: &[u8], comment: &str) -> String {
    let kind = format!("ecdsa-sha2-{}", curve.name());
    let mut blob = Vec::new();
    for part in [kind.as_bytes(), curve.name().as_bytes(), point] {
        blob.extend_from_slice(&(part.len() as u32).to_be_bytes());
        blob.extend_from_slice(part);
    }
    format!("{kind} {} {comment}\n", STANDARD.encode(blob))
}

/// The curve and the scalar of a private file.
pub(crate) fn private(pem: &str) -> Result<(Nist, Zeroizing<Vec<u8>>)> {
    let bad = || Error::data("not an OpenSSH private key that is understood");
    let lines = pem.lines().map(str::trim).filter(|line| !line.starts_with("-----"));
    let text = Zeroizing::new(lines.collect::<String>());
    let blob = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(|_| bad())?);
    let mut rest = Reader(blob.strip_prefix(b"openssh-key-v1\0").ok_or_else(bad)?);
    if rest.string().ok_or_else(bad)? != b"none" {
        return Err(Error::unsupported("the private key has a passphrase")
            .hint("take it off with `ssh-keygen -p -N '' -f KEY`"));
    }
    let one = |rest: &mut Reader<'_>| {
        rest.string()?; // the name of the key derivation
        rest.string()?; // its options
        if rest.number()? != 1 {
            return None;
        }
        rest.string()?; // the public key
        let mut inner = Reader(rest.string()?);
        if inner.number()? != inner.number()? {
            return None;
        }
        let kind = inner.string()?;
        let curve = *Nist::ALL.iter().find(|c| kind == format!("ecdsa-sha2-{}", c.name()).as_bytes())?;
        if inner.string()? != curve.name().as_bytes() {
            return None;
        }
        inner.string()?; // the public point
        // A positive integer: a zero before it if it looks negative, none where it is short.
        let number = inner.string()?;
        let number = number.strip_prefix(&[0]).unwrap_or(number);
        let mut scalar = Zeroizing::new(vec![0; curve.bytes().checked_sub(number.len())?]);
        scalar.extend_from_slice(number);
        Some((curve, scalar))
    };
    one(&mut rest).ok_or_else(|| bad().hint("keys on P-256 and P-384 are understood"))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<usize> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    }

    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        let (string, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(string)
    }
}
