//! Private training of a real model: plain training with nothing to hide, and otherwise what it promises.

#[path = "private/client.rs"]
mod client;
#[allow(dead_code)]
mod common;
#[path = "private/diverged.rs"]
mod diverged;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{llama, relative};
use lora::fed::privacy::{Mechanism, Release, ReleaseConfig, Secret};
use lora::model::{Cache, Llama, Model, ModelConfig, Slots, Texts};
use lora::train::{
    AdamWConfig, Dataset, Event, Sample, Schedule, TrainConfig, fingerprint, train, train_privately,
};
use lora::{AdapterConfig, Error, Linear, Linears, Local, Mode, Promise, Targets, attach, params, recipe};
use tch::{Device, Kind, Tensor};

/// libtorch's generator is one for the whole process.
static RANDOM: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn bare() -> Llama {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/qwen3/model");
    llama(&path).unwrap()
}

fn model(variant: &str, config: &AdapterConfig) -> Llama {
    let mut model = bare();
    tch::manual_seed(1);
    attach(&mut model, "a", &recipe(variant).unwrap(), config).unwrap();
    model
}

/// Texts of one length, so that the mean over texts of their means is the mean over tokens.
fn data(model: &Llama, rows: i64) -> Dataset {
    let vocabulary = model.config().vocab_size;
    let sample = |line: i64| {
        let row = |salt: i64| (0..8).map(|i| (line * 17 + i * i * 5 + salt) % vocabulary).collect();
        Sample { ids: row(0), labels: row(3), line: line as usize }
    };
    Dataset {
        path: PathBuf::from("made"),
        rows: vec![],
        samples: (1..=rows).map(sample).collect(),
        truncated: 0,
        left_out: 0,
    }
}

fn training(batch_size: usize, accumulate: usize, steps: u64) -> TrainConfig {
    TrainConfig {
        epochs: steps as f64,
        max_steps: Some(steps),
        batch_size,
        accumulate,
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup: 0.0,
        // A large constant: the direction of a gradient counts, not its last bits.
        adamw: AdamWConfig { eps: 1.0, ..AdamWConfig::default() },
        clip: None,
        proximal: None,
        recompute: 0,
        record: true,
        seed: 3,
        eval_every: None,
        save: None,
        stop: None,
    }
}

fn config(data: &Dataset, dimension: usize, clip: f64, rate: f64, divisor: f64) -> ReleaseConfig {
    ReleaseConfig {
        clip,
        mechanism: Mechanism::new(1.0, rate).unwrap(),
        records: data.samples.len(),
        dimension,
        divisor,
        bits: 20,
        run: "test".into(),
        data: fingerprint(data),
        configuration: [0; 32],
    }
}

fn leaves(model: &Llama) -> Tensor {
    let flat: Vec<Tensor> = params(model, "a").iter().map(|p| p.tensor.detach().reshape([-1])).collect();
    Tensor::cat(&flat, 0)
}

/// No noise, no clip, everybody in every step: plain training, whatever gives the gradients of single texts.
#[test]
fn with_nothing_to_hide_it_is_plain_training() {
    let _alone = RANDOM.lock();
    let head = Targets::Names(vec!["q_proj".into(), "lm_head".into()]);
    let with_head = AdapterConfig { target_modules: head, ..AdapterConfig::default() };
    for (variant, adapter) in
        [("lora", AdapterConfig::default()), ("dora+rslora", AdapterConfig::default()), ("lora", with_head)]
    {
        let (plain, private) = (model(variant, &adapter), model(variant, &adapter));
        let rows = data(&plain, 6);
        train(&plain, params(&plain, "a"), &rows, None, &training(6, 1, 3), &mut |_| Ok(())).unwrap();
        let dimension = leaves(&private).numel();
        let config = config(&rows, dimension, 1e9, 1.0, 6.0);
        let mut release = Release::unprotected(config, Secret::from_bytes([7; 32])).unwrap();
        let mut losses = Vec::new();
        let mut each = |event: &Event| {
            if let Event::Step(step) = event {
                losses.push(step.loss);
            }
            Ok(())
        };
        let training = training(2, 3, 3);
        train_privately(&private, params(&private, "a"), &rows, None, &training, &mut release, &mut each)
            .unwrap();
        let (error, start) =
            (relative(&leaves(&private), &leaves(&plain)), leaves(&model(variant, &adapter)));
        let moved = relative(&start, &leaves(&plain));
        assert!(error < 1e-5 && moved > 1e3 * error, "{variant}: {error:e} of {moved:e}");
        assert_eq!(losses.len(), 3);
    }
}

/// With a small clip no step moves by more than the clip over the divisor, times the texts.
#[test]
fn a_clip_bounds_what_a_text_can_do() {
    let _alone = RANDOM.lock();
    let adapter = AdapterConfig::default();
    let private = model("lora", &adapter);
    let rows = data(&private, 6);
    let start = leaves(&private);
    let clip = 1e-6;
    let config = config(&rows, start.numel(), clip, 1.0, 6.0);
    let mut release = Release::unprotected(config, Secret::from_bytes([7; 32])).unwrap();
    // One step of AdamW with a huge eps is the gradient over eps.
    let training = TrainConfig { learning_rate: 1.0, ..training(6, 1, 1) };
    let mut largest = 0.0;
    let mut each = |event: &Event| {
        if let Event::Step(step) = event {
            largest = step.grad_norm;
        }
        Ok(())
    };
    train_privately(&private, params(&private, "a"), &rows, None, &training, &mut release, &mut each)
        .unwrap();
    assert!(largest > 100.0 * clip, "{largest}");
    let moved = (leaves(&private) - start).norm().double_value(&[]);
    assert!(moved > 0.1 * clip && moved <= clip * 1.001, "{moved}");
}

/// A run that is done again releases the same and costs nothing; another one is charged, or refused.
#[test]
fn a_promise_is_kept_from_run_to_run() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let adapter = AdapterConfig::default();
    let promise =
        Promise { epsilon: 2.0, delta: Some(1e-5), clip: 1.0, ledger: folder.path().join("ledger") };
    let run = |rate: f64, steps: u64| {
        let private = model("lora", &adapter);
        let rows = data(&private, 40);
        let training = TrainConfig { learning_rate: rate, ..training(4, 1, steps) };
        let terms = promise.terms(40, 4, 5).unwrap();
        let setting = format!("{training:?}");
        let mut release =
            promise.release(&rows, (4, terms), leaves(&private).numel(), "a run", setting.as_bytes())?;
        let each = &mut |_: &Event| Ok(());
        let outcome =
            train_privately(&private, params(&private, "a"), &rows, None, &training, &mut release, each)?;
        let ledger = release.ledger();
        Ok::<_, lora::Error>((leaves(&private), outcome.steps, ledger.charges(), ledger.spent()?))
    };
    let first = run(1e-3, 3).unwrap();
    let again = run(1e-3, 3).unwrap();
    assert_eq!(first, again);
    assert_eq!((first.1, first.2), (3, 3));
    assert!(first.3 > 0.0 && first.3 < 2.0);
    // Another rate is another run: two steps are left of five.
    let other = run(2e-3, 5).unwrap();
    assert_eq!((other.1, other.2), (2, 5), "{}", other.3);
    assert!(other.3 <= 2.0);
    let none = run(3e-3, 5).unwrap_err();
    assert!(none.to_string().contains("budget is 2") && none.hint_text().is_some(), "{none}");
    // The secret is nobody else's to read.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(promise.secret_file()).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
}

#[test]
fn promises_that_make_no_sense_are_refused() {
    let _alone = RANDOM.lock();
    let promise = |epsilon, delta, clip| Promise { epsilon, delta, clip, ledger: "nowhere".into() };
    for (promise, batch) in [
        (promise(1.0, None, 1.0), 0),
        (promise(1.0, None, 1.0), 101),
        (promise(1.0, None, 0.0), 10),
        (promise(1.0, Some(0.5), 1.0), 10),
        (promise(-1.0, None, 1.0), 10),
        (promise(f64::NAN, None, 1.0), 10),
    ] {
        assert!(promise.terms(100, batch, 10).is_err(), "{promise:?} {batch}");
    }
    let terms = promise(3.0, None, 1.0).terms(100, 10, 10).unwrap();
    assert_eq!((terms.rate, terms.delta), (0.1, 1e-3));
}

/// A model that fails of some texts.
struct Failing<F>(Llama, F);

impl<F> Linears for Failing<F> {
    fn linears(&self) -> Vec<(String, &Linear)> {
        self.0.linears()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        self.0.linears_mut()
    }
}

impl<F: Fn(&[i64]) -> Option<Error> + Send> Model for Failing<F> {
    fn config(&self) -> &ModelConfig {
        self.0.config()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn hidden(&self, texts: Texts<'_>, cache: Option<&mut Cache>, mode: Mode) -> lora::Result<Tensor> {
        self.0.hidden(texts, cache, mode)
    }

    fn head(&self) -> &Linear {
        self.0.head()
    }

    fn backward(&self, texts: Texts<'_>, labels: &Tensor, scale: f64, recompute: usize) -> lora::Result<f64> {
        let ids: Vec<i64> = Vec::try_from(texts.ids().reshape([-1])).unwrap();
        match (self.1)(&ids) {
            Some(e) => Err(e),
            None => self.0.backward(texts, labels, scale, recompute),
        }
    }

    fn gradients(&self, slots: &Slots) -> lora::Result<Tensor> {
        self.0.gradients(slots)
    }
}

/// Its step is what it is without that text, and no error: an error would tell of the text.
#[test]
fn a_text_without_a_finite_loss_adds_zeros() {
    let _alone = RANDOM.lock();
    let adapter = AdapterConfig::default();
    let trained = |odd_one: bool| {
        let model = model("lora", &adapter);
        let mut rows = data(&model, 6);
        let known: Vec<i64> = rows.samples.iter().flat_map(|s| s.ids.clone()).collect();
        let odd = (0..model.config().vocab_size).find(|id| !known.contains(id)).unwrap();
        rows.samples[2].ids[0] = odd;
        if !odd_one {
            rows.samples.remove(2);
        }
        let config = config(&rows, leaves(&model).numel(), 1e9, 1.0, 6.0);
        let mut release = Release::unprotected(config, Secret::from_bytes([7; 32])).unwrap();
        let inf = move |ids: &[i64]| ids.contains(&odd).then(|| Error::non_finite("the loss is inf"));
        let model = Failing(model, inf);
        let (mut left_out, mut losses) = (Vec::new(), Vec::new());
        let mut each = |event: &Event| {
            if let Event::Step(step) = event {
                assert!(step.grad_norm.is_finite(), "{step:?}");
                let why = step.left_out_for.as_deref().unwrap_or("nothing");
                assert!(why.contains("the loss is inf") == odd_one, "{why}");
                left_out.push(step.left_out);
                losses.push(step.loss);
            }
            Ok(())
        };
        let (params, training) = (params(&model, "a"), training(3, 2, 2));
        train_privately(&model, params, &rows, None, &training, &mut release, &mut each).unwrap();
        (leaves(&model.0), left_out, losses)
    };
    let ((with, left_out, losses), (without, none, others)) = (trained(true), trained(false));
    assert_eq!((left_out, none), (vec![1, 1], vec![0, 0]));
    // The mean is over those that count.
    let error = (losses[0] / others[0] - 1.0).abs();
    assert!(error < 1e-5, "{error:e}: {losses:?} {others:?}");
    let moved = relative(&leaves(&model("lora", &adapter)), &without);
    let error = relative(&with, &without);
    assert!(error < 1e-5 && moved > 1e3 * error, "{error:e} of {moved:e}");
}

/// What any text would fail of, and a row that no pass takes, is found before anything is charged; what single texts fail of,
/// whatever it is, counts as zeros.
#[test]
fn what_hangs_on_no_single_text_is_not_charged() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("ledger");
    let promise = Promise { epsilon: 4.0, delta: Some(1e-5), clip: 1.0, ledger };
    let run = |rows: &Dataset, fails: fn(&[i64]) -> Option<Error>| {
        let model = model("lora", &AdapterConfig::default());
        let (dimension, terms) = (leaves(&model).numel(), promise.terms(40, 8, 3).unwrap());
        let mut release = promise.release(rows, (8, terms), dimension, "a run", b"a model").unwrap();
        let (params, training) = (params(&model, "a"), training(4, 2, 3));
        let model = Failing(model, fails);
        let done = train_privately(&model, params, rows, None, &training, &mut release, &mut |_| Ok(()));
        (done, release.ledger().charges())
    };
    let rows = data(&bare(), 40);
    let (done, charges) = run(&rows, |_| Some(Error::internal("libtorch takes no such model")));
    let e = done.unwrap_err();
    assert!(e.to_string().contains("no such model") && charges == 0, "{charges}: {e}");
    let mut long = rows.clone();
    let most = bare().config().max_positions as usize;
    (long.samples[7].ids, long.samples[7].labels) = (vec![1; most + 1], vec![1; most + 1]);
    let (done, charges) = run(&long, |_| None);
    let e = done.unwrap_err();
    assert!(e.to_string().contains("made:8: 257 tokens") && charges == 0, "{charges}: {e}");
    let (done, charges) = run(&rows, |ids| (ids.len() > 2).then(|| Error::internal("no memory")));
    assert!(done.unwrap().last_loss.is_nan() && charges == 3, "{charges}");
}

/// Nor one whose loss is finite and whose gradient is not. Parameters that are not are whoever's who gave them.
#[test]
fn a_text_without_a_finite_gradient_adds_zeros() {
    let _alone = RANDOM.lock();
    let run = |factor: f64| {
        let model = model("lora", &AdapterConfig { lora_alpha: 8.0, ..AdapterConfig::default() });
        let all = params(&model, "a");
        // B times nothing is nothing, and A's gradient is all the greater.
        tch::no_grad(|| {
            for p in &all {
                let size = if p.name == "lora_A.weight" { 0.0 } else { factor };
                let _ = p.tensor.shallow_clone().fill_(size);
            }
        });
        let (rows, start) = (data(&model, 6), leaves(&model));
        let config = config(&rows, start.numel(), 1.0, 1.0, 6.0);
        let mut release = Release::unprotected(config, Secret::from_bytes([7; 32])).unwrap();
        let mut left_out = 0;
        let mut each = |event: &Event| {
            if let Event::Step(step) = event {
                left_out = step.left_out;
                assert!(step.loss.is_nan() && step.left_out_for.is_some(), "{step:?}");
            }
            Ok(())
        };
        let (params, training) = (params(&model, "a"), training(3, 2, 1));
        train_privately(&model, params, &rows, None, &training, &mut release, &mut each)?;
        assert_eq!(leaves(&model), start);
        Ok::<_, Error>(left_out)
    };
    assert_eq!(run(f64::from(f32::MAX)).unwrap(), 6);
    let e = run(f64::INFINITY).unwrap_err();
    assert!(e.to_string().contains("the parameter is not finite"), "{e}");
}

/// Texts of a pass share one draw of what is left out: without one of them the others' gradients are others.
#[test]
fn dropout_is_refused() {
    let _alone = RANDOM.lock();
    let dropping = AdapterConfig { lora_dropout: 0.1, ..AdapterConfig::default() };
    for variant in ["lora", "dora", "qlora+rslora"] {
        let model = model(variant, &dropping);
        let rows = data(&model, 6);
        let config = config(&rows, leaves(&model).numel(), 1.0, 0.5, 3.0);
        let mut release = Release::unprotected(config, Secret::from_bytes([7; 32])).unwrap();
        let (params, training) = (params(&model, "a"), training(3, 1, 1));
        let e = train_privately(&model, params, &rows, None, &training, &mut release, &mut |_| Ok(()))
            .unwrap_err();
        assert!(e.to_string().contains("dropout") && e.hint_text().unwrap().contains("--dropout 0"), "{e}");
    }
    let promise = Promise { epsilon: 4.0, delta: None, clip: 1.0, ledger: "nowhere".into() };
    let local = Local::new(
        Box::new(bare()),
        recipe("lora").unwrap(),
        dropping,
        training(4, 1, 2),
        BTreeMap::from([("me".into(), data(&bare(), 40))]),
    );
    let e = local.promising(BTreeMap::from([("me".into(), promise)]), Vec::new()).unwrap_err();
    assert!(e.to_string().contains("dropout"), "{e}");
}
