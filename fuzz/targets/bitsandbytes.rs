//! A safetensors file whose weights are packed in 4 bits: its header, what belongs together, and all weights loaded.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::init(), |data: &[u8]| fuzz::bitsandbytes(data));
