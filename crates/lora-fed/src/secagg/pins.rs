//! Identities on disk: everybody's public ones, which all parties have alike, and one's own private one.
//!
//! The directory is a text, a line each, brought to all over a channel that the server does not control:
//!
//! ```text
//! # number or `coordinator`, public key, name
//! coordinator 8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c hub
//! 1 8139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394 bank
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use lora_core::{Error, Result};
use zeroize::Zeroizing;

use super::keys::{Identity, IdentityKey, Secret};
use super::plan::{Directory, PartyId, SERVER};
use crate::hex::hex;
use crate::private_file;

/// A directory is small.
const LONGEST: u64 = 1 << 20;
const COORDINATOR: &str = "coordinator";
/// Begins a private file.
const TITLE: &str = "lora-fed party";

/// One's own identity: who, and the key.
#[derive(Debug, Clone)]
pub struct Own {
    /// None: the coordinator.
    pub party: Option<PartyId>,
    /// Never leaves its owner.
    pub key: IdentityKey,
}

impl Own {
    /// A new one.
    ///
    /// # Errors
    /// If the operating system has no randomness, or the number is no party's.
    pub fn generate(party: Option<PartyId>) -> Result<Self> {
        if party == Some(SERVER) {
            return Err(Error::usage(format!("{SERVER} is no party's number")));
        }
        Ok(Self { party, key: IdentityKey::generate()? })
    }

    /// Its line in the directory.
    pub fn line(&self, name: &str) -> String {
        let public = hex(self.key.public().as_bytes());
        format!("{} {public} {name}", who(self.party)).trim_end().to_owned()
    }

    /// Writes a new file that only its owner may read.
    ///
    /// # Errors
    /// If there is a file already, or it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let secret = self.key.to_secret();
        let text = Zeroizing::new(hex(secret.expose()));
        private_file::write_new(
            path,
            &Zeroizing::new(format!("{TITLE} {} {}\n", who(self.party), text.as_str())),
        )
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is no such file, or others may read it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = private_file::read(path)?;
        let read = || {
            let (party, secret) = text.strip_prefix(TITLE)?.trim().split_once(' ')?;
            let party = if party == COORDINATOR { None } else { Some(number(party)?) };
            Some(Self { party, key: IdentityKey::from_secret(&Secret::new(*Zeroizing::new(bytes(secret)?))) })
        };
        let bad = || {
            Error::data("it is no party's key")
                .at(path.display())
                .hint("make one with `lora fed keys --party NUMBER`")
        };
        read().ok_or_else(bad)
    }
}

impl Directory {
    /// Reads the text.
    ///
    /// # Errors
    /// With the line, for what is no identity, and for numbers or keys that are there twice.
    pub fn parse(text: &str) -> Result<Self> {
        let (mut server, mut parties) = (None, BTreeMap::new());
        let mut known = BTreeMap::new();
        for (at, line) in text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())) {
            let bad = |what: &str| Error::data(what).at(format!("line {at}"));
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let (who, key) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let key = bytes(key).ok_or_else(|| {
                bad("it is not a number (or `coordinator`) and a key of 64 hexadecimal digits")
                    .hint("`lora fed keys --party NUMBER` prints such a line")
            })?;
            let identity = Identity::from_bytes(&key).map_err(|e| bad(&e.to_string()))?;
            if let Some(before) = known.insert(key, at) {
                return Err(bad(&format!("this key is there in line {before}")));
            }
            let twice = if who == COORDINATOR {
                server.replace(identity).is_some()
            } else {
                let party = number(who).ok_or_else(|| bad(&format!("`{who}` is no party's number")))?;
                parties.insert(party, identity).is_some()
            };
            if twice {
                return Err(bad(&format!("{who} is there twice")));
            }
        }
        let server = server.ok_or_else(|| Error::data(format!("there is no line of the {COORDINATOR}")))?;
        Ok(Self { server, parties })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// As [`Self::parse`], and if it cannot be read.
    pub fn read(path: &Path) -> Result<Self> {
        use std::io::Read;
        let io = |e| Error::io("read the directory", path, e);
        let mut text = String::new();
        std::fs::File::open(path).map_err(io)?.take(LONGEST).read_to_string(&mut text).map_err(io)?;
        Self::parse(&text).map_err(|e| e.at(path.display()))
    }
}

fn who(party: Option<PartyId>) -> String {
    party.map_or_else(|| COORDINATOR.to_owned(), |party| party.to_string())
}

fn number(text: &str) -> Option<PartyId> {
    let party = PartyId(text.parse().ok()?);
    (party != SERVER).then_some(party)
}

/// Of 64 hexadecimal digits.
fn bytes(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_comes_back_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        for party in [None, Some(PartyId(7))] {
            let own = Own::generate(party).unwrap();
            let path = dir.path().join(who(party));
            own.save(&path).unwrap();
            assert!(own.save(&path).is_err(), "a key that is there is not replaced");
            let again = Own::load(&path).unwrap();
            assert_eq!((again.party, again.key.public()), (party, own.key.public()));
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
                assert!(Own::load(&path).unwrap_err().to_string().contains("others may read"));
            }
        }
        let path = dir.path().join("other");
        private_file::write_new(&path, "-----BEGIN PRIVATE KEY-----").unwrap();
        assert!(Own::load(&path).unwrap_err().to_string().contains("no party's key"));
        assert!(Own::generate(Some(SERVER)).is_err());
    }

    #[test]
    fn a_directory_says_what_is_wrong_and_where() {
        let own: Vec<Own> =
            [None, Some(PartyId(1)), Some(PartyId(2))].map(|p| Own::generate(p).unwrap()).into();
        let lines: Vec<String> = own.iter().map(|own| own.line("a name")).collect();
        let directory = Directory::parse(&format!("# all\n\n{}\n", lines.join("\n"))).unwrap();
        assert_eq!(directory.server, own[0].key.public());
        assert_eq!(directory.parties[&PartyId(2)], own[2].key.public());
        let refused = |text: &str, words: &str| {
            let error = Directory::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refused("", "no line of the coordinator");
        refused(&lines[1], "no line of the coordinator");
        refused(&format!("{}\n{}", lines[0], lines[0]), "line 2: this key is there in line 1");
        let again = Own::generate(Some(PartyId(1))).unwrap().line("");
        refused(&format!("{}\n{}\n{again}", lines[0], lines[1]), "line 3: 1 is there twice");
        refused("1 abc", "line 1");
        refused(&format!("{} {}", u32::MAX, &lines[1][2..]), "no party's number");
        refused(&format!("x {}", &lines[1][2..]), "no party's number");
        refused(&format!("1 {}", "0".repeat(64)), "weak");
        refused(&format!("1 {}", "é".repeat(32)), "line 1");
    }
}
