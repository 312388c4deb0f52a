//! Learning from data that stays where it is, and a bound on what is learnt of any one example.
//!
//! [`privacy`] is differential privacy whole: accountants, Poisson sampling, keyed noise on integers, and the
//! ledger of what was spent. It knows numbers and bytes, no tensors and no models.

pub mod privacy;
