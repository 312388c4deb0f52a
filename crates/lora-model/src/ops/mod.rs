//! What lies between the linear layers, each a function that saves little: on a CPU a loop of our own over rows, in
//! one pass; on CUDA one kernel; elsewhere its definition, which stands beside it.

mod attention;
mod cross_entropy;
mod cuda;
mod heads;
mod rms_norm;
mod swiglu;

pub(crate) use attention::Step;
pub(crate) use attention::keys_worked_on;
pub use attention::{Cache, attention, joins};
pub use cross_entropy::{IGNORE, cross_entropy};
pub(crate) use cross_entropy::{cross_entropy_of, logits_bytes};
pub(crate) use cuda::SOURCES as CUDA_SOURCES;
pub(crate) use heads::{Angles, heads, tokens};
pub use rms_norm::rms_norm;
pub(crate) use rms_norm::rms_norm_beside;
pub use swiglu::swiglu;

use tch::Tensor;
use tch_ext::Region;

static ATTENTION: Region = Region::new("attention");
static LOSS: Region = Region::new("loss");
static ELEMENTWISE: Region = Region::new("element-wise");

/// f32, or f64 for f64.
pub(crate) fn wide(t: &Tensor) -> Tensor {
    t.to_kind(lora_core::master_kind(t.kind()))
}

fn one(outputs: Result<Vec<Tensor>, tch::TchError>) -> Tensor {
    outputs.expect("the tensors are defined").swap_remove(0)
}
