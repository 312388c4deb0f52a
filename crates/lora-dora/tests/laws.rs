//! The laws of every recipe, on this crate's own.

use lora_core::{DENSE, LORA, Variant};
use lora_dora::DORA;

const VARIANTS: [Variant; 3] = [DENSE, LORA, DORA];

lora_core::law_tests!(dora: "dora", &VARIANTS);
