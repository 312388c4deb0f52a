//! Tokens a second of reading a prompt and of going on with it, of the base, of a merged adapter and of one beside the
//! base, as one JSON line; `cargo xtask bench --generation` runs it beside its peer.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lora::model::{Cache, Keep, Llama, Model, Texts};
use lora::{AdapterConfig, Mode, Result};
use tch::{Device, Kind, Tensor};

const USAGE: &str = "generation: nothing to measure without a model\n  cargo bench --bench generation -- --model \
                     FILE.gguf [--batch 1] [--prompt 256] [--tokens 64]\n  or, beside transformers: cargo xtask bench \
                     --generation";

fn main() -> Result<()> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let flags: BTreeMap<_, _> = args.windows(2).map(|w| (w[0].as_str(), w[1].as_str())).collect();
    let number =
        |flag: &str, default: i64| flags.get(flag).and_then(|n| n.parse().ok()).unwrap_or(default).max(1);
    match flags.get("--model") {
        Some(model) => {
            let sizes = (number("--batch", 1), number("--prompt", 256), number("--tokens", 64));
            println!("{}", measure(Path::new(model), sizes)?);
        }
        None => println!("{USAGE}"),
    }
    Ok(())
}

fn measure(path: &Path, (batch, prompt, tokens): (i64, i64, i64)) -> Result<serde_json::Value> {
    lora::tch_ext::memory::manage();
    tch::manual_seed(0);
    let checkpoint = lora::open(path)?;
    let mut model = Llama::load(checkpoint.as_ref(), Kind::BFloat16, Device::Cpu, Keep::DENSE)?;
    let recipe = lora::recipe("lora")?;
    lora::attach(&mut model, "bench", &recipe, &AdapterConfig::default())?;
    let ids = Tensor::randint(model.config().vocab_size, [batch, prompt], (Kind::Int64, Device::Cpu));
    let _guard = tch::no_grad_guard();
    let mut result = serde_json::Map::new();
    // In turn, again and again: a machine that slows down slows all three.
    let mut best = BTreeMap::<&str, (f64, f64)>::new();
    for _ in 0..4 {
        for state in ["base", "merged", "unmerged"] {
            lora::unmerge(&mut model);
            lora::activate(&mut model, (state != "base").then_some("bench"))?;
            if state == "merged" {
                lora::merge(&mut model)?;
            }
            let (prefill, decode) = run(&model, &ids, tokens)?;
            let rates = best.entry(state).or_default();
            *rates = (rates.0.max(prefill), rates.1.max(decode));
        }
    }
    for (state, (prefill, decode)) in best {
        result.insert(format!("prefill_{state}"), prefill.into());
        result.insert(format!("decode_{state}"), decode.into());
    }
    Ok(result.into())
}

/// Tokens a second of the prompt, and of greedy tokens after it.
fn run(model: &Llama, prompt: &Tensor, tokens: i64) -> Result<(f64, f64)> {
    let mut cache = Cache::new();
    let mut next = |ids: &Tensor| -> Result<Tensor> {
        let hidden = model.hidden(Texts::Rows(ids), Some(&mut cache), Mode::Eval)?;
        let last = hidden.narrow(1, hidden.size()[1] - 1, 1);
        Ok(model.head().forward(&last, Mode::Eval).argmax(-1, false))
    };
    let start = Instant::now();
    let mut ids = next(prompt)?;
    let prefill = prompt.numel() as f64 / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 0..tokens {
        ids = next(&ids)?;
    }
    Ok((prefill, (tokens * prompt.size()[0]) as f64 / start.elapsed().as_secs_f64()))
}
