//! What is planned is what the allocator counts, whatever the method, the dtype, the lengths, what lies beside the weights
//! and what is recomputed.

use std::path::Path;

use lora::model::{Keep, Llama};
use lora::tch_ext::cuda::here;
use lora::tch_ext::memory;
use lora::train::{
    AdamWConfig, Dataset, Fit, Load, Planner, Sample, Schedule, Setting, TrainConfig, may_share, train,
};
use lora::{AdapterConfig, BaseWeight, Linears, Targets, beside};
use tch::{Device, Kind, Tensor};

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
    stop: None,
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
    Dataset {
        path: "none".into(),
        rows: Vec::new(),
        samples: (0..MANY).map(sample).collect(),
        truncated: 0,
        left_out: 0,
    }
}

fn data(length: usize, supervised: usize) -> Dataset {
    let sample = |line: usize| {
        let ids: Vec<i64> = (0..(length - 16 * line) as i64).map(|i| (i * 7 + line as i64) % 256).collect();
        let mut labels = ids.clone();
        let masked = labels.len().saturating_sub(supervised);
        labels[..masked].fill(lora::model::IGNORE);
        Sample { ids, labels, line }
    };
    Dataset {
        path: "none".into(),
        rows: Vec::new(),
        samples: (0..2).map(sample).collect(),
        truncated: 0,
        left_out: 0,
    }
}

/// A run.
struct Case<'a> {
    folder: &'a Path,
    spec: &'a str,
    kind: Kind,
    /// The rank of what lies beside each weight that has an adapter.
    beside: i64,
    adapter: &'a AdapterConfig,
    data: &'a Dataset,
    config: &'a TrainConfig,
}

impl Case<'_> {
    /// Bytes that the plan names, without the program; and those counted.
    fn both(&self) -> (u64, u64) {
        let &Self { kind, adapter, config, .. } = self;
        let recipe = &lora::recipe(self.spec).unwrap();
        let checkpoint = lora::open(self.folder).unwrap();
        let keep = Keep { storage: recipe.storage(), packed: None, skip: &[] };
        let planner = Planner::new(checkpoint.as_ref(), (keep, kind, here()), (recipe, adapter), 0).unwrap();
        let setting =
            Setting { planner: 0, recompute: config.recompute, batch_size: config.batch_size, accumulate: 1 };
        let share = may_share(here(), kind, adapter.lora_dropout > 0.0);
        let load = Load::of_data(&self.data.samples, config, share);
        let fit = Fit::of(&[planner.beside(self.beside)], setting, &load).unwrap();
        let before = memory::cuda(0).map_or(0, |usage| usage.current);
        // The file's own mapping is no tensor of the allocator's; what is read out of it into another dtype is.
        let mapped = if recipe.is_dense() && kind == Kind::BFloat16 { checkpoint.stored_bytes() } else { 0 };
        let mut model = Llama::load(checkpoint.as_ref(), kind, here(), keep).unwrap();
        let _stays = self.lay(&mut model);
        lora::attach(&mut model, "a", recipe, adapter).unwrap();
        memory::reset_peak();
        memory::reset_cuda_peak(0);
        train(&model, lora::params(&model, "a"), self.data, None, config, &mut |_| Ok(())).unwrap();
        let counted = match here() {
            Device::Cpu => memory::cpu().unwrap().peak + mapped,
            _ => memory::cuda(0).unwrap().peak - before,
        };
        (fit.plan.total(), counted)
    }

    /// Lays factors beside the weights, and gives what a federation's client keeps of that: its own weights, and the factors.
    fn lay(&self, model: &mut Llama) -> Vec<(Box<dyn BaseWeight>, Tensor, Tensor)> {
        let all = model.linears().into_iter().map(|(name, layer)| (name, layer.base().shape()));
        let chosen = self.adapter.select(&all.collect::<Vec<_>>(), model.output_head()).unwrap();
        let layers = model.linears_mut().into_iter();
        let layers = layers.filter(|(name, _)| self.beside > 0 && chosen.iter().any(|s| s.name == *name));
        let laid = layers.map(|(_, layer)| {
            let own = layer.base().share();
            let (out, inp) = own.shape();
            let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, here())) * 0.01;
            let (a, b) = (random([self.beside, inp]), random([out, self.beside]));
            layer.replace_base(beside(own.share(), &a, &b).unwrap()).unwrap();
            (own, a, b)
        });
        laid.collect()
    }

    /// How far the plan is off, as a share.
    fn error(&self) -> f64 {
        let (planned, counted) = self.both();
        let ratio = planned as f64 / counted as f64;
        let Self { spec, kind, beside, adapter, data, config, .. } = self;
        let case = format!(
            "{spec} {kind:?}, {beside} beside, dropout {}, layers {:?}, {} ({}), recompute {}: {planned} planned, \
             {counted} counted, {ratio:.3}",
            adapter.lora_dropout,
            adapter.layers_to_transform,
            data.tokens(),
            data.supervised(),
            config.recompute
        );
        eprintln!("{case}");
        assert!((0.95..1.05).contains(&ratio), "{case}");
        (ratio - 1.0).abs()
    }
}

fn adapter(lora_dropout: f64, layers_to_transform: Option<Vec<i64>>) -> AdapterConfig {
    let targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    AdapterConfig {
        r: 16,
        lora_dropout,
        target_modules: Targets::Names(targets.map(str::to_owned).to_vec()),
        layers_to_transform,
        ..Default::default()
    }
}

/// One test, since the allocator is the process's own.
#[test]
fn what_is_planned_is_what_is_counted() {
    assert!(memory::manage());
    let folder = tempfile::tempdir().unwrap();
    small_model::write_model(folder.path());
    let mut worst = 0f64;
    let mut cold = here() != Device::Cpu;
    let mut check = |case: &Case<'_>| {
        if std::mem::take(&mut cold) {
            // The buffers of a GPU's products come with the first step, and stay.
            case.both();
        }
        worst = worst.max(case.error());
    };
    for (spec, kind) in [
        ("lora", Kind::BFloat16),
        ("lora", Kind::Float),
        ("dora", Kind::BFloat16),
        ("qlora", Kind::BFloat16),
        ("qlora+dora", Kind::Float),
    ] {
        for (dropout, layers) in [(0.0, None), (0.1, None), (0.0, Some(vec![3, 4, 5]))] {
            let adapter = &adapter(dropout, layers);
            let pairs = [(1024, 1024), (1024, 16), (2048, 200)];
            let mut cases: Vec<_> = pairs.map(|(length, supervised)| (data(length, supervised), 2)).into();
            if here() == Device::Cpu && dropout == 0.0 {
                cases.push((alike(), MANY));
            }
            for (data, batch_size) in &cases {
                for recompute in [0, 2, usize::MAX] {
                    let config = &TrainConfig { recompute, batch_size: *batch_size, ..STEPS };
                    check(&Case { folder: folder.path(), spec, kind, beside: 0, adapter, data, config });
                }
            }
        }
    }
    let (all, some) = (
        adapter(0.0, None),
        AdapterConfig {
            target_modules: Targets::Names(["q_proj", "down_proj"].map(str::to_owned).to_vec()),
            ..adapter(0.0, None)
        },
    );
    for (spec, kind, beside, adapter) in [
        ("full", Kind::BFloat16, 0, &all),
        ("full", Kind::BFloat16, 0, &some),
        ("full", Kind::Float, 0, &all),
        ("dora+full", Kind::BFloat16, 0, &all),
        ("qlora+full", Kind::Float, 0, &all),
        ("lora", Kind::BFloat16, 64, &all),
        ("lora", Kind::Float, 64, &all),
        ("qlora+dora", Kind::BFloat16, 64, &all),
        ("full", Kind::BFloat16, 64, &all),
    ] {
        for (data, recompute) in [(data(1024, 1024), 0), (data(1024, 16), 2), (data(256, 16), usize::MAX)] {
            let (data, config) = (&data, &TrainConfig { recompute, ..STEPS });
            check(&Case { folder: folder.path(), spec, kind, beside, adapter, data, config });
        }
    }
    // Below the first adapter nothing is run again, and nothing is kept for that.
    let (data, top) = (&data(1024, 16), &adapter(0.0, Some(vec![5])));
    let [kept, again] = [0, 5].map(|recompute| {
        let (spec, kind, config) = ("lora", Kind::BFloat16, &TrainConfig { recompute, ..STEPS });
        Case { folder: folder.path(), spec, kind, beside: 0, adapter: top, data, config }.both()
    });
    assert_eq!(kept.0, again.0, "planned");
    assert!((again.1 as f64 / kept.1 as f64 - 1.0).abs() < 0.01, "counted: {} and {}", kept.1, again.1);
    eprintln!("worst: {worst:.3}");
}
