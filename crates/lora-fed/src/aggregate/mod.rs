//! Many clients' adapters to one: exact where a rule can be exact, and never by a matrix of the weight's size.
//!
//! A client has `W + s B A`. What all of them together have learnt is `Σ p_k s_k B_k A_k`, and that is not `B̄ Ā`: the mean
//! of the factors misses `Σ p_k (B_k - B̄)(A_k - Ā)`. The rules differ in how they deal with this ([`Rule`]). All of them
//! work on stacks of factors ([`Stack`]), whose decomposition costs `O((out + in) R² + R³)`, `R = Σ r_k`.
//!
//! | rule | exact | ranks may differ | what changes | with secure aggregation |
//! |---|---|---|---|---|
//! | `fedit` | no | no | A, B | yes |
//! | `ffa` | yes | | B | yes |
//! | `rolora` | yes | | A or B | yes |
//! | `fedex` | yes | no | A, B, side | no |
//! | `flora` | yes | yes | A, B of rank `Σ r_k` | no |
//! | `flexlora` | nearest | yes | A, B | no |
//! | `fedsvd` | yes | | A, B | yes |
//! | `fedsa` | no common model | no | A | yes |
//!
//! What is no factor (DoRA's magnitudes) is averaged, which is never exact. Everything is summed in f64, in the order of
//! the uploads, and rounded once.

mod robust;
mod rules;
mod server;
mod stack;
mod trains;
mod upload;

pub use robust::{Bounds, Refusal, Robust};
pub use rules::{Aggregate, Rule, Shared};
pub use server::{ServerOptimiser, ServerRule};
#[cfg(feature = "engine")]
pub(crate) use stack::rounding;
pub use stack::{Decomposition, Stack};
pub use trains::Trains;
pub use upload::{Layer, Upload};
