//! Whatever is kept or made again, and however texts lie: the gradient is the same.

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/steps.rs"]
mod steps;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::relative;
use lora::model::{IGNORE, Model, Piece, Slots, Texts};
use lora::tch_ext::cuda::{emulated, here};
use lora::tch_ext::grad_enabled;
use lora::train::{Batch, Sample};
use lora::{AdapterConfig, Linears, Targets, params};
use lora_core::testkit::Faulty;
use steps::{RANDOM, ids, model, model_in, recordable, samples, step};
use tch::{Kind, Tensor};

#[test]
fn what_is_made_again_gives_the_same_gradient() {
    let _alone = RANDOM.lock();
    let variants = ["lora", "dora+rslora", "qlora"].map(|variant| (variant, Kind::Float));
    // In bf16 each rounding shows: the pass without gradient must round where the other does.
    for (variant, kind) in variants.into_iter().chain([("lora", Kind::BFloat16), ("dora", Kind::BFloat16)]) {
        let model = model_in(kind, variant, AdapterConfig::default());
        let (x, labels) = (ids(&model, 30), ids(&model, 30));
        for texts in [Texts::Packed(&x, &Piece::texts(&[11, 19])), Texts::Rows(&x)] {
            let want = step(&model, texts, &labels, 0);
            for layers in [1, 2, usize::MAX] {
                assert_eq!(step(&model, texts, &labels, layers), want, "{variant}, {layers} layers");
            }
        }
    }
}

#[test]
fn dropout_is_drawn_alike_in_both_passes() {
    let _alone = RANDOM.lock();
    let config = AdapterConfig { lora_dropout: 0.5, ..AdapterConfig::default() };
    let model = model("lora", config);
    let (x, labels) = (ids(&model, 20), ids(&model, 20));
    // The gradient's direction must lower the very loss that was computed: a small step, the same seed.
    let (before, gradients) = step(&model, Texts::Rows(&x), &labels, usize::MAX);
    let norm: f64 = gradients.values().map(|g| g.square().sum(Kind::Double).double_value(&[])).sum();
    let rate = 1e-3 * before / norm;
    tch::no_grad(|| {
        for p in params(&model, "a") {
            let _ = p.tensor.shallow_clone().g_sub_(&(&gradients[&p.key()] * rate));
        }
    });
    let (after, _) = step(&model, Texts::Rows(&x), &labels, usize::MAX);
    let fall = (before - after) / (rate * norm);
    assert!((fall - 1.0).abs() < 0.05, "the loss falls by {fall} of what the gradient says");
}

#[test]
fn nothing_is_done_below_the_first_adapter() {
    let _alone = RANDOM.lock();
    let config = AdapterConfig {
        target_modules: Targets::Names(vec!["q_proj".into(), "down_proj".into()]),
        layers_to_transform: Some(vec![1]),
        ..AdapterConfig::default()
    };
    let model = model("lora", config);
    let (x, labels) = (ids(&model, 12), ids(&model, 12));
    let want = step(&model, Texts::Rows(&x), &labels, 0);
    assert!(want.1.values().all(|g| g.norm().double_value(&[]) > 0.0));
    for layers in [1, 2, 9] {
        assert_eq!(step(&model, Texts::Rows(&x), &labels, layers), want);
    }
}

#[test]
fn a_panic_in_a_pass_leaves_the_thread_its_gradients() {
    let _alone = RANDOM.lock();
    let mut model = model("lora", AdapterConfig::default());
    model.linears_mut().swap_remove(0).1.attach("faulty", Box::new(Faulty)).unwrap();
    let (x, labels) = (ids(&model, 5), ids(&model, 5));
    for recompute in [0, 1] {
        let pass = || model.backward(Texts::Rows(&x), &labels, 0.1, recompute).is_ok();
        assert!(catch_unwind(AssertUnwindSafe(pass)).is_err());
        assert!(grad_enabled(), "recompute {recompute}");
    }
}

/// Texts in one row, without padding, against texts in padded rows.
#[test]
fn packed_texts_are_texts_in_rows() {
    let _alone = RANDOM.lock();
    let model = model("dora", AdapterConfig::default());
    let lengths = [9i64, 1, 14, 6];
    let (x, labels) = (ids(&model, 30), ids(&model, 30));
    let labels = labels.index_fill(1, &Tensor::from_slice(&[3i64, 4, 20]).to_device(here()), IGNORE);
    let (mut rows, mut row_labels, mut start) = (Vec::new(), Vec::new(), 0);
    for n in lengths {
        let padded = |t: &Tensor, with: i64| {
            t.narrow(1, start, n).constant_pad_nd([0, 14 - n]).copy() + {
                let tail = Tensor::arange(14, (Kind::Int64, here())).ge(n).to_kind(Kind::Int64);
                tail * with
            }
        };
        rows.push(padded(&x, 5));
        row_labels.push(padded(&labels, IGNORE));
        start += n;
    }
    let (rows, row_labels) = (Tensor::cat(&rows, 0), Tensor::cat(&row_labels, 0));
    let (loss, gradients) = step(&model, Texts::Packed(&x, &Piece::texts(&lengths)), &labels, 0);
    let (want, theirs) = step(&model, Texts::Rows(&rows), &row_labels, 0);
    assert!((loss / want - 1.0).abs() < 1e-6, "{loss} {want}");
    for (key, gradient) in &gradients {
        let error = relative(gradient, &theirs[key]);
        assert!(error < 1e-5, "{key}: {error:e}");
    }
}

/// A whole step by the kernels for CUDA, emulated: their order of adding up differs, nothing else.
#[test]
fn kernels_for_cuda_give_the_same_step() {
    let _alone = RANDOM.lock();
    for variant in ["lora", "dora+rslora"] {
        let model = model(variant, AdapterConfig::default());
        let (x, labels) = (ids(&model, 30), ids(&model, 30));
        let texts = Texts::Packed(&x, &Piece::texts(&[11, 19]));
        let want = step(&model, texts, &labels, 0);
        let got = tch_ext::cuda::emulated(|| step(&model, texts, &labels, 0));
        assert!((got.0 / want.0 - 1.0).abs() < 1e-6, "{variant}: {} {}", got.0, want.0);
        for (key, gradient) in &got.1 {
            let error = relative(gradient, &want.1[key]);
            assert!(error < 1e-5, "{variant}, {key}: {error:e}");
        }
    }
}

#[test]
fn slots_with_room_to_spare_give_the_gradient_of_the_batch() {
    let _alone = RANDOM.lock();
    for variant in ["lora", "dora+rslora", "qlora"] {
        let model = model_in(recordable(), variant, AdapterConfig::default());
        let texts = samples(&model, &[11, 19, 2, 7]);
        let batch = |part: &[Sample]| Batch::new(&part.iter().collect::<Vec<_>>(), here());
        let mut slots = Slots::new(64, 5, 32, here());
        // The second time round something is left of the first.
        for part in [&texts[..], &texts[1..3]] {
            let want = step(&model, batch(part).texts(), batch(part).labels(), 0);
            let flat =
                |of: fn(&Sample) -> &Vec<i64>| part.iter().flat_map(|s| of(s).clone()).collect::<Vec<_>>();
            let lengths: Vec<i64> = part.iter().map(|s| s.ids.len() as i64).collect();
            slots.fill(&flat(|s| &s.ids), &flat(|s| &s.labels), &Piece::texts(&lengths), 0.1).unwrap();
            let pass = || model.gradients(&slots).unwrap().double_value(&[]);
            let loss = if here() == tch::Device::Cpu { emulated(pass) } else { pass() };
            let tolerance = if recordable() == Kind::Float { 1e-5 } else { 3e-2 };
            assert!((loss / want.0 - 1.0).abs() < tolerance, "{variant}: {loss} {}", want.0);
            for mut p in params(&model, "a") {
                let error = relative(&p.tensor.grad(), &want.1[&p.key()]);
                assert!(error < tolerance, "{variant}, {}: {error}", p.key());
                p.tensor.zero_grad();
            }
        }
        assert!(
            slots.fill(&[1; 64], &[IGNORE; 64], &Piece::texts(&[64]), 1.0).is_err(),
            "a token must be free"
        );
        assert!(
            slots.fill(&[1; 9], &[IGNORE; 9], &Piece::texts(&[8]), 1.0).is_err(),
            "lengths that do not add up"
        );
    }
}

/// Texts that begin alike, read once, give the gradient of texts that are each read whole.
#[test]
fn a_shared_beginning_changes_no_gradient() {
    let _alone = RANDOM.lock();
    let (long, short): (Vec<i64>, Vec<i64>) = ((3..40).collect(), (40..51).collect());
    let texts: Vec<Sample> = [(&long, 4), (&short, 9), (&long, 1), (&long, 70), (&short, 2), (&vec![5], 6)]
        .into_iter()
        .zip(1..)
        .map(|((begin, n), line)| {
            let own: Vec<i64> = (0..n).map(|i| (7 * i + 3 * line as i64) % 50).collect();
            let labels = begin.iter().map(|_| IGNORE).chain(own.iter().map(|id| (id + 1) % 50)).collect();
            Sample { ids: [&begin[..], &own].concat(), labels, line }
        })
        .collect();
    let texts: Vec<&Sample> = texts.iter().collect();
    let (apart, shared) = (Batch::new(&texts, here()), Batch::sharing(&texts, true, here()));
    assert_eq!(apart.tokens, shared.tokens);
    assert_eq!((apart.positions(), shared.positions()), (apart.tokens, apart.tokens - 2 * 37 - 11));
    assert_eq!(apart.supervised, shared.supervised);
    for variant in ["lora", "dora+rslora", "qlora"] {
        let model = model_in(Kind::Float, variant, AdapterConfig::default());
        let want = step(&model, apart.texts(), apart.labels(), 0);
        for recompute in [0, 2] {
            let got = step(&model, shared.texts(), shared.labels(), recompute);
            assert!((got.0 / want.0 - 1.0).abs() < 1e-6, "{variant}: {} {}", got.0, want.0);
            for (key, gradient) in &got.1 {
                let error = relative(gradient, &want.1[key]);
                assert!(error < 1e-5, "{variant}, {key}: {error:e}");
            }
        }
    }
}
