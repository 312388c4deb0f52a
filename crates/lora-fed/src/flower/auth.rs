//! A node's key, and how it proves that it has it.
//!
//! Each request carries the public key, the time, and an ECDSA-SHA256 signature of the time's text. The SuperLink
//! takes it for about five minutes; the body is not signed, so all else rests on TLS.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lora_core::{Error, Result};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use p384::ecdsa::signature::hazmat::PrehashSigner;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::ssh;
use crate::private_file;

/// A node's private key, on P-256 or P-384.
#[derive(Clone)]
pub struct NodeKey(Curve);

#[derive(Clone)]
enum Curve {
    P256(p256::SecretKey),
    P384(p384::SecretKey),
}

impl std::fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NodeKey").field(&self.openssh("").trim()).finish()
    }
}

impl NodeKey {
    /// A new one, on P-256, from the operating system's generator.
    ///
    /// # Errors
    /// If that generator fails.
    pub fn generate() -> Result<Self> {
        let key = p256::SecretKey::try_generate()
            .map_err(|e| Error::internal("the system gives no randomness").because(e))?;
        Ok(Self(Curve::P256(key)))
    }

    /// Reads PEM: PKCS#8, SEC1, or OpenSSH's own without a passphrase, which is what `flower-supernode` takes.
    ///
    /// # Errors
    /// For anything else, and other curves.
    pub fn from_pem(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----") {
            let (curve, scalar) = ssh::private(text)?;
            let bad = |_| Error::data("the OpenSSH key is out of its curve's range");
            return Ok(Self(match curve {
                ssh::Nist::P256 => Curve::P256(p256::SecretKey::from_slice(&scalar).map_err(bad)?),
                ssh::Nist::P384 => Curve::P384(p384::SecretKey::from_slice(&scalar).map_err(bad)?),
            }));
        }
        if let Ok(key) =
            p256::SecretKey::from_pkcs8_pem(text).or_else(|_| p256::SecretKey::from_sec1_pem(text))
        {
            return Ok(Self(Curve::P256(key)));
        }
        if let Ok(key) =
            p384::SecretKey::from_pkcs8_pem(text).or_else(|_| p384::SecretKey::from_sec1_pem(text))
        {
            return Ok(Self(Curve::P384(key)));
        }
        Err(Error::data("not a private key on P-256 or P-384")
            .hint("make one with `lora fed keys`, or `ssh-keygen -t ecdsa -b 384 -N ''`"))
    }

    /// As PKCS#8 PEM.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn to_pem(&self) -> Result<Zeroizing<String>> {
        match &self.0 {
            Curve::P256(key) => key.to_pkcs8_pem(LineEnding::LF),
            Curve::P384(key) => key.to_pkcs8_pem(LineEnding::LF),
        }
        .map_err(|e| Error::internal(e.to_string()))
    }

    /// Writes a new file that only its owner may read.
    ///
    /// # Errors
    /// If there is a file already, or it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        private_file::write_new(path, &self.to_pem()?)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no key, or others may read it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = private_file::read(path)?;
        Self::from_pem(&text).map_err(|e| e.at(path.display()))
    }

    /// The public key as `SubjectPublicKeyInfo` PEM: by these very bytes a SuperLink knows a node.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn public_pem(&self) -> Result<String> {
        match &self.0 {
            Curve::P256(key) => key.public_key().to_public_key_pem(LineEnding::LF),
            Curve::P384(key) => key.public_key().to_public_key_pem(LineEnding::LF),
        }
        .map_err(|e| Error::internal(e.to_string()))
    }

    /// The public key as OpenSSH's line, `ecdsa-sha2-nistp256 AAAA... comment`: for `flwr supernode register`.
    pub fn openssh(&self, comment: &str) -> String {
        let (curve, point) = match &self.0 {
            Curve::P256(key) => (ssh::Nist::P256, key.public_key().to_sec1_bytes()),
            Curve::P384(key) => (ssh::Nist::P384, key.public_key().to_sec1_bytes()),
        };
        ssh::public(curve, &point, comment)
    }

    /// What a request at `now` carries.
    pub(crate) fn headers(&self, now: OffsetDateTime) -> Result<[(&'static str, String); 3]> {
        let timestamp = timestamp(now);
        let signature = self.sign(timestamp.as_bytes())?;
        Ok([
            ("flwr-public-key", STANDARD.encode(self.public_pem()?)),
            ("flwr-timestamp", timestamp),
            ("flwr-signature", STANDARD.encode(signature)),
        ])
    }

    /// ECDSA with SHA-256 on either curve, as DER.
    fn sign(&self, text: &[u8]) -> Result<Vec<u8>> {
        let digest = Sha256::digest(text);
        let bad = |_| Error::internal("the node's key cannot sign");
        Ok(match &self.0 {
            Curve::P256(key) => {
                let signature: p256::ecdsa::Signature =
                    p256::ecdsa::SigningKey::from(key).sign_prehash(&digest).map_err(bad)?;
                signature.to_der().as_bytes().to_vec()
            }
            Curve::P384(key) => {
                let signature: p384::ecdsa::Signature =
                    p384::ecdsa::SigningKey::from(key).sign_prehash(&digest).map_err(bad)?;
                signature.to_der().as_bytes().to_vec()
            }
        })
    }
}

/// ISO 8601 as Python's `isoformat` writes it: `2026-11-23T09:30:00.000001+00:00`.
fn timestamp(now: OffsetDateTime) -> String {
    let now = now.to_offset(time::UtcOffset::UTC);
    let (date, time) = (now.date(), now.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}+00:00",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.microsecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file_and_shows_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.pem");
        let key = NodeKey::generate().unwrap();
        key.save(&path).unwrap();
        assert!(key.save(&path).is_err(), "an existing key was overwritten");
        let read = NodeKey::load(&path).unwrap();
        assert_eq!(key.openssh("bank"), read.openssh("bank"));
        let pem = key.to_pem().unwrap();
        let secret: String = pem.lines().nth(1).unwrap().chars().skip(40).take(16).collect();
        assert!(!format!("{key:?}").contains(&secret));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            assert!(NodeKey::load(&path).unwrap_err().to_string().contains("others may read"));
        }
    }

    #[test]
    fn the_time_is_written_as_python_writes_it() {
        let now = OffsetDateTime::from_unix_timestamp_nanos(1_763_890_200_000_001_999).unwrap();
        assert_eq!(timestamp(now), "2025-11-23T09:30:00.000001+00:00");
    }
}
