//! The functions with a backward of their own, against their definitions: values, and gradients by differences.

use lora_core::{Linear, Mode};
use lora_model::{IGNORE, attention, cross_entropy, rms_norm, swiglu};
use tch::{Device, Kind, Reduction, Tensor};
use tch_ext::check_gradients;

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Double, Device::Cpu))
}

fn near(a: &Tensor, b: &Tensor) {
    let error = (a - b).abs().max().double_value(&[]);
    assert!(error < 1e-12, "{error:e}");
}

#[test]
fn rms_norm_is_its_definition() {
    let (x, w) = (random(&[3, 2, 8]), random(&[8]));
    let definition = |x: &Tensor| {
        let mean = x.square().mean_dim(Some([-1i64].as_slice()), true, None);
        x / (mean + 1e-5).sqrt() * &w
    };
    near(&rms_norm(&x, &w, 1e-5).tensor(), &definition(&x));
    let worst = check_gradients(&[x], |t| rms_norm(&t[0], &w, 1e-5).tensor());
    assert!(worst < 1e-7, "{worst:e}");
}

#[test]
fn swiglu_is_its_definition() {
    let (gate, up) = (random(&[5, 7]), random(&[5, 7]));
    near(&swiglu(&gate, &up).tensor(), &(&gate * gate.sigmoid() * &up));
    let worst = check_gradients(&[gate, up], |t| swiglu(&t[0], &t[1]).tensor());
    assert!(worst < 1e-7, "{worst:e}");
}

/// More rows than a chunk holds, some not supervised.
#[test]
fn cross_entropy_is_its_definition() {
    let (n, d, vocab) = (600, 6, 11);
    let (hidden, head) = (random(&[n, d]), Linear::dense(random(&[vocab, d]), None));
    let labels = Tensor::randint(vocab, [n], (Kind::Int64, Device::Cpu));
    let _ = labels.narrow(0, 100, 250).fill_(IGNORE);
    let definition = |h: &Tensor| {
        let logits = h.matmul(&head.base().dense(Kind::Double).tr());
        logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, IGNORE, 0.0)
    };
    let gradient = |f: &dyn Fn(&Tensor) -> Tensor| {
        let h = hidden.copy().set_requires_grad(true);
        let loss = f(&h);
        (loss * 0.5).backward();
        h.grad()
    };
    let ours = |h: &Tensor| {
        let (loss, count) = cross_entropy(h, &labels, &head, Mode::Train);
        assert_eq!(count, 350);
        loss
    };
    // The sum is kept in f32, so the value is compared as one.
    let (a, b) = (ours(&hidden).double_value(&[]), definition(&hidden).double_value(&[]));
    assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
    near(&gradient(&ours), &gradient(&definition));
}

/// Causal, grouped, windowed, and behind a cache: against a plain softmax with a mask made row by row.
#[test]
fn attention_is_its_definition() {
    for (t, s, window) in [(5, 5, None), (1, 6, None), (3, 7, None), (6, 6, Some(3)), (2, 9, Some(4))] {
        let (q, k, v) = (random(&[2, 4, t, 8]), random(&[2, 2, s, 8]), random(&[2, 2, s, 8]));
        let (wide_k, wide_v) =
            (k.repeat_interleave_self_int(2, 1, None), v.repeat_interleave_self_int(2, 1, None));
        let scores = q.matmul(&wide_k.transpose(2, 3)) / 8f64.sqrt();
        for row in 0..t {
            let position = s - t + row;
            for key in 0..s {
                if key > position || window.is_some_and(|w: i64| position - key >= w) {
                    let _ = scores.narrow(2, row, 1).narrow(3, key, 1).fill_(f64::NEG_INFINITY);
                }
            }
        }
        near(&attention(&q, &k, &v, window), &scores.softmax(-1, Kind::Double).matmul(&wide_v));
    }
}
