//! Whatever is kept or made again, and however texts lie: the gradient is the same.

#[allow(dead_code)]
mod common;

use std::path::Path;
use std::sync::Mutex;

use common::{Tensors, llama_in, relative};
use lora::model::{IGNORE, Llama, Model, Piece, Slots, Texts};
use lora::tch_ext::changed;
use lora::tch_ext::cuda::{emulated, here, seed};
use lora::train::{
    AdamWConfig, Arena, Batch, Batches, Dataset, Event, Recorder, Sample, Schedule, TrainConfig, mean_loss,
    train,
};
use lora::{AdapterConfig, Mode, Targets, attach, params, recipe};
use tch::{Kind, Tensor};

fn model(variant: &str, config: AdapterConfig) -> Llama {
    model_in(Kind::Float, variant, config)
}

fn model_in(kind: Kind, variant: &str, config: AdapterConfig) -> Llama {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/qwen3/model");
    let mut model = llama_in(kind, &path).unwrap();
    seed(1);
    attach(&mut model, "a", &recipe(variant).unwrap(), &config).unwrap();
    let _guard = tch::no_grad_guard();
    // B is no longer zero, so that A has a gradient.
    for p in params(&model, "a").iter().filter(|p| p.name.contains("lora_B")) {
        let _ = p.tensor.shallow_clone().normal_(0.0, 0.05);
    }
    model
}

/// Loss and gradients.
fn step(model: &Llama, texts: Texts<'_>, labels: &Tensor, recompute: usize) -> (f64, Tensors) {
    seed(7);
    let loss = model.backward(texts, labels, 0.1, recompute).unwrap();
    let gradients = params(model, "a").into_iter().map(|mut p| {
        let grad = p.tensor.grad();
        let grad = if grad.defined() { grad.copy() } else { p.tensor.zeros_like() };
        p.tensor.zero_grad();
        (p.key(), grad)
    });
    (loss, gradients.collect())
}

fn ids(model: &Llama, n: i64) -> Tensor {
    Tensor::randint(model.config().vocab_size, [1, n], (Kind::Int64, here()))
}

/// libtorch's generator is one for the whole process.
static RANDOM: Mutex<()> = Mutex::new(());

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

/// Random texts of these lengths, of which every third token is learnt.
fn samples(model: &Llama, lengths: &[i64]) -> Vec<Sample> {
    let numbers = |n: i64| Vec::<i64>::try_from(ids(model, n).reshape(-1)).unwrap();
    let labels =
        |n: i64| (numbers(n).into_iter().enumerate()).map(|(i, id)| if i % 3 == 0 { id } else { IGNORE });
    let each = lengths.iter().enumerate();
    each.map(|(line, &n)| Sample { ids: numbers(n), labels: labels(n).collect(), line: line + 1 }).collect()
}

/// The dtype that recordings are for, where there is a GPU.
fn recordable() -> Kind {
    if here() == tch::Device::Cpu { Kind::Float } else { Kind::BFloat16 }
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

/// A step ends with its epoch, so nothing is learnt twice in one, and how a step is divided changes nothing.
#[test]
fn an_epoch_is_every_sample_once() {
    let sample = |line: usize| Sample { ids: vec![line as i64; 3], labels: vec![1; 3], line };
    for (rows, batch) in [(9, 8), (10, 8), (7, 1), (16, 4), (3, 8)] {
        let samples: Vec<Sample> = (0..rows).map(sample).collect();
        let steps = |size: usize, accumulate: usize| -> Vec<Vec<usize>> {
            let config = TrainConfig { epochs: 2.0, batch_size: size, accumulate, ..TrainConfig::default() };
            let mut batches = Batches::new(&samples, size, 5);
            let all = (0..config.steps(rows))
                .map(|_| batches.next_step(accumulate).concat().iter().map(|sample| sample.line).collect());
            all.collect()
        };
        let whole = steps(batch, 1);
        for half in whole.chunks(whole.len() / 2) {
            let mut seen = half.concat();
            seen.sort_unstable();
            assert_eq!(seen, (0..rows).collect::<Vec<_>>());
        }
        for size in (1..=batch).filter(|size| batch % size == 0) {
            assert_eq!(steps(size, batch / size), whole, "{rows} rows, {batch} by {size}");
        }
    }
}

/// A mean over very many tokens is below what f16 holds.
#[test]
fn f16_keeps_small_gradients() {
    let _alone = RANDOM.lock();
    // How far a step goes whose length is that of the gradient.
    let moved = |kind: Kind| {
        let model = model_in(kind, "lora", AdapterConfig::default());
        seed(5);
        let samples = samples(&model, &[64; 2048]);
        let data = Dataset { path: "random".into(), rows: vec![], samples, truncated: 0 };
        let config = TrainConfig {
            batch_size: 32,
            accumulate: 64,
            max_steps: Some(1),
            learning_rate: 1.0,
            schedule: Schedule::Constant,
            warmup: 0.0,
            adamw: AdamWConfig { eps: 1e3, ..AdamWConfig::default() },
            clip: None,
            ..TrainConfig::default()
        };
        let flat = || {
            let all: Vec<_> = params(&model, "a").iter().map(|p| p.tensor.detach().reshape([-1])).collect();
            Tensor::cat(&all, 0).to_kind(Kind::Double)
        };
        let before = flat();
        train(&model, params(&model, "a"), &data, None, &config, &mut |_| Ok(())).unwrap();
        flat() - before
    };
    let (half, single) = (moved(Kind::Half), moved(Kind::Float));
    let error = relative(&half, &single);
    assert!(error < 0.008, "{error}");
}

/// A token that the model does not have is told of with its line.
#[test]
fn unknown_tokens_are_refused() {
    let model = model("lora", AdapterConfig::default());
    let most = model.config().vocab_size;
    let of = |ids: [i64; 3], labels: [i64; 3]| {
        let samples = vec![
            Sample { ids: vec![1, 2], labels: vec![IGNORE, 3], line: 1 },
            Sample { ids: ids.to_vec(), labels: labels.to_vec(), line: 7 },
        ];
        let data = Dataset { path: "rows".into(), rows: vec![], samples, truncated: 0 };
        let config = TrainConfig::default();
        let trained = train(&model, params(&model, "a"), &data, None, &config, &mut |_| Ok(())).map(|_| ());
        [trained, mean_loss(&model, &data, 2).map(|_| ())]
    };
    for bad in [of([1, 2, most], [1, 2, 3]), of([1, 2, 3], [1, IGNORE, most]), of([-1, 2, 3], [1, 2, 3])] {
        for e in bad.map(Result::unwrap_err) {
            assert!(e.to_string().contains("rows:7") && e.to_string().contains("the model has"), "{e}");
        }
    }
    assert!(
        model
            .hidden(
                Texts::Packed(&Tensor::from_slice(&[1, most]).unsqueeze(0), &Piece::texts(&[2])),
                None,
                Mode::Eval
            )
            .is_err()
    );
}

#[test]
fn recorded_passes_train_as_others_do() {
    let _alone = RANDOM.lock();
    for variant in ["lora", "dora", "qlora+rslora"] {
        let run = |record: bool| {
            let model = model_in(recordable(), variant, AdapterConfig::default());
            seed(5);
            let lengths: Vec<i64> = (0..40).map(|i| 6 + i * 7 % 23).collect();
            let data = Dataset {
                path: "random".into(),
                rows: vec![],
                samples: samples(&model, &lengths),
                truncated: 0,
            };
            let config = TrainConfig {
                epochs: 3.0,
                max_steps: None,
                batch_size: 4,
                accumulate: 3,
                learning_rate: 1e-3,
                schedule: Schedule::Constant,
                warmup: 0.0,
                adamw: AdamWConfig::default(),
                clip: Some(1.0),
                proximal: None,
                recompute: 0,
                record,
                seed: 3,
                eval_every: Some(4),
            };
            let mut seen = Vec::new();
            let outcome = train(&model, params(&model, "a"), &data, Some(&data), &config, &mut |event| {
                seen.push(match event {
                    Event::Step(step) => step.loss,
                    Event::Eval { loss, .. } => *loss,
                });
                Ok(())
            });
            // What is kept of the parameters is what they are.
            let loss = mean_loss(&model, &data, 4).unwrap();
            params(&model, "a").iter().for_each(|p| changed(&p.tensor));
            assert_eq!(mean_loss(&model, &data, 4).unwrap(), loss, "{variant}: a copy was not of its time");
            (outcome.unwrap(), seen)
        };
        let ((recorded, ours), (eager, theirs)) = (run(true), run(false));
        assert_eq!(eager.replayed, 0);
        assert_eq!(recorded.replayed > 20, here() != tch::Device::Cpu, "{variant}: {}", recorded.replayed);
        assert_eq!(ours.len(), theirs.len());
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert!((a / b - 1.0).abs() < 1e-2, "{variant}, {i}: {a} {b}");
        }
    }
}

#[test]
fn what_is_told_again_draws_anew() {
    let _alone = RANDOM.lock();
    let config = AdapterConfig { lora_dropout: 0.5, ..AdapterConfig::default() };
    let model = model_in(recordable(), "lora", config);
    let texts = samples(&model, &[20, 30]);
    let batch = Batch::new(&texts.iter().collect::<Vec<_>>(), here());
    let mut recorder = Recorder::new(&model, true);
    let arena = Arena::new(params(&model, "a")).unwrap();
    let losses = [1, 1, 2, 2, 3].map(|n| {
        seed(n);
        recorder.backward(&model, arena.params(), &batch, 1.0, 0).unwrap()
    });
    let recorded = here() != tch::Device::Cpu;
    assert_eq!(recorder.replayed(), if recorded { 4 } else { 0 });
    assert_eq!(losses[2], losses[3], "equal seeds");
    assert!(losses[2] != losses[4] && losses[1] != losses[2], "{losses:?}: other seeds");
    assert!((losses[0] / losses[1] - 1.0).abs() < 1e-2, "{losses:?}: the first is not recorded");
}
