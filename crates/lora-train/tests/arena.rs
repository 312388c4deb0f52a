//! The flat memory: leaves stay leaves, and the step is torch's.

use lora_core::Param;
use lora_train::{AdamW, AdamWConfig, Arena};
use tch::{Kind, Tensor};
use tch_ext::cuda::here;

fn leaves(kind: Kind) -> Vec<Param> {
    let sizes: [&[i64]; 4] = [&[3, 5], &[40_000], &[7, 1], &[2, 3, 4]];
    let leaf = |(i, size): (usize, &&[i64])| {
        let tensor = Tensor::randn(*size, (kind, here())).set_requires_grad(true);
        let module = ["embed", "layers.2.q", "layers.2.k", "layers.10.q"][i].to_owned();
        Param { module, name: "lora_A.weight", tensor }
    };
    sizes.iter().enumerate().map(leaf).collect()
}

fn copies(params: &[Param]) -> Vec<Tensor> {
    params.iter().map(|p| p.tensor.detach().copy().set_requires_grad(true)).collect()
}

/// A loss in which every number has a gradient of its own.
fn loss<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Tensor {
    tensors.map(|t| (t.square() * t.sin()).sum(t.kind())).fold(Tensor::from(0.0), |a, b| a + b)
}

fn error(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

#[test]
fn leaves_are_views_and_stay_leaves() {
    let params = leaves(Kind::Float);
    let (before, held) = (copies(&params), params[1].tensor.shallow_clone());
    let mut arena = Arena::new(params).unwrap();
    for (p, before) in arena.params().iter().zip(&before) {
        assert!(p.tensor.is_leaf() && p.tensor.requires_grad());
        assert_eq!(p.tensor.detach(), before.detach());
    }
    // Twice: gradients add up, in the arena's memory.
    for _ in 0..2 {
        loss(arena.params().iter().map(|p| &p.tensor)).backward();
    }
    loss(before.iter()).backward();
    let flat: Vec<Tensor> = before.iter().map(|t| t.grad().reshape(-1) * 2.0).collect();
    assert!(error(arena.grads(), &Tensor::cat(&flat, 0)) < 1e-6);

    // Whoever made a copy of a leaf's numbers sees that they are others now, through any handle.
    let version = held.internal_version();
    AdamW::new(&arena, AdamWConfig::default()).step(&mut arena, 0.1);
    assert!(held.internal_version() > version);
    assert!(held.detach() != before[1].detach());
    assert_eq!(arena.grads().abs().max().double_value(&[]), 0.0);
    drop(arena);
    assert!(!held.grad().defined());
}

#[test]
fn steps_and_clipping_are_torchs() {
    steps_and_clipping();
    tch_ext::cuda::emulated(steps_and_clipping);
}

fn steps_and_clipping() {
    for (kind, bound) in [(Kind::Float, 2e-6), (Kind::Double, 1e-12)] {
        let params = leaves(kind);
        let config = AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() };
        let theirs = copies(&params);
        let mut reference = tch::COptimizer::adamw(1e-2, 0.9, 0.999, 0.1, 1e-8, false).unwrap();
        theirs.iter().for_each(|t| reference.add_parameters(t, 0).unwrap());
        let mut arena = Arena::new(params).unwrap();
        let mut ours = AdamW::new(&arena, config);
        for step in 0..5 {
            loss(arena.params().iter().map(|p| &p.tensor)).backward();
            reference.zero_grad().unwrap();
            loss(theirs.iter()).backward();
            let flat: Vec<Tensor> = theirs.iter().map(|t| t.grad().reshape(-1)).collect();
            let whole = Tensor::cat(&flat, 0).to_kind(Kind::Double).norm().double_value(&[]);
            // Now and then there is nothing to clip.
            let limit = if step == 2 { 1e9 } else { 0.5 };
            let norms = arena.clip(Some(limit)).unwrap();
            let norm = norms.joint;
            // Two of the four leaves lie in one layer.
            for (layer, of) in norms.layers.iter().zip([&flat[..1], &flat[1..3], &flat[3..]]) {
                let whole = Tensor::cat(of, 0).to_kind(Kind::Double).norm().double_value(&[]);
                assert!((layer / whole - 1.0).abs() < bound, "{layer} {whole}");
            }
            assert_eq!(norms.layers.len(), 3);
            assert!((norm / whole - 1.0).abs() < bound, "{norm} {whole}");
            let factor = (limit / (whole + 1e-6)).min(1.0);
            theirs.iter().for_each(|t| {
                let _ = t.grad().g_mul_scalar_(factor);
            });
            ours.step(&mut arena, 1e-2);
            reference.step().unwrap();
            for (p, t) in arena.params().iter().zip(&theirs) {
                assert!(error(&p.tensor.detach(), &t.detach()) < bound, "{kind:?} {}", p.module);
            }
        }
    }
}

#[test]
fn what_is_not_finite_has_a_name() {
    let mut arena = Arena::new(leaves(Kind::Float)).unwrap();
    loss(arena.params().iter().map(|p| &p.tensor)).backward();
    let mut grad = arena.params()[2].tensor.grad();
    let _ = grad.fill_(f64::NAN);
    let before = arena.grads().copy();
    let text = arena.clip(Some(1.0)).unwrap_err().to_string();
    assert!(text.contains("layers.2.k") && !text.contains("layers.2.q"), "{text}");
    assert_eq!(arena.grads().nan_to_num(9.0, 9.0, 9.0), before.nan_to_num(9.0, 9.0, 9.0));

    assert!(Arena::new(Vec::new()).unwrap_err().to_string().contains("nothing trains"));
    let mut mixed = leaves(Kind::Float);
    mixed.extend(leaves(Kind::Double));
    assert!(Arena::new(mixed).unwrap_err().to_string().contains("Double"));
}
