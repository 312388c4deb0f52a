//! The functions with a backward of their own, beside their definitions in plain differentiable operators.

use lora_core::{Linear, Mode};
use lora_model::{IGNORE, attention, cross_entropy, rms_norm, swiglu};
use tch::{Device, Kind, Reduction, Tensor};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

fn leaf(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, F64).set_requires_grad(true)
}

/// Equal in value, and in the gradient of each leaf, to 1e-10 (both are f64, the gradients' weights random).
fn same(what: &str, leaves: &[&Tensor], ours: Tensor, definition: Tensor) {
    let weights = Tensor::randn(ours.size(), F64);
    let run = |y: &Tensor| {
        Tensor::run_backward(&[(y.to_kind(Kind::Double) * &weights).sum(Kind::Double)], leaves, false, false)
    };
    let far =
        |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]) / b.abs().max().double_value(&[]);
    let tolerance = if ours.kind() == Kind::Double { 1e-10 } else { 1e-5 };
    assert!(far(&ours, &definition) < tolerance, "{what}: value");
    for (i, (a, b)) in run(&ours).iter().zip(&run(&definition)).enumerate() {
        let error = far(a, b);
        assert!(error < 1e-6, "{what}: the gradient of input {i} is off by {error:.1e}");
    }
}

#[test]
fn rms_norm_is_its_definition() {
    tch::manual_seed(1);
    let (x, weight) = (leaf(&[3, 5, 16]), Tensor::randn([16], F64));
    let mean = x.square().mean_dim(Some([-1i64].as_slice()), true, None);
    let definition = &x / (mean + 1e-5).sqrt() * &weight;
    same("rms_norm", &[&x], rms_norm(&x, &weight, 1e-5), definition);
}

#[test]
fn swiglu_is_its_definition() {
    tch::manual_seed(2);
    let (gate, up) = (leaf(&[4, 7]), leaf(&[4, 7]));
    same("swiglu", &[&gate, &up], swiglu(&gate, &up), &gate * gate.sigmoid() * &up);
}

#[test]
fn cross_entropy_is_its_definition_over_several_chunks() {
    tch::manual_seed(3);
    let (n, width, vocab) = (600, 8, 11);
    let (hidden, weight) = (leaf(&[n, width]), Tensor::randn([vocab, width], F64));
    let labels = Tensor::randint(vocab, [n], (Kind::Int64, Device::Cpu));
    let labels = labels.masked_fill(&Tensor::rand([n], F64).lt(0.3), IGNORE);
    let logits = hidden.matmul(&weight.tr());
    let definition = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, IGNORE, 0.0);
    let (ours, count) = cross_entropy(&hidden, &labels, &Linear::dense(weight, None), Mode::Train);
    assert_eq!(count, labels.not_equal(IGNORE).sum(Kind::Int64).int64_value(&[]));
    same("cross_entropy", &[&hidden], ours, definition);
}

/// Key and value heads written out, and every position that may not be seen masked.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Tensor {
    let group = q.size()[1] / k.size()[1];
    let spread = |t: &Tensor| t.repeat_interleave_self_int(group, 1, None);
    let (t, s) = (q.size()[2], k.size()[2]);
    let ones = Tensor::ones([t, s], (Kind::Bool, Device::Cpu));
    let mut hidden = ones.triu(s - t + 1);
    if let Some(w) = window {
        hidden = hidden.logical_or(&ones.tril(s - t - w));
    }
    let scores = q.matmul(&spread(k).transpose(-1, -2)) / (q.size()[3] as f64).sqrt();
    scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, None).matmul(&spread(v))
}

#[test]
fn attention_is_its_definition() {
    tch::manual_seed(4);
    for (t, s, window) in
        [(6, 6, None), (1, 5, None), (3, 8, None), (9, 9, Some(4)), (2, 9, Some(3)), (300, 300, None)]
    {
        let (q, k, v) = (leaf(&[2, 6, t, 8]), leaf(&[2, 2, s, 8]), leaf(&[2, 2, s, 8]));
        let definition = plain_attention(&q, &k, &v, window);
        same(
            &format!("attention {t} of {s}, {window:?}"),
            &[&q, &k, &v],
            attention(&q, &k, &v, window),
            definition,
        );
    }
}
