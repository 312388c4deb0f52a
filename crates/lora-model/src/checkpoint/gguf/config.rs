//! GGUF metadata as a Hugging Face `config.json`, which is then read like any other.

use lora_core::{Error, Result};
use serde_json::{Value as Json, json};
use tch::Kind;

use super::{Gguf, weights};
use crate::{ModelConfig, RopeScaling, gguf_tokenizer};

/// What the file says of the model.
pub(super) fn from_metadata(gguf: &Gguf) -> Result<ModelConfig> {
    let place = format!("{}, metadata", gguf.path().display());
    // The first part says all of the model, the others nothing: either would be blamed on what it has not.
    if let Some(parts) = gguf.opt(Gguf::u64, "split.count")?.filter(|&parts| parts > 1) {
        return Err(Error::unsupported(format!("one of {parts} parts of a model"))
            .at(gguf.path().display())
            .hint("join the parts: `llama-gguf-split --merge FIRST OUT`"));
    }
    let arch = gguf.str("general.architecture")?;
    let class = match arch {
        "llama" => "LlamaForCausalLM",
        "qwen2" => "Qwen2ForCausalLM",
        "qwen3" => "Qwen3ForCausalLM",
        other => {
            return Err(Error::unsupported(format!("architecture `{other}`"))
                .at(format!("{place} `general.architecture`"))
                .hint("supported are llama (mistral too is called so in GGUF), qwen2, qwen3"));
        }
    };
    let key = |name: &str| format!("{arch}.{name}");
    if gguf.opt(Gguf::u64, &key("expert_count"))?.unwrap_or(0) > 0 {
        return Err(Error::unsupported("mixtures of experts").at(format!("{place} `{arch}.expert_count`")));
    }
    let has = |name: &str| gguf.tensors().contains_key(name);
    let embedding = gguf.tensors().get("token_embd.weight").and_then(|t| t.shape.first());
    let vocab = embedding
        .ok_or_else(|| Error::data("there is no tensor `token_embd.weight`").at(gguf.path().display()))?;
    let heads = gguf.u64(&key("attention.head_count"))?;
    let hidden = gguf.u64(&key("embedding_length"))?;
    let head_dim = match gguf.opt(Gguf::u64, &key("attention.key_length"))? {
        Some(dim) => dim,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    let rotated = gguf.opt(Gguf::u64, &key("rope.dimension_count"))?.unwrap_or(head_dim);
    if rotated != head_dim {
        let what = format!("rotary encoding of {rotated} of a head's {head_dim} values");
        return Err(Error::unsupported(what).at(format!("{place} `{arch}.rope.dimension_count`")));
    }
    let positions = gguf.u64(&key("context_length"))?;
    let theta = number(gguf.opt(Gguf::f64, &key("rope.freq_base"))?.unwrap_or(10_000.0));
    // Some files have a number here that is no token, and transformers loads no embedding without its padding.
    let padding = gguf.opt(Gguf::i64, "tokenizer.ggml.padding_token_id")?;
    let mut raw = json!({
        "architectures": [class],
        "model_type": arch,
        "hidden_act": "silu",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": gguf.u64(&key("feed_forward_length"))?,
        "num_hidden_layers": gguf.u64(&key("block_count"))?,
        "num_attention_heads": heads,
        "num_key_value_heads": gguf.opt(Gguf::u64, &key("attention.head_count_kv"))?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": number(gguf.f64(&key("attention.layer_norm_rms_epsilon"))?),
        "tie_word_embeddings": !has("output.weight"),
        "rope_parameters": rope(gguf, arch, (head_dim, theta, positions))?,
        "bos_token_id": gguf.opt(Gguf::u64, "tokenizer.ggml.bos_token_id")?,
        "eos_token_id": eos(gguf)?,
        "pad_token_id": padding.filter(|id| (0..*vocab).contains(id)),
    });
    if let Some(window) = gguf.opt(Gguf::u64, &key("attention.sliding_window"))? {
        if arch == "llama" {
            raw["architectures"] = json!(["MistralForCausalLM"]);
            raw["model_type"] = json!("mistral");
        }
        raw["sliding_window"] = json!(window);
        raw["use_sliding_window"] = json!(true);
        raw["max_window_layers"] = json!(0);
    }
    let biases = [
        has("blk.0.attn_q.bias"),
        has("blk.0.attn_k.bias"),
        has("blk.0.attn_v.bias"),
        has("blk.0.attn_output.bias"),
    ];
    let mlp_bias = has("blk.0.ffn_gate.bias");
    match (arch, biases) {
        ("qwen2", [true, true, true, false]) if !mlp_bias => {}
        ("llama", [all, k, v, o]) | ("qwen3", [all, k, v, o]) if k == all && v == all && o == all => {
            raw["attention_bias"] = json!(all);
            raw["mlp_bias"] = json!(mlp_bias);
        }
        _ => {
            let what = format!("biases that no {arch} model has");
            return Err(Error::unsupported(what).at(gguf.path().display()));
        }
    }
    let mut config = ModelConfig::from_json(raw, &place)?;
    recognise_llama3(&mut config);
    Ok(config)
}

/// Floats are stored as f32: 1e-5 is meant by 9.99999974e-6.
fn number(x: f64) -> f64 {
    let single = x as f32;
    if f64::from(single) == x { single.to_string().parse().unwrap_or(x) } else { x }
}

/// One id, or the ids of the end of text and the ends of a turn where they differ: what is written of the model ends
/// where its file does.
fn eos(gguf: &Gguf) -> Result<Json> {
    let mut ids = Vec::new();
    let eos = gguf.opt(Gguf::i64, "tokenizer.ggml.eos_token_id")?;
    for id in eos.into_iter().chain(gguf_tokenizer::more_ends(gguf)?) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(match ids[..] {
        [] => Json::Null,
        [one] => json!(one),
        _ => json!(ids),
    })
}

/// Transformers' `rope_parameters`. llama.cpp divides each inverse frequency by its factor in the table, if there is one,
/// and by the linear factor.
fn rope(gguf: &Gguf, arch: &str, (head_dim, theta, positions): (u64, f64, u64)) -> Result<Json> {
    let key = |name: &str| format!("{arch}.rope.{name}");
    let unsupported = |what: String, name: &str| {
        Error::unsupported(what)
            .at(format!("{}, metadata `{}`", gguf.path().display(), key(name)))
            .hint("supported are none and linear, and factors in the tensor `rope_freqs.weight`")
    };
    let attention = gguf.opt(Gguf::f64, &key("scaling.attn_factor"))?.unwrap_or(1.0);
    if attention != 1.0 {
        let what = format!("attention scaled by {attention} along with positions");
        return Err(unsupported(what, "scaling.attn_factor"));
    }
    let table = table(gguf, head_dim)?;
    let old = gguf.opt(Gguf::f64, &key("scale_linear"))?;
    let factor = gguf.opt(Gguf::f64, &key("scaling.factor"))?.or(old).map(number);
    let linear = match gguf.opt(Gguf::str, &key("scaling.type"))? {
        Some("none") => 1.0,
        // The rule that the table's factors are of.
        Some("llama3") if table.is_some() => 1.0,
        Some("linear") | None => factor.filter(|&f| f != 0.0).unwrap_or(1.0),
        Some(other) => return Err(unsupported(format!("position scaling `{other}`"), "scaling.type")),
    };
    Ok(match table {
        Some(table) => {
            let factors: Vec<f64> = table.into_iter().map(|f| f * linear).collect();
            json!({
                "rope_type": "longrope", "rope_theta": theta, "factor": 1.0, "attention_factor": 1.0,
                "short_factor": factors, "long_factor": factors, "original_max_position_embeddings": positions,
            })
        }
        None if linear == 1.0 => json!({"rope_type": "default", "rope_theta": theta}),
        None => json!({"rope_type": "linear", "rope_theta": theta, "factor": linear}),
    })
}

/// The factors in `rope_freqs.weight`, if there are any.
fn table(gguf: &Gguf, head_dim: u64) -> Result<Option<Vec<f64>>> {
    let Some(info) = gguf.tensors().get("rope_freqs.weight") else { return Ok(None) };
    let place = |e: Error| e.at(format!("{}, tensor `rope_freqs.weight`", gguf.path().display()));
    let count: i64 = info.shape.iter().product();
    if count.unsigned_abs() != head_dim / 2 {
        let what = format!("has {count} factors, should have {}: half of a head's size", head_dim / 2);
        return Err(place(Error::data(what).hint("the file is damaged, or badly converted")));
    }
    let factors = weights::read(gguf, info, Kind::Double)
        .and_then(|t| Ok(Vec::<f64>::try_from(t.f_reshape([-1])?)?))
        .map_err(place)?;
    Ok(Some(factors.into_iter().map(number).collect()))
}

/// GGUF keeps Llama 3's rule only as the factors it gives. Where they are those of the released models, the rule
/// itself is restored, which other programs know better than a list of factors.
fn recognise_llama3(config: &mut ModelConfig) {
    const LOW: f64 = 1.0;
    const HIGH: f64 = 4.0;
    const ORIGINAL: f64 = 8192.0;
    let RopeScaling::Factors(found) = &config.rope_scaling else { return };
    let factor = found.iter().copied().fold(1.0, f64::max);
    let rule = |i: usize| {
        let wavelength =
            2.0 * std::f64::consts::PI * config.rope_theta.powf(2.0 * i as f64 / config.head_dim as f64);
        if wavelength < ORIGINAL / HIGH {
            1.0
        } else if wavelength > ORIGINAL / LOW {
            factor
        } else {
            let smooth = (ORIGINAL / wavelength - LOW) / (HIGH - LOW);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    if factor > 1.0 && found.iter().enumerate().all(|(i, f)| (f / rule(i) - 1.0).abs() < 1e-4) {
        config.raw["rope_parameters"] = json!({
            "rope_type": "llama3", "rope_theta": config.rope_theta, "factor": factor, "low_freq_factor": LOW,
            "high_freq_factor": HIGH, "original_max_position_embeddings": ORIGINAL as i64,
        });
        config.rope_scaling = RopeScaling::Llama3 {
            factor,
            low_freq_factor: LOW,
            high_freq_factor: HIGH,
            original_max_positions: ORIGINAL as i64,
        };
    }
}
