//! The loop: what it reads, what it adds up, and what a GPU is told again.

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/steps.rs"]
mod steps;

use common::relative;
use lora::model::{IGNORE, Model, Piece, Texts};
use lora::tch_ext::changed;
use lora::tch_ext::cuda::{here, seed};
use lora::train::{
    AdamWConfig, Arena, Batch, Batches, Dataset, Event, Recorder, Sample, SavePoint, Schedule, TrainConfig,
    Work, may_share, mean_loss, required_flops, train,
};
use lora::{AdapterConfig, Error, ErrorKind, Linears, Mode, params};
use steps::{RANDOM, model, model_in, recordable, samples};
use tch::{Kind, Tensor};

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

/// Below the first block that trains nothing goes backward, and no step has to do it.
#[test]
fn what_a_step_must_do_ends_where_training_does() {
    let _alone = RANDOM.lock();
    let work = Work { tokens: 10.0, positions: 10.0, supervised: 3.0, squares: 100.0 };
    let on = |layers: Option<Vec<i64>>| {
        model("lora", AdapterConfig { layers_to_transform: layers, ..AdapterConfig::default() })
    };
    let all = on(None);
    let config = all.config();
    let last = config.layers - 1;
    let first = |name: &str| !name.starts_with(&format!("model.layers.{last}.")) && name != "lm_head";
    let below = all.linears().into_iter().filter(|(name, _)| first(name));
    let weights: i64 = below.map(|(_, layer)| layer.base().shape()).map(|(out, inp)| out * inp).sum();
    let width = config.heads * config.head_dim * last;
    assert!(last > 0 && weights > 0);
    let spared = (2 * weights) as f64 * work.positions + (4 * width) as f64 * work.squares;
    let flops = required_flops(&all, &work);
    for layers in [vec![0], vec![0, last]] {
        assert_eq!(required_flops(&on(Some(layers)), &work), flops);
    }
    let less = flops - required_flops(&on(Some(vec![last])), &work);
    assert!((less / spared - 1.0).abs() < 1e-9, "{less} for {spared}");
}

/// Where one mask would be drawn for several texts, each is read whole.
#[test]
fn what_drops_out_shares_nothing() {
    let _alone = RANDOM.lock();
    let sample = |line: usize| {
        let ids: Vec<i64> = (1..20).chain([20 + line as i64]).collect();
        Sample { labels: ids.iter().map(|&id| if id < 19 { IGNORE } else { id }).collect(), ids, line }
    };
    let samples: Vec<Sample> = (0..6).map(sample).collect();
    let data = Dataset { path: "none".into(), rows: vec![], samples, truncated: 0, left_out: 0 };
    for dropout in [0.0, 0.1] {
        let model = model("lora", AdapterConfig { lora_dropout: dropout, ..AdapterConfig::default() });
        let config = TrainConfig { batch_size: 6, epochs: 1.0, ..TrainConfig::default() };
        let outcome = train(&model, params(&model, "a"), &data, None, &config, &mut |_| Ok(())).unwrap();
        assert_eq!(outcome.work.tokens, 120.0);
        let shares = dropout == 0.0 && may_share(here(), model.kind(), false);
        assert_eq!(outcome.work.positions, if shares { 120.0 - 5.0 * 18.0 } else { 120.0 });
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
        let data = Dataset { path: "random".into(), rows: vec![], samples, truncated: 0, left_out: 0 };
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

/// As torch's AdamW does: what is below 0 grows the weights, and what is no number makes them none.
#[test]
fn a_weight_decay_is_a_number_from_0_up() {
    let check = |weight_decay: f64| {
        let adamw = AdamWConfig { weight_decay, ..AdamWConfig::default() };
        TrainConfig { adamw, ..TrainConfig::default() }.check()
    };
    for bad in [-1.0, f64::NAN, f64::INFINITY] {
        let e = check(bad).unwrap_err();
        assert!(e.kind() == ErrorKind::Usage && e.to_string().contains("weight decay"), "{bad}: {e}");
    }
    assert!([0.0, 0.1].into_iter().all(|decay| check(decay).is_ok()));
}

/// A token that the model does not have is told of with its line.
#[test]
fn unknown_tokens_are_refused() {
    let _alone = RANDOM.lock();
    let model = model("lora", AdapterConfig::default());
    let most = model.config().vocab_size;
    let of = |ids: [i64; 3], labels: [i64; 3]| {
        let samples = vec![
            Sample { ids: vec![1, 2], labels: vec![IGNORE, 3], line: 1 },
            Sample { ids: ids.to_vec(), labels: labels.to_vec(), line: 7 },
        ];
        let data = Dataset { path: "rows".into(), rows: vec![], samples, truncated: 0, left_out: 0 };
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
                left_out: 0,
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
                save: None,
                stop: None,
            };
            let mut seen = Vec::new();
            let outcome = train(&model, params(&model, "a"), &data, Some(&data), &config, &mut |event| {
                seen.push(match event {
                    Event::Step(step) => step.loss,
                    Event::Eval { loss, .. } => *loss,
                    Event::Saved { .. } => f64::NAN,
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

/// Killed at any step and taken up again, however often, a run comes to the same numbers, bit for bit.
#[test]
fn a_run_goes_on_where_it_was() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    let lengths: Vec<i64> = (0..10).map(|i| 6 + i * 7 % 23).collect();
    let evaluated = std::cell::Cell::new(None);
    let trained = |save: Option<SavePoint>, killed: Option<u64>| {
        let config = AdapterConfig { lora_dropout: 0.1, ..AdapterConfig::default() };
        let model = model_in(Kind::Float, "dora", config);
        seed(5);
        let data = Dataset {
            path: "random".into(),
            rows: vec![],
            samples: samples(&model, &lengths),
            truncated: 0,
            left_out: 0,
        };
        let config = TrainConfig {
            batch_size: 2,
            accumulate: 2,
            epochs: 4.0,
            learning_rate: 1e-2,
            proximal: Some(0.1),
            eval_every: Some(2),
            save,
            ..TrainConfig::default()
        };
        let mut steps = Vec::new();
        let mut each = |event: &Event| {
            if let Event::Step(step) = event {
                steps.push(step.step);
                if killed == Some(step.step) {
                    return Err(Error::internal("killed"));
                }
            }
            Ok(())
        };
        // Of the runs that are killed; the last one has nobody who asks.
        let held_out = killed.map(|_| &data);
        let outcome = train(&model, params(&model, "a"), &data, held_out, &config, &mut each);
        evaluated.set(outcome.as_ref().ok().and_then(|o| o.eval_loss));
        let all: Vec<_> = params(&model, "a").iter().map(|p| p.tensor.detach().reshape([-1])).collect();
        (outcome.map(|o| (o.steps, o.first_loss, o.last_loss, o.tokens, o.work)), Tensor::cat(&all, 0), steps)
    };
    let save = |every: u64, run: &str| {
        let settings = vec![("--lr".to_owned(), run.to_owned()), ("data".to_owned(), run.repeat(64))];
        Some(SavePoint { path: path.clone(), every, run: run.to_owned(), settings })
    };
    let (whole, numbers, steps) = trained(None, None);
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
    // Before anything was saved, just after, and once more behind it.
    for (killed, first) in [(1, 1), (5, 1), (4, 4), (11, 4)] {
        let (outcome, _, steps) = trained(save(3, "a"), Some(killed));
        assert!(outcome.is_err() && steps.first() == Some(&first), "{killed}: {steps:?}");
    }
    let (outcome, resumed, steps) = trained(save(3, "a"), None);
    assert_eq!(steps, [10, 11, 12]);
    assert_eq!(outcome.unwrap(), whole.unwrap());
    assert!(resumed.equal(&numbers));
    assert_eq!(evaluated.get(), None, "a loss of an earlier step");

    let error =
        |of: (lora::Result<_>, Tensor, Vec<u64>)| of.0.map(|_: (u64, f64, f64, usize, _)| ()).unwrap_err();
    let e = error(trained(save(3, "b"), None));
    let what = "another run: --lr a there and b here, another data";
    assert!(e.to_string().contains(what) && e.hint_text().unwrap().contains("delete it"), "{e}");
    // As it is of states, or for runs, that name none.
    let unnamed = save(3, "b").map(|save| SavePoint { settings: Vec::new(), ..save });
    assert!(error(trained(unnamed, None)).to_string().contains("other data, model or settings"));
    let bytes = std::fs::read(&path).unwrap();
    for cut in [bytes.len() - 1, 100, 0] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let e = error(trained(save(3, "a"), None));
        assert_eq!(e.kind(), ErrorKind::Data, "{cut} bytes");
        assert!(e.hint_text().is_some_and(|hint| hint.contains("delete it")), "{cut} bytes: {e}");
    }
}
