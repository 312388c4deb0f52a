//! The randomness of a step: a function of a secret and of all that the step depends on.
//!
//! A step that is run again after a crash, from the same state, must release the same bytes: fresh noise on the same
//! sum would be a second release. And no two different sums may get the same noise: subtracted, they would be bare.
//! So the key of every purpose is HKDF-SHA-256 (RFC 5869) of the secret over run, step, data, configuration and
//! weights: equal if they all are, and otherwise unrelated.

use std::fmt;
use std::path::Path;

use hkdf::Hkdf;
use lora_core::Error;
use rand::rngs::SysRng;
use rand::{SeedableRng, TryRng};
use rand_chacha::ChaCha20Rng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::error::{PrivacyError, Result};
use crate::hex::hex;
use crate::private_file;

const SALT: &[u8] = b"lora-fed privacy 1";

/// The secret that a run's noise and samples come from. Whoever has it can take the noise off: it is never printed,
/// its memory is wiped, and it belongs into a file that only its owner reads, to be destroyed when the run is over.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    /// A new one, from the operating system.
    pub fn generate() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        SysRng.try_fill_bytes(&mut *bytes).map_err(|e| PrivacyError::Entropy(e.to_string()))?;
        Ok(Self(bytes))
    }

    /// One that was kept. It must have come from [`Secret::generate`], or be as hard to guess.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The one in a file that only its owner may read; a new one is put there if there is none.
    ///
    /// # Errors
    /// If others may read it, or it is no secret; those of the file.
    pub fn kept_in(path: &Path) -> lora_core::Result<Self> {
        let bytes = private_file::secret(path, || Ok(Zeroizing::new(Self::generate()?.as_bytes().to_vec())))?;
        let bytes = <[u8; 32]>::try_from(&bytes[..]).map_err(|_| {
            Error::data("it is no secret of 32 bytes")
                .at(path.display())
                .hint("put back the one that was there")
        })?;
        Ok(Self::from_bytes(bytes))
    }

    /// To be kept.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// All that a step's outcome depends on.
#[derive(Debug, Clone, Copy)]
pub struct StepInputs<'a> {
    /// The run's identity: two runs never share one.
    pub run: &'a str,
    /// The step's number.
    pub step: u64,
    /// A fingerprint of the data: of every record, in order.
    pub data: &'a [u8],
    /// A hash of the configuration: clipping norm, noise, sampling rate, learning rate, everything.
    pub configuration: &'a [u8],
    /// A hash of the trainable weights and of the optimiser's state as the step finds them.
    pub weights: &'a [u8],
}

/// What names a step: equal for a step and its replay, and for nothing else. It holds a fingerprint of the data, bare: it is
/// written nowhere but under a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepKey {
    step: u64,
    inputs: Vec<u8>,
}

impl StepKey {
    /// The key of a step with these inputs.
    pub fn new(inputs: &StepInputs<'_>) -> Self {
        let mut bytes = Vec::new();
        for (label, value) in [
            ("run", inputs.run.as_bytes()),
            ("step", &inputs.step.to_le_bytes()),
            ("data", inputs.data),
            ("configuration", inputs.configuration),
            ("weights", inputs.weights),
        ] {
            put(&mut bytes, label.as_bytes());
            put(&mut bytes, value);
        }
        Self { step: inputs.step, inputs: bytes }
    }

    /// The step's number.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Its name in a ledger, in hexadecimal: an HMAC of the inputs under a key that comes of the secret. Nobody can check a guess at
    /// the data by it who has not the secret.
    pub fn id(&self, secret: &Secret) -> String {
        hex(&*self.derive(secret, b"name", b"ledger"))
    }

    /// Its name in ledgers of versions before: SHA-256 of the inputs, by which whoever knows all rows but one could try that one. It
    /// is looked for, and never written.
    pub(super) fn former_id(&self) -> String {
        hex(&Sha256::digest(&self.inputs))
    }

    /// The randomness of one purpose, such as `"noise"` or `"sample"`. Give every use its own.
    pub fn randomness(&self, secret: &Secret, purpose: &str) -> Randomness {
        Randomness(self.derive(secret, b"purpose", purpose.as_bytes()))
    }

    fn derive(&self, secret: &Secret, label: &[u8], value: &[u8]) -> Zeroizing<[u8; 32]> {
        let mut info = self.inputs.clone();
        put(&mut info, label);
        put(&mut info, value);
        let mut key = Zeroizing::new([0; 32]);
        // It refuses lengths above 255 blocks, and this is one.
        let fits = Hkdf::<Sha256>::new(Some(SALT), &*secret.0).expand(&info, &mut *key).is_ok();
        debug_assert!(fits);
        key
    }
}

/// Length before content, so that no two lists of fields are the same bytes.
fn put(to: &mut Vec<u8>, field: &[u8]) {
    to.extend((field.len() as u64).to_le_bytes());
    to.extend(field);
}

/// A family of independent ChaCha20 generators, 2^64 of them, each from its beginning.
#[derive(Clone)]
pub struct Randomness(Zeroizing<[u8; 32]>);

impl Randomness {
    /// The generator of a number: of an example, say, or of a part of a vector.
    pub fn stream(&self, number: u64) -> ChaCha20Rng {
        let mut random = ChaCha20Rng::from_seed(*self.0);
        random.set_stream(number);
        random
    }
}

impl fmt::Debug for Randomness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Randomness(..)")
    }
}
