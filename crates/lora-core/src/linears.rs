//! A model, seen as its linear layers by name: attaching, switching and merging adapters.

mod saved;

use std::collections::BTreeMap;

use tch::Tensor;
use tch_ext::Region;

use crate::config::AdapterConfig;
use crate::linear::Linear;
use crate::recipe::Recipe;
use crate::{Error, Result};

pub use saved::{WEIGHTS_FILE, load, save, weights_file};

static ADAPTERS: Region = Region::new("adapters");

/// What PEFT puts before a module's path.
const PREFIX: &str = "base_model.model.";

/// Anything with named linear layers. Names are those of the Hugging Face model
/// (`model.layers.0.self_attn.q_proj`); the order is the model's own and does not change.
pub trait Linears {
    /// The layers and their names.
    fn linears(&self) -> Vec<(String, &Linear)>;

    /// The same, to change them.
    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)>;

    /// The layer that makes logits: `all-linear` leaves it out.
    fn output_head(&self) -> Option<&str> {
        None
    }
}

/// One trainable parameter of a model.
#[derive(Debug)]
pub struct Param {
    /// The layer's name.
    pub module: String,
    /// Its name in the layer (`lora_A.weight`).
    pub name: &'static str,
    /// The leaf itself (shared, not copied).
    pub tensor: Tensor,
}

impl Param {
    /// Its name in the adapter file.
    pub fn key(&self) -> String {
        format!("{PREFIX}{}.{}", self.module, self.name)
    }
}

/// Puts a fresh adapter named `name` beside every layer that `config` selects, and makes it active.
/// Random numbers come from libtorch's generator: seed it first.
///
/// # Errors
/// All of [`AdapterConfig::select`]'s, what the recipe's variants refuse, and [`Error::usage`] if a layer is merged. Nothing
/// is attached then.
pub fn attach(model: &mut dyn Linears, name: &str, recipe: &Recipe, config: &AdapterConfig) -> Result<()> {
    attach_from(model, name, recipe, config, &BTreeMap::new())
}

/// The same, where the layers named in `given` start with these A `[rank, in]` and B `[out, rank]`.
///
/// # Errors
/// Those of [`attach`]; [`Error::data`] for shapes that do not fit.
pub fn attach_from(
    model: &mut dyn Linears,
    name: &str,
    recipe: &Recipe,
    config: &AdapterConfig,
    given: &BTreeMap<String, (Tensor, Tensor)>,
) -> Result<()> {
    refuse_merged(model, "attach an adapter")?;
    config.check()?;
    let chosen = config.select(&shapes(model), model.output_head())?;
    let chosen: BTreeMap<_, _> = chosen.into_iter().map(|s| (s.name.clone(), s)).collect();

    let _inside = ADAPTERS.enter();
    let mut made = BTreeMap::new();
    for (module, layer) in model.linears() {
        if layer.adapter_named(name).is_some() {
            return Err(Error::usage(format!("an adapter named `{name}` is attached already")).at(module));
        }
        if let Some(s) = chosen.get(&module) {
            let (base, dropout) = (layer.base(), config.lora_dropout);
            let adapter = match given.get(&module) {
                Some((a, b)) => recipe.adapter_from(base, (a, b), s.alpha, dropout),
                None => recipe.adapter(base, s.r, s.alpha, dropout, config.init),
            };
            let adapter = adapter.map_err(|e| e.at(&module))?;
            made.insert(module, adapter);
        }
    }
    activate(model, None)?;
    for (module, layer) in model.linears_mut() {
        if let Some(adapter) = made.remove(&module) {
            layer.attach(name, adapter)?;
        }
    }
    Ok(())
}

/// What [`AdapterConfig::select`] chooses among.
fn shapes(model: &dyn Linears) -> Vec<(String, (i64, i64))> {
    model.linears().into_iter().map(|(name, layer)| (name, layer.base().shape())).collect()
}

/// `config`, to be written for an adapter that it made: modules that a pattern chose, or gave their rank or alpha, stand in it
/// by name, those that one left out not at all. PEFT would hold a pattern against every module and refuse one that is no linear
/// layer (`mlp.act_fn`). What names cannot say stays as it is.
///
/// # Errors
/// Those of [`AdapterConfig::select`].
pub fn targets_by_name(model: &dyn Linears, config: &AdapterConfig) -> Result<AdapterConfig> {
    config.by_name(&shapes(model), model.output_head())
}

/// Makes the adapter of that name the active one everywhere, or none.
///
/// # Errors
/// [`Error::usage`] if no layer has it, or a layer is merged; nothing is switched then.
pub fn activate(model: &mut dyn Linears, name: Option<&str>) -> Result<()> {
    refuse_merged(model, "switch adapters")?;
    if let Some(name) = name
        && !model.linears().iter().any(|(_, l)| l.adapter_named(name).is_some())
    {
        return Err(Error::usage(format!("no adapter named `{name}` is attached")));
    }
    model.linears_mut().into_iter().try_for_each(|(module, l)| l.activate(name).map_err(|e| e.at(module)))
}

/// Takes the adapter of that name away everywhere.
///
/// # Errors
/// [`Error::usage`] if a layer is merged; nothing is taken away then.
pub fn detach(model: &mut dyn Linears, name: &str) -> Result<()> {
    refuse_merged(model, "detach an adapter")?;
    model.linears_mut().into_iter().try_for_each(|(_, layer)| layer.detach(name).map(|_| ()))
}

/// Asked of all layers before anything is done to one: an adapter need not lie beside each of them.
fn refuse_merged(model: &dyn Linears, what: &str) -> Result<()> {
    let mut layers = model.linears().into_iter();
    layers.try_for_each(|(module, layer)| layer.refuse_merged(what).map_err(|e| e.at(module)))
}

/// The parameters of the adapter named `name`, in the model's order.
pub fn params(model: &dyn Linears, name: &str) -> Vec<Param> {
    let mut all = Vec::new();
    for (module, layer) in model.linears() {
        for (param, tensor) in layer.adapter_named(name).map(|a| a.params()).unwrap_or_default() {
            all.push(Param { module: module.clone(), name: param, tensor: tensor.shallow_clone() });
        }
    }
    all
}

/// Merges the active adapter into every layer. If one cannot be merged, none is.
///
/// # Errors
/// Those of [`Linear::merge`].
pub fn merge(model: &mut dyn Linears) -> Result<()> {
    let mut failed = None;
    for (module, layer) in model.linears_mut() {
        if let Err(e) = layer.merge() {
            failed = Some(e.at(module));
            break;
        }
    }
    match failed {
        Some(e) => {
            unmerge(model);
            Err(e)
        }
        None => Ok(()),
    }
}

/// Undoes [`merge`], to the very weights.
pub fn unmerge(model: &mut dyn Linears) {
    model.linears_mut().into_iter().for_each(|(_, layer)| layer.unmerge());
}
