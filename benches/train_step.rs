//! Seconds and peak memory of one training step, as one JSON line; `cargo xtask bench` runs it beside its peers.
//!
//! The work is that of `xtask/peers/peft_step.py`: the same random ids every step, all positions supervised, or the
//! rows of a file;
//! alpha = 2 rank, all linear layers, no dropout, AdamW at 1e-4, no clipping.

#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use lora::model::{IGNORE, Keep, Llama, Model, Tokenizer};
use lora::train::{
    AdamW, AdamWConfig, Arena, Batch, DataOptions, Dataset, Long, Recorder, Sample, Work, matmul_rate,
    may_share, required_flops,
};
use lora::{AdapterConfig, Error, Result};
use tch::{Device, Kind};

const USAGE: &str = "train_step: nothing to measure without a model\n  cargo bench --bench train_step -- --model \
                     FILE.gguf [--variant lora] [--dtype bf16|f32] [--batch 4] [--seq 256] [--rank 8] [--steps 5] \
                     [--warmup 1] [--recompute LAYERS] [--data FILE.jsonl] [--device cpu|cuda] [--profile] [--eager]\n  or, beside PEFT: cargo xtask bench --peer peft";

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
    data: Option<String>,
    device: Device,
    profile: bool,
    eager: bool,
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
        lora::tch_ext::load_cuda();
        let device = match flags.get("--device").copied().unwrap_or("cpu") {
            "cpu" => Device::Cpu,
            "cuda" if tch::Cuda::is_available() => Device::Cuda(0),
            other => return Err(Error::usage(format!("--device {other} is not here"))),
        };
        Ok(Some(Self {
            device,
            eager: args.iter().any(|arg| arg == "--eager"),
            profile: args.iter().any(|arg| arg == "--profile"),
            model: (*model).to_owned(),
            variant: flags.get("--variant").copied().unwrap_or("lora").to_owned(),
            kind,
            batch: number("--batch", 4)?.max(1),
            seq: number("--seq", 256)?.max(2),
            rank: number("--rank", 8)? as i64,
            steps: number("--steps", 5)?.max(1),
            warmup: number("--warmup", 1)?,
            recompute: number("--recompute", 0)?,
            data: flags.get("--data").map(|file| (*file).to_owned()),
        }))
    }
}

fn measure(settings: &Settings) -> Result<serde_json::Value> {
    lora::tch_ext::memory::manage();
    let recipe = lora::recipe(&settings.variant)?;
    let device = settings.device;
    tch::manual_seed(0);
    let mut model = {
        let checkpoint = lora::open(Path::new(&settings.model))?;
        let keep = Keep { storage: recipe.storage(), packed: None, skip: &[] };
        Llama::load(checkpoint.as_ref(), settings.kind, device, keep)?
    };
    let config =
        AdapterConfig { r: settings.rank, lora_alpha: 2.0 * settings.rank as f64, ..Default::default() };
    lora::attach(&mut model, "bench", &recipe, &config)?;
    let mut arena = Arena::new(lora::params(&model, "bench"))?;
    let count = settings.warmup + settings.steps;
    let batches = match &settings.data {
        Some(file) => real(settings, file, count)?,
        None => random(settings, model.config().vocab_size, count),
    };
    // The weight decay is torch's default, which the peer has.
    let mut optimiser = AdamW::new(&arena, AdamWConfig { weight_decay: 0.01, ..Default::default() });

    let mut recorder = Recorder::new(&model, !settings.eager);
    let (mut losses, mut seconds, mut first) = (Vec::new(), Vec::new(), f64::NAN);
    let mut step = |batch: &Batch| -> Result<()> {
        let start = Instant::now();
        let scale = 1.0 / batch.supervised as f64;
        let loss = recorder.backward(&model, arena.params(), batch, scale, settings.recompute)?;
        optimiser.step(&mut arena, 1e-4);
        if device.is_cuda() {
            tch::Cuda::synchronize(0);
        }
        if losses.is_empty() {
            first = age();
        }
        losses.push((loss * 1e5).round() / 1e5);
        seconds.push(start.elapsed().as_secs_f64());
        Ok(())
    };
    let (warmup, measured) = batches.split_at(settings.warmup);
    warmup.iter().try_for_each(&mut step)?;
    // A device is waited for at every border of a region.
    let (done, spent) = match (device, settings.profile) {
        (Device::Cpu, _) | (_, true) => lora::tch_ext::profile(|| measured.iter().try_for_each(&mut step)),
        _ => (measured.iter().try_for_each(&mut step), Vec::new()),
    };
    done?;
    let spent: serde_json::Map<String, serde_json::Value> =
        spent.iter().map(|s| (s.name.to_owned(), (s.seconds / settings.steps as f64).into())).collect();
    let alive: serde_json::Map<String, serde_json::Value> = lora::tch_ext::memory::alive_at_peak()
        .iter()
        .map(|part| (part.name.to_owned(), (part.bytes as f64 / 1e6).into()))
        .collect();
    // Read before the rate is measured, which takes memory of its own.
    let usage = match device {
        Device::Cpu => lora::tch_ext::memory::process(),
        _ => lora::tch_ext::memory::cuda(0),
    };
    let peak = usage.map_or(0, |usage| usage.peak);
    let mut work = Work::default();
    measured.iter().for_each(|batch| work += batch.work());
    let seconds = &seconds[settings.warmup..];
    // The same work every step: the median is the least disturbed. Else there is only the whole.
    let whole = match settings.data {
        Some(_) => seconds.iter().sum::<f64>(),
        None => median(seconds) * settings.steps as f64,
    };
    let tokens = work.tokens / settings.steps as f64;
    let at_best = required_flops(&model, &work) / matmul_rate(&model, tokens as i64);
    Ok(serde_json::json!({
        "tok_s": work.tokens / whole, "s_step": median(seconds), "peak_mb": peak as f64 / 1e6,
        "limit_fraction": at_best / whole,
        "first_loss_s": first, "losses": losses, "spent_s": spent, "alive_mb": alive,
    }))
}

/// The peer's ids, `batch` texts of `seq` of them, and for each position the id that follows it; the same every step.
fn random(settings: &Settings, vocab: i64, count: usize) -> Vec<Batch> {
    let mut x: u64 = 42;
    let mut text = || {
        let ids = (0..settings.seq).map(|_| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as i64 % vocab
        });
        let ids: Vec<i64> = ids.collect();
        let labels = ids[1..].iter().copied().chain([IGNORE]).collect();
        Sample { ids, labels, line: 0 }
    };
    let samples: Vec<Sample> = (0..settings.batch).map(|_| text()).collect();
    (0..count).map(|_| Batch::new(&samples.iter().collect::<Vec<_>>(), settings.device)).collect()
}

/// Rows of a data file in its order, `batch` a step, as the trainer puts them together.
fn real(settings: &Settings, file: &str, count: usize) -> Result<Vec<Batch>> {
    let tokenizer = Tokenizer::open(Path::new(&settings.model))?;
    let data = Dataset::read(Path::new(file), &tokenizer, DataOptions { max_length: 2048, long: Long::Cut })?;
    let mut rows = data.samples.iter().cycle();
    let may = may_share(settings.device, settings.kind, false);
    let mut batch =
        || Batch::sharing(&rows.by_ref().take(settings.batch).collect::<Vec<_>>(), may, settings.device);
    Ok((0..count).map(|_| batch()).collect())
}

/// Seconds since this process was started; NaN where the system does not tell.
fn age() -> f64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let up = read("/proc/uptime").split_whitespace().next().and_then(|t| t.parse::<f64>().ok());
    let stat = read("/proc/self/stat");
    // Behind the program's name in brackets it is the 20th field, in hundredths of a second.
    let start =
        stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<f64>().ok());
    up.zip(start).map_or(f64::NAN, |(up, start)| up - start / 100.0)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}
