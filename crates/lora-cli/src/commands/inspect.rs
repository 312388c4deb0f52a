//! `lora inspect`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use lora::model::linear_shapes;
use lora::{AdapterConfig, Error, ErrorKind, Recipe, VARIANTS};
use serde_json::json;
use tch::{Kind, Tensor};

use super::say;
use crate::open::grouped;

/// Show what an adapter trains: method, ranks, parameters, size, norms
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora inspect my-adapter
  lora inspect my-adapter --model SmolLM2.gguf     also: the share of the model, and whether it fits")]
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

/// The tensors of one module.
type Module = BTreeMap<String, Tensor>;

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = AdapterConfig::read(&args.adapter)?;
    let recipe = Recipe::from_flags(&config.flags, VARIANTS)?;
    let file = lora::weights_file(&args.adapter)?;
    let bytes = std::fs::metadata(&file).map_err(|e| lora::Error::io("read", &file, e))?.len();
    let mut modules: BTreeMap<String, Module> = BTreeMap::new();
    for (key, tensor) in lora::read_tensors(&file)? {
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
    let trained: usize = modules.values().flat_map(|m| m.values()).map(Tensor::numel).sum();
    let base = match &args.model {
        Some(path) => {
            let checkpoint = lora::open(path)?;
            check(&modules, &linear_shapes(checkpoint.as_ref())?.into_iter().collect())
                .map_err(|e| e.at(args.adapter.display()))?;
            Some((lora::model::parameters(checkpoint.config()), checkpoint.stored_bytes()))
        }
        None => None,
    };
    // The scale that each module really gets, patterns included.
    let shapes: Vec<_> = modules.iter().map(|(name, m)| (name.clone(), shape(m))).collect();
    let alphas: BTreeMap<_, _> =
        config.select(&shapes, None)?.into_iter().map(|s| (s.name, s.alpha)).collect();
    let alpha = |name: &str| alphas.get(name).copied().unwrap_or(config.lora_alpha);
    if let Some((name, module)) = modules.iter().find(|(_, module)| !fits(module)) {
        let sizes: Vec<_> = module.iter().map(|(factor, t)| format!("{factor} {:?}", t.size())).collect();
        return Err(Error::data(format!("{}: no A [r, in] and B [out, r]", sizes.join(", ")))
            .at(name)
            .into());
    }
    let row = |(name, module): (&String, &Module)| {
        let row = Row::new(name, module, config.r, alpha(name), &recipe);
        Row { effective_rank: args.spectrum.then(|| effective_rank(module)).flatten(), ..row }
    };
    let rows: Vec<_> = modules.iter().map(row).collect();
    if args.json {
        let modules: Vec<_> = rows.iter().map(Row::json).collect();
        say!(
            "{}",
            json!({ "variant": recipe.to_string(), "r": config.r, "lora_alpha": config.lora_alpha,
                "base_model": config.base_model, "parameters": trained, "bytes": bytes,
                "share": base.map(|(all, _)| trained as f64 / all as f64),
                "effective_rank": mean_rank(&rows), "modules": modules })
        );
        return Ok(());
    }
    say!("variant     {recipe}");
    say!("base        {}", config.base_model.as_deref().unwrap_or("not named"));
    say!(
        "rank        {}, alpha {}, scale {}",
        config.r,
        config.lora_alpha,
        recipe.scale(config.lora_alpha, config.r)
    );
    say!("parameters  {} in {} modules", grouped(trained), modules.len());
    if let Some((all, stored)) = base {
        say!("share       {:.4} % of the base's {}", 100.0 * trained as f64 / all as f64, grouped(all));
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
            row.rank,
            grouped(row.parameters),
            n[0],
            n[1],
            n[2]
        );
    }
    Ok(())
}

/// Every module is a layer of the model, and its factors have the layer's shape.
fn check(modules: &BTreeMap<String, Module>, layers: &BTreeMap<String, (i64, i64)>) -> lora::Result<()> {
    let side = |module: &Module, factor: &str, dim: usize| module.get(factor)?.size().get(dim).copied();
    let fault = |(name, module): (&String, &Module)| {
        let Some((out, inp)) = layers.get(name) else {
            return Some(format!("{name}: no linear layer of it"));
        };
        let other = |side: Option<i64>, size: &i64| side.is_some_and(|side| side != *size);
        let (b, a) = (side(module, "lora_B.weight", 0), side(module, "lora_A.weight", 1));
        (other(b, out) || other(a, inp))
            .then(|| format!("{name}: made for another shape than its [{out}, {inp}]"))
    };
    let mut faults: Vec<String> = modules.iter().filter_map(fault).collect();
    if faults.is_empty() {
        return Ok(());
    }
    let more = faults.len().saturating_sub(8);
    faults.truncate(8);
    faults.extend((more > 0).then(|| format!("and {more} more")));
    Err(Error::faults(ErrorKind::Data, "it does not fit this model", faults)
        .hint("the model it was made for is named in its adapter_config.json"))
}

/// Whether A and B, where both are there, are factors of one matrix.
fn fits(module: &Module) -> bool {
    let size = |name: &str| module.get(name).map(Tensor::size);
    match (size("lora_A.weight"), size("lora_B.weight")) {
        (Some(a), Some(b)) => matches!((&a[..], &b[..]), ([r, _], [_, q]) if r == q),
        _ => true,
    }
}

/// `(out, in)` of the weight that A and B lie beside.
fn shape(module: &Module) -> (i64, i64) {
    let side = |name: &str, dim: usize| module.get(name).and_then(|t| t.size().get(dim).copied());
    (side("lora_B.weight", 0).unwrap_or(i64::MAX), side("lora_A.weight", 1).unwrap_or(i64::MAX))
}

/// The effective rank of B A (Roy and Vetterli 2007): from 1, all in one direction, to r, all directions alike. None
/// where there is no update, or one of zero.
fn effective_rank(module: &Module) -> Option<f64> {
    let wide = |name: &str| module.get(name).map(|t| t.to_kind(Kind::Double));
    let (a, b) = (wide("lora_A.weight")?, wide("lora_B.weight")?);
    // Squared, the singular values of B A are the eigenvalues of Lᵀ BᵀB L, [r, r], where L Lᵀ = A Aᵀ.
    let (squares, vectors) = Tensor::linalg_eigh(&a.matmul(&a.tr()), "L");
    let l = vectors * squares.clamp_min(0.0).sqrt().unsqueeze(0);
    let down = b.matmul(&l);
    let values = Tensor::linalg_eigvalsh(&down.tr().matmul(&down), "L").clamp_min(0.0).sqrt();
    let sum = values.sum(Kind::Double).double_value(&[]);
    if !(sum > 0.0) {
        return None;
    }
    let shares = values / sum;
    // What is zero adds nothing.
    Some((-(&shares * shares.clamp_min(1e-300).log()).sum(Kind::Double)).exp().double_value(&[]))
}

fn mean_rank(rows: &[Row]) -> Option<f64> {
    let ranks: Vec<f64> = rows.iter().filter_map(|row| row.effective_rank).collect();
    (!ranks.is_empty()).then(|| ranks.iter().sum::<f64>() / ranks.len() as f64)
}

/// A module's line: rank, parameters, and the Frobenius norms of A, B and s B A.
struct Row {
    name: String,
    rank: i64,
    parameters: usize,
    norms: [Option<f64>; 3],
    effective_rank: Option<f64>,
}

impl Row {
    fn new(name: &str, module: &Module, r: i64, alpha: f64, recipe: &Recipe) -> Self {
        let (a, b) = (module.get("lora_A.weight"), module.get("lora_B.weight"));
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        let norm = |t: &Tensor| wide(t).norm().double_value(&[]);
        let rank = a.and_then(|a| a.size().first().copied()).unwrap_or(r);
        let update = a.zip(b).map(|(a, b)| {
            // ‖BA‖² = tr(BᵀB AAᵀ): nothing of size [out, in] is built.
            let (a, b) = (wide(a), wide(b));
            let product = b.tr().matmul(&b).matmul(&a.matmul(&a.tr()));
            product.trace().double_value(&[]).max(0.0).sqrt() * recipe.scale(alpha, rank)
        });
        let parameters = module.values().map(Tensor::numel).sum();
        Self {
            name: name.to_owned(),
            rank,
            parameters,
            norms: [a.map(norm), b.map(norm), update],
            effective_rank: None,
        }
    }

    fn json(&self) -> serde_json::Value {
        let [a, b, update] = self.norms;
        json!({ "name": self.name, "r": self.rank, "parameters": self.parameters,
            "norm_a": a, "norm_b": b, "norm_update": update,
            "effective_rank": self.effective_rank })
    }
}
