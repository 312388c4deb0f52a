//! Flower: nodes and server apps in Rust, for an unmodified `flower-superlink` of flwr 1.41.0.
//!
//! | file | job |
//! |---|---|
//! | `messages` `values` | the protobuf messages |
//! | `objects` `deflate` `inflate` | messages as trees of objects, named by their hashes |
//! | `records` `npy` `tensors` | what they carry, as NumPy and as libtorch has it |
//! | `http` `auth` `ssh` | the calls, and a node's key |
//! | `fleet` `node` `work` `inbox` | a SuperNode |
//! | `runtime` `app` `post` `outbox` `fab` | a server app |
//!
//! The wire was learnt from flwr 1.41.0 itself, and is pinned by messages captured from it (`tests/data/flower`).

mod app;
mod auth;
mod deflate;
mod fab;
mod fleet;
mod http;
mod inbox;
mod inflate;
mod messages;
mod node;
mod npy;
mod objects;
mod outbox;
mod post;
mod records;
mod runtime;
mod ssh;
pub mod tensors;
#[cfg(test)]
mod tests;
mod values;
mod work;

pub use app::{AppOptions, Refusal, Reply, ServerApp};
pub use auth::NodeKey;
pub(crate) use deflate::Content;
pub use node::{App, Event, Incoming, NodeOptions, serve};
pub use objects::Limits;
pub use records::{Arrays, Dtype, NdArray, Record, Records, metric, only_arrays};
pub use values::{Value, Values};
