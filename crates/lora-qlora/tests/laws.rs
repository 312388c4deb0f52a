//! The laws of every recipe, on this crate's own.

use lora_core::{DENSE, LORA, Variant};
use lora_qlora::QLORA;

const VARIANTS: [Variant; 3] = [DENSE, LORA, QLORA];

lora_core::law_tests!(qlora: "qlora", &VARIANTS);
