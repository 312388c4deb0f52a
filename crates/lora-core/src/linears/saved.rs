//! An adapter as PEFT's folder: two files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use super::{Linears, PREFIX, Param, attach, detach, params, shapes};
use crate::config::{AdapterConfig, CONFIG_FILE};
use crate::error::ErrorKind;
use crate::recipe::{Part, Recipe, Variant};
use crate::targets::compact_names;
use crate::weight::{BaseWeight, all_finite};
use crate::{Error, Result, Targets, tensors};

/// The parameters of an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// The same as older versions of PEFT wrote them.
const PICKLE: &str = "adapter_model.bin";

/// The file of an adapter folder's parameters.
///
/// # Errors
/// [`Error::unsupported`] where they are there as a pickle alone; the hint says how to convert it.
pub fn weights_file(dir: &Path) -> Result<PathBuf> {
    let (file, pickle) = (dir.join(WEIGHTS_FILE), dir.join(PICKLE));
    if file.exists() || !pickle.exists() {
        return Ok(file);
    }
    Err(Error::unsupported("a pickle, which may run any program: it is not read here")
        .at(pickle.display())
        .hint(format!(
            "convert it once, in its folder: python -c \"import torch, safetensors.torch as s; s.save_file({{k: \
             t.clone().contiguous() for k, t in torch.load('{PICKLE}', 'cpu', weights_only=True).items()}}, \
             '{WEIGHTS_FILE}')\""
        )))
}

/// Writes the adapter's two files, as PEFT does, into `dir`, which exists (see `OutputFolder` for writing a
/// folder whole or not at all).
///
/// # Errors
/// [`Error::usage`] if no layer has the adapter, or `config` means another one; [`Error::non_finite`] if a parameter is not
/// finite; [`ErrorKind::Io`].
pub fn save(
    model: &dyn Linears,
    name: &str,
    recipe: &Recipe,
    config: &AdapterConfig,
    variants: &[Variant],
    dir: &Path,
) -> Result<()> {
    let params = params(model, name);
    if params.is_empty() {
        return Err(Error::usage(format!("no adapter named `{name}` is attached")));
    }
    for p in &params {
        if !all_finite(&p.tensor) {
            return Err(Error::non_finite("a parameter is not finite; the adapter is not saved").at(p.key()));
        }
    }
    let mut config = config.clone();
    config.flags = recipe.flags();
    if config.target_modules == Targets::AllLinear {
        let all: Vec<_> = model.linears().into_iter().map(|(n, _)| n).collect();
        let mut chosen: Vec<_> = params.iter().map(|p| p.module.clone()).collect();
        chosen.dedup();
        config.target_modules = Targets::Names(compact_names(&chosen, &all));
    }
    // PEFT has no switch for another update, and cannot read such an adapter. Written as off, in all the others, it would
    // keep its older versions from reading those.
    let switches = variants.iter().filter(|v| !matches!(v.part, Part::Update(_)));
    let flags: Vec<_> = switches.filter_map(|v| v.flag).collect();
    let text = config.to_json(&flags);
    refuse_another(&config, &text, model, &params)?;
    let named: Vec<_> = params.iter().map(|p| (p.key(), p.tensor.detach())).collect();
    tensors::write_tensors(&dir.join(WEIGHTS_FILE), &named, &[])?;
    crate::folder::write_file(&dir.join(CONFIG_FILE), text.as_bytes())
}

/// Refuses a configuration that means another adapter than these parameters, or whose text does.
fn refuse_another(config: &AdapterConfig, text: &str, model: &dyn Linears, params: &[Param]) -> Result<()> {
    let (modules, head) = (shapes(model), model.output_head());
    let meant = config.select(&modules, head)?;
    let read = AdapterConfig::parse(text.as_bytes())?.select(&modules, head)?;
    let ranks: BTreeMap<&str, i64> = meant.iter().map(|s| (s.name.as_str(), s.r)).collect();
    let adapted: BTreeSet<&str> = params.iter().map(|p| p.module.as_str()).collect();
    let fits = |p: &Param| match (ranks.get(p.module.as_str()), p.name) {
        (Some(rank), "lora_A.weight") => p.tensor.size().first() == Some(rank),
        (rank, _) => rank.is_some(),
    };
    if read == meant && adapted.len() == ranks.len() && params.iter().all(fits) {
        return Ok(());
    }
    Err(Error::usage("the configuration means other modules, ranks or alphas than the adapter has")
        .hint("save it by the configuration that it was attached by"))
}

/// Reads a PEFT adapter folder onto the model as adapter `name` and makes it active. The adapter's flags choose
/// among `variants`; the storage of the model's weights is its own affair.
///
/// # Errors
/// [`Error::non_finite`] for numbers that are infinite, or would be in f32; else every fault of the pair at once: keys that are
/// missing, unused, of another shape, or of another dtype.
pub fn load(
    model: &mut dyn Linears,
    name: &str,
    dir: &Path,
    variants: &[Variant],
) -> Result<(Recipe, AdapterConfig)> {
    let config = AdapterConfig::read(dir)?;
    let recipe = Recipe::from_flags(&config.flags, variants)?;
    let weights = weights_file(dir)?;
    let mut file = tensors::read_tensors(&weights)?;
    refuse_infinite(&file).map_err(|e| e.at(weights.display()))?;
    let active: Vec<_> = model.linears().iter().map(|(_, l)| l.active().map(str::to_owned)).collect();
    attach(model, name, &recipe, &config).map_err(|e| e.at(dir.display()))?;
    let faults = fill(model, name, &mut file);
    if !faults.is_empty() {
        detach(model, name)?;
        let layers = model.linears_mut().into_iter().zip(active);
        layers.into_iter().try_for_each(|((_, layer), active)| layer.activate(active.as_deref()))?;
        let what = "the adapter's tensors do not fit its configuration and this model";
        return Err(Error::faults(ErrorKind::Data, what, faults).at(weights.display()).hint(
            "is it an adapter of this very base model? if whole kinds of tensors are missing or unused, the flags \
             in adapter_config.json (use_...) do not belong to these weights",
        ));
    }
    Ok((recipe, config))
}

/// Refuses numbers that parameters, which are f32, do not hold.
fn refuse_infinite(file: &BTreeMap<String, Tensor>) -> Result<()> {
    let infinite = |t: &Tensor| t.kind() == Kind::Double && !all_finite(&t.to_kind(Kind::Float));
    match file.iter().find(|(_, t)| infinite(t)) {
        None => Ok(()),
        Some((key, _)) => Err(Error::non_finite("holds numbers that are infinite in f32")
            .at(key)
            .hint("the training that wrote it had diverged; use an earlier checkpoint")),
    }
}

/// Copies the file's tensors into the adapter's parameters, or changes nothing and lists every fault.
fn fill(model: &dyn Linears, name: &str, file: &mut BTreeMap<String, Tensor>) -> Vec<String> {
    let mut faults = Vec::new();
    let mut copies = Vec::new();
    for param in params(model, name) {
        let key = param.key();
        match file.remove(&key) {
            None => faults.push(format!("missing: {key}")),
            Some(t) if t.size() != param.tensor.size() => faults.push(format!(
                "shape of {key}: {:?} in the file, {:?} by configuration and model",
                t.size(),
                param.tensor.size()
            )),
            Some(t) if !t.is_floating_point() => faults.push(format!("dtype of {key}: {:?}", t.kind())),
            Some(t) => copies.push((param.tensor, t)),
        }
    }
    // PEFT writes the base's own weight beside an adapter on the output head: harmless if it is ours.
    for (module, layer) in model.linears() {
        let key = format!("{PREFIX}{module}.base_layer.weight");
        match file.remove(&key) {
            Some(t) if !t.is_floating_point() => faults.push(format!("dtype of {key}: {:?}", t.kind())),
            Some(t) if !is_weight(&t, layer.base()) => {
                faults.push(format!("{key} is another weight than this model's"));
            }
            _ => {}
        }
    }
    faults.extend(file.keys().map(|key| format!("unused: {key}")));
    if faults.is_empty() {
        let _guard = tch::no_grad_guard();
        for (mut parameter, value) in copies {
            parameter.copy_(&value);
        }
        return faults;
    }
    const SHOWN: usize = 20;
    if faults.len() > SHOWN {
        let more = faults.len() - SHOWN;
        faults.truncate(SHOWN);
        faults.push(format!("and {more} more"));
    }
    faults
}

/// Whether `t` is this weight, but for roundings: it was rounded as it was loaded there, and as it was loaded here, to bf16 (by
/// 2^-8 of a number) or to f16 (by 2^-25, near zero). Another fine-tune is seen by its many numbers near zero: they move by more.
fn is_weight(t: &Tensor, base: &dyn BaseWeight) -> bool {
    const RELATIVE: f64 = 1.0 / (1 << 7) as f64;
    const ABSOLUTE: f64 = 1.0 / (1 << 24) as f64;
    const ROWS: i64 = 4096;
    let (out, inp) = base.shape();
    if t.size() != [out, inp] {
        return false;
    }
    let ours = base.dense(base.kind());
    let theirs = t.to_device(ours.device());
    // Some rows at a time: a head may have a gigabyte of them.
    let near = |row: i64| {
        let some = |w: &Tensor| w.narrow(0, row, ROWS.min(out - row)).to_kind(Kind::Float);
        some(&ours).allclose(&some(&theirs), RELATIVE, ABSOLUTE, false)
    };
    (0..out).step_by(ROWS as usize).all(near)
}
