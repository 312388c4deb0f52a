//! A GGUF file as a checkpoint: header, metadata, tensor table, configuration, and all tensors loaded.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::init(), |data: &[u8]| {
    fuzz::justified(data, fuzz::FREE, || {
        if let Ok(model) = lora_model::fuzz::gguf(data) {
            fuzz::load(&*model);
        }
    });
});
