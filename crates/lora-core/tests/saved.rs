//! An adapter's folder, written and read.

use std::path::Path;

use lora_core::testkit::noise;
use lora_core::{
    AdapterConfig, CONFIG_FILE, DENSE, ErrorKind, LORA, Linear, Linears, Recipe, Result, Targets,
    WEIGHTS_FILE, attach, load, params, read_tensors, save, write_tensors,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

/// Layers by name, of 8 x 6 each.
struct Model(Vec<(String, Linear)>);

impl Model {
    fn new(names: &[&str]) -> Self {
        let layer = |name: &&str| {
            let weight = Tensor::ones([8, 6], (Kind::Float, Device::Cpu));
            ((*name).to_owned(), Linear::dense(weight, None))
        };
        Self(names.iter().map(layer).collect())
    }

    /// Two layers of a transformer.
    fn small() -> Self {
        Self::new(&["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"])
    }
}

impl Linears for Model {
    fn linears(&self) -> Vec<(String, &Linear)> {
        self.0.iter().map(|(name, layer)| (name.clone(), layer)).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        self.0.iter_mut().map(|(name, layer)| (name.clone(), layer)).collect()
    }

    fn output_head(&self) -> Option<&str> {
        Some("lm_head")
    }
}

fn on(names: &[&str]) -> AdapterConfig {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    AdapterConfig { r: 2, target_modules: Targets::Names(names), ..AdapterConfig::default() }
}

fn written(model: &Model, config: &AdapterConfig, dir: &Path) -> Result<()> {
    save(model, "a", &Recipe::default(), config, &[DENSE, LORA], dir)
}

/// A model with an adapter, and its folder.
fn trained(config: &AdapterConfig) -> (Model, tempfile::TempDir) {
    let (mut model, dir) = (Model::small(), tempfile::tempdir().unwrap());
    attach(&mut model, "a", &Recipe::default(), config).unwrap();
    written(&model, config, dir.path()).unwrap();
    (model, dir)
}

/// What is written would be read as another adapter, or not at all.
#[test]
fn a_configuration_of_another_adapter_is_not_written() {
    let config = on(&["q_proj"]);
    let (model, _) = trained(&config);
    let dir = tempfile::tempdir().unwrap();
    let key = |value| ("q_proj".to_owned(), value);
    for (other, said) in [
        (AdapterConfig { alpha_pattern: vec![key(2.0), key(6.0)], ..config.clone() }, "twice"),
        (AdapterConfig { r: 3, ..config.clone() }, "ranks"),
        (AdapterConfig { rank_pattern: vec![("0.self_attn.q_proj".into(), 1)], ..config.clone() }, "ranks"),
        (on(&["0.self_attn.q_proj"]), "other modules"),
    ] {
        let e = written(&model, &other, dir.path()).unwrap_err();
        assert!(e.to_string().contains(said), "{e}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
    written(&model, &config, dir.path()).unwrap();
    let mut again = Model::small();
    load(&mut again, "b", dir.path(), &[DENSE, LORA]).unwrap();
    for (saved, read) in params(&model, "a").iter().zip(&params(&again, "b")) {
        assert!(saved.key() == read.key() && saved.tensor == read.tensor, "{}", saved.key());
    }
}

/// PEFT would use infinities.
#[test]
fn numbers_that_do_not_fit_are_refused_by_name() {
    let (_, dir) = trained(&on(&["q_proj"]));
    let file = dir.path().join(WEIGHTS_FILE);
    let named = |scale: f64| -> Vec<_> {
        let of = |(name, t): (String, Tensor)| {
            let wide = t.to_kind(Kind::Double);
            let last = name.contains("layers.1") && name.contains("lora_A");
            (name, if last { wide * scale } else { wide })
        };
        read_tensors(&file).unwrap().into_iter().map(of).collect()
    };
    for (scale, fits) in [(1.0, true), (1e300, false)] {
        write_tensors(&file, &named(scale), &[]).unwrap();
        let mut model = Model::small();
        let said = load(&mut model, "a", dir.path(), &[DENSE, LORA]);
        assert_eq!(said.is_ok(), fits, "{said:?}");
        if let Err(e) = said {
            assert_eq!(e.kind(), ErrorKind::NonFinite);
            let named = "layers.1.self_attn.q_proj.lora_A.weight: holds numbers that are infinite in f32";
            assert!(e.to_string().contains(named) && params(&model, "a").is_empty(), "{e}");
        }
    }
}

/// As PEFT wrote it before safetensors.
#[test]
fn a_pickle_is_named_and_how_to_convert_it() {
    let (_, dir) = trained(&on(&["q_proj"]));
    let [file, pickle] = [WEIGHTS_FILE, "adapter_model.bin"].map(|name| dir.path().join(name));
    std::fs::copy(&file, &pickle).unwrap();
    let read = || load(&mut Model::small(), "a", dir.path(), &[DENSE, LORA]);
    // Beside the other it is of no interest.
    read().unwrap();
    std::fs::remove_file(&file).unwrap();
    let e = read().unwrap_err();
    assert!(
        e.kind() == ErrorKind::Unsupported && e.to_string().contains("adapter_model.bin: a pickle"),
        "{e}"
    );
    let hint = e.hint_text().unwrap();
    assert!(
        hint.contains("python -c \"import torch") && hint.contains("'adapter_model.safetensors')\""),
        "{hint}"
    );
    assert!(!hint.contains('\n') && !hint.contains("  "), "{hint}");
    std::fs::remove_file(&pickle).unwrap();
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Io);
}

/// PEFT trains on in silence, so there are such adapters. Their tensors say what was trained.
#[test]
fn a_trained_adapter_is_not_refused_for_a_name_without_effect() {
    let config = on(&["0.self_attn.q_proj"]);
    let (model, dir) = trained(&config);
    let path = dir.path().join(CONFIG_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    for (key, value) in [
        ("target_modules", json!(["0.self_attn.q_proj", "query_key_value"])),
        ("rank_pattern", json!({"zzz": 2})),
        ("alpha_pattern", json!({"k_proj": 2})),
        ("layers_to_transform", json!([0, 7])),
        ("exclude_modules", json!(["lm_head"])),
    ] {
        let mut fields: Value = serde_json::from_str(&text).unwrap();
        fields[key] = value;
        std::fs::write(&path, fields.to_string()).unwrap();
        let mut again = Model::small();
        let (recipe, read) = load(&mut again, "a", dir.path(), &[DENSE, LORA]).unwrap();
        assert_eq!(params(&again, "a")[0].tensor, params(&model, "a")[0].tensor, "{key}");
        // Trained on, it is written as it was.
        let out = tempfile::tempdir().unwrap();
        save(&again, "a", &recipe, &read, &[DENSE, LORA], out.path()).unwrap();
        assert_eq!(AdapterConfig::read(out.path()).unwrap(), read);
        // To train another one by it, it must be right.
        let anew = AdapterConfig { trained: false, ..read };
        let attached = attach(&mut Model::small(), "a", &recipe, &anew);
        assert_eq!(attached.is_ok(), key == "exclude_modules", "{key}: {attached:?}");
    }
    // Only what has no effect: a module that the tensors do not fill is missed.
    let fields = json!({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]});
    std::fs::write(&path, fields.to_string()).unwrap();
    let e = load(&mut Model::small(), "a", dir.path(), &[DENSE, LORA]).unwrap_err();
    assert!(e.to_string().contains("missing: base_model.model.model.layers.1"), "{e}");
}

const KINDS: [Kind; 3] = [Kind::Float, Kind::Half, Kind::BFloat16];

/// The output head alone.
fn head(weight: Tensor) -> Model {
    Model(vec![("lm_head".into(), Linear::dense(weight, None))])
}

/// PEFT writes the head's own weight beside its adapter: in the dtype that it had there, rounded as it was loaded there.
#[test]
fn the_heads_own_weight_is_known_however_it_was_rounded() {
    let own = noise(&[64, 48], 7).to_kind(Kind::Float) * 0.1;
    let own = Tensor::cat(&[&own, &(&own * 1e-4), &(&own * 1e-7)], 0);
    let (mut model, dir) = (head(own.copy()), tempfile::tempdir().unwrap());
    attach(&mut model, "a", &Recipe::default(), &on(&["lm_head"])).unwrap();
    written(&model, &on(&["lm_head"]), dir.path()).unwrap();
    let file = dir.path().join(WEIGHTS_FILE);
    let adapter: Vec<_> = read_tensors(&file).unwrap().into_iter().collect();
    let loaded = |weight: Tensor, kind: Kind| {
        let mut all: Vec<_> = adapter.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        all.push(("base_model.model.lm_head.base_layer.weight".into(), weight));
        write_tensors(&file, &all, &[]).unwrap();
        load(&mut head(own.to_kind(kind)), "a", dir.path(), &[DENSE, LORA]).map_err(|e| e.to_string())
    };
    // A step of Adam.
    let tuned = &own + noise(&[192, 48], 8).to_kind(Kind::Float).sign() * 1e-5;
    for ours in KINDS {
        for (there, written) in KINDS.into_iter().flat_map(|there| KINDS.map(|written| (there, written))) {
            let rounded = |w: &Tensor| w.to_kind(there).to_kind(written);
            let right = loaded(rounded(&own), ours);
            assert!(right.is_ok(), "{there:?}, {written:?}, here {ours:?}: {right:?}");
            let e = loaded(rounded(&tuned), ours).unwrap_err();
            assert!(e.contains("another weight than this model's"), "{e}");
        }
        for kind in [Kind::Int64, Kind::Int8, Kind::Bool] {
            let e = loaded(own.to_kind(kind), ours).unwrap_err();
            assert!(e.contains(&format!("lm_head.base_layer.weight: {kind:?}")), "{e}");
        }
        assert!(loaded(own.narrow(0, 0, 64), ours).is_err());
    }
}
