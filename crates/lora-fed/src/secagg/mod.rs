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
//!                                     Session::propose            plan
//! party   Client::advertise  ->  Server::receive, close_keys      advertise / key list
//!         Client::deal       ->  Server::receive, close_deals     deal      / bundle
//!         Client::mask       ->  Server::receive, close_masked    masked    / survivors
//!         Client::consent    ->  Server::receive, close_consents  consent   / unmask
//!         Client::reveal     ->  Server::receive, finish          reveal    / the sum
//! ```
//!
//! ```
//! use std::collections::BTreeMap;
//! use lora_fed::secagg::*;
//!
//! // Long before: everybody makes an identity, and pins those of the others.
//! let server_key = IdentityKey::generate()?;
//! let keys: BTreeMap<_, _> = (1..=4).map(|i| Ok((PartyId(i), IdentityKey::generate()?))).collect::<Result<_>>()?;
//! let parties = keys.iter().map(|(id, key)| (*id, key.public())).collect();
//! let directory = Directory { server: server_key.public(), parties };
//!
//! // A round, of four banks and vectors of two coordinates.
//! let lattice = Lattice::finest(Ring::U64, 4, 1.0)?;
//! let plan = Plan::new(RoundId { run: *b"an example's run", number: 1 }, keys.keys().copied().collect(), Ring::U64, 2);
//! let session = Session::new(plan, &directory)?;
//! let proposal = session.propose(&server_key)?;
//! let mut server = Server::open(server_key, session)?;
//!
//! // Each with its own log of rounds, which must outlive the process.
//! let mut clients = Vec::new();
//! for (id, key) in keys {
//!     clients.push(Client::join(key, id, Session::accept(&proposal, &directory)?, &mut Rounds::default())?);
//! }
//! for client in &mut clients {
//!     server.receive(&client.advertise()?)?;
//! }
//! let key_list = server.close_keys()?;
//! for client in &mut clients {
//!     server.receive(&client.deal(&key_list)?)?;
//! }
//! let bundles = server.close_deals()?;
//! clients.truncate(3); // One drops out.
//! for (client, (_, bundle)) in clients.iter_mut().zip(&bundles) {
//!     server.receive(&client.mask(bundle, &lattice.encode(&[0.25, -0.5])?)?)?;
//! }
//! let survivors = server.close_masked()?;
//! for client in &mut clients {
//!     server.receive(&client.consent(&survivors)?)?;
//! }
//! let unmask = server.close_consents()?;
//! for client in &mut clients {
//!     server.receive(&client.reveal(&unmask)?)?;
//! }
//! assert_eq!(lattice.decode(&server.finish()?.vector), [0.75, -1.5]);
//! # Ok::<(), SecAggError>(())
//! ```
//!
//! # What it protects from
//!
//! - A server that reads all it is sent, together with fewer than `2t − n` parties (a third of them, at the usual
//!   threshold of two thirds): it learns the sum over the survivors, who are at least `t`, and nothing else. It picks the
//!   `n` from the directory, and may pick those that collude: which plans to take part in is for the caller to judge
//!   (`lora_fed::engine::Quorum`).
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
//!   vectors, for the survivors' number is not known beforehand. A party takes its own part off: of two survivors each
//!   has the other's, so where there are three parties or more the threshold is to be three at least.
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
mod pins;
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
pub use pins::Own;
pub use plan::{Directory, MAX_LEN, MAX_PARTIES, PartyId, Plan, Ring, RoundId, Session};
pub use rounds::{RoundLog, Rounds};
pub use server::{Receipt, Server, Sum};
pub use wire::Kind;

#[cfg(test)]
mod tests;
