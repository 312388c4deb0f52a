//! This crate's layer beside the dense one: `cargo bench -p lora-full`.

use lora_core::{DENSE, LORA};
use lora_full::FULL;

fn main() {
    lora_core::testkit::layer_bench("full", &[DENSE, LORA, FULL]);
}
