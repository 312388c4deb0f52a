//! The laws of every recipe, on this crate's own.

use lora_core::{DENSE, LORA, Variant};
use lora_rslora::RSLORA;

const VARIANTS: [Variant; 3] = [DENSE, LORA, RSLORA];

lora_core::law_tests!(rslora: "rslora", &VARIANTS);
