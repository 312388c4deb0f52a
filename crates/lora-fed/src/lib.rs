//! Federated training of adapters: what banks, hospitals and the like need to train one without showing their data.

pub mod aggregate;
pub mod engine;
pub mod flower;
pub mod secagg;
pub mod store;
