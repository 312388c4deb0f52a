//! Reading `adapter_config.json`, strictly: an adapter that would be used otherwise than it was trained is refused.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::{AdapterConfig, CONFIG_FILE, IN_PEFT, Init, NOT_IN_PEFT};
use crate::pairs::{Pairs, Strict};
use crate::targets::Targets;
use crate::{Error, ErrorKind, Result};

/// A list of every module of a large model is a few hundred kilobytes.
const MAX_BYTES: u64 = 16 << 20;

/// Said of keys that change nothing in how a trained adapter is used.
const IGNORED: &[&str] = &[
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

/// What a key means that this build does not do. Any key not known at all is refused likewise, without a meaning.
const REFUSED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "the adapter acts only after certain tokens (aLoRA)"),
    ("arrow_config", "several adapters are routed between (Arrow)"),
    ("ensure_weight_tying", "embeddings and output head are trained as one"),
    ("fan_in_fan_out", "the weights are stored transposed, as in GPT-2"),
    ("kasa_config", "the update is a singular value decomposition (KaSA)"),
    ("layer_replication", "the model repeats some of its layers"),
    ("loftq_config", "the base was changed to suit its quantisation (LoftQ)"),
    ("lora_bias", "B has a bias"),
    ("lora_ga_config", "the base was changed before training (LoRA-GA)"),
    ("corda_config", "the base was changed before training (CorDA)"),
    ("megatron_config", "the model is split by Megatron"),
    ("modules_to_save", "whole modules are trained and saved besides the adapter"),
    ("target_parameters", "single parameters, such as fused experts, are adapted"),
    ("trainable_token_indices", "rows of the embedding are trained"),
    ("use_bdlora", "the factors are block-diagonal (BD-LoRA)"),
    ("use_qalora", "inputs are pooled to suit the quantisation (QA-LoRA)"),
];

impl AdapterConfig {
    /// Reads `adapter_config.json`, given itself or the folder that holds it.
    ///
    /// # Errors
    /// Malformed JSON, with line and column; else all faults at once: values of a wrong type or without
    /// sense ([`ErrorKind::Data`]), or features that this build lacks ([`ErrorKind::Unsupported`]).
    pub fn read(dir_or_file: &Path) -> Result<Self> {
        let path = if dir_or_file.is_dir() { dir_or_file.join(CONFIG_FILE) } else { dir_or_file.to_owned() };
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text))
            .map_err(|e| Error::io("read the adapter's configuration", &path, e))?;
        let place = path.display();
        if text.len() as u64 > MAX_BYTES {
            return Err(Error::data("more than 16 MiB: this is no adapter configuration").at(place));
        }
        Self::parse(&text).map_err(|e| e.at(place))
    }

    /// As [`read`](Self::read) does it, of the file's text.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        let fields: Pairs<Strict> = serde_json::from_slice(text).map_err(|e| {
            let hint = "the file must be one JSON object, as PEFT's `save_pretrained` writes it";
            Error::data(format!("malformed JSON: {e}")).hint(hint)
        })?;
        let left = fields.0.into_iter().map(|(key, Strict(value))| (key, value)).collect();
        let mut fields = Fields { left, malformed: Vec::new(), refused: Vec::new() };
        let config = fields.config();
        fields.refuse_the_rest();
        // A value that is malformed has a default's place in `config`, so nothing is said of it twice.
        fields.malformed.extend(config.faults());
        let Fields { malformed, refused, .. } = fields;
        if malformed.is_empty() && refused.is_empty() {
            return Ok(config);
        }
        if malformed.is_empty() {
            let hint = "merge this adapter into its base with PEFT, and use the merged model";
            return Err(Error::faults(ErrorKind::Unsupported, "not supported", refused).hint(hint));
        }
        let all = malformed.into_iter().chain(refused).collect();
        Err(Error::faults(ErrorKind::Data, "not a usable adapter configuration", all))
    }
}

/// The keys not yet looked at, and what was wrong with those that were.
struct Fields {
    left: Vec<(String, Value)>,
    malformed: Vec<String>,
    refused: Vec<String>,
}

impl Fields {
    /// Takes a key out; null and absent are one.
    fn take(&mut self, key: &str) -> Option<Value> {
        let at = self.left.iter().position(|(k, _)| k == key)?;
        Some(self.left.remove(at).1).filter(|v| !v.is_null())
    }

    fn get<T>(&mut self, key: &str, what: &str, parse: impl Fn(&Value) -> Option<T>) -> Option<T> {
        let value = self.take(key)?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.malformed.push(format!("`{key}` is {}, not {what}", brief(&value)));
        }
        parsed
    }

    /// A number may be absent (then it is PEFT's default), but not null.
    fn number<T>(&mut self, key: &str, what: &str, slot: &mut T, parse: impl Fn(&Value) -> Option<T>) {
        if self.left.iter().any(|(k, v)| k == key && v.is_null()) {
            self.malformed.push(format!("`{key}` is null, not {what}"));
        }
        if let Some(value) = self.get(key, what, parse) {
            *slot = value;
        }
    }

    fn config(&mut self) -> AdapterConfig {
        let mut config = AdapterConfig { task_type: None, trained: true, ..AdapterConfig::default() };
        match self.take("peft_type") {
            None => self.malformed.push("`peft_type` is missing: it must be \"LORA\"".to_owned()),
            // Which method it is, the switches say: those that PEFT lacks were written as LORA, too.
            Some(Value::String(kind)) if kind == IN_PEFT || kind == NOT_IN_PEFT => {}
            Some(other) => self.refused.push(format!("`peft_type` is {}: only \"LORA\" is", brief(&other))),
        }
        config.base_model = self.get("base_model_name_or_path", "a string", string);
        config.revision = self.get("revision", "a string", string);
        config.task_type = self.get("task_type", "a string", string);
        self.number("r", "a whole number", &mut config.r, Value::as_i64);
        self.number("lora_alpha", "a number", &mut config.lora_alpha, Value::as_f64);
        self.number("lora_dropout", "a number", &mut config.lora_dropout, Value::as_f64);
        let names = "a list of names or a pattern";
        if !self.left.iter().any(|(k, v)| k == "target_modules" && !v.is_null()) {
            self.malformed.push("`target_modules` is missing".to_owned());
        }
        config.target_modules = self.get("target_modules", names, targets).unwrap_or(config.target_modules);
        // PEFT takes an empty list or string for none.
        config.exclude_modules = self
            .get("exclude_modules", names, targets)
            .filter(|t| !matches!(t, Targets::Names(n) if n.is_empty()))
            .filter(|t| !matches!(t, Targets::Regex(p) if p.is_empty()));
        config.layers_to_transform =
            self.get("layers_to_transform", "a layer or a list of layers", layers).filter(|l| !l.is_empty());
        // PEFT's rule. In a program they go together: what is written then names the modules.
        if config.target_modules == Targets::AllLinear && config.layers_to_transform.is_some() {
            self.malformed.push("`layers_to_transform` needs `target_modules` to be a list".to_owned());
        }
        config.layers_pattern =
            self.get("layers_pattern", "a name or a list of names", string_or_list).unwrap_or_default();
        config.rank_pattern = self
            .get("rank_pattern", "an object of whole numbers", |v| pairs(v, Value::as_i64))
            .unwrap_or_default();
        config.alpha_pattern = self
            .get("alpha_pattern", "an object of numbers", |v| pairs(v, Value::as_f64))
            .unwrap_or_default();
        config.init = self.init();
        if !self.bias_is_none() {
            self.refused.push("`bias`: the model's own biases are trained besides the adapter".to_owned());
        }
        for (key, _) in
            self.left.extract_if(.., |(k, v)| k.starts_with("use_") && *v == true && !is_refused(k))
        {
            config.flags.insert(key);
        }
        config
    }

    fn init(&mut self) -> Init {
        let name = match self.take("init_lora_weights") {
            None | Some(Value::Bool(_)) => return Init::Kaiming,
            Some(Value::String(name)) => name.to_lowercase(),
            Some(other) => {
                self.malformed.push(format!("`init_lora_weights` is {}, not a name", brief(&other)));
                return Init::Kaiming;
            }
        };
        match name.as_str() {
            "gaussian" => return Init::Gaussian,
            "orthogonal" | "mica" => {}
            // How A was filled; the ranks it chose are in `rank_pattern`.
            "eva" => drop(self.take("eva_config")),
            _ if ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|p| name.starts_with(p)) => {
                self.refused.push(format!(
                    "`init_lora_weights` is {name:?}, which changes the base: the adapter is right only on the \
                     changed base (PEFT's `save_pretrained(path_initial_model_for_weight_conversion=...)` \
                     writes one for the original, and `lora init` such a base with its adapter)"
                ));
            }
            _ => self.refused.push(format!("`init_lora_weights` is {name:?}, of which nothing is known")),
        }
        Init::Kaiming
    }

    fn bias_is_none(&mut self) -> bool {
        self.take("bias").is_none_or(|v| v == "none")
    }

    fn refuse_the_rest(&mut self) {
        for (key, value) in &self.left {
            if IGNORED.contains(&key.as_str()) || is_idle(value) {
                continue;
            }
            let meaning =
                REFUSED.iter().find(|(k, _)| k == key).map_or("of which nothing is known", |(_, m)| m);
            self.refused.push(format!("`{}` is {}: {meaning}", key.escape_debug(), brief(value)));
        }
    }
}

fn is_refused(key: &str) -> bool {
    REFUSED.iter().any(|(k, _)| *k == key)
}

/// A value that switches nothing on.
fn is_idle(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A value as JSON, cut to a line's length. JSON escapes control characters, so a file cannot move the cursor.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 60 { text } else { text.chars().take(57).chain("...".chars()).collect() }
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(string).collect()
}

fn string_or_list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(s) if s.is_empty() => Some(Vec::new()),
        Value::String(s) => Some(vec![s.clone()]),
        list => strings(list),
    }
}

fn layers(value: &Value) -> Option<Vec<i64>> {
    match value {
        Value::Array(list) => list.iter().map(Value::as_i64).collect(),
        one => one.as_i64().map(|layer| vec![layer]),
    }
}

fn targets(value: &Value) -> Option<Targets> {
    match value {
        Value::String(s) if s.eq_ignore_ascii_case("all-linear") => Some(Targets::AllLinear),
        Value::String(pattern) => Some(Targets::Regex(pattern.clone())),
        list => strings(list).map(Targets::Names),
    }
}

fn pairs<T>(value: &Value, parse: impl Fn(&Value) -> Option<T>) -> Option<Vec<(String, T)>> {
    value.as_object()?.iter().map(|(k, v)| Some((k.clone(), parse(v)?))).collect()
}
