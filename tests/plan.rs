//! What is planned is what the allocator counts, whatever the method, the dtype, the lengths and what is recomputed.

use lora::model::{Keep, Llama};
use lora::tch_ext::cuda::here;
use lora::tch_ext::memory;
use lora::train::{
    AdamWConfig, Dataset, Fit, Load, Planner, Sample, Schedule, Setting, TrainConfig, may_share, train,
};
use lora::{AdapterConfig, Recipe};
use tch::{Device, Kind};

#[path = "common/small_model.rs"]
mod small_model;

const STEPS: TrainConfig = TrainConfig {
    epochs: 1.0,
    max_steps: None,
    batch_size: 2,
    accumulate: 1,
    learning_rate: 1e-4,
    schedule: Schedule::Constant,
    warmup: 0.0,
    adamw: AdamWConfig { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 },
    clip: Some(1.0),
    proximal: None,
    recompute: 0,
    record: false,
    seed: 7,
    eval_every: None,
    save: None,
};

/// Many texts of 60 tokens behind a thousand that they begin with, all in one step.
const MANY: usize = 24;

fn alike() -> Dataset {
    let sample = |line: usize| {
        let own = (0..60).map(|i| (i * 11 + 5 * line as i64) % 256);
        let ids: Vec<i64> = (0..1000).map(|i| i * 3 % 256).chain(own).collect();
        let labels = ids.iter().enumerate().map(|(i, &id)| if i < 1058 { lora::model::IGNORE } else { id });
        Sample { labels: labels.collect(), ids, line }
    };
    Dataset { path: "none".into(), rows: Vec::new(), samples: (0..MANY).map(sample).collect(), truncated: 0 }
}

fn data(length: usize, supervised: usize) -> Dataset {
    let sample = |line: usize| {
        let ids: Vec<i64> = (0..(length - 16 * line) as i64).map(|i| (i * 7 + line as i64) % 256).collect();
        let mut labels = ids.clone();
        let masked = labels.len().saturating_sub(supervised);
        labels[..masked].fill(lora::model::IGNORE);
        Sample { ids, labels, line }
    };
    Dataset { path: "none".into(), rows: Vec::new(), samples: (0..2).map(sample).collect(), truncated: 0 }
}

/// Bytes that the plan names, without the program; and those counted.
fn both(
    folder: &std::path::Path,
    (recipe, kind): (&Recipe, Kind),
    adapter: &AdapterConfig,
    (data, config): (&Dataset, &TrainConfig),
) -> (u64, u64) {
    let checkpoint = lora::open(folder).unwrap();
    let keep = Keep { storage: recipe.storage(), packed: None, skip: &[] };
    let planner = Planner::new(checkpoint.as_ref(), (keep, kind, here()), (recipe, adapter), 0).unwrap();
    let setting =
        Setting { planner: 0, recompute: config.recompute, batch_size: config.batch_size, accumulate: 1 };
    let load = Load::of_data(&data.samples, config, may_share(here(), kind, adapter.lora_dropout > 0.0));
    let fit = Fit::of(&[planner], setting, &load).unwrap();
    let before = memory::cuda(0).map_or(0, |usage| usage.current);
    // The file's own mapping is no tensor of the allocator's; what is read out of it into another dtype is.
    let mapped = if recipe.is_dense() && kind == Kind::BFloat16 { checkpoint.stored_bytes() } else { 0 };
    let mut model = Llama::load(checkpoint.as_ref(), kind, here(), keep).unwrap();
    lora::attach(&mut model, "a", recipe, adapter).unwrap();
    memory::reset_peak();
    memory::reset_cuda_peak(0);
    train(&model, lora::params(&model, "a"), data, None, config, &mut |_| Ok(())).unwrap();
    let counted = match here() {
        Device::Cpu => memory::cpu().unwrap().peak + mapped,
        _ => memory::cuda(0).unwrap().peak - before,
    };
    (fit.plan.total(), counted)
}

/// One test, since the allocator is the process's own.
#[test]
fn what_is_planned_is_what_is_counted() {
    assert!(memory::manage());
    let folder = tempfile::tempdir().unwrap();
    small_model::write_model(folder.path());
    let mut worst = 0f64;
    let mut cold = here() != Device::Cpu;
    for (spec, kind) in [
        ("lora", Kind::BFloat16),
        ("lora", Kind::Float),
        ("dora", Kind::BFloat16),
        ("qlora", Kind::BFloat16),
        ("qlora+dora", Kind::Float),
    ] {
        let recipe = lora::recipe(spec).unwrap();
        for (dropout, layers) in [(0.0, None), (0.1, None), (0.0, Some(vec![3, 4, 5]))] {
            let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
            let adapter = AdapterConfig {
                r: 16,
                lora_dropout: dropout,
                target_modules: lora::Targets::Names(targets.map(str::to_owned).to_vec()),
                layers_to_transform: layers.clone(),
                ..Default::default()
            };
            let pairs = [(1024, 1024), (1024, 16), (2048, 200)];
            let mut cases: Vec<_> = pairs.map(|(length, supervised)| (data(length, supervised), 2)).into();
            if here() == Device::Cpu && dropout == 0.0 {
                cases.push((alike(), MANY));
            }
            for (data, batch_size) in &cases {
                for recompute in [0, 2, usize::MAX] {
                    let config = TrainConfig { recompute, batch_size: *batch_size, ..STEPS };
                    let (length, supervised) = (data.tokens(), data.supervised());
                    if std::mem::take(&mut cold) {
                        // The buffers of a GPU's products come with the first step, and stay.
                        both(folder.path(), (&recipe, kind), &adapter, (data, &config));
                    }
                    let (planned, counted) = both(folder.path(), (&recipe, kind), &adapter, (data, &config));
                    let ratio = planned as f64 / counted as f64;
                    let case = format!(
                        "{spec} {kind:?}, dropout {dropout}, layers {layers:?}, {length} ({supervised}), recompute \
                         {recompute}: {planned} planned, {counted} counted, {ratio:.3}"
                    );
                    eprintln!("{case}");
                    worst = worst.max((ratio - 1.0).abs());
                    assert!((0.95..1.05).contains(&ratio), "{case}");
                }
            }
        }
    }
    eprintln!("worst: {worst:.3}");
}
