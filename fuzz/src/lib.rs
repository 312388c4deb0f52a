//! What the targets share: memory that an input must justify, and files from their parts.

mod parts;

use std::alloc::System;
use std::sync::LazyLock;

use cap::Cap;
use lora_model::{Checkpoint, ModelConfig};
use lora_qlora::Bitsandbytes;
use tch::Kind;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// What any input may take: messages, a configuration as JSON, small tensors.
pub const FREE: usize = 1 << 16;

/// The same for a tokenizer: the library's cache, and the tables of regular expressions.
pub const FREE_OF_TOKENIZERS: usize = 2 << 20;

/// The most bytes of memory for one byte of input: 3 bits of Q2_K become an f32, twice; an array of bytes is widened to
/// 64 bits in a vector that doubles.
const TIMES: usize = 64;

/// One thread, and libtorch's memory counted.
pub fn init() {
    tch::set_num_threads(1);
    tch_ext::memory::manage();
}

/// `read`, which may have no more memory alive, of ours or of libtorch's, than `data` justifies, and `free` bytes.
///
/// # Panics
/// If libtorch had more; an allocation of ours beyond it aborts.
pub fn justified<T>(data: &[u8], free: usize, read: impl FnOnce() -> T) -> T {
    let budget = free + TIMES * data.len();
    tch_ext::memory::reset_peak();
    let before = tch_ext::memory::cpu().map_or(0, |cpu| cpu.current);
    let _ = HEAP.set_limit(HEAP.allocated() + budget);
    let out = read();
    let _ = HEAP.set_limit(usize::MAX);
    let peak = tch_ext::memory::cpu().map_or(0, |cpu| cpu.peak);
    assert!(peak <= before + budget as u64, "{peak} bytes of tensors for {} of input", data.len());
    out
}

/// The safetensors file whose parts `data` lists.
pub fn from_parts(data: &[u8]) -> Vec<u8> {
    parts::file(data)
}

/// Reads a safetensors file as a model that bitsandbytes has packed.
pub fn bitsandbytes(file: &[u8]) {
    justified(file, FREE, || {
        if let Ok(model) = lora_model::fuzz::safetensors(file, CONFIG.clone(), &[&Bitsandbytes]) {
            load(&*model);
        }
    });
}

/// Every tensor, dense and packed, in bf16 and in f32 by turns.
pub fn load(model: &dyn Checkpoint) {
    for (i, name) in model.names().iter().enumerate() {
        let kind = [Kind::BFloat16, Kind::Float][i % 2];
        assert!(model.shape(name).is_some());
        if let Ok(Some(weight)) = model.packed(name, kind) {
            let (out, inp) = weight.shape();
            assert_eq!(weight.dense(kind).size(), [out, inp]);
        }
        if let Ok(tensor) = model.load(name, kind) {
            assert_eq!(Some(tensor.size()), model.shape(name));
        }
    }
}

/// A llama whose weights bitsandbytes has packed.
static CONFIG: LazyLock<ModelConfig> = LazyLock::new(|| {
    let raw = serde_json::json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},
    });
    ModelConfig::from_json(raw, "config.json").expect("a sound configuration")
});
