//! Tiny models of every family, as transformers and PEFT compute them (`goldens/make.py`): f32 on the CPU.

#[allow(dead_code)]
mod common;

use std::path::{Path, PathBuf};

use common::{Tensors, curve, curve_error, first_step, llama, relative};
use lora::model::{Llama, Model, OnDisk, Sampling, Texts, generate};
use lora::tch_ext::cuda::here;
use lora::{AdapterConfig, ErrorKind, Linears, Mode, Recipe, VARIANTS, params, read_tensors};
use serde_json::{Value, json};
use tch::{Kind, Tensor};

const FAMILIES: [&str; 6] = ["smollm", "llama2", "llama3", "mistral", "qwen2", "qwen3"];
const ADAPTED: [&str; 3] = ["smollm", "qwen2", "qwen3"];
const TRAINED: [&str; 5] = ["lora", "rslora", "dora", "dora+rslora", "patterns"];

/// Where the goldens are; a test binary that runs on another machine is told by `LORA_ROOT`.
fn goldens() -> PathBuf {
    let root = std::env::var_os("LORA_ROOT").map(PathBuf::from);
    root.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR"))).join("tests/goldens")
}

fn model(family: &str) -> Llama {
    llama(&goldens().join(family).join("model")).unwrap()
}

fn folder(family: &str, recipe: &str) -> PathBuf {
    goldens().join(family).join("adapters").join(recipe)
}

fn adapted(family: &str, recipe: &str) -> (Llama, Recipe, AdapterConfig) {
    let mut model = model(family);
    let (read, config) = lora::load(&mut model, "a", &folder(family, recipe), VARIANTS).unwrap();
    (model, read, config)
}

fn golden(family: &str, file: &str) -> Tensors {
    let tensors = read_tensors(&goldens().join(family).join(file)).unwrap();
    tensors.into_iter().map(|(key, t)| (key, t.to_device(here()))).collect()
}

fn base_golden(family: &str) -> Tensors {
    golden(family, "golden.safetensors")
}

fn recipe_golden(family: &str, recipe: &str) -> Tensors {
    golden(family, &format!("golden_{recipe}.safetensors"))
}

fn ids(family: &str) -> Tensor {
    base_golden(family)["input_ids"].copy()
}

#[track_caller]
fn near(what: &str, error: f64, tolerance: f64) {
    assert!(error < tolerance, "{what} is off by {error:.1e} (at most {tolerance:.0e})");
}

fn logits(model: &Llama, ids: &Tensor) -> Tensor {
    tch::no_grad(|| model.logits(Texts::Rows(ids), None, Mode::Eval).unwrap())
}

#[test]
fn logits_are_those_of_transformers() {
    for family in FAMILIES {
        let golden = base_golden(family);
        near(family, relative(&logits(&model(family), &golden["input_ids"]), &golden["logits"]), 1e-5);
    }
}

/// The goldens were computed without a cache.
#[test]
fn greedy_texts_are_those_of_transformers() {
    for family in FAMILIES {
        let (golden, model) = (base_golden(family), model(family));
        let [prompt, expected] = ["prompt", "greedy"].map(|k| Vec::<i64>::try_from(&golden[k]).unwrap());
        let ours = generate(&model, &prompt, expected.len(), &[], Sampling::Greedy, |_| true).unwrap();
        assert_eq!(ours, expected, "{family}");
    }
}

#[test]
fn a_sharded_checkpoint_is_read_from_its_shards() {
    let checkpoint = lora::open(&goldens().join("llama2/model")).unwrap();
    assert_eq!(checkpoint.files().len(), 2);
}

#[test]
fn adapted_logits_are_those_of_peft() {
    for family in ADAPTED {
        let ids = ids(family);
        let base = logits(&model(family), &ids);
        for recipe in TRAINED.iter().chain(&["bf16"]) {
            let expected = &recipe_golden(family, recipe)["logits"];
            assert!(relative(&base, expected) > 0.01, "{family} {recipe}: an adapter without effect");
            let (model, read, _) = adapted(family, recipe);
            let name = if TRAINED[..4].contains(recipe) { recipe } else { "lora" };
            assert_eq!(read.flags(), lora::recipe(name).unwrap().flags(), "{family} {recipe}");
            near(&format!("{family} {recipe}"), relative(&logits(&model, &ids), expected), 1e-5);
        }
    }
}

#[test]
fn loss_and_gradients_are_those_of_peft() {
    for family in ADAPTED {
        let ids = ids(family);
        for recipe in TRAINED {
            let golden = recipe_golden(family, recipe);
            let (model, ..) = adapted(family, recipe);
            let (loss, gradients) = first_step(&model, "a", &ids, &golden["labels"]).unwrap();
            let expected = golden["loss"].double_value(&[0]);
            near(&format!("{family} {recipe}: the loss"), (loss / expected - 1.0).abs(), 1e-6);
            let theirs = golden.keys().filter_map(|key| key.strip_prefix("grad."));
            assert_eq!(gradients.keys().collect::<Vec<_>>(), theirs.collect::<Vec<_>>(), "{family} {recipe}");
            for (key, gradient) in &gradients {
                let error = relative(gradient, &golden[&format!("grad.{key}")]);
                near(&format!("{family} {recipe}: the gradient of {key}"), error, 1e-4);
            }
        }
    }
}

#[test]
fn training_takes_the_course_of_peft() {
    for family in ADAPTED {
        let ids = ids(family);
        for recipe in TRAINED {
            let golden = recipe_golden(family, recipe);
            let batch = (&ids, &golden["labels"]);
            let (model, ..) = adapted(family, recipe);
            let (losses, _) = curve(&model, "a", batch, 1e-2, false).unwrap();
            near(&format!("{family} {recipe}: the curve"), curve_error(&losses, &golden["curve"]), 1e-3);
            let (model, ..) = adapted(family, recipe);
            let (losses, norms) = curve(&model, "a", batch, 1e-2, true).unwrap();
            let error = curve_error(&losses, &golden["curve_clip"]);
            near(&format!("{family} {recipe}: the clipped curve"), error, 1e-3);
            let error = curve_error(&norms, &golden["curve_clip_norm"]);
            near(&format!("{family} {recipe}: the norms of the gradients"), error, 1e-3);
        }
    }
}

#[test]
fn merged_weights_are_those_of_peft() {
    for family in ADAPTED {
        for recipe in TRAINED.iter().chain(&["bf16"]) {
            let (mut model, ..) = adapted(family, recipe);
            lora::merge(&mut model).unwrap();
            let golden = recipe_golden(family, recipe);
            let mut compared = 0;
            for (name, layer) in model.linears() {
                if let Some(expected) = golden.get(&format!("merged.{name}.weight")) {
                    let ours = layer.constant().unwrap().dense(tch::Kind::Float);
                    near(&format!("{family} {recipe}: merged {name}"), relative(&ours, expected), 1e-5);
                    compared += 1;
                }
            }
            assert_eq!(compared, 2, "{family} {recipe}");
        }
    }
}

/// PEFT's folder, loaded and saved, says the same: tensors bit for bit, and a configuration of one meaning.
#[test]
fn saving_a_loaded_adapter_changes_nothing() {
    for (family, recipe) in ADAPTED.iter().flat_map(|f| TRAINED.iter().chain(&["bf16"]).map(move |r| (f, r)))
    {
        let (model, read, config) = adapted(family, recipe);
        let out = tempfile::tempdir().unwrap();
        lora::save(&model, "a", &read, &config, VARIANTS, out.path()).unwrap();
        let (old, new) = (folder(family, recipe), out.path());

        let weights = |dir: &Path| read_tensors(&dir.join(lora::WEIGHTS_FILE)).unwrap();
        let (old_weights, new_weights) = (weights(&old), weights(new));
        assert!(old_weights.keys().eq(new_weights.keys()), "{family} {recipe}");
        for (key, tensor) in &old_weights {
            assert!(tensor.to_kind(tch::Kind::Float) == new_weights[key], "{family} {recipe}: {key}");
        }
        let json = |dir: &Path| -> Value {
            let text = std::fs::read_to_string(dir.join(lora::CONFIG_FILE)).unwrap();
            serde_json::from_str(&text).unwrap()
        };
        // PEFT writes sets in any order; every field of ours must be one of theirs, of the same value.
        let sorted = |mut value: Value| {
            if let Some(list) = value.as_array_mut() {
                list.sort_by_key(Value::to_string);
            }
            value
        };
        let (old_json, new_json) = (json(&old), json(new));
        let fields = new_json.as_object().unwrap();
        for (key, value) in fields {
            assert_eq!(sorted(value.clone()), sorted(old_json[key].clone()), "{family} {recipe}: `{key}`");
        }
        assert!(AdapterConfig::read(new).unwrap().flags == config.flags && fields.contains_key("use_dora"));
    }
}

/// Flags and tensors that tell different stories: PEFT trains on with whatever it could match.
#[test]
fn flags_that_disagree_with_the_tensors_are_refused() {
    for (recipe, claim, fault) in [("dora", false, "unused: "), ("lora", true, "missing: ")] {
        let dir = tempfile::tempdir().unwrap();
        let old = folder("smollm", recipe);
        std::fs::copy(old.join(lora::WEIGHTS_FILE), dir.path().join(lora::WEIGHTS_FILE)).unwrap();
        let text = std::fs::read_to_string(old.join(lora::CONFIG_FILE)).unwrap();
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config["use_dora"] = json!(claim);
        std::fs::write(dir.path().join(lora::CONFIG_FILE), config.to_string()).unwrap();
        let mut model = model("smollm");
        lora::load(&mut model, "before", &old, VARIANTS).unwrap();
        let e = lora::load(&mut model, "a", dir.path(), VARIANTS).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Data);
        // The one that was there is in use still.
        let layers = model.linears();
        let mut adapted =
            layers.iter().filter(|(_, layer)| layer.adapter_named("before").is_some()).peekable();
        assert!(adapted.peek().is_some() && adapted.all(|(_, layer)| layer.active() == Some("before")));
        let named = format!("{fault}base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector");
        assert!(e.to_string().contains(&named), "{e}");
        assert!(e.hint_text().unwrap().contains("use_"), "{e}");
        assert!(params(&model, "a").is_empty(), "a refused adapter stays attached");
    }
}

/// PEFT writes the base's own weight beside an adapter of the output head. Merging reads the checkpoint's numbers as they are,
/// whatever it is to be written in.
#[test]
fn the_heads_own_weight_may_lie_beside() {
    let dir = tempfile::tempdir().unwrap();
    let config = AdapterConfig {
        target_modules: lora::Targets::Names(vec!["lm_head".into()]),
        ..AdapterConfig::default()
    };
    let (mut whole, recipe) = (model("smollm"), lora::recipe("lora").unwrap());
    lora::attach(&mut whole, "a", &recipe, &config).unwrap();
    lora::save(&whole, "a", &recipe, &config, VARIANTS, dir.path()).unwrap();
    let file = dir.path().join(lora::WEIGHTS_FILE);
    let tensors = read_tensors(&file).unwrap();
    let (_, head) = whole.linears().pop().unwrap();
    let own = head.base().dense(Kind::Float);
    for (weight, good) in [(own.copy(), true), (&own + 1e-4, false)] {
        let mut named: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        named.push(("base_model.model.lm_head.base_layer.weight".into(), weight));
        lora::write_tensors(&file, &named, &[]).unwrap();
        for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
            let checkpoint = lora::open(&goldens().join("smollm/model")).unwrap();
            let mut unread = OnDisk::new(checkpoint, kind).unwrap();
            let loaded = lora::load(&mut unread, "a", dir.path(), VARIANTS);
            assert_eq!(loaded.is_ok(), good, "{kind:?}: {loaded:?}");
        }
    }
}

/// Configurations that PEFT takes and we train by none of, on purpose: part of what they say would have no effect.
const STRICTER: [(&str, &str); 1] = [(
    r#"{"proj":2}"#, // as `rank_pattern`
    "`rank_pattern` has \"proj\", which no selected module matches",
)];

#[test]
fn modules_ranks_and_alphas_are_those_that_peft_chooses() {
    let text = std::fs::read_to_string(goldens().join("targets.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let model = model("smollm");
    let modules: Vec<_> = model.linears().into_iter().map(|(n, l)| (n, l.base().shape())).collect();
    let linear: Vec<String> = serde_json::from_value(golden["linear"].clone()).unwrap();
    assert!(modules.iter().map(|(n, _)| n).eq(&linear), "the linear layers are others");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 34);
    let mut stricter = 0;
    for case in cases {
        let mut config = case["config"].clone();
        config["peft_type"] = json!("LORA");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config.to_string()).unwrap();
        let select = |config: AdapterConfig| config.select(&modules, model.output_head());
        let ours = AdapterConfig::read(file.path()).and_then(select);
        let pattern = config.get("rank_pattern").map(Value::to_string).unwrap_or_default();
        if let Some((_, reason)) = STRICTER.iter().find(|(strict, _)| *strict == pattern) {
            let anew = AdapterConfig { trained: false, ..AdapterConfig::read(file.path()).unwrap() };
            let e = select(anew).unwrap_err().to_string();
            assert!(e.contains(reason), "{config}: {e}");
            stricter += 1;
        }
        match (&case["expect"], ours) {
            (Value::Object(theirs), ours) => {
                let ours = ours.unwrap_or_else(|e| panic!("{config}: {e}"));
                let names: Vec<_> = ours.iter().map(|s| &s.name).collect();
                assert_eq!(names, theirs.keys().collect::<Vec<_>>(), "{config}");
                for s in &ours {
                    let (r, alpha) = (theirs[&s.name][0].as_i64(), theirs[&s.name][1].as_f64());
                    assert_eq!((Some(s.r), Some(s.alpha)), (r, alpha), "{config}: {}", s.name);
                }
            }
            (_, ours) => assert!(ours.is_err(), "{config}: PEFT fails ({}), we select {ours:?}", case["why"]),
        }
    }
    assert_eq!(stricter, STRICTER.len());
}
