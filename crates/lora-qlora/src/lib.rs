//! QLoRA's storage: the frozen weight in 4 bits, by default NF4 with double quantisation (Dettmers et al. 2023,
//! arXiv 2305.14314, section 3): 4 + 8/64 + 32/16384 = 4.127 bits a weight.
//!
//! Adapters train in f32 beside it. No dequantised weight outlives its matrix product: backward makes it again.
//! Merging gives a dense weight. Codes, scales and files are bitsandbytes', bit for bit.
//!
//! ```
//! use lora_core::{BaseWeight, DENSE, LORA, Recipe};
//! use tch::{Device, Kind, Tensor};
//! let recipe = Recipe::parse("qlora:nf4:64", &[DENSE, LORA, lora_qlora::QLORA])?;
//! let w = Tensor::randn([64, 256], (Kind::BFloat16, Device::Cpu));
//! let stored = recipe.store(w.shallow_clone())?;
//! assert!(stored.bytes() * 3 < (w.numel() * 2) as u64);
//! # Ok::<(), lora_core::Error>(())
//! ```

mod decode;
mod encode;
mod four_bit;
mod options;
mod packing;
mod scales;
mod tables;

use std::sync::Arc;

pub use decode::CUDA_SOURCES;
pub use four_bit::FourBit;
pub use options::{Code, Options};
pub use packing::Bitsandbytes;

use lora_core::{BaseWeight, Part, Result, Storage, Variant};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

/// Fills the storage hole. bitsandbytes: `Params4bit(quant_type="nf4", compress_statistics=True)`; other codes, block
/// sizes and plain scales by [`Options::parse`].
pub const QLORA: Variant = Variant {
    name: "qlora",
    about: "the frozen weight in 4 bits (NF4, double quantisation; qlora:fp4:128:single for others)",
    paper: "Dettmers et al. 2023, arXiv 2305.14314",
    flag: None,
    part: Part::Storage(|options| Ok(Arc::new(Options::parse(options)?)), Some(&Bitsandbytes)),
};

impl Storage for Options {
    fn store(&self, weight: Tensor) -> Result<Box<dyn BaseWeight>> {
        Ok(Box::new(FourBit::new(&weight, *self)?))
    }

    fn bytes(&self, (out, inp): (i64, i64), _: Kind) -> u64 {
        let blocks = (out * inp).unsigned_abs().div_ceil(self.block as u64);
        let scales = if self.nested { blocks + 4 * blocks.div_ceil(256) + 4 } else { 4 * blocks };
        blocks * self.block as u64 / 2 + scales
    }

    /// transformers' `BitsAndBytesConfig`.
    fn config(&self, kind: Kind, skipped: &[String]) -> Option<Value> {
        let compute = match kind {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        };
        Some(json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "bnb_4bit_compute_dtype": compute,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": self.code.name(),
            "bnb_4bit_use_double_quant": self.nested,
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": 6.0,
        }))
    }
}
