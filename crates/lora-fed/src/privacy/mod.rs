//! Differential privacy: what a run gives away of any one record, at most, and the noise that makes it so.
//!
//! # The guarantee
//!
//! A mechanism `M` is (epsilon, delta)-differentially private if for all neighbouring data sets `D`, `D'` and all sets
//! `S` of outcomes, `P(M(D) in S) <= exp(epsilon) P(M(D') in S) + delta`. Epsilon is in nats; delta is a chance.
//!
//! - *Neighbours* differ by adding or removing one record. What a record is, an example or a client with all its
//!   data, is the [`Unit`] of a budget; nothing here looks into it. Clip and sample whatever is called a record.
//! - *A step* draws every record independently with rate `q` ([`PoissonSampler`]), clips each record's contribution
//!   to an L2 norm of `C`, sums, and adds Gaussian noise of deviation `sigma * C` to every coordinate. `sigma` is the
//!   noise multiplier. Without drawing (all records in every step) `q` is 1. Fixed or shuffled batches are not
//!   Poisson sampling: their steps must be charged with `q` = 1 (and the neighbour then has nothing in the record's
//!   place, so that no other record moves to another batch).
//! - *What is divided by* must be public: `q * n` of a public `n`, never the size of the batch that was drawn.
//! - The bound holds for whoever sees every noised sum, in order, and chooses by it what the next step computes, or that
//!   there is none. Noise and rate of steps that draw are settled before the first: a [`Ledger`] refuses others.
//!
//! # The parts
//!
//! | part | job |
//! |---|---|
//! | [`Release`], [`Step`] | a whole step: all of the below in the one order that is right |
//! | [`Accountant`] | epsilon and delta of a history of steps, by Rényi divergences ([`rdp`]) or, tighter, by privacy-loss distributions |
//! | [`sigma_for`], [`steps_for`] | the least noise for a budget, and how many steps it allows |
//! | [`Secret`], [`StepKey`] | the generator of a step: replayed, it gives the same bytes; anything else, other ones |
//! | [`PoissonSampler`] | the drawing itself |
//! | [`Lattice`], [`DiscreteGaussian`] | clipping and rounding to integers, and exact noise on them |
//! | [`Ledger`] | what was spent, written down before it is spent |

pub mod rdp;

mod accountant;
mod budget;
mod error;
mod exact;
mod journal;
mod keys;
mod lattice;
mod ledger;
mod mechanism;
mod moments;
mod noise;
mod pld;
mod release;
mod sampling;
mod special;
mod step;

pub use accountant::{Accountant, Accounting, sigma_for, steps_for};
pub use budget::{Budget, Unit};
pub use error::{PrivacyError, Result};
pub use exact::{gaussian_delta, gaussian_epsilon};
pub use keys::{Randomness, Secret, StepInputs, StepKey};
pub use lattice::{Lattice, add_integers};
pub use ledger::{Charge, Ledger};
pub use mechanism::{Mechanism, Steps};
pub use noise::DiscreteGaussian;
pub use release::{Release, ReleaseConfig};
pub use sampling::PoissonSampler;
pub use step::Step;
