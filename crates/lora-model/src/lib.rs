//! Decoder language models over frozen weights: checkpoints, tokenizers, chat templates, generation.
//!
//! Models never mention adapters: they are forward code over [`lora_core::Linear`], and what lies beside a
//! weight is not their affair.

mod chat;
mod checkpoint;
mod config;
mod export;
mod generate;
mod gguf_tokenizer;
mod llama;
mod model;
mod on_disk;
mod ops;
mod pieces;
mod rope;
mod shapes;
mod slots;
mod tokenizer;

pub use chat::{ChatTemplate, LastTurn, Message, Unsaid};
#[doc(hidden)]
pub use checkpoint::fuzz;
pub use checkpoint::{Checkpoint, Gguf, GgufKind, GgufOut, GgufValue, Keep, Kept, open, open_with};
pub use config::{ModelConfig, RopeScaling};
pub use export::{Export, Pack, is_model_file};
pub use generate::{Sampling, generate, generate_all};
pub use llama::{Llama, StepMemory, StepSize, step_memory};
pub use model::{Model, Texts};
pub use on_disk::OnDisk;
pub use ops::{Cache, IGNORE, attention, cross_entropy, joins, rms_norm, swiglu};
pub use pieces::{Piece, Pieces};
pub use shapes::{EMBEDDING, has_bias, linear_shapes, parameters, tensor_shapes, vectors_bytes};
pub use slots::Slots;
pub use tokenizer::{Encoded, TextStream, Tokenizer};

/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&tch_ext::cuda::Source; 5] = {
    let [norm, activation, heads, loss] = ops::CUDA_SOURCES;
    [norm, activation, heads, loss, &checkpoint::CUDA_SOURCE]
};
