//! What [`tch`] lacks and libtorch has.
//!
//! - [`attach`]: an autograd function whose backward is Rust ([`Function`]);
//! - [`memory`]: peak memory of the process and of a CUDA device;
//! - [`load_cuda`]: CUDA support found at start instead of linked, so that one binary serves both machines;
//! - [`check_gradients`]: an f64 finite-difference check of any differentiable function.
//!
//! This is the only crate of the workspace with `unsafe` code.

mod check;
mod cuda;
mod function;
pub mod memory;

pub use check::check_gradients;
pub use cuda::{CudaState, libtorch_folder, load_cuda};
pub use function::{Function, attach};
