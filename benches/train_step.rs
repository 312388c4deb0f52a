//! Seconds and peak memory of one training step, as one JSON line; `cargo xtask bench` runs it beside its peers.
//!
//! The work is that of `xtask/peers/peft_step.py`: the same random ids every step, all positions supervised,
//! alpha = 2 rank, all linear layers, no dropout, AdamW at 1e-4, no clipping.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lora::model::{Checkpoint, IGNORE, Llama, Model, Texts};
use lora::tch_ext::{Product, Sum, gemm};
use lora::train::{AdamW, AdamWConfig};
use lora::{AdapterConfig, Dense, Error, Linears, Result};
use tch::{Device, Kind, Tensor};

const USAGE: &str = "train_step: nothing to measure without a model\n  cargo bench --bench train_step -- --model \
                     FILE.gguf [--variant lora] [--dtype bf16|f32] [--batch 4] [--seq 256] [--rank 8] [--steps 5] \
                     [--warmup 1] [--recompute LAYERS]\n  or, beside PEFT: cargo xtask bench --peer peft";

fn main() -> Result<()> {
    match Settings::from(std::env::args().skip(1))? {
        Some(settings) => println!("{}", measure(&settings)?),
        None => println!("{USAGE}"),
    }
    Ok(())
}

struct Settings {
    model: String,
    variant: String,
    kind: Kind,
    batch: usize,
    seq: usize,
    rank: i64,
    steps: usize,
    warmup: usize,
    recompute: usize,
}

impl Settings {
    /// `None` without a model. Flags of other harnesses (`--bench`, filters) are passed over.
    fn from(args: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let args: Vec<_> = args.collect();
        let flags: BTreeMap<_, _> = args.windows(2).map(|w| (w[0].as_str(), w[1].as_str())).collect();
        let number = |flag: &str, default: usize| match flags.get(flag) {
            None => Ok(default),
            Some(text) => text
                .parse::<usize>()
                .map_err(|_| Error::usage(format!("{flag} takes a number, not `{text}`"))),
        };
        let Some(model) = flags.get("--model") else { return Ok(None) };
        let kind = match flags.get("--dtype").copied().unwrap_or("bf16") {
            "bf16" => Kind::BFloat16,
            "f32" => Kind::Float,
            other => return Err(Error::usage(format!("--dtype is bf16 or f32, not `{other}`"))),
        };
        Ok(Some(Self {
            model: (*model).to_owned(),
            variant: flags.get("--variant").copied().unwrap_or("lora").to_owned(),
            kind,
            batch: number("--batch", 4)?.max(1),
            seq: number("--seq", 256)?.max(2),
            rank: number("--rank", 8)? as i64,
            steps: number("--steps", 5)?.max(1),
            warmup: number("--warmup", 1)?,
            recompute: number("--recompute", 0)?,
        }))
    }
}

fn measure(settings: &Settings) -> Result<serde_json::Value> {
    lora::tch_ext::memory::manage();
    let recipe = lora::recipe(&settings.variant)?;
    let device = Device::Cpu;
    tch::manual_seed(0);
    let mut model = {
        let checkpoint: Box<dyn Checkpoint> = lora::model::open(Path::new(&settings.model))?;
        Llama::load(checkpoint.as_ref(), settings.kind, device, &|name, w| match name {
            "lm_head" => Ok(Box::new(Dense::new(w))),
            _ => recipe.store(w),
        })?
    };
    let config =
        AdapterConfig { r: settings.rank, lora_alpha: 2.0 * settings.rank as f64, ..Default::default() };
    lora::attach(&mut model, "bench", &recipe, &config)?;
    let params = lora::params(&model, "bench");
    let (ids, labels) = batch(settings, model.config().vocab_size);
    // The weight decay is torch's default, which the peer has.
    let mut optimiser = AdamW::new(&params, AdamWConfig { weight_decay: 0.01, ..Default::default() });

    let supervised = labels.not_equal(IGNORE).sum(Kind::Int64).double_value(&[]);
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    let mut step = || -> Result<()> {
        let start = Instant::now();
        let loss = model.backward(Texts::Rows(&ids), &labels, 1.0 / supervised, settings.recompute)?;
        optimiser.step(&params, 1e-4);
        losses.push((loss * 1e5).round() / 1e5);
        seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    };
    (0..settings.warmup).try_for_each(|_| step())?;
    let (done, spent) = lora::tch_ext::profile(|| (0..settings.steps).try_for_each(|_| step()));
    done?;
    let spent: serde_json::Map<String, serde_json::Value> =
        spent.iter().map(|s| (s.name.to_owned(), (s.seconds / settings.steps as f64).into())).collect();
    let alive: serde_json::Map<String, serde_json::Value> = lora::tch_ext::memory::alive_at_peak()
        .iter()
        .map(|part| (part.name.to_owned(), (part.bytes as f64 / 1e6).into()))
        .collect();
    // Read before the rate is measured, which takes memory of its own.
    let peak = lora::tch_ext::memory::process().map_or(0, |usage| usage.peak);
    let step = median(&seconds[settings.warmup..]);
    let tokens = (settings.batch * settings.seq) as f64;
    let at_best = required_flops(&model, settings) / matmul_rate(&model, tokens as i64, settings.kind);
    Ok(serde_json::json!({
        "tok_s": tokens / step, "s_step": step, "peak_mb": peak as f64 / 1e6, "limit_fraction": at_best / step,
        "losses": losses, "spent_s": spent, "alive_mb": alive,
    }))
}

/// The peer's ids `[batch, seq]`, and for each position the id that follows it.
fn batch(settings: &Settings, vocab: i64) -> (Tensor, Tensor) {
    let mut x: u64 = 42;
    let ids: Vec<i64> = (0..settings.batch * settings.seq)
        .map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as i64 % vocab
        })
        .collect();
    let shape = [settings.batch as i64, settings.seq as i64];
    let ids = Tensor::from_slice(&ids).view(shape);
    let last = Tensor::full([shape[0], 1], IGNORE, (Kind::Int64, Device::Cpu));
    let labels = Tensor::cat(&[ids.narrow(1, 1, shape[1] - 1), last], 1);
    (ids, labels)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// What no LoRA step can do without: a product with each frozen weight forward and one for its input's gradient
/// (4 flops a weight and token, the head included), and causal attention's two products forward and four
/// backward, each over half of the `seq x seq` square.
fn required_flops(model: &Llama, settings: &Settings) -> f64 {
    let config = model.config();
    let weights: i64 =
        model.linears().iter().map(|(_, l)| l.base().shape()).map(|(out, inp)| out * inp).sum();
    let attention = 6.0 * settings.seq as f64 * (config.layers * config.heads * config.head_dim) as f64;
    (settings.batch * settings.seq) as f64 * (4.0 * weights as f64 + attention)
}

/// Flops a second of the plain products that the step is made of: each weight's shape, forward and backward, as
/// often as the model has it, by libtorch's product or ours, whichever is faster.
fn matmul_rate(model: &Llama, tokens: i64, kind: Kind) -> f64 {
    /// Of the head's many outputs, logits of so many rows exist at one time.
    const ROWS: i64 = 256;
    let mut shapes = BTreeMap::new();
    for (_, layer) in model.linears() {
        *shapes.entry(layer.base().shape()).or_insert(0.0) += 1.0;
    }
    let _guard = tch::no_grad_guard();
    let (mut flops, mut seconds) = (0.0, 0.0);
    for ((out, inp), count) in shapes {
        let rows = if out > 16 * inp { ROWS.min(tokens) } else { tokens };
        let random = |n, m| Tensor::randn([n, m], (Kind::Float, Device::Cpu)).to_kind(kind);
        let (w, x, dy) = (random(out, inp), random(rows, inp), random(rows, out));
        let (y, dx) = (dy.empty_like(), x.empty_like());
        let best = (0..16).map(|i| {
            let start = Instant::now();
            if i % 2 == 0 {
                let _ = (x.linear(&w, None::<Tensor>), dy.matmul(&w));
            } else {
                gemm(&[Sum::new(vec![Product::transposed(&x, &w)], &y)]);
                gemm(&[Sum::new(vec![Product::plain(&dy, &w)], &dx)]);
            }
            start.elapsed().as_secs_f64()
        });
        let share = count * tokens as f64 / rows as f64;
        flops += share * 4.0 * (rows * out * inp) as f64;
        seconds += share * best.fold(f64::INFINITY, f64::min);
    }
    flops / seconds
}
