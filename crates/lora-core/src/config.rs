//! PEFT's `adapter_config.json`: the part of it that this build understands.

mod read;

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use crate::targets::{Targets, full_pattern, layer_pattern, rank_key_pattern};
use crate::{Error, ErrorKind, Result};

/// The name of the file in an adapter folder.
pub const CONFIG_FILE: &str = "adapter_config.json";

/// PEFT's `peft_type` of LoRA and of all that it has a `use_*` switch for.
const IN_PEFT: &str = "LORA";
/// That of other methods. PEFT stops at the name; by its own it would find no tensor of a LoRA, and give the bare base.
const NOT_IN_PEFT: &str = "NOT_IN_PEFT";

/// How A and B are filled before the first step, as PEFT's `init_lora_weights` says it.
///
/// Of an adapter that is read, it matters only whether its beginning changed the base: such are refused, and
/// PEFT's other beginnings (`false`, `"orthogonal"`, `"eva"`, `"mica"`) are read as `Kaiming`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// `true`: A uniform in `±1/sqrt(in)`, B zero.
    Kaiming,
    /// `"gaussian"`: A normal with deviation `1/r`, B zero.
    Gaussian,
}

/// PEFT's adapter configuration; what this build does not understand is refused by name when it is read. In `Debug` there is what
/// it configures, and not [`trained`](Self::trained): runs that were saved, and ledgers of private ones, know it by that text.
#[derive(Clone, PartialEq)]
pub struct AdapterConfig {
    /// Name or path of the model that the adapter was trained on.
    pub base_model: Option<String>,
    /// The revision of that model.
    pub revision: Option<String>,
    /// What the model does; `CAUSAL_LM` for a language model.
    pub task_type: Option<String>,
    /// The rank.
    pub r: i64,
    /// The numerator of the scaling.
    pub lora_alpha: f64,
    /// The chance that an input of the adapter is dropped in training.
    pub lora_dropout: f64,
    /// The modules that get an adapter.
    pub target_modules: Targets,
    /// The modules that get none, whatever `target_modules` says; never `AllLinear`.
    pub exclude_modules: Option<Targets>,
    /// Only layers with these indices.
    pub layers_to_transform: Option<Vec<i64>>,
    /// The names (Python `re`) of the lists whose index `layers_to_transform` means; empty: any list.
    pub layers_pattern: Vec<String>,
    /// Ranks that differ, by pattern of the path; in the file's order, and the first that matches wins.
    pub rank_pattern: Vec<(String, i64)>,
    /// Alphas that differ, likewise.
    pub alpha_pattern: Vec<(String, f64)>,
    /// How A and B began.
    pub init: Init,
    /// The `use_*` switches that are on. They choose a method, and a recipe refuses those that it has no
    /// variant for.
    pub flags: BTreeSet<String>,
    /// Whether it is that of an adapter which is there, as [`AdapterConfig::read`] gives it. A name, a layer or a pattern without
    /// effect is then none that a person is to be told of: what was trained is in the adapter's tensors.
    pub trained: bool,
}

impl fmt::Debug for AdapterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("AdapterConfig");
        shown.field("base_model", &self.base_model).field("revision", &self.revision);
        shown.field("task_type", &self.task_type).field("r", &self.r).field("lora_alpha", &self.lora_alpha);
        shown.field("lora_dropout", &self.lora_dropout).field("target_modules", &self.target_modules);
        shown.field("exclude_modules", &self.exclude_modules);
        shown.field("layers_to_transform", &self.layers_to_transform);
        shown.field("layers_pattern", &self.layers_pattern).field("rank_pattern", &self.rank_pattern);
        shown.field("alpha_pattern", &self.alpha_pattern).field("init", &self.init);
        shown.field("flags", &self.flags).finish()
    }
}

/// PEFT's defaults, on all linear layers of a language model.
impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            base_model: None,
            revision: None,
            task_type: Some("CAUSAL_LM".to_owned()),
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Targets::AllLinear,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            init: Init::Kaiming,
            flags: BTreeSet::new(),
            trained: false,
        }
    }
}

impl AdapterConfig {
    /// Is every value one that makes sense? All faults at once, as a usage error.
    pub fn check(&self) -> Result<()> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::faults(ErrorKind::Usage, "the adapter's configuration does not make sense", faults))
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut ensure = |ok: bool, fault: String| {
            if !ok {
                faults.push(fault)
            }
        };
        ensure(self.r >= 1, format!("`r` is {}: a rank is 1 or more", self.r));
        let positive = |x: f64| x.is_finite() && x > 0.0;
        ensure(positive(self.lora_alpha), format!("`lora_alpha` is {}: it must be above 0", self.lora_alpha));
        let dropout = self.lora_dropout;
        ensure((0.0..1.0).contains(&dropout), format!("`lora_dropout` is {dropout}: it must be in [0, 1)"));
        for (key, r) in &self.rank_pattern {
            ensure(*r >= 1, format!("`rank_pattern` gives {key:?} the rank {r}: a rank is 1 or more"));
        }
        for (key, alpha) in &self.alpha_pattern {
            ensure(positive(*alpha), format!("`alpha_pattern` gives {key:?} {alpha}: it must be above 0"));
        }
        for (field, key) in
            twice("rank_pattern", &self.rank_pattern).chain(twice("alpha_pattern", &self.alpha_pattern))
        {
            ensure(false, format!("`{field}` has {key:?} twice: a file holds a key once"));
        }
        let none = |t: &Targets| matches!(t, Targets::Names(names) if names.is_empty());
        ensure(!none(&self.target_modules), "`target_modules` is empty: nothing would be trained".to_owned());
        let excluded = self.exclude_modules.as_ref();
        ensure(excluded != Some(&Targets::AllLinear), "`exclude_modules` is \"all-linear\"".to_owned());
        let layers = self.layers_to_transform.as_deref().unwrap_or_default();
        for layer in layers.iter().filter(|layer| **layer < 0) {
            ensure(false, format!("`layers_to_transform` holds {layer}: layers count from 0"));
        }
        // PEFT's own two rules; without them it would not load what we write. `AllLinear` is written by name.
        let by_name = !matches!(self.target_modules, Targets::Regex(_));
        let by_layer = self.layers_to_transform.is_some() || !self.layers_pattern.is_empty();
        ensure(by_name || !by_layer, "`layers_to_transform` needs `target_modules` to be a list".to_owned());
        let dangling = self.layers_to_transform.is_none() && !self.layers_pattern.is_empty();
        ensure(!dangling, "`layers_pattern` needs `layers_to_transform`".to_owned());

        let mut compiles = |key: &str, pattern: Result<_>| {
            if let Err(e) = pattern {
                faults.push(format!("`{key}`: {e}"));
            }
        };
        if let Targets::Regex(pattern) = &self.target_modules {
            compiles("target_modules", full_pattern(pattern));
        }
        if let Some(Targets::Regex(pattern)) = &self.exclude_modules {
            compiles("exclude_modules", full_pattern(pattern));
        }
        self.layers_pattern.iter().for_each(|p| compiles("layers_pattern", layer_pattern(Some(p))));
        self.rank_pattern.iter().for_each(|(key, _)| compiles("rank_pattern", rank_key_pattern(key)));
        self.alpha_pattern.iter().for_each(|(key, _)| compiles("alpha_pattern", rank_key_pattern(key)));
        faults
    }

    /// The file as PEFT writes it: keys sorted, two spaces of indent, `inference_mode` true. A switch of
    /// `known_flags`, which are PEFT's, is written either way. Any other is written when it is on, and then PEFT is
    /// kept from reading the adapter, by a `peft_type` that it does not have.
    ///
    /// Up to 0.13 PEFT refuses a key that it does not know, and later ones take a missing key for its
    /// default; so the fields are those of PEFT 0.10, and `exclude_modules` (0.14) only when it says something.
    pub fn to_json(&self, known_flags: &[&str]) -> String {
        let names = |names: &[String]| {
            let sorted: BTreeSet<&String> = names.iter().collect();
            json!(sorted)
        };
        let targets = |targets: &Targets| match targets {
            Targets::AllLinear => json!("all-linear"),
            Targets::Names(list) => names(list),
            Targets::Regex(pattern) => json!(pattern),
        };
        let init = match self.init {
            Init::Kaiming => json!(true),
            Init::Gaussian => json!("gaussian"),
        };
        // In our order, not sorted as PEFT does: the order decides which pattern wins.
        let ranks: serde_json::Map<_, _> =
            self.rank_pattern.iter().map(|(k, r)| (k.clone(), json!(r))).collect();
        let alphas: serde_json::Map<_, _> =
            self.alpha_pattern.iter().map(|(k, a)| (k.clone(), number(*a))).collect();
        let known = self.flags.iter().all(|flag| known_flags.contains(&flag.as_str()));
        let peft_type = if known { IN_PEFT } else { NOT_IN_PEFT };
        let Value::Object(mut fields) = json!({
            "alpha_pattern": alphas,
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": init,
            "layer_replication": null,
            "layers_pattern": (!self.layers_pattern.is_empty()).then_some(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "loftq_config": {},
            "lora_alpha": number(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": null,
            "peft_type": peft_type,
            "r": self.r,
            "rank_pattern": ranks,
            "revision": self.revision,
            "target_modules": targets(&self.target_modules),
            "task_type": self.task_type,
        }) else {
            return String::new();
        };
        if let Some(excluded) = &self.exclude_modules {
            fields.insert("exclude_modules".to_owned(), targets(excluded));
        }
        for flag in known_flags.iter().copied().chain(self.flags.iter().map(String::as_str)) {
            fields.insert(flag.to_owned(), json!(self.flags.contains(flag)));
        }
        fields.sort_keys();
        let mut text = format!("{:#}", Value::Object(fields));
        text.push('\n');
        text
    }
}

/// The keys of a pattern that have come before.
fn twice<'a, T>(field: &'a str, pairs: &'a [(String, T)]) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut seen = BTreeSet::new();
    let keys = pairs.iter().map(|(key, _)| key.as_str());
    keys.filter(move |key| !seen.insert(*key)).map(move |key| (field, key))
}

/// A whole number as JSON's integer: PEFT's alpha is an `int`, and so is what other readers of it expect.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}
