//! QLoRA's storage: the frozen weight in 4 bits, NF4 with double quantisation (Dettmers et al. 2023,
//! arXiv 2305.14314, section 3). 4 + 8/64 + 32/16384 = 4.127 bits a weight.
//!
//! Adapters train in f32 beside it. No dequantised weight outlives its matrix product: backward makes it again.
//! Merging gives a dense weight.
//!
//! ```
//! use lora_core::{BaseWeight, DENSE, LORA, Recipe};
//! use tch::{Device, Kind, Tensor};
//! let recipe = Recipe::parse("qlora", &[DENSE, LORA, lora_qlora::QLORA])?;
//! let w = Tensor::randn([64, 256], (Kind::BFloat16, Device::Cpu));
//! let stored = recipe.store(w.shallow_clone())?;
//! assert!(stored.bytes() * 3 < (w.numel() * 2) as u64);
//! # Ok::<(), lora_core::Error>(())
//! ```

mod decode;
mod double_quant;
mod encode;
mod nf4;
mod tables;

pub use decode::CUDA_SOURCES;
pub use nf4::Nf4;

use lora_core::{Part, Variant};

/// Fills the storage hole. bitsandbytes: `Params4bit(quant_type="nf4", compress_statistics=True)`.
pub const QLORA: Variant = Variant {
    name: "qlora",
    about: "the frozen weight in 4 bits (NF4, double quantisation)",
    paper: "Dettmers et al. 2023, arXiv 2305.14314",
    flag: None,
    part: Part::Storage(|weight| Ok(Box::new(Nf4::new(&weight)?))),
};
