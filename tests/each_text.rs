//! The gradient of each text in a pass of many is that of the text alone.

#[allow(dead_code)]
mod common;

use std::path::Path;
use std::sync::Mutex;

use common::{llama_in, relative};
use lora::model::{IGNORE, Llama, Model, Piece, Texts};
use lora::tch_ext::cuda::{here, seed};
use lora::{AdapterConfig, Init, Param, Targets, VARIANTS, attach, each_text, params, recipe};
use proptest::prelude::*;
use tch::{Kind, Tensor};

/// libtorch's generator is one for the whole process.
static RANDOM: Mutex<()> = Mutex::new(());

fn model(kind: Kind, folder: &str, variant: &str, config: &AdapterConfig) -> Llama {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(folder).join("model");
    let mut model = llama_in(kind, &path).unwrap();
    if variant.contains("qlora") {
        let checkpoint = lora::open(&path).unwrap();
        let recipe = recipe(variant).unwrap();
        let keep = lora::model::Keep { storage: recipe.storage(), packed: None, skip: &[] };
        model = Llama::load(checkpoint.as_ref(), kind, here(), keep).unwrap();
    }
    attach(&mut model, "a", &recipe(variant).unwrap(), config).unwrap();
    let _guard = tch::no_grad_guard();
    // B is no longer zero, so that A has a gradient; magnitudes are no longer the norms.
    for p in params(&model, "a") {
        match p.name {
            "lora_B.weight" => drop(p.tensor.shallow_clone().normal_(0.0, 0.05)),
            "lora_magnitude_vector" => drop(p.tensor.shallow_clone().g_mul_(&(p.tensor.rand_like() + 0.5))),
            _ => {}
        }
    }
    model
}

/// Token ids and labels, some of which do not count.
fn texts(model: &Llama, lengths: &[i64]) -> Vec<(Tensor, Tensor)> {
    let options = (Kind::Int64, here());
    let random = |n: i64| Tensor::randint(model.config().vocab_size, [1, n], options);
    let text = |&n: &i64| {
        let hidden = Tensor::rand([1, n], (Kind::Float, here())).lt(0.3);
        (random(n), random(n).masked_fill(&hidden, IGNORE as f64))
    };
    lengths.iter().map(text).collect()
}

fn taken(p: &Param) -> Tensor {
    let mut tensor = p.tensor.shallow_clone();
    let grad = tensor.grad();
    let grad = if grad.defined() { grad.copy() } else { tensor.zeros_like() };
    tensor.zero_grad();
    grad
}

/// Each text's gradients in a pass of all, and whether they came.
fn together(model: &Llama, texts: &[(Tensor, Tensor)], recompute: usize) -> (Vec<Tensor>, bool) {
    let all =
        |pick: fn(&(Tensor, Tensor)) -> &Tensor| Tensor::cat(&texts.iter().map(pick).collect::<Vec<_>>(), 1);
    let (ids, labels) = (all(|t| &t.0), all(|t| &t.1));
    let lengths: Vec<i64> = texts.iter().map(|t| t.0.size()[1]).collect();
    let params = params(model, "a");
    let params: Vec<_> = params.iter().filter(|p| p.tensor.requires_grad()).collect();
    let sink =
        |t: &Tensor| Tensor::zeros([&[texts.len() as i64], &t.size()[..]].concat(), (t.kind(), t.device()));
    let sinks: Vec<_> = params.iter().map(|p| (&p.tensor, sink(&p.tensor))).collect();
    let pass =
        || model.backward(Texts::Packed(&ids, &Piece::texts(&lengths)), &labels, 1.0, recompute).unwrap();
    let (_, done) = each_text(&lengths, &sinks, pass);
    for p in &params {
        let own = taken(p);
        assert!(!done || own == own.zeros_like(), "{}: added to the leaf too", p.key());
    }
    (sinks.into_iter().map(|(_, sink)| sink).collect(), done)
}

/// Compares them with passes of one.
fn check(model: &Llama, lengths: &[i64], recompute: usize, bound: f64, what: &str) {
    let texts = texts(model, lengths);
    let (sinks, done) = together(model, &texts, recompute);
    assert!(done, "{what}");
    let params = params(model, "a");
    for (t, (ids, labels)) in texts.iter().enumerate() {
        model.backward(Texts::Rows(ids), labels, 1.0, 0).unwrap();
        let trained = params.iter().filter(|p| p.tensor.requires_grad());
        let alone: Vec<_> = trained.map(|p| (p, taken(p))).collect();
        let norm = |t: &Tensor| t.norm().double_value(&[]);
        // Some are nothing but rounding: a lone token's query has nobody to choose between.
        let least = 1e-3 * alone.iter().map(|(_, t)| norm(t)).fold(1e-6, f64::max);
        for ((p, alone), sink) in alone.iter().zip(&sinks) {
            let error = norm(&(sink.select(0, t as i64) - alone)) / norm(alone).max(least);
            assert!(error < bound, "{what}: {} of text {t}: {error:e}", p.key());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn of_every_recipe(
        variant in prop::sample::select(vec!["lora", "rslora", "dora", "dora+rslora", "qlora", "qlora+dora+rslora"]),
        folder in prop::sample::select(vec!["qwen3", "qwen2"]),
        lengths in prop::collection::vec(1i64..24, 1..6),
        recompute in prop::sample::select(vec![0, 1, usize::MAX]),
        rank in 1i64..5,
        number in 0i64..1000,
    ) {
        let _alone = RANDOM.lock();
        seed(number);
        let config = AdapterConfig { r: rank, init: Init::Gaussian, ..AdapterConfig::default() };
        let model = model(Kind::Double, folder, variant, &config);
        check(&model, &lengths, recompute, 1e-9, &format!("{variant}, {folder}, {lengths:?}, {recompute}"));
    }
}

/// As the federated rules want it that train B alone.
#[test]
fn of_what_trains_alone() {
    let _alone = RANDOM.lock();
    seed(7);
    for frozen in ["lora_A.weight", "lora_B.weight"] {
        let model = model(Kind::Double, "qwen3", "dora", &AdapterConfig::default());
        for p in params(&model, "a").iter().filter(|p| p.name == frozen) {
            let _ = p.tensor.set_requires_grad(false);
        }
        check(&model, &[5, 9, 2], 0, 1e-9, frozen);
    }
}

#[test]
fn in_half_precision() {
    let _alone = RANDOM.lock();
    seed(7);
    let model = model(Kind::BFloat16, "qwen3", "dora", &AdapterConfig::default());
    check(&model, &[12, 7, 20], 0, 0.05, "bf16");
}

/// The head reads some rows only, and a full update has no factors: said, not guessed.
#[test]
fn what_cannot_be_done_is_said() {
    let _alone = RANDOM.lock();
    seed(7);
    let head = Targets::Names(vec!["q_proj".into(), "lm_head".into()]);
    let with_head = AdapterConfig { target_modules: head, ..AdapterConfig::default() };
    for (variant, config) in [("lora", with_head), ("full", AdapterConfig::default())] {
        assert!(VARIANTS.iter().any(|v| v.name == variant));
        let model = model(Kind::Float, "qwen3", variant, &config);
        let texts = texts(&model, &[4, 6]);
        // A row that the head does not read.
        let _ = texts[1].1.narrow(1, 2, 1).fill_(IGNORE);
        assert!(!together(&model, &texts, 0).1, "{variant}");
    }
}

/// Nothing stays switched on, even where the pass fails.
#[test]
fn it_ends_with_the_pass() {
    let _alone = RANDOM.lock();
    seed(7);
    let model = model(Kind::Float, "qwen3", "lora", &AdapterConfig::default());
    let all = params(&model, "a");
    let sinks: Vec<_> = all.iter().map(|p| (&p.tensor, p.tensor.unsqueeze(0).zeros_like())).collect();
    let broken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        each_text(&[3], &sinks, || panic!("on purpose"))
    }));
    assert!(broken.is_err());
    let (ids, labels) = texts(&model, &[3]).swap_remove(0);
    model.backward(Texts::Rows(&ids), &labels, 1.0, 0).unwrap();
    assert!(all.iter().any(|p| relative(&taken(p), &p.tensor.zeros_like()) > 0.0));
    assert!(sinks.iter().all(|(_, sink)| *sink == sink.zeros_like()));
}

/// What else is in a pass moves the last bits of a text's gradient at most; by products of ours for AVX2 none, unless so few
/// tokens are left that they go another way (docs/privacy.md).
#[test]
fn whatever_else_is_in_the_pass() {
    let _alone = RANDOM.lock();
    #[cfg(target_arch = "x86_64")]
    let ours = is_x86_feature_detected!("avx2") && !is_x86_feature_detected!("avx512bw");
    #[cfg(not(target_arch = "x86_64"))]
    let ours = false;
    let exact = ours && !here().is_cuda();
    for (kind, lengths) in [Kind::Float, Kind::BFloat16].into_iter().flat_map(|kind| {
        [vec![40, 33, 64, 5, 21, 90], vec![3, 2, 90], vec![17, 1, 18, 16]].map(|l| (kind, l))
    }) {
        seed(7);
        let model = model(kind, "qwen3", "lora", &AdapterConfig { r: 8, ..AdapterConfig::default() });
        let texts = texts(&model, &lengths);
        let flat = |sinks: &[Tensor], t: i64| {
            let of = |sink: &Tensor| sink.select(0, t).reshape([-1]).to_kind(Kind::Double);
            Tensor::cat(&sinks.iter().map(of).collect::<Vec<_>>(), 0)
        };
        let (all, _) = together(&model, &texts, 0);
        for gone in 0..texts.len() {
            let mut others: Vec<_> =
                texts.iter().map(|(a, b)| (a.shallow_clone(), b.shallow_clone())).collect();
            drop(others.remove(gone));
            let (fewer, _) = together(&model, &others, 0);
            let mut most = 0f64;
            for t in (0..texts.len()).filter(|t| *t != gone) {
                let now = flat(&fewer, (t - usize::from(t > gone)) as i64);
                most = most.max(relative(&now, &flat(&all, t as i64)));
            }
            let left = lengths.iter().sum::<i64>() - lengths[gone];
            let bound = match kind {
                _ if exact && left > 16 => f64::MIN_POSITIVE,
                Kind::Float => 1e-5,
                _ => 0.02,
            };
            assert!(most < bound, "{kind:?} {lengths:?} without {gone}: {most:e}");
        }
    }
}
