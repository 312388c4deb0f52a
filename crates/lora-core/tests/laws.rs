//! The laws of every recipe, on this crate's own.

use lora_core::{DENSE, LORA, Variant};

const VARIANTS: [Variant; 2] = [DENSE, LORA];

lora_core::law_tests!(lora: "lora", &VARIANTS);
