//! A safetensors file whose weights are packed in 4 bits: its header, what belongs together, and all weights loaded.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lora_qlora::Bitsandbytes;

fuzz_target!(init: fuzz::init(), |data: &[u8]| {
    fuzz::justified(data, fuzz::FREE, || {
        if let Ok(model) = lora_model::fuzz::safetensors(data, fuzz::CONFIG.clone(), &[&Bitsandbytes]) {
            fuzz::load(&*model);
        }
    });
});
