//! This crate's layer beside the dense one: `cargo bench -p lora-rslora`.

use lora_core::{DENSE, LORA};
use lora_rslora::RSLORA;

fn main() {
    lora_core::testkit::layer_bench("rslora", &[DENSE, LORA, RSLORA]);
}
