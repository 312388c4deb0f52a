//! This crate's layer beside the dense one: `cargo bench -p lora-core`.

use lora_core::{DENSE, LORA};

fn main() {
    lora_core::testkit::layer_bench("lora", &[DENSE, LORA]);
}
