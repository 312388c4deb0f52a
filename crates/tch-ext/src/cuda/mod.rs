//! CUDA: support found at start, and kernels of one's own.
//!
//! [`Graph`] records what a device is told, to tell it again at once.
//!
//! A kernel is a function in a [`Source`], CUDA C++ text. NVRTC compiles it at first use, for the device and the dtype
//! at hand; it runs on torch's current stream, over tensors. Nothing of CUDA is linked: on a machine without it,
//! [`Source::on`] gives `None`, and one takes another way. Compiling needs no GPU ([`Source::compile`]); running
//! neither, in tests: `emulated` (feature `testkit`) translates the same text with the C++ compiler and runs it, thread
//! by thread, on CPU tensors.

mod compile;
#[cfg(feature = "testkit")]
mod emulate;
mod graph;
mod launch;
mod load;
mod source;

#[cfg(feature = "testkit")]
pub use emulate::{emulated, here, seed};
pub use graph::{Graph, OwnStream};
pub use launch::Arg;
pub(crate) use launch::{free_bytes, generation};
pub use load::{CudaState, libtorch_folder, load_cuda};
pub use source::{Ready, Source};
