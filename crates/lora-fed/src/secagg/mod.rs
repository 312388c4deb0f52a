//! Secure aggregation: the server learns the sum of the parties' vectors, and nothing else about them.
//!
//! # The protocol
//!
//! That of Bonawitz et al. (2017) with its round against active servers, over the complete graph. Each party `u`
//! advertises two keys of this round and deals shares of two secrets to all, `t` of which are needed: of a seed `b_u`
//! and of its mask key. It sends `y_u = x_u + PRG(b_u) + Σ_{v>u} PRG(s_uv) − Σ_{v<u} PRG(s_uv)` over Z/2^32 or Z/2^64,
//! where `s_uv` comes of both parties' mask keys. In the sum the pairs cancel. The server then names whose vectors
//! came, the survivors; they sign that list; and when a threshold has signed one list, each reveals its shares of the
//! survivors' seeds and of the mask keys of those who dealt and dropped out. So the server takes off what is left, and
//! the sum is exact in every bit.
//!
//! ```text
//! party   Client::advertise  ->  Server::receive, close_keys      advertise / key list
//!         Client::deal       ->  Server::receive, close_deals     deal      / bundle
//!         Client::mask       ->  Server::receive, close_masked    masked    / survivors
//!         Client::consent    ->  Server::receive, close_consents  consent   / unmask
//!         Client::reveal     ->  Server::receive, finish          reveal    / the sum
//! ```
//!
//! # What it protects from
//!
//! - A server that reads all it is sent, together with fewer than `2t − n` parties (a third of them, at the usual
//!   threshold of two thirds): it learns the sum over the survivors, who are at least `t`, and nothing else.
//! - Parties that drop out at any stage, as long as `t` remain; below that the round ends and nothing is revealed.
//! - A server that swaps keys or vectors, shows parties different lists, replays messages or rounds, or asks twice:
//!   every message is signed by an identity pinned beforehand, every derivation and signature is bound to the plan,
//!   all identities and all lists so far, and a party signs one list of survivors a round and reveals by that list
//!   alone. Because more than half must sign, no two lists of survivors can both be signed.
//! - Small-order and weak keys, and shares changed on the way.
//!
//! # What it does not protect from
//!
//! - The sum itself: what it says about a party is for differential privacy to bound. The noise must be in the
//!   vectors, for the survivors' number is not known beforehand.
//! - Parties that send a wrong vector: no one can look at it. A party can also stop a round, by wrong shares.
//! - A server that pins parties of its own: identities must come from elsewhere. Nor from traffic analysis: the
//!   transport must encrypt (reveals are meant for the server alone) and hide what sizes and times say.
//! - A party's own memory. Secrets are wiped when they have served, but no more is promised.

mod client;
mod error;
mod keys;
mod lattice;
pub mod mask;
pub mod messages;
mod plan;
mod roster;
mod rounds;
mod server;
mod shamir;
mod unmask;
pub mod wire;

pub use client::Client;
pub use error::{Result, SecAggError};
pub use keys::{Identity, IdentityKey, Secret};
pub use lattice::{Grid, Lattice};
pub use mask::plain_sum;
pub use plan::{Directory, MAX_LEN, MAX_PARTIES, PartyId, Plan, Ring, RoundId, Session};
pub use rounds::{RoundLog, Rounds};
pub use server::{Receipt, Server, Sum};
pub use wire::Kind;

#[cfg(test)]
mod tests;
