//! Rounds whose sum the coordinator sees, and no client's part of it: [`secagg`](crate::secagg) under an [`Engine`].
//!
//! Such a round asks each client for six things instead of one: its number, keys, shares, the masked vector (for which it
//! trains), its consent to the list of those whose vectors came, and the shares that take the masks off. A vector is what
//! a client has learnt, `now - before` of the tensors that it sends, in steps of 2^-43 up to ±1024, modulo 2^64: the sum is
//! the clients' in every bit, and finer than f32 is.
//!
//! Before its vector leaves, a [party](Parties) sees to it that
//! - it has the pinned keys of all the others, that there are enough of them, and that enough must stay, for all that the
//!   coordinator chooses whom it asks ([`Quorum`]);
//! - the model it starts from is the one that the signed plan names. So no two parties of a round start from different
//!   models, by which a server could single out one's part of the sum (Pasquini et al. 2022, arXiv 2111.07380);
//! - the vector is as long as what the task has it send, all of which trains: a step that fails where training did not, and
//!   there alone, would tell of the rows;
//! - nothing is to lie beside the weights: rules that are sums lay nothing there;
//! - it has sent no vector in this round of the run before: two sums that differ in one vector would show it. What it has
//!   sent it remembers on the disk.
//!
//! With [`Noise`](super::Noise) each party clips what it has learnt, rounds it at random to integers and adds its share of a
//! discrete Gaussian, as many shares making the whole as there are sure to be from others than a coalition that the sums
//! withstand. It charges its own ledger before the vector leaves, and its budget ends its part. Where the work fails for what
//! its rows are, it sends noise alone, charged likewise: failing would tell of them.
//!
//! It gives nothing in plain: whoever asks it to train outside of a secure round is refused.
//!
//! A round that breaks before vectors were sent is tried again; one that breaks later is *lost*: it counts, the model stays
//! as it was, and the next one begins. So a coordinator that is killed at any moment goes on.
//!
//! [`Engine`]: super::Engine

mod claims;
mod coordinator;
mod noise;
mod party;
mod quorum;
mod talk;

pub use claims::Claims;
pub use coordinator::Coordinator;
pub use party::Parties;
pub use quorum::Quorum;

use super::{Noise, Task};
use crate::secagg::{Lattice, Ring, RoundId, SecAggError};
use lora_core::Result;
use sha2::{Digest, Sha256};
use tch::Tensor;

/// No number that a client has learnt is larger.
const LIMIT: f64 = 1024.0;
/// Where sums are made.
const RING: Ring = Ring::U64;
/// Begins the question for a client's number; the round's follows.
const WHO: &[u8] = b"lora-fed party?";
/// Parties of a secure round, at least, and of a sum: of two each would know the other's part from it.
pub const FEWEST: usize = 3;
/// How often a round can be tried.
const TRIES: u64 = 1 << 16;

fn lattice(parties: usize) -> std::result::Result<Lattice, SecAggError> {
    Lattice::finest(RING, parties, LIMIT)
}

/// What of a task's adapter a client sends, in the order in which it makes a vector.
fn sent(task: &Task) -> impl Iterator<Item = (&String, &Tensor)> {
    task.adapter.iter().filter(move |(name, _)| task.sends.holds(name))
}

/// A try of a round: numbers rise.
fn round_id(run: &str, round: u64, tries: u64) -> RoundId {
    let mut id = [0; 16];
    id.copy_from_slice(&Sha256::digest([b"lora-fed run\0", run.as_bytes()].concat())[..16]);
    RoundId { run: id, number: round.saturating_mul(TRIES).saturating_add(tries) }
}

/// All that parties must agree on, and the plan itself does not say.
fn context(task: &Task, noise: Option<Noise>, quorum: Quorum) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(b"lora-fed secure round 3\0");
    hash.update(task.fingerprint()?);
    hash.update((task.run.len() as u64).to_le_bytes());
    hash.update(&task.run);
    for number in [task.round, task.rounds, LIMIT.to_bits(), task.scales.len() as u64] {
        hash.update(number.to_le_bytes());
    }
    for (module, scale) in &task.scales {
        hash.update((module.len() as u64).to_le_bytes());
        hash.update(module);
        hash.update(scale.to_le_bytes());
    }
    // How large a share of the noise is hangs on the directory.
    let shared = |noise: Noise| [noise.clip.to_bits(), noise.sigma.to_bits(), quorum.third() as u64];
    for number in noise.map_or([0; 3], shared) {
        hash.update(number.to_le_bytes());
    }
    for trains in [task.trains, task.sends] {
        hash.update(trains.name());
        hash.update([0]);
    }
    Ok(hash.finalize().into())
}
