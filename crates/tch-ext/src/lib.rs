//! What [`tch`] lacks and libtorch has.
//!
//! - [`attach`]: an autograd function whose backward is Rust ([`Function`]), and what it keeps ([`Saved`]);
//! - [`gemm`]: sums of matrix products, rounded once; on a CPU with AVX-512 as fast as oneDNN's products
//!   and faster, in f32 as well as in bf16, and with AVX2 alone in either at nearly MKL's of f32;
//! - [`Panels`]: products of small blocks, for kernels that have many in a row;
//! - [`nibbles`]: 4-bit codes to the numbers that they stand for;
//! - [`parallel`], [`parallel_rows`], [`elements`], [`number`], [`simd!`]: kernels of one's own in safe Rust, on libtorch's
//!   threads, over tensors, with the machine's best instructions;
//! - [`memory`]: peak memory of the process, of CPU tensors and of a CUDA device; an allocator that keeps the memory
//!   of a step for the next, and knows whose it is;
//! - [`Region`], [`profile`]: which part of a program takes how long;
//! - [`load_cuda`]: CUDA support found at start instead of linked, so that one binary serves both machines;
//! - [`cuda`]: CUDA kernels of one's own, compiled at first use, on torch's current stream;
//! - [`cuda::Graph`]: what a device is told, written down and told again at once;
//! - [`flash_attention`]: libtorch's attention for texts one behind another, on CUDA;
//! - [`set_grad`], [`changed`]: gradients and parameters as views of one flat tensor;
//! - [`check_gradients`]: an f64 finite-difference check of any differentiable function.
//!
//! This is the only crate of the workspace with `unsafe` code.

mod check;
mod codes;
pub mod cuda;
mod flash;
mod function;
mod gemm;
pub mod memory;
pub mod number;
mod parallel;
mod region;
mod saved;
mod simd;
mod slice;

pub use check::check_gradients;
pub use codes::nibbles;
pub use cuda::{CudaState, libtorch_folder, load_cuda};
pub use flash::{Bounds, flash_attention, has_flash_attention};
pub use function::{Function, attach, grad_enabled};
pub use gemm::{CUDA_SOURCES, Lie, Panels, Product, Small, Sum, View, gemm, transpose};
pub use half::{bf16, f16};
pub use number::{Number, Wide};
pub use parallel::{Rows, Split, parallel, parallel_rows, threads};
pub use region::{Inside, Region, Spent, profile, profiling};
pub use saved::Saved;
pub use simd::{Simd, round_bf16};
pub use slice::{Element, changed, elements, elements_mut, set_grad, span};
