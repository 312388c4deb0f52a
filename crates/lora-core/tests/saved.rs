//! An adapter's folder, written and read.

use std::path::Path;

use lora_core::{
    AdapterConfig, DENSE, LORA, Linear, Linears, Recipe, Result, Targets, attach, load, params, save,
};
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
