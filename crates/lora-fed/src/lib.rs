//! Federated training of adapters: what banks, hospitals and the like need to train one without showing their data.
//!
//! | module | job | feature |
//! |---|---|---|
//! | [`aggregate`] | many clients' adapters to one | |
//! | [`privacy`] | a bound on what is given away of any one record | |
//! | `engine` | rounds: a coordinator, its clients, and ways between them | `engine` |
//! | `flower` | Flower's wire: nodes and server apps | `flower` |
//! | `secagg` | sums of vectors that nobody sees | `secagg` |
//! | `store` | what must survive a crash | `engine` |
//!
//! All features are on by default. It knows named tensors and messages, no model and no trainer.

pub mod aggregate;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "flower")]
pub mod flower;
mod hex;
mod plain;
pub mod privacy;
mod private_file;
#[cfg(feature = "secagg")]
pub mod secagg;
#[cfg(feature = "engine")]
pub mod store;

pub use plain::plain;
