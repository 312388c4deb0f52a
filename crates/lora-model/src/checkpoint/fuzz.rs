//! Checkpoints from bytes, for the fuzz targets in `fuzz/`. No part of the interface.

use lora_core::{Packing, Result};

use super::Checkpoint;
use super::gguf::{Gguf, GgufCheckpoint};
use super::hf::HfCheckpoint;
use crate::{ModelConfig, Tokenizer, gguf_tokenizer};

/// A GGUF file as a checkpoint. The blocks of every tensor are dequantised on the way, also where the model is
/// refused afterwards.
///
/// # Errors
/// Those of [`open`](super::open).
pub fn gguf(bytes: &[u8]) -> Result<Box<dyn Checkpoint>> {
    let gguf = Gguf::from_bytes(bytes)?;
    gguf.dequantize_all(bytes);
    Ok(Box::new(GgufCheckpoint::of(gguf)?))
}

/// The tokenizer of a GGUF file.
///
/// # Errors
/// Those of [`Tokenizer::open`].
pub fn gguf_tokenizer(bytes: &[u8]) -> Result<Tokenizer> {
    Tokenizer::from_parts(gguf_tokenizer::of(&Gguf::from_bytes(bytes)?)?, None)
}

/// A safetensors file as the weights of a model with this configuration.
///
/// # Errors
/// Those of [`open_with`](super::open_with).
pub fn safetensors(
    bytes: &[u8],
    config: ModelConfig,
    packings: &[&'static dyn Packing],
) -> Result<Box<dyn Checkpoint>> {
    Ok(Box::new(HfCheckpoint::from_bytes(bytes, config, packings)?))
}
