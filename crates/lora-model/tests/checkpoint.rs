//! Weights and configurations as transformers has them (`data/make_checkpoints.py` made the files).

use std::fs;
use std::path::{Path, PathBuf};

use lora_model::{Gguf, GgufKind, GgufOut, RopeScaling, open};
use safetensors::SafeTensors;
use serde_json::json;
use tch::{Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The bits of an f32 tensor: -0.0 is not 0.0 here.
fn bits(t: &Tensor) -> Vec<u32> {
    assert_eq!(t.kind(), Kind::Float);
    Vec::<f32>::try_from(t.reshape([-1])).unwrap().into_iter().map(f32::to_bits).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Every block type, scales of any f16 value, rows of q and k permuted for llama: all as transformers loads it.
#[test]
fn gguf_weights_are_bit_equal_to_transformers() {
    for arch in ["llama", "qwen2", "qwen3"] {
        let ours = open(&data(&format!("{arch}.gguf"))).unwrap();
        let file = fs::read(data(&format!("{arch}.safetensors"))).unwrap();
        let theirs = SafeTensors::deserialize(&file).unwrap();
        let mut names: Vec<_> = theirs.names().iter().map(|n| n.to_string()).collect();
        names.sort();
        assert_eq!(ours.names(), names, "{arch}");
        for name in names {
            let want = theirs.tensor(&name).unwrap();
            let got = ours.load(&name, Kind::Float).unwrap();
            let shape: Vec<usize> = got.size().iter().map(|&d| d as usize).collect();
            assert_eq!(shape, want.shape(), "{arch} {name}");
            assert!(bits(&got) == words(want.data()), "{arch} {name}");
        }
    }
}

/// Llama 3's rule is recognised in the factors GGUF keeps of it; biases are permuted like their weights.
#[test]
fn gguf_of_llama_3() {
    let ours = open(&data("llama3.gguf")).unwrap();
    let c = ours.config();
    let rule = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    assert_eq!((c.rope_theta, c.rope_scaling.clone()), (500_000.0, rule));
    assert_eq!(c.raw["rope_parameters"]["rope_type"], "llama3");
    assert_eq!((c.qkv_bias, c.o_bias, c.mlp_bias, c.eos_token_ids.clone()), (true, true, false, vec![2, 9]));
    let file = fs::read(data("llama3.safetensors")).unwrap();
    for (name, want) in SafeTensors::deserialize(&file).unwrap().iter() {
        assert!(bits(&ours.load(name, Kind::Float).unwrap()) == words(want.data()), "{name}");
    }

    // Other factors stay factors, spelt so that transformers takes them and we read them back.
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(data("llama3.gguf")).unwrap();
    let eight = [8f32.to_le_bytes(); 3].concat();
    let at = bytes.windows(12).position(|w| w == eight).unwrap();
    bytes[at..at + 4].copy_from_slice(&6f32.to_le_bytes());
    fs::write(dir.path().join("other.gguf"), bytes).unwrap();
    let other = open(&dir.path().join("other.gguf")).unwrap().config().clone();
    let RopeScaling::Factors(factors) = &other.rope_scaling else { panic!("{:?}", other.rope_scaling) };
    assert_eq!((factors.len(), &factors[..3], &factors[5..]), (8, &[1.0; 3][..], &[6.0, 8.0, 8.0][..]));
    let again = lora_model::ModelConfig::from_json(other.raw.clone(), "config.json").unwrap();
    assert_eq!(again, other);
}

/// A table of factors says not all: llama.cpp divides by the linear factor too, and has more that is not read here.
#[test]
fn gguf_of_more_than_a_rotary_table() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, texts: &[(&str, &str)], numbers: &[(&str, f64)]| {
        let (base, model) = (Gguf::open(&data(name)).unwrap(), open(&data(name)).unwrap());
        let mut out = GgufOut::like(&base, model.config(), GgufKind::F32).unwrap();
        texts.iter().for_each(|(key, value)| out.text(&format!("llama.rope.{key}"), value));
        numbers.iter().for_each(|&(key, value)| out.number(&format!("llama.rope.{key}"), value));
        for tensor in model.names() {
            let (model, key) = (model.as_ref(), tensor.clone());
            let shape = model.shape(&tensor).unwrap();
            out.tensor(&tensor, "", &shape, true, move || model.read(&key, Kind::Float)).unwrap();
        }
        let to = dir.path().join("model.gguf");
        out.write(&to).unwrap();
        open(&to).map(|model| model.config().rope_scaling.clone())
    };
    let rule = read("llama3.gguf", &[], &[]).unwrap();
    assert!(matches!(rule, RopeScaling::Llama3 { factor: 8.0, .. }), "{rule:?}");
    for kind in ["none", "llama3"] {
        let same = read("llama3.gguf", &[("scaling.type", kind)], &[("scaling.factor", 8.0)]).unwrap();
        assert_eq!(same, rule, "{kind}");
    }
    let same = read("llama3.gguf", &[("scaling.type", "linear")], &[("scaling.attn_factor", 1.0)]).unwrap();
    assert_eq!(same, rule);
    for (texts, key) in [(&[("scaling.type", "linear")][..], "scaling.factor"), (&[][..], "scale_linear")] {
        let both = read("llama3.gguf", texts, &[(key, 4.0)]).unwrap();
        let RopeScaling::Factors(factors) = &both else { panic!("{both:?}") };
        assert_eq!((&factors[..3], &factors[5..]), (&[4.0; 3][..], &[32.0; 3][..]), "{key}");
        let alone = read("llama.gguf", texts, &[(key, 4.0)]).unwrap();
        assert_eq!(alone, RopeScaling::Linear { factor: 4.0 }, "{key}");
    }
    for name in ["llama3.gguf", "llama.gguf"] {
        let yarn = read(name, &[("scaling.type", "yarn")], &[("scaling.factor", 4.0)]).unwrap_err();
        assert!(yarn.to_string().contains("scaling.type`: position scaling `yarn`"), "{name}: {yarn}");
        let scaled = read(name, &[], &[("scaling.attn_factor", 2.0)]).unwrap_err();
        assert!(scaled.to_string().contains("attention scaled by 2"), "{name}: {scaled}");
        assert!(yarn.hint_text().is_some() && scaled.hint_text().is_some());
    }
}

#[test]
fn gguf_metadata_becomes_a_configuration() {
    let llama = open(&data("llama.gguf")).unwrap();
    let c = llama.config();
    assert_eq!((c.model_type.as_str(), c.hidden_size, c.layers, c.vocab_size), ("llama", 32, 2, 8));
    assert_eq!((c.heads, c.kv_heads, c.head_dim, c.max_positions), (4, 2, 8, 512));
    assert_eq!((c.rms_norm_eps, c.rope_theta), (1e-5, 50_000.0));
    assert_eq!((c.bos_token_id, c.eos_token_ids.clone()), (Some(1), vec![2]));
    assert!(c.tie_word_embeddings && !c.qkv_bias && !c.qk_norm);
    assert_eq!(c.raw["architectures"], json!(["LlamaForCausalLM"]));
    assert_eq!(llama.model_name(), Some("Tiny llama"));

    let qwen2 = open(&data("qwen2.gguf")).unwrap();
    assert!(qwen2.config().qkv_bias && !qwen2.config().o_bias && !qwen2.config().tie_word_embeddings);
    let qwen3 = open(&data("qwen3.gguf")).unwrap();
    assert!(qwen3.config().qk_norm && !qwen3.config().qkv_bias);
    assert_eq!(qwen3.config().head_dim, 128);
}

/// Some files give a number for padding that is no token.
#[test]
fn padding_without_a_row_is_none() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let key = |name: &str, id: u8| [text(name), vec![4, 0, 0, 0, id, 0, 0, 0]].concat();
    for (id, found) in [(7, Some(7)), (8, None), (255, None)] {
        let mut bytes = fs::read(data("llama.gguf")).unwrap();
        let mut put = |from: Vec<u8>, to: Vec<u8>| {
            let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
            bytes.splice(at..at + from.len(), to);
        };
        put(key("tokenizer.ggml.bos_token_id", 1), key("tokenizer.ggml.padding_token_id", id));
        // As long as before, for what is behind is aligned.
        put(text("Tiny llama"), text("Tiny l"));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("model.gguf"), bytes).unwrap();
        let model = open(&dir.path().join("model.gguf")).unwrap();
        assert_eq!(model.config().pad_token_id, found);
        assert_eq!(model.config().raw["pad_token_id"], json!(found));
    }
}

const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 6,
    "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "dtype": "bfloat16"}"#;

/// Bytes of a safetensors file, by the format's own definition.
fn safetensors(tensors: &[(&str, &str, &[usize], &[u8])]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut body = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = body.len();
        body.extend_from_slice(bytes);
        header.insert(
            name.to_string(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, body.len()]}),
        );
    }
    let header = serde_json::Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &body].concat()
}

#[test]
fn shards_are_one_checkpoint_in_any_type() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let f32s: Vec<u8> = [1.5f32, -0.0, 3.0e-8, 65504.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    // bf16 1.0, -2.0 at a place that is no multiple of 4 or, after the odd header, of 2.
    let bf16s = [0x80, 0x3F, 0x00, 0xC0];
    put("config.json", CONFIG.as_bytes());
    put("one.safetensors", &safetensors(&[("a", "F32", &[2, 2], &f32s), ("empty", "F32", &[0, 3], &[])]));
    put("two.safetensors", &safetensors(&[("pad", "U8", &[1], &[0]), ("b", "BF16", &[2], &bf16s)]));
    let map = json!({"metadata": {"total_size": 20}, "weight_map":
        {"a": "one.safetensors", "empty": "one.safetensors", "b": "two.safetensors", "pad": "two.safetensors"}});
    put("model.safetensors.index.json", map.to_string().as_bytes());

    let model = open(dir.path()).unwrap();
    assert_eq!(model.names(), ["a", "b", "empty", "pad"]);
    assert_eq!(model.files(), [dir.path().join("one.safetensors"), dir.path().join("two.safetensors")]);
    assert_eq!(model.stored_bytes(), 21);
    assert_eq!((model.shape("a"), model.shape("c")), (Some(vec![2, 2]), None));
    assert_eq!(
        (model.kind("a"), model.kind("b"), model.kind("pad")),
        (Some(Kind::Float), Some(Kind::BFloat16), None)
    );
    let a = model.load("a", Kind::Float).unwrap();
    assert_eq!(bits(&a), words(&f32s));
    let b = model.load("b", Kind::Float).unwrap();
    assert_eq!(Vec::<f32>::try_from(&b).unwrap(), [1.0, -2.0]);
    assert_eq!(model.load("empty", Kind::Half).unwrap().size(), [0, 3]);
    // A view outlives its checkpoint, and writing to it leaves the file alone.
    drop(model);
    let _ = a.shallow_clone().fill_(7.0);
    let again = open(dir.path()).unwrap().load("a", Kind::Float).unwrap();
    assert_eq!(bits(&again), words(&f32s));
}

/// Bytes of `file` that are in memory by a mapping.
#[cfg(target_os = "linux")]
fn mapped(file: &Path) -> u64 {
    let path = fs::canonicalize(file).unwrap();
    let (mut sum, mut own) = (0, false);
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if own => sum += 1024 * words.next().unwrap().parse::<u64>().unwrap(),
            Some(first) if !first.ends_with(':') => own = line.ends_with(path.to_str().unwrap()),
            _ => {}
        }
    }
    sum
}

/// Neither what is looked at in a few places nor what becomes another type brings the mapped file into memory.
#[cfg(target_os = "linux")]
#[test]
fn what_is_not_kept_is_not_mapped() {
    // More than one piece.
    let n = (4 << 20) + 3;
    let number = |i: usize| (i % 251) as f32 - 100.0;
    let bytes: Vec<u8> = (0..n).flat_map(|i| ((number(i).to_bits() >> 16) as u16).to_le_bytes()).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("model.safetensors");
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    fs::write(&file, safetensors(&[("a", "BF16", &[n], &bytes)])).unwrap();
    let model = open(dir.path()).unwrap();
    let places: Vec<i64> = (0..256).map(|i| i * (n as i64 - 1) / 255).collect();
    let wanted: Vec<f32> = places.iter().map(|&place| number(place as usize)).collect();
    assert_eq!(model.numbers_at("a", &places).unwrap(), wanted);
    assert!(model.numbers_at("a", &[n as i64]).is_err() && model.numbers_at("a", &[-1]).is_err());
    let all: Vec<f32> = (0..n).map(number).collect();
    for tensor in
        [model.load("a", Kind::Float), model.read("a", Kind::Float), model.read("a", Kind::BFloat16)]
    {
        assert!(Vec::<f32>::try_from(tensor.unwrap().to_kind(Kind::Float)).unwrap() == all);
    }
    assert_eq!(mapped(&file), 0);
    let _kept = model.load("a", Kind::BFloat16).unwrap();
    assert!(mapped(&file) > 0);
}

/// As in transformers a head that is not the embedding is tied to nothing, whatever the configuration says.
#[test]
fn a_tied_head_holds_the_embedding_or_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("config.json", CONFIG.replace('{', r#"{"tie_word_embeddings": true, "#).as_bytes());
    let embedding = "model.embed_tokens.weight";
    let tied = |tensors: &[(&str, &str, &[usize], &[u8])]| {
        put("model.safetensors", &safetensors(tensors));
        let config = open(dir.path()).unwrap().config().clone();
        assert_eq!(config.raw["tie_word_embeddings"], config.tie_word_embeddings);
        config.tie_word_embeddings
    };
    // More than is compared at a time; the last number of the other is another.
    let shape = &[1 << 16, 70][..];
    let same: Vec<u8> = (0..70 << 16).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let mut other = same.clone();
    *other.last_mut().unwrap() ^= 1;
    assert!(tied(&[(embedding, "F32", shape, &same)]));
    assert!(tied(&[(embedding, "F32", shape, &same), ("lm_head.weight", "F32", shape, &same)]));
    assert!(!tied(&[(embedding, "F32", shape, &same), ("lm_head.weight", "F32", shape, &other)]));
    assert!(!tied(&[(embedding, "F32", shape, &same), ("lm_head.weight", "F32", &[70, 1 << 16], &same)]));
    // 1.0 and -2.0 of either type; then 1.5 for 1.0.
    let f32s: Vec<u8> = [1.0f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let head = |bytes: &[u8]| {
        tied(&[(embedding, "F32", &[2, 1], &f32s), ("lm_head.weight", "BF16", &[2, 1], bytes)])
    };
    assert!(head(&[0x80, 0x3F, 0x00, 0xC0]));
    assert!(!head(&[0xC0, 0x3F, 0x00, 0xC0]));
}

#[test]
fn both_spellings_of_a_configuration_mean_the_same() {
    let read = |extra: serde_json::Value| {
        let mut raw: serde_json::Value = serde_json::from_str(CONFIG).unwrap();
        raw.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        lora_model::ModelConfig::from_json(raw, "config.json")
    };
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    let old = json!({"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    let new = json!({"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}});
    for spelling in [old, new] {
        let c = read(spelling).unwrap();
        assert_eq!((c.rope_theta, c.rope_scaling), (500_000.0, llama3.clone()));
    }
    let plain = read(json!({"rope_scaling": null, "eos_token_id": [3, 4], "pad_token_id": -1})).unwrap();
    assert_eq!((plain.rope_theta, plain.rope_scaling), (10_000.0, RopeScaling::None));
    assert_eq!((plain.eos_token_ids, plain.pad_token_id, plain.bos_token_id), (vec![3, 4], None, Some(1)));
    assert_eq!((plain.kv_heads, plain.head_dim), (2, 2));

    let window = |extra| read(extra).map(|c| c.sliding_window);
    assert_eq!(window(json!({"model_type": "mistral", "num_key_value_heads": 2})).unwrap(), Some(4096));
    let null = json!({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": null});
    assert_eq!(window(null).unwrap(), None);
    let ministral = |types: serde_json::Value| {
        window(json!({"model_type": "mistral", "num_key_value_heads": 2, "num_hidden_layers": 2,
            "sliding_window": 16, "layer_types": types}))
    };
    let [full, sliding] = ["full_attention", "sliding_attention"];
    assert_eq!(ministral(json!([sliding, sliding])).unwrap(), Some(16));
    assert_eq!(ministral(json!([full, full])).unwrap(), None);
    assert_eq!(ministral(json!(null)).unwrap(), Some(16));
    let error = ministral(json!([full, sliding])).unwrap_err();
    assert!(error.to_string().contains("a sliding window in 1 of 2 layers"), "{error}");
    let error = ministral(json!([sliding])).unwrap_err();
    assert!(error.to_string().contains("1 entries for 2 layers"), "{error}");
    let off = json!({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": false});
    assert_eq!(window(off).unwrap(), None);
    let above = json!({"model_type": "qwen2", "sliding_window": 16, "use_sliding_window": true});
    assert_eq!(window(above).unwrap(), None, "max_window_layers is 28 by default, above the one layer");
    let all = json!({"model_type": "qwen3", "sliding_window": 16, "use_sliding_window": true, "max_window_layers": 0});
    assert_eq!(window(all).unwrap(), Some(16));
    let mixed = json!({"model_type": "qwen2", "num_hidden_layers": 2, "use_sliding_window": true,
        "layer_types": ["full_attention", "sliding_attention"]});
    assert!(window(mixed).unwrap_err().to_string().contains("a sliding window in 1 of 2 layers"));
}

/// As in transformers, `generation_config.json` decides what ends a text.
#[test]
fn generation_config_wins() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    let text = r#"{"eos_token_id": [5, 6], "pad_token_id": 7}"#;
    fs::write(dir.path().join("generation_config.json"), text).unwrap();
    let c = lora_model::ModelConfig::from_folder(dir.path()).unwrap();
    assert_eq!((c.eos_token_ids, c.pad_token_id), (vec![5, 6], Some(7)));
}
