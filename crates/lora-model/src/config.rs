//! What a model is: Hugging Face's `config.json`, read strictly, with the defaults of transformers 5.

pub(crate) mod json;
mod rope;

use std::path::Path;

use lora_core::{Error, Result};
use serde_json::Value;

use json::Object;
pub use rope::RopeScaling;

/// The families read here, as `model_type` spells them.
const FAMILIES: &str = "llama, mistral, qwen2, qwen3";

/// Largest configuration file taken.
const MAX_FILE: u64 = 16 << 20;

/// What a decoder of the llama family is, from HF's `config.json` or GGUF metadata.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct ModelConfig {
    /// `llama`, `mistral`, `qwen2` or `qwen3`.
    pub model_type: String,
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub layers: i64,
    pub heads: i64,
    /// Divides `heads`.
    pub kv_heads: i64,
    /// Even.
    pub head_dim: i64,
    pub rms_norm_eps: f64,
    pub max_positions: i64,
    /// The output layer is the embedding; the checkpoint then has no `lm_head.weight`, or the same once more. Where it
    /// has another one, opening it makes this false.
    pub tie_word_embeddings: bool,
    pub qkv_bias: bool,
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// RMS norm over each head of q and k before the rotation (qwen3).
    pub qk_norm: bool,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// Every layer attends to this many positions, its own included; `None`: to all.
    pub sliding_window: Option<i64>,
    pub bos_token_id: Option<i64>,
    /// Any of these ends a text. From `generation_config.json` where there is one, as in transformers.
    pub eos_token_ids: Vec<i64>,
    pub pad_token_id: Option<i64>,
    /// `config.json` as it is (made up for GGUF), for writing a folder that transformers loads.
    pub raw: Value,
}

impl ModelConfig {
    /// Reads `config.json` and, if there, `generation_config.json` of a model folder.
    ///
    /// # Errors
    /// `Io`; `Data` naming file and key; `Unsupported` naming what this build does not do.
    pub fn from_folder(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let raw = read_json(&path)?;
        let mut config = Self::from_json(raw, &path.display().to_string())?;
        let path = dir.join("generation_config.json");
        if path.exists() {
            let raw = read_json(&path)?;
            let generation = Object::new(&raw, path.display().to_string())?;
            if let Some(ids) = generation.tokens("eos_token_id")? {
                config.eos_token_ids = ids;
            }
            config.pad_token_id = config.pad_token_id.or(generation.token("pad_token_id")?);
            config.bos_token_id = config.bos_token_id.or(generation.token("bos_token_id")?);
        }
        Ok(config)
    }

    /// From the text of a `config.json`, already parsed; `place` names it in errors.
    ///
    /// # Errors
    /// `Data` naming the key; `Unsupported` naming what this build does not do.
    pub fn from_json(raw: Value, place: &str) -> Result<Self> {
        let cfg = Object::new(&raw, place)?;
        let family = cfg.needed("model_type", cfg.text("model_type")?)?;
        // Defaults are those of transformers' configuration classes, which old files rely on.
        let (default_positions, default_bos, default_eos) = match family {
            "llama" => (2048, Some(1), vec![2]),
            "mistral" => (131_072, Some(1), vec![2]),
            "qwen2" | "qwen3" => (32_768, None, vec![]),
            other => {
                let what = format!("model type `{other}`");
                return Err(cfg
                    .fault("model_type", Error::unsupported(what))
                    .hint(format!("supported are {FAMILIES}")));
            }
        };
        refuse(&cfg)?;

        let hidden_size = cfg.needed_size("hidden_size")?;
        let layers = cfg.needed_size("num_hidden_layers")?;
        let heads = cfg.needed_size("num_attention_heads")?;
        let kv_heads =
            cfg.size("num_key_value_heads")?.unwrap_or(if family == "mistral" { 8 } else { heads });
        if heads % kv_heads != 0 {
            let what = format!("is {kv_heads}, which does not divide `num_attention_heads`, {heads}");
            return Err(cfg.fault("num_key_value_heads", Error::data(what)));
        }
        let head_dim = match cfg.size("head_dim")? {
            Some(dim) => dim,
            None if family == "qwen3" => 128,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let what = format!("is {hidden_size}, not a multiple of `num_attention_heads`, {heads}");
                return Err(cfg.fault("hidden_size", Error::data(what)));
            }
        };
        if head_dim % 2 != 0 {
            let what = format!("heads of {head_dim} values cannot be rotated: the size must be even");
            return Err(Error::data(what).at(place));
        }
        let max_positions = cfg.size("max_position_embeddings")?.unwrap_or(default_positions);
        let (rope_theta, rope_scaling) = rope::parse(&cfg, head_dim, max_positions)?;
        let attention_bias =
            cfg.flag("attention_bias")?.unwrap_or(false) && matches!(family, "llama" | "qwen3");
        Ok(Self {
            model_type: family.to_owned(),
            vocab_size: cfg.needed_size("vocab_size")?,
            hidden_size,
            intermediate_size: cfg.needed_size("intermediate_size")?,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: cfg.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_positions,
            tie_word_embeddings: cfg.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: attention_bias || family == "qwen2",
            o_bias: attention_bias,
            mlp_bias: cfg.flag("mlp_bias")?.unwrap_or(false) && family == "llama",
            qk_norm: family == "qwen3",
            rope_theta,
            rope_scaling,
            sliding_window: sliding_window(&cfg, family, layers)?,
            bos_token_id: with_default(&cfg, "bos_token_id", default_bos)?,
            eos_token_ids: match raw.get("eos_token_id") {
                None => default_eos,
                Some(_) => cfg.tokens("eos_token_id")?.unwrap_or_default(),
            },
            pad_token_id: cfg.token("pad_token_id")?,
            raw,
        })
    }
}

/// Absent means the default, null means none.
fn with_default(cfg: &Object<'_>, key: &str, default: Option<i64>) -> Result<Option<i64>> {
    if cfg.values().any(|(name, _)| name == key) { cfg.token(key) } else { Ok(default) }
}

/// What no family here does.
fn refuse(cfg: &Object<'_>) -> Result<()> {
    if let Some(act) = cfg.text("hidden_act")?.filter(|a| !matches!(*a, "silu" | "swish")) {
        let what = format!("activation `{act}` (only silu is supported)");
        return Err(cfg.fault("hidden_act", Error::unsupported(what)));
    }
    if let Some(quantised) = cfg.object("quantization_config")? {
        let method = quantised.text("quant_method")?.unwrap_or("unknown");
        if method != "bitsandbytes" || quantised.flag("load_in_8bit")? == Some(true) {
            let what = format!("weights already quantised ({method})");
            return Err(cfg
                .fault("quantization_config", Error::unsupported(what))
                .hint("4 bits of bitsandbytes are read; otherwise use the model's original weights"));
        }
    }
    Ok(())
}

/// mistral: all layers, 4096 unless set (null: none), or as `layer_types` has it, by which transformers takes it for
/// ministral. qwen2, qwen3: the layers from `max_window_layers` on, if `use_sliding_window`, or as `layer_types` has
/// it. A mixture is more than one number can say.
fn sliding_window(cfg: &Object<'_>, family: &str, layers: i64) -> Result<Option<i64>> {
    let given = cfg.values().any(|(name, _)| name == "sliding_window");
    let window = if given { cfg.size("sliding_window")? } else { Some(4096) };
    match family {
        "llama" => return Ok(None),
        "mistral" => {}
        _ if !cfg.flag("use_sliding_window")?.unwrap_or(false) => return Ok(None),
        _ => {}
    }
    let sliding = match cfg.list("layer_types")? {
        Some(types) => {
            if types.len() as i64 != layers {
                let what = format!("has {} entries for {layers} layers", types.len());
                return Err(cfg.fault("layer_types", Error::data(what)));
            }
            types.iter().filter(|t| t.as_str() == Some("sliding_attention")).count() as i64
        }
        None if family == "mistral" => layers,
        None => (layers - cfg.int("max_window_layers")?.unwrap_or(28).max(0)).max(0),
    };
    match sliding {
        0 => Ok(None),
        n if n == layers => Ok(window),
        n => {
            let what = format!("a sliding window in {n} of {layers} layers (all or none is supported)");
            Err(cfg.fault("sliding_window", Error::unsupported(what)))
        }
    }
}

/// A JSON file of at most `MAX_FILE` bytes.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let len = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?.len();
    if len > MAX_FILE {
        return Err(Error::data(format!("{len} bytes of configuration (at most {MAX_FILE} are read)"))
            .at(path.display()));
    }
    let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::data(format!("is not JSON: {e}")).at(path.display()).because(e))
}
