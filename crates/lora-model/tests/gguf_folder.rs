//! A model folder written as a GGUF file, and read again: configuration, weights, tokenizer, chat template.

use std::fs;
use std::path::{Path, PathBuf};

use lora_core::write_tensors;
use lora_model::{Checkpoint, Gguf, GgufKind, GgufOut, GgufValue, Tokenizer, open};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A folder with random weights of that vocabulary; `more` goes over its config.json.
fn folder(dir: &Path, vocabulary: i64, more: &Value) {
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 8, "vocab_size": vocabulary, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 50000.0, "tie_word_embeddings": true
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    tch::manual_seed(1);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), random(&[vocabulary, 32])),
        ("model.norm.weight".to_owned(), random(&[32])),
    ];
    if config["tie_word_embeddings"] == false {
        tensors.push(("lm_head.weight".to_owned(), random(&[vocabulary, 32])));
    }
    for layer in 0..2 {
        let (q, kv, inner) = (vec![32, 32], vec![16, 32], vec![48, 32]);
        let mut parts = vec![
            ("self_attn.q_proj.weight", q.clone()),
            ("self_attn.k_proj.weight", kv.clone()),
            ("self_attn.v_proj.weight", kv),
            ("self_attn.o_proj.weight", q),
            ("mlp.gate_proj.weight", inner.clone()),
            ("mlp.up_proj.weight", inner),
            ("mlp.down_proj.weight", vec![32, 48]),
            ("input_layernorm.weight", vec![32]),
            ("post_attention_layernorm.weight", vec![32]),
        ];
        let family = config["model_type"].as_str().unwrap();
        if family == "qwen2" {
            let bias = |n| vec![n];
            parts.extend([
                ("self_attn.q_proj.bias", bias(32)),
                ("self_attn.k_proj.bias", bias(16)),
                ("self_attn.v_proj.bias", bias(16)),
            ]);
        }
        if family == "qwen3" {
            parts.extend([("self_attn.q_norm.weight", vec![8]), ("self_attn.k_norm.weight", vec![8])]);
        }
        tensors.extend(
            parts.into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), random(&shape))),
        );
    }
    write_tensors(&dir.join("model.safetensors"), &tensors, &[]).unwrap();
}

/// The folder's model as a GGUF file beside it.
fn written(dir: &Path, pre: Option<&str>) -> lora_core::Result<(Box<dyn Checkpoint>, PathBuf)> {
    let (model, to) = (open(dir)?, dir.join("out.gguf"));
    let mut out = GgufOut::of_folder(model.as_ref(), GgufKind::F32, pre)?;
    for name in model.names() {
        let (model, key) = (model.as_ref(), name.clone());
        out.tensor(&name, "", &model.shape(&name).unwrap(), true, move || model.read(&key, Kind::Float))?;
    }
    out.write(&to)?;
    Ok((model, to))
}

#[test]
fn networks_come_back() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32});
    for (name, more) in [
        ("llama", json!({})),
        ("untied", json!({"tie_word_embeddings": false, "rope_theta": 1e6})),
        ("linear", json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}})),
        ("llama3", json!({"rope_scaling": llama3})),
        (
            "mistral",
            json!({"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 64}),
        ),
        ("qwen2", json!({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]})),
        ("qwen3", json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = Tokenizer::open(&data("text/smollm.gguf")).unwrap();
        tokenizer.save(dir.path()).unwrap();
        let rows = tokenizer.vocab_size() as i64 + 5;
        folder(dir.path(), rows, &more);
        let (model, to) = written(dir.path(), None).unwrap();
        let again = open(&to).unwrap();
        let (a, b) = (again.config(), model.config());
        let shape = |c: &lora_model::ModelConfig| {
            (
                (c.vocab_size, c.hidden_size, c.intermediate_size, c.layers, c.heads, c.kv_heads, c.head_dim),
                (c.max_positions, c.tie_word_embeddings, c.qkv_bias, c.qk_norm, c.sliding_window),
                (c.model_type.clone(), c.rope_theta as f32, c.rms_norm_eps as f32),
            )
        };
        assert_eq!(shape(a), shape(b), "{name}");
        assert_eq!(again.names(), model.names(), "{name}");
        for tensor in model.names() {
            let load = |from: &dyn Checkpoint| from.load(&tensor, Kind::Float).unwrap();
            assert_eq!(load(again.as_ref()), load(model.as_ref()), "{name}, {tensor}");
        }
        // The angles of the rotation are those of the folder's, to the rounding of the factors to f32.
        let logits = |from: &dyn Checkpoint| {
            use lora_model::{Keep, Llama, Model, Texts};
            let model = Llama::load(from, Kind::Float, Device::Cpu, Keep::DENSE).unwrap();
            let ids = Tensor::arange(100, (Kind::Int64, Device::Cpu)).unsqueeze(0);
            model.logits(Texts::Rows(&ids), None, lora_core::Mode::Eval).unwrap()
        };
        let (ours, theirs) = (logits(again.as_ref()), logits(model.as_ref()));
        let error = (&ours - &theirs).norm().double_value(&[]) / theirs.norm().double_value(&[]);
        assert!(error < 1e-5, "{name}: {error}");
    }
}

/// Ids as transformers gave them: `data/make_text.py`.
#[test]
fn tokenizers_come_back() {
    let golden: Value = serde_json::from_slice(&fs::read(data("text/tokens.json")).unwrap()).unwrap();
    for (kind, expected) in golden["kinds"].as_object().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let before = Tokenizer::open(&data(&format!("text/{kind}.gguf"))).unwrap();
        before.save(dir.path()).unwrap();
        folder(dir.path(), before.vocab_size() as i64, &json!({}));
        let (_, to) = written(dir.path(), None).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let after = Tokenizer::open(&to).unwrap();
        for (text, ids) in golden["texts"].as_array().unwrap().iter().zip(expected["ids"].as_array().unwrap())
        {
            let ids: Vec<i64> = ids.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
            assert_eq!(after.encode(text.as_str().unwrap(), false).unwrap(), ids, "{kind}: {text}");
        }
        let specials = |t: &Tokenizer| (t.bos_id(), t.pad_id(), t.eos_ids().first().copied(), t.vocab_size());
        assert_eq!(specials(&after), specials(&before), "{kind}");
        assert_eq!(after.encode("a b", true).unwrap(), before.encode("a b", true).unwrap(), "{kind}");
        let template = |t: &Tokenizer| t.chat_template().map(|c| c.source().to_owned());
        assert_eq!(template(&after), template(&before), "{kind}");
        // Name and merges are what the original file says.
        let (a, b) = (Gguf::open(&to).unwrap(), Gguf::open(&data(&format!("text/{kind}.gguf"))).unwrap());
        for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
            assert_eq!(a.meta(key), b.meta(key), "{kind}, {key}");
        }
    }
}

#[test]
fn what_llama_cpp_has_no_match_for_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::open(&data("text/smollm.gguf")).unwrap();
    tokenizer.save(dir.path()).unwrap();
    let rows = tokenizer.vocab_size() as i64;
    folder(dir.path(), rows, &json!({}));
    let file = dir.path().join("tokenizer.json");
    let whole = fs::read_to_string(&file).unwrap();
    let refused = |pre| written(dir.path(), pre).unwrap_err();

    let mut json: Value = serde_json::from_str(&whole).unwrap();
    json["pre_tokenizer"] = json!({"type": "Whitespace"});
    fs::write(&file, json.to_string()).unwrap();
    let e = refused(None);
    assert!(
        e.to_string().contains("name in llama.cpp is not known") && e.hint_text().unwrap().contains("--pre")
    );
    let (_, to) = written(dir.path(), Some("mine")).unwrap();
    let pre = Gguf::open(&to).unwrap().meta("tokenizer.ggml.pre").cloned();
    assert_eq!(pre, Some(GgufValue::Str("mine".into())), "a name said by hand is taken");

    fs::write(&file, &whole).unwrap();
    folder(dir.path(), rows - 7, &json!({}));
    let e = refused(None).to_string();
    assert!(e.contains(&format!("the model has {}", rows - 7)), "{e}");
    fs::remove_file(&file).unwrap();
    assert!(refused(None).to_string().contains("tokenizer.json"));
}
