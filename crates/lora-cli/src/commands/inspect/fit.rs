//! Whether an adapter's tensors are what its configuration says: on its model, or by themselves.

use std::collections::BTreeMap;
use std::path::Path;

use lora::model::OnDisk;
use lora::{AdapterConfig, Error, ErrorKind, Init, Linears, Recipe, Result, Selection, Targets, VARIANTS};
use tch::{Device, Kind, Tensor};

use crate::open::ADAPTER;

/// The tensors of one module, by their names in it.
pub(super) type Module = BTreeMap<String, Tensor>;
/// The rank and alpha of each module.
pub(super) type Chosen = BTreeMap<String, Selection>;

/// On its model: the adapter is loaded as every verb loads it, beside weights that stay on disk.
pub(super) fn on(model: &Path, adapter: &Path) -> Result<Chosen> {
    let mut model = OnDisk::new(lora::open(model)?, Kind::Float)?;
    let (_, config) = lora::load(&mut model, ADAPTER, adapter, VARIANTS)?;
    model.check()?;
    let layers: Vec<_> = model.linears().iter().map(|(n, l)| (n.clone(), l.base().shape())).collect();
    Ok(by_name(config.select(&layers, model.output_head())?))
}

/// By themselves: what [`lora::load`] would hold against them on any model. Layers are those that the file names, and as large
/// as it says.
pub(super) fn alone(
    modules: &BTreeMap<String, Module>,
    config: &AdapterConfig,
    recipe: &Recipe,
) -> Result<Chosen> {
    let layers: Vec<_> = modules.iter().map(|(name, module)| (name.clone(), shape(module))).collect();
    let chosen = by_name(meant(modules, config).select(&layers, None)?);
    // What lies beside a layer, whatever the variant, is read off a toy whose rank and sides are of different lengths.
    const RANK: i64 = 2;
    let base = recipe.store(Tensor::ones([3, 5], (Kind::Float, Device::Cpu)))?;
    let toy = recipe.adapter(base.as_ref(), RANK, 1.0, 0.0, Init::Kaiming)?;
    let mut faults = Vec::new();
    for (name, module) in modules {
        let (r, parts) = chosen.get(name).map_or((0, Vec::new()), |s| (s.r, toy.params()));
        // What the toy's lengths are here: the rank as it is configured, others as they are met first.
        let mut sides = BTreeMap::from([(RANK, r)]);
        for (part, like) in &parts {
            let key = format!("{name}.{part}");
            let Some(t) = module.get(*part) else {
                faults.push(format!("missing: {key}"));
                continue;
            };
            let (like, size) = (like.size(), t.size());
            let is_as_long = |(side, n): (&i64, &i64)| *sides.entry(*side).or_insert(*n) == *n;
            if like.len() != size.len() || !like.iter().zip(&size).all(is_as_long) {
                faults.push(format!("shape of {key}: {size:?} in the file, of rank {r} by configuration"));
            } else if !t.is_floating_point() {
                faults.push(format!("dtype of {key}: {:?}", t.kind()));
            }
        }
        let unused = module.keys().filter(|key| parts.iter().all(|(part, _)| part != key));
        faults.extend(unused.map(|key| format!("unused: {name}.{key}")));
    }
    if faults.is_empty() {
        return Ok(chosen);
    }
    const SHOWN: usize = 20;
    let more = faults.len().saturating_sub(SHOWN);
    faults.truncate(SHOWN);
    faults.extend((more > 0).then(|| format!("and {more} more")));
    let what = "the adapter's tensors do not fit its configuration";
    Err(Error::faults(ErrorKind::Data, what, faults).hint(
        "are both files of one adapter? if whole kinds of tensors are missing or unused, the flags in \
         adapter_config.json (use_...) do not belong to these weights",
    ))
}

/// The configuration as the file's modules can answer it. What an exclusion leaves out only a model shows: all that is there is
/// meant then.
fn meant(modules: &BTreeMap<String, Module>, config: &AdapterConfig) -> AdapterConfig {
    let config = config.clone();
    if config.exclude_modules.is_none() {
        return config;
    }
    AdapterConfig {
        target_modules: Targets::Names(modules.keys().cloned().collect()),
        exclude_modules: None,
        layers_to_transform: None,
        layers_pattern: Vec::new(),
        ..config
    }
}

/// `(out, in)` of the weight that A and B lie beside; without them it may be of any size.
fn shape(module: &Module) -> (i64, i64) {
    let side = |name: &str, dim: usize| module.get(name).and_then(|t| t.size().get(dim).copied());
    (side("lora_B.weight", 0).unwrap_or(i64::MAX), side("lora_A.weight", 1).unwrap_or(i64::MAX))
}

fn by_name(chosen: Vec<Selection>) -> Chosen {
    chosen.into_iter().map(|s| (s.name.clone(), s)).collect()
}

/// Refuses numbers that an adapter, which is loaded in f32, cannot have.
pub(super) fn finite(modules: &BTreeMap<String, Module>) -> Result<()> {
    for (name, module) in modules {
        if let Some((part, _)) = module.iter().find(|(_, t)| !lora::all_finite(&t.to_kind(Kind::Float))) {
            return Err(Error::non_finite("holds numbers that are infinite in f32")
                .at(format!("{name}.{part}"))
                .hint("the training that wrote it had diverged; use an earlier checkpoint"));
        }
    }
    Ok(())
}
