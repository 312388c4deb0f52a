//! The laws of every recipe, on this crate's own.

use lora_core::{DENSE, LORA, Variant, testkit};
use lora_dora::DORA;
use tch_ext::cuda::emulated;

const VARIANTS: [Variant; 3] = [DENSE, LORA, DORA];

lora_core::law_tests!(dora: "dora", &VARIANTS);

/// By the kernels for CUDA too, whose outputs have no gradient of their own.
#[test]
fn kernels_for_cuda_say_what_the_definition_says() {
    emulated(|| testkit::check("dora", &VARIANTS, testkit::shortcut_is_the_definition));
}
