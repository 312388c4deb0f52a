//! What lies beside a weight counts, however small it is: in every dtype, on every storage, under every method.

use lora::model::cross_entropy;
use lora::tch_ext::cuda::here;
use lora::testkit::{Toy, noise, relative};
use lora::{Dense, Init, Linear, Mode, beside, recipe};
use tch::{Kind, Tensor};

/// 1, -1, 1, and so on.
fn signs(n: i64) -> Tensor {
    Tensor::from_slice(&[1f32, -1.0]).repeat([n / 2]).to_device(here())
}

fn ones(kind: Kind, out: i64, inp: i64) -> Box<Dense> {
    Box::new(Dense::new(Tensor::ones([out, inp], (kind, here()))))
}

/// Each number of `B A` is 2^-10: a quarter of the digit of bf16 below 1, and so nothing if it is added to a weight of 1.
fn small(out: i64, inp: i64) -> (Tensor, Tensor) {
    let a = signs(inp).unsqueeze(0).repeat([2, 1]) * 0.031_25;
    let b = signs(out).unsqueeze(1).repeat([1, 2]) * 0.015_625;
    (a, b)
}

/// By an input and a gradient to which the weights of 1 alone are nothing.
#[test]
fn what_is_less_than_a_digit_counts() {
    let (out, inp) = (6, 8);
    let (rows, columns) = (signs(out), signs(inp));
    let (a, b) = small(out, inp);
    // So few rows, and so many, are multiplied in different ways.
    let kinds = [Kind::BFloat16, Kind::Half, Kind::Float];
    for (kind, n) in kinds.into_iter().flat_map(|kind| [3, 40].map(|n| (kind, n))) {
        // The output, and the input's gradient.
        let passed = |layer: &Linear| -> [Tensor; 2] {
            let x = columns.repeat([n, 1]).to_kind(kind).set_requires_grad(true);
            let y = layer.forward(&x, Mode::Train);
            (&y * rows.to_kind(kind)).sum(Kind::Float).backward();
            [y.detach(), x.grad()]
        };
        let digit = 0.5f64.powi(10);
        let want =
            [rows.repeat([n, 1]) * (inp as f64 * digit), columns.repeat([n, 1]) * (out as f64 * digit)];
        let near = |layer: &Linear, what: &str| {
            for (got, want) in passed(layer).iter().zip(&want) {
                let error = relative(got, want);
                assert!(error < 1e-2, "{kind:?}, {n} rows, {what}: off by {error:.1e}");
            }
        };
        let mut low = Linear::new(ones(kind, out, inp), None);
        let nothing = passed(&low).iter().all(|t| t.abs().max().double_value(&[]) == 0.0);
        assert!(nothing, "{kind:?}: the weights alone");
        low.attach("a", recipe("lora").unwrap().adapter_from(low.base(), (&a, &b), 2.0, 0.0).unwrap())
            .unwrap();
        near(&low, "as an adapter");
        let laid = || Linear::new(beside(ones(kind, out, inp), &a, &b).unwrap(), None);
        near(&laid(), "beside the weight");
        for spec in ["lora", "dora+rslora", "full", "dora+full"] {
            let mut layer = laid();
            let adapter = recipe(spec).unwrap().adapter(layer.base(), 2, 4.0, 0.0, Init::Kaiming);
            layer.attach("a", adapter.unwrap()).unwrap();
            near(&layer, spec);
        }
    }
}

/// `W + B A + s B' A'`, each of them the same number everywhere.
#[test]
fn norms_are_those_of_the_sum() {
    let full = |out: i64, inp: i64, value: f64| Tensor::full([out, inp], value, (Kind::Float, here()));
    let (a, b) = (full(2, 8, 0.031_25), full(6, 2, 0.015_625));
    let (own_a, own_b) = (full(1, 8, 0.25), full(6, 1, 0.5));
    for kind in [Kind::BFloat16, Kind::Float] {
        let base = beside(ones(kind, 6, 8), &a, &b).unwrap();
        let own = recipe("lora").unwrap().adapter_from(base.as_ref(), (&own_a, &own_b), 2.0, 0.0).unwrap();
        let norms = own.row_norms(base.as_ref(), &base.bare(kind));
        let want = 8f64.sqrt() * (1.0 + 0.5f64.powi(10) + 0.25);
        let error = (norms / want - 1.0).abs().max().double_value(&[]);
        assert!(error < 1e-6, "{kind:?}: off by {error:.1e}");
    }
}

/// On 4 bits in f64, where nothing is rounded: output and gradients, and the merged layer.
#[test]
fn a_layer_on_a_packed_weight_is_its_definition() {
    for spec in ["qlora", "qlora+dora+rslora", "qlora+full", "qlora+dora+full"] {
        let recipe = recipe(spec).unwrap();
        let layer = |seed: i64| {
            let random = |size: &[i64], salt: i64| noise(size, seed + salt);
            let base = recipe.store(random(&[24, 70], 0)).unwrap();
            let base = beside(base, &random(&[3, 70], 1), &random(&[24, 3], 2)).unwrap();
            assert!(base.beside().is_some(), "{spec}");
            let mut layer = Linear::new(base, Some(random(&[24], 3)));
            let adapter = recipe.adapter(layer.base(), 4, 8.0, 0.0, Init::Kaiming).unwrap();
            layer.attach("a", adapter).unwrap();
            layer
        };
        let model = Toy([layer(1), layer(20)]);
        model.scramble(7);
        for mut layer in model.0 {
            let x = noise(&[16, 70], 9).set_requires_grad(true);
            let short = layer.forward(&x, Mode::Train);
            let adapter = layer.adapter().unwrap();
            let defined = x.linear(&adapter.effective(&layer.base().dense(Kind::Double)), layer.bias());
            let leaves: Vec<&Tensor> = adapter.params().into_iter().map(|(_, p)| p).chain([&x]).collect();
            let weights = noise(&[16, 24], 11);
            let run =
                |y: &Tensor| Tensor::run_backward(&[(y * &weights).sum(Kind::Double)], &leaves, false, false);
            let (got, want) = (run(&short), run(&defined));
            let near = |what: &str, got: &Tensor, want: &Tensor| {
                let error = relative(got, want);
                assert!(error < 1e-9, "{spec}, {what}: off by {error:.1e}");
            };
            near("the output", &short, &defined);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                near(&format!("gradient {i}"), got, want);
            }
            layer.merge().unwrap();
            near("merged", &layer.forward(&x, Mode::Eval), &defined);
        }
    }
}

/// By a head that trains nothing, whose logits are otherwise never there at once.
#[test]
fn the_loss_sees_what_lies_beside_the_head() {
    let (a, b) = small(6, 512);
    let head = Linear::new(beside(ones(Kind::BFloat16, 6, 512), &a, &b).unwrap(), None);
    let hidden = signs(512).repeat([5, 1]).to_kind(Kind::BFloat16);
    let labels = Tensor::zeros([5], (Kind::Int64, here()));
    let (loss, count) = cross_entropy(&hidden, &labels, &head, Mode::Eval);
    // Three logits of a half, the right one among them, and three of minus a half.
    let (loss, want) = (loss.double_value(&[]), (3.0 + 3.0 * (-1f64).exp()).ln());
    assert!(count == 5 && (loss / 5.0 / want - 1.0).abs() < 1e-2, "{loss} of {count}, {want} each");
}

#[test]
fn what_is_laid_twice_is_there_twice() {
    let (a, b) = small(6, 8);
    let once = beside(ones(Kind::BFloat16, 6, 8), &a, &b).unwrap();
    let twice = beside(once.share(), &a, &b).unwrap();
    assert_eq!(twice.beside().unwrap().0.size(), [4, 8]);
    assert_eq!(twice.dense(Kind::Float), b.matmul(&a) * 2.0 + 1.0);
    assert_eq!(twice.bare(Kind::Float), once.bare(Kind::Float));
    // Nothing, and nothing that fits.
    assert_eq!(beside(once.share(), &a.narrow(0, 0, 0), &b.narrow(1, 0, 0)).unwrap().bytes(), once.bytes());
    assert!(beside(once.share(), &a, &b.narrow(1, 0, 1)).is_err());
}
