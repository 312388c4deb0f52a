//! This crate's layer beside the dense one: `cargo bench -p lora-qlora`.

use lora_core::{DENSE, LORA};
use lora_qlora::QLORA;

fn main() {
    lora_core::testkit::layer_bench("qlora", &[DENSE, LORA, QLORA]);
}
