//! This crate's layer beside the dense one: `cargo bench -p lora-dora`.

use lora_core::{DENSE, LORA};
use lora_dora::DORA;

fn main() {
    lora_core::testkit::layer_bench("dora", &[DENSE, LORA, DORA]);
}
