//! What the goldens and the full-size parity check both measure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lora::model::{IGNORE, Keep, Llama, Model, Texts};
use lora::tch_ext::cuda::here;
use lora::train::{AdamWConfig, Dataset, Event, Sample, Schedule, TrainConfig, train};
use lora::{Mode, Result, params};
use tch::{Device, Kind, Tensor};

/// A safetensors file.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A folder or GGUF file as an f32 model, where tests run.
pub(crate) fn llama(path: &Path) -> Result<Llama> {
    llama_in(Kind::Float, path)
}

/// The same in another dtype.
pub(crate) fn llama_in(kind: Kind, path: &Path) -> Result<Llama> {
    let checkpoint = lora::open(path)?;
    Llama::load(checkpoint.as_ref(), kind, here(), Keep::DENSE)
}

/// `‖a − b‖ / ‖b‖` in f64; infinite where the shapes differ.
pub(crate) fn relative(a: &Tensor, b: &Tensor) -> f64 {
    if a.size() != b.size() {
        return f64::INFINITY;
    }
    let wide = |t: &Tensor| t.detach().to_device(Device::Cpu).to_kind(Kind::Double);
    let (a, b) = (wide(a), wide(b));
    (&a - &b).norm().double_value(&[]) / b.norm().double_value(&[]).max(1e-30)
}

/// The largest deviation of a curve, relative to `theirs`, or to 1 where that is smaller still.
pub(crate) fn curve_error(ours: &[f64], theirs: &Tensor) -> f64 {
    let theirs: Vec<f64> = theirs.to_kind(Kind::Double).iter::<f64>().into_iter().flatten().collect();
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    let error = |(a, b): (&f64, &f64)| (a - b).abs() / b.abs().max(f64::MIN_POSITIVE);
    let near = |(a, b): (&f64, &f64)| (a - b).abs();
    ours.iter().zip(&theirs).map(|pair| error(pair).min(near(pair))).fold(0.0, f64::max)
}

/// transformers' labels (position t's own token) as ours (the token that follows it).
pub(crate) fn next_tokens(labels: &Tensor) -> Tensor {
    let (batch, t) = labels.size2().expect("labels have two dimensions");
    let end = Tensor::full([batch, 1], IGNORE, (Kind::Int64, labels.device()));
    Tensor::cat(&[labels.narrow(1, 1, t - 1), end], 1)
}

/// The mean loss, and its gradient by every parameter of the adapter, by key.
pub(crate) fn first_step(model: &Llama, name: &str, ids: &Tensor, labels: &Tensor) -> Result<(f64, Tensors)> {
    let (sum, count) = model.loss(Texts::Rows(ids), &next_tokens(labels), Mode::Train)?;
    let loss = sum / count as f64;
    loss.backward();
    let gradients = params(model, name).into_iter().map(|mut p| {
        let gradient = p.tensor.grad().copy();
        p.tensor.zero_grad();
        (p.key(), gradient)
    });
    Ok((loss.double_value(&[]), gradients.collect()))
}

/// Losses and gradient norms of 20 steps of our trainer on one batch, as `train` in `xtask/peers/golden.py`.
pub(crate) fn curve(
    model: &Llama,
    name: &str,
    (ids, labels): (&Tensor, &Tensor),
    learning_rate: f64,
    clipped: bool,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let rows = |t: &Tensor| -> Result<Vec<Vec<i64>>> { Ok(Vec::try_from(t)?) };
    let samples = rows(ids)?.into_iter().zip(rows(&next_tokens(labels))?).enumerate();
    let samples: Vec<_> = samples.map(|(i, (ids, labels))| Sample { ids, labels, line: i + 1 }).collect();
    let config = TrainConfig {
        epochs: 20.0,
        max_steps: None,
        batch_size: samples.len(),
        accumulate: 1,
        learning_rate,
        schedule: if clipped { Schedule::Linear } else { Schedule::Constant },
        warmup: if clipped { 4.0 / 20.0 } else { 0.0 },
        adamw: AdamWConfig { weight_decay: 0.01, ..AdamWConfig::default() },
        clip: clipped.then_some(0.5),
        proximal: None,
        recompute: 0,
        record: true,
        seed: 0,
        eval_every: None,
        save: None,
        stop: None,
    };
    let data =
        Dataset { path: PathBuf::from("golden"), rows: Vec::new(), samples, truncated: 0, left_out: 0 };
    let (mut losses, mut norms) = (Vec::new(), Vec::new());
    train(model, params(model, name), &data, None, &config, &mut |event| {
        if let Event::Step(step) = event {
            losses.push(step.loss);
            norms.push(step.grad_norm);
        }
        Ok(())
    })?;
    Ok((losses, norms))
}
