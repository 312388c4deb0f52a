//! `lora inspect`

mod fit;
mod row;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::{AdapterConfig, Error, Recipe, VARIANTS};
use serde_json::json;
use tch::Tensor;

use super::{emit, say};
use crate::open::{grouped, share};
use crate::origin;
use fit::Module;
use row::{Row, mean_rank};

/// Show what an adapter trains: method, ranks, parameters, size, norms
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora inspect my-adapter
  lora inspect my-adapter --model SmolLM2.gguf    also the share of the model, and whether it fits")]
pub(crate) struct Args {
    /// The adapter folder (PEFT's format)
    adapter: PathBuf,
    /// Its base model: for the share that trains, and to see whether the adapter fits
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Also the effective rank of each update: exp(entropy of its normalised singular values)
    #[arg(long)]
    spectrum: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = AdapterConfig::read(&args.adapter)?;
    let recipe = Recipe::from_flags(&config.flags, VARIANTS)?;
    let file = lora::weights_file(&args.adapter)?;
    let bytes = std::fs::metadata(&file).map_err(|e| Error::io("read", &file, e))?.len();
    let modules = read(&file)?;
    let at = |e: Error| e.at(args.adapter.display());
    let (chosen, base) = match &args.model {
        Some(path) => {
            let chosen = fit::on(path, &args.adapter)?;
            let checkpoint = lora::open(path)?;
            origin::tell(&args.adapter, checkpoint.as_ref(), None);
            (chosen, Some((lora::model::parameters(checkpoint.config()), checkpoint.stored_bytes())))
        }
        None => (fit::alone(&modules, &config, &recipe).map_err(at)?, None),
    };
    fit::finite(&modules).map_err(at)?;
    let trained: usize = modules.values().flat_map(|m| m.values()).map(Tensor::numel).sum();
    let modules = modules.iter().filter_map(|(name, module)| Some((chosen.get(name)?, module)));
    let rows = modules.map(|(s, module)| Row::new(s, module, &recipe, args.spectrum));
    let mut rows = rows.collect::<lora::Result<Vec<_>>>()?;
    rows.sort_by_cached_key(Row::place);
    // Of `full` there is none.
    let ranked = rows.iter().any(|row| row.rank.is_some());
    if args.json {
        let modules: Vec<_> = rows.iter().map(Row::json).collect();
        emit(json!({ "variant": recipe.to_string(), "r": ranked.then_some(config.r),
            "lora_alpha": ranked.then_some(config.lora_alpha),
            "base_model": config.base_model, "parameters": trained, "bytes": bytes,
            "share": base.map(|(frozen, _)| share(trained, frozen)),
            "effective_rank": mean_rank(&rows), "modules": modules }));
        return Ok(());
    }
    say!("variant     {recipe}");
    say!("base        {}", config.base_model.as_deref().unwrap_or("not named"));
    if ranked {
        let scale = recipe.scale(config.lora_alpha, config.r);
        say!("rank        {}, alpha {}, scale {scale}", config.r, config.lora_alpha);
    }
    say!("parameters  {} in {} modules", grouped(trained), rows.len());
    if let Some((frozen, stored)) = base {
        let (share, all) = (100.0 * share(trained, frozen), grouped(frozen + trained));
        say!("share       {share:.3} % of {all}, base and adapter");
        say!("size        {:.2} MB; the base {:.2} MB", bytes as f64 / 1e6, stored as f64 / 1e6);
    } else {
        say!("size        {:.2} MB", bytes as f64 / 1e6);
    }
    if let Some(mean) = mean_rank(&rows) {
        say!("effective   rank {mean:.2}, the mean of the modules'");
    }
    say!("\n{:48} {:>5} {:>12} {:>10} {:>10} {:>10}", "module", "rank", "parameters", "|A|", "|B|", "|s BA|");
    for row in &rows {
        let n = row.norms.map(|n| n.map_or("-".to_owned(), |n| format!("{n:.4}")));
        say!(
            "{:48} {:>5} {:>12} {:>10} {:>10} {:>10}",
            row.name,
            row.rank.map_or("-".to_owned(), |rank| rank.to_string()),
            grouped(row.parameters),
            n[0],
            n[1],
            n[2]
        );
    }
    Ok(())
}

/// The file's tensors by module.
fn read(file: &Path) -> Result<BTreeMap<String, Module>> {
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for (key, tensor) in lora::read_tensors(file)? {
        // The base's own weight, which PEFT writes beside an adapter of the output head.
        if key.ends_with(".base_layer.weight") {
            continue;
        }
        let path = key.strip_prefix("base_model.model.").unwrap_or(&key);
        let split = path.find(".lora_").or_else(|| path.rfind('.')).unwrap_or(path.len());
        let (module, name) = path.split_at(split);
        let name = name.trim_start_matches('.').to_owned();
        modules.entry(module.to_owned()).or_default().insert(name, tensor);
    }
    Ok(modules)
}
