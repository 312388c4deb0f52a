//! A small model, and a step of it.

use std::path::Path;
use std::sync::Mutex;

use super::common::{Tensors, llama_in};
use lora::model::{IGNORE, Llama, Model, Texts};
use lora::tch_ext::cuda::{here, seed};
use lora::train::Sample;
use lora::{AdapterConfig, attach, params, recipe};
use tch::{Kind, Tensor};

pub(crate) fn model(variant: &str, config: AdapterConfig) -> Llama {
    model_in(Kind::Float, variant, config)
}

pub(crate) fn model_in(kind: Kind, variant: &str, config: AdapterConfig) -> Llama {
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
pub(crate) fn step(model: &Llama, texts: Texts<'_>, labels: &Tensor, recompute: usize) -> (f64, Tensors) {
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

pub(crate) fn ids(model: &Llama, n: i64) -> Tensor {
    Tensor::randint(model.config().vocab_size, [1, n], (Kind::Int64, here()))
}

/// libtorch's generator is one for the whole process.
pub(crate) static RANDOM: Mutex<()> = Mutex::new(());
/// Random texts of these lengths, of which every third token is learnt.
pub(crate) fn samples(model: &Llama, lengths: &[i64]) -> Vec<Sample> {
    let numbers = |n: i64| Vec::<i64>::try_from(ids(model, n).reshape(-1)).unwrap();
    let labels =
        |n: i64| (numbers(n).into_iter().enumerate()).map(|(i, id)| if i % 3 == 0 { id } else { IGNORE });
    let each = lengths.iter().enumerate();
    each.map(|(line, &n)| Sample { ids: numbers(n), labels: labels(n).collect(), line: line + 1 }).collect()
}

/// The dtype that recordings are for, where there is a GPU.
pub(crate) fn recordable() -> Kind {
    if here() == tch::Device::Cpu { Kind::Float } else { Kind::BFloat16 }
}
