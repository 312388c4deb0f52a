//! The tokenizer of a GGUF file, and a text there and back.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::init(), |data: &[u8]| {
    let read = || lora_model::fuzz::gguf_tokenizer(data);
    let Ok(tokenizer) = fuzz::justified(data, fuzz::FREE_OF_TOKENIZERS, read) else { return };
    // Not bounded: the library keeps something of every tokenizer that its thread has used.
    let ids = tokenizer.encode("Hello,  ab 42\n", true).unwrap_or_default();
    let _ = tokenizer.decode(&ids, false);
});
