//! What is wrong with a checkpoint is said, with its place; nothing that a file holds makes us panic.

use std::fs;
use std::path::{Path, PathBuf};

use lora_core::Error;
use lora_model::{Gguf, ModelConfig, open};
use serde_json::{Value, json};
use tch::Kind;

fn gguf_bytes() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama.gguf")).unwrap()
}

fn config() -> Value {
    json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6,
        "num_hidden_layers": 1, "num_attention_heads": 2})
}

fn tensors_file(header: &str, body: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), body].concat()
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
    dir
}

/// Message and hint of the first error: on opening, or on loading any tensor.
fn error_of(path: &Path) -> String {
    let load = || -> Result<(), Error> {
        let model = open(path)?;
        model.names().iter().try_for_each(|n| model.load(n, Kind::Half).map(drop))
    };
    let e = load().expect_err("this must not load");
    format!("{e} | {}", e.hint_text().unwrap_or("no hint"))
}

#[track_caller]
fn says(text: &str, wanted: &[&str]) {
    wanted.iter().for_each(|w| assert!(text.contains(w), "{text:?} does not say {w:?}"));
}

#[test]
fn folders() {
    let config = config().to_string();
    let config = ("config.json", config.as_bytes());
    says(
        &error_of(Path::new("/nowhere/model")),
        &["/nowhere/model", "cannot open the model", "check the path"],
    );
    says(
        &error_of(Path::new("HuggingFaceTB/SmolLM2-135M")),
        &["check the path", "hf download HuggingFaceTB/SmolLM2-135M --local-dir SmolLM2-135M"],
    );
    for path in ["nowhere", "src/model", "nowhere/model.gguf", "./nowhere/model", "no/where/model"] {
        assert!(!error_of(Path::new(path)).contains("hf download"), "{path}");
    }
    let dir = folder(&[("notes.txt", b"hello"), ("weights.gguf", b"GGUF")]);
    says(
        &error_of(&dir.path().join("notes.txt")),
        &["neither a model folder nor a GGUF file", "config.json"],
    );
    says(&error_of(dir.path()), &["no config.json", "weights.gguf"]);
    says(
        &error_of(folder(&[("adapter_config.json", b"{}")]).path()),
        &["no config.json", "this is an adapter"],
    );
    says(&error_of(folder(&[config]).path()), &["no weights", "model.safetensors"]);
    let pickle = folder(&[config, ("pytorch_model.bin", b"\x80")]);
    says(&error_of(pickle.path()), &["a pickle (pytorch_model.bin)", "save_pretrained"]);
    says(&error_of(folder(&[("config.json", b"{")]).path()), &["config.json", "is not JSON"]);
}

#[test]
fn safetensors_files() {
    let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let one = |dtype: &str, shape: &str, range: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{range}}}}}"#)
    };
    let good = one("F32", "[2]", "[0,8]");
    let twice = format!("{},{}", &good[..good.len() - 1], &good[1..]);
    let whole = tensors_file(&good, &f32s(&[1.0, 2.0]));
    let cases: &[(Vec<u8>, &[&str])] = &[
        (vec![1, 2, 3], &["3 bytes are too few", "fetch it again"]),
        (whole[..whole.len() - 3].to_vec(), &["model.safetensors", "promises 70 bytes, the file has 67"]),
        ([&whole[..], b"x"].concat(), &["promises 70 bytes, the file has 71"]),
        (u64::MAX.to_le_bytes().to_vec(), &["a header of 18446744073709551615 bytes in a file of 8"]),
        (tensors_file(&format!(" {good}"), &f32s(&[1.0, 2.0])), &["does not start with `{`"]),
        (tensors_file(&twice, &f32s(&[1.0, 2.0])), &["`w` appears twice"]),
        (tensors_file("{\"w\":", &[]), &["the header is malformed"]),
        (tensors_file(&one("F32", "[3]", "[0,8]"), &[0; 8]), &["malformed"]),
        (tensors_file(&one("F32", "[4294967296,4294967296,2]", "[0,8]"), &[0; 8]), &["malformed"]),
        (tensors_file(&one("F32", "[0,18446744073709551615]", "[0,0]"), &[]), &["`w`", "impossible shape"]),
        (tensors_file(&one("F32", "[2]", "[8,0]"), &[0; 8]), &["malformed"]),
        (
            tensors_file(&one("I64", "[1]", "[0,8]"), &[0; 8]),
            &["tensor `w`", "weights of type I64", "bf16 or f32"],
        ),
        (tensors_file(&one("F8_E4M3", "[1]", "[0,1]"), &[0; 1]), &["weights of type F8_E4M3"]),
        (tensors_file(&good, &f32s(&[1.0, f32::NAN])), &["tensor `w`", "infinite or NaN", "another copy"]),
        (tensors_file(&good, &f32s(&[f32::NEG_INFINITY, 1.0])), &["infinite or NaN"]),
        (tensors_file(&good, &f32s(&[1e30, 1.0])), &["too large for Half", "bf16"]),
        (tensors_file(&one("BF16", "[1]", "[0,2]"), &[0xC0, 0x7F]), &["infinite or NaN"]),
        (tensors_file(&one("F16", "[1]", "[0,2]"), &[0x00, 0x7C]), &["infinite or NaN"]),
    ];
    for (bytes, wanted) in cases {
        let dir = folder(&[("config.json", config().to_string().as_bytes()), ("model.safetensors", bytes)]);
        says(&error_of(dir.path()), wanted);
        let missing =
            open(dir.path()).map(|m| m.load("lm_head.weight", Kind::Float).unwrap_err().to_string());
        missing.into_iter().for_each(|text| says(&text, &["there is no tensor `lm_head.weight`"]));
    }
}

#[test]
fn shard_indexes() {
    let good = tensors_file(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, &[0; 4]);
    let cases: &[(&str, &[&str])] = &[
        (
            r#"{"weight_map": {"w": "../one.safetensors"}}"#,
            &["tensor `w`", "not a plain file name", "do not use"],
        ),
        (r#"{"weight_map": {"w": "/etc/passwd"}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": "a/../one.safetensors"}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": "./one.safetensors"}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": "one.safetensors/"}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": "a\\one.safetensors"}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": ""}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": "one.safetensors\u0000"}}"#, &["not a plain file name"]),
        (r#"{"weight_map": {"w": "gone.safetensors"}}"#, &["gone.safetensors", "cannot open"]),
        (
            r#"{"weight_map": {"w": "one.safetensors", "x": "one.safetensors", "y": "one.safetensors"}}"#,
            &["2 tensors of the index", "`x` in one.safetensors", "`y` in one.safetensors"],
        ),
        (r#"{"weight_map": {"w": "one.safetensors", "w": "one.safetensors"}}"#, &["`w` appears twice"]),
        (r#"{"weight_map": {}}"#, &["names no tensors"]),
        (r#"{"weights": {}}"#, &["is not a shard index", "weight_map"]),
    ];
    for (index, wanted) in cases {
        let config = config().to_string();
        let dir = folder(&[
            ("config.json", config.as_bytes()),
            ("model.safetensors.index.json", index.as_bytes()),
            ("one.safetensors", &good),
        ]);
        says(&error_of(dir.path()), wanted);
    }
}

#[test]
fn configurations() {
    let cases: &[(&str, Value, &[&str])] = &[
        ("model_type", json!("gpt2"), &["model type `gpt2`", "llama, mistral, qwen2, qwen3"]),
        ("model_type", Value::Null, &["`model_type` is missing"]),
        ("hidden_act", json!("gelu"), &["`hidden_act`", "activation `gelu`"]),
        ("hidden_size", json!(0), &["`hidden_size`", "is 0"]),
        ("hidden_size", json!("4"), &["is \"4\", should be a whole number"]),
        ("hidden_size", json!(5), &["not a multiple of `num_attention_heads`"]),
        ("hidden_size", json!(6), &["must be even"]),
        ("vocab_size", json!(1u64 << 40), &["`vocab_size`"]),
        ("num_hidden_layers", Value::Null, &["`num_hidden_layers` is missing"]),
        ("num_key_value_heads", json!(3), &["does not divide"]),
        ("rms_norm_eps", json!(-1.0), &["`rms_norm_eps`", "above 0"]),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 2.0}),
            &["position scaling `yarn`", "linear", "longrope"],
        ),
        ("rope_scaling", json!({"type": "linear"}), &["`rope_scaling`", "`factor` is missing"]),
        ("rope_parameters", json!({"full_attention": {"rope_theta": 1.0}}), &["differ by layer type"]),
        ("partial_rotary_factor", json!(0.5), &["a part (0.5) of each head"]),
        (
            "quantization_config",
            json!({"quant_method": "gptq"}),
            &["already quantised (gptq)", "original weights"],
        ),
        ("eos_token_id", json!("</s>"), &["`eos_token_id`", "a token id or a list"]),
    ];
    for (key, value, wanted) in cases {
        let mut raw = config();
        raw[*key] = value.clone();
        let e = ModelConfig::from_json(raw, "config.json").unwrap_err();
        says(&format!("config.json|{e}|{}", e.hint_text().unwrap_or("")), wanted);
    }
}

/// Replaces the first `from` by `to`, of the same length.
fn patched(from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = gguf_bytes();
    let at = bytes.windows(from.len()).position(|w| w == from).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

/// The bytes after a tensor's name: dimensions, sizes, type, offset, as `(position, bytes)` replacements.
fn tensor_patched(name: &str, at: usize, to: &[u8]) -> Vec<u8> {
    let mut bytes = gguf_bytes();
    let key = [&(name.len() as u64).to_le_bytes()[..], name.as_bytes()].concat();
    let start = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + at;
    bytes[start..start + to.len()].copy_from_slice(to);
    bytes
}

/// A file without tensors that asks for this alignment.
fn aligned(to: u32) -> Vec<u8> {
    let counts = [&3u32.to_le_bytes()[..], &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    let key = [&17u64.to_le_bytes()[..], b"general.alignment", &4u32.to_le_bytes()].concat();
    [b"GGUF", &counts[..], &key, &to.to_le_bytes()].concat()
}

/// A part of a split file that is not the first has this alone, and tensors.
fn split(parts: u16) -> Vec<u8> {
    let counts = [&3u32.to_le_bytes()[..], &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
    let key = [&11u64.to_le_bytes()[..], b"split.count", &2u32.to_le_bytes()].concat();
    [b"GGUF", &counts[..], &key, &parts.to_le_bytes()].concat()
}

#[test]
fn gguf_files() {
    let whole = gguf_bytes();
    let huge = u64::MAX.to_le_bytes();
    let header = |at: usize, to: &[u8]| {
        let mut bytes = gguf_bytes();
        bytes[at..at + to.len()].copy_from_slice(to);
        bytes
    };
    let down = "blk.0.ffn_down.weight";
    let cases: &[(Vec<u8>, &[&str])] = &[
        (b"GG".to_vec(), &["does not start with `GGUF`"]),
        (header(0, b"GGML"), &["does not start with `GGUF`"]),
        (header(4, &1u32.to_le_bytes()), &["GGUF version 1"]),
        (header(4, &3u32.to_be_bytes()), &["big-endian"]),
        (header(8, &huge), &["tensors do not fit"]),
        (header(16, &huge), &["metadata pairs do not fit"]),
        (header(24, &huge), &["string bytes do not fit"]),
        (whole[..100].to_vec(), &["do not fit", "cut short"]),
        (whole[..whole.len() - 40].to_vec(), &["ends at byte", "fetch it again"]),
        (
            patched(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.eos_token_id"),
            &["eos_token_id` appears twice"],
        ),
        (patched(b"general.architecture", b"general.architexture"), &["`general.architecture`", "missing"]),
        (patched(b"llama\x0c", b"gpt2x\x0c"), &["architecture `gpt2x`", "qwen3"]),
        (patched(b"llama.block_count\x04", b"llama.block_count\x06"), &["`llama.block_count`", "a float"]),
        (
            patched(b"llama.block_count\x04", b"llama.block_count\x63"),
            &["`llama.block_count`", "type 99 is unknown"],
        ),
        (
            patched(b"tokenizer.ggml.tokens\x09\0\0\0\x08", b"tokenizer.ggml.tokens\x09\0\0\0\x09"),
            &["arrays of arrays"],
        ),
        (patched(b"Tiny", b"\xff\xff\xff\xff"), &["not UTF-8"]),
        (patched(b"blk.1.ffn_up", b"blk.0.ffn_up"), &["`blk.0.ffn_up.weight` appears twice"]),
        (patched(b"blk.1.ffn_up", b"blk.1.ffn_xx"), &["1 tensors that are no part", "`blk.1.ffn_xx.weight`"]),
        (tensor_patched(down, 0, &5u32.to_le_bytes()), &[down, "5 dimensions"]),
        (tensor_patched(down, 0, &0u32.to_le_bytes()), &["0 dimensions"]),
        (tensor_patched(down, 4, &huge), &["overflows"]),
        (tensor_patched(down, 4, &0u64.to_le_bytes()), &["is empty or overflows"]),
        (
            tensor_patched(down, 20, &23u32.to_le_bytes()),
            &["types not read", "ffn_down.weight`: IQ4_XS", "Q5_K, Q6_K, IQ4_NL are", "Q4_K_M or F16"],
        ),
        (tensor_patched(down, 24, &1u64.to_le_bytes()), &["not a multiple of the alignment"]),
        (tensor_patched(down, 24, &(u64::MAX - 31).to_le_bytes()), &["overflows"]),
        (tensor_patched(down, 24, &0u64.to_le_bytes()), &["overlap"]),
        (tensor_patched(down, 4, &33u64.to_le_bytes()), &["rows of 33 values, not a multiple of Q4_1's 32"]),
        (aligned(0), &["`general.alignment`", "power of two"]),
        (aligned(24), &["`general.alignment`", "power of two"]),
        (split(2), &["model.gguf: one of 2 parts", "llama-gguf-split --merge"]),
        (split(1), &["`general.architecture`", "missing"]),
    ];
    for (i, (bytes, wanted)) in cases.iter().enumerate() {
        let dir = folder(&[("model.gguf", bytes)]);
        let text = error_of(&dir.path().join("model.gguf"));
        wanted.iter().for_each(|w| assert!(text.contains(w), "case {i}: {text:?} does not say {w:?}"));
    }
}

/// A rotary table is read before the model is known to be sound: its size, too, must be held against something first.
#[test]
fn rotary_tables_of_any_size() {
    let whole = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama3.gguf")).unwrap();
    let key = b"rope_freqs.weight";
    let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    let table = |factors: u64, kind: u32| {
        let mut bytes = whole.clone();
        bytes[at + 4..at + 12].copy_from_slice(&factors.to_le_bytes());
        bytes[at + 12..at + 16].copy_from_slice(&kind.to_le_bytes());
        bytes
    };
    for (bytes, wanted) in [
        (table(1 << 40, 23), "has 1099511627776 factors, should have 8"),
        (table(7, 0), "has 7 factors, should have 8"),
        (table(8, 23), "a tensor of type IQ4_XS"),
    ] {
        let dir = folder(&[("model.gguf", &bytes)]);
        says(&error_of(&dir.path().join("model.gguf")), &["tensor `rope_freqs.weight`", wanted]);
    }
}

/// Names within names within names: what is gathered must not grow with the square of the header.
#[test]
fn names_within_names() {
    let names = (1..=1500).map(|n| vec!["a"; n].join("."));
    let entries: Vec<_> =
        names.map(|n| format!(r#""{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    let file = tensors_file(&format!("{{{}}}", entries.join(",")), &[]);
    let dir = folder(&[("config.json", config().to_string().as_bytes()), ("model.safetensors", &file)]);
    let before = tch_ext::memory::process();
    assert_eq!(open(dir.path()).unwrap().names().len(), 1500);
    if let (Some(before), Some(after)) = (before, tch_ext::memory::process()) {
        let grown = after.peak - before.peak.min(after.peak);
        assert!(grown < 20 * file.len() as u64 + (64 << 20), "{grown} bytes for {}", file.len());
    }
}

/// A small generator of our own: the run is the same every time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

fn mutated(random: &mut Random, whole: &[u8], head: usize) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(head.min(bytes.len()));
        match random.below(6) {
            0 => bytes[at] = 255,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.below(256) as u8,
            3 => bytes.truncate(at + 1),
            4 => drop(bytes.remove(at)),
            _ => bytes.insert(at, random.below(256) as u8),
        }
    }
    bytes
}

/// Opens and, if that works, loads everything; errors are fine, panics are not.
fn survive(path: &PathBuf) -> bool {
    let _ = Gguf::open(path);
    let folder = if path.extension().is_some_and(|e| e == "gguf") { path } else { path.parent().unwrap() };
    open(folder).is_ok_and(|m| m.names().iter().all(|n| m.load(n, Kind::BFloat16).is_ok()))
}

#[test]
fn no_mutation_makes_us_panic() {
    let mut random = Random(11);
    let dir = folder(&[("config.json", config().to_string().as_bytes())]);
    let mut loaded = [0; 2];
    let whole = gguf_bytes();
    let path = dir.path().join("model.gguf");
    for _ in 0..2000 {
        fs::write(&path, mutated(&mut random, &whole, 4096)).unwrap();
        loaded[0] += i32::from(survive(&path));
    }
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}}"#;
    let whole = tensors_file(header, &[0; 16]);
    let path = dir.path().join("model.safetensors");
    for _ in 0..2000 {
        // A new file each time: an earlier one may still be mapped.
        let _ = fs::remove_file(&path);
        fs::write(&path, mutated(&mut random, &whole, usize::MAX)).unwrap();
        loaded[1] += i32::from(survive(&path));
    }
    assert!(
        loaded.iter().all(|&n| n > 0 && n < 2000),
        "some mutations are harmless, most are not: {loaded:?}"
    );
}
