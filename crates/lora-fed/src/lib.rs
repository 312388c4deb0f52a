//! Federated training of adapters: what banks, hospitals and the like need to train one without showing their data.
//!
//! [`aggregate`] makes many adapters one; [`privacy`] bounds what is learnt of any one record, and keeps count;
//! [`secagg`] shows a server the sum, and nothing else.

pub mod aggregate;
pub mod privacy;
pub mod secagg;
