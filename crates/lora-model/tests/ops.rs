//! The functions with a backward of their own, against their definitions: values, and gradients by differences.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lora_core::{Linear, Mode};
use lora_model::{IGNORE, Piece, Pieces, attention, cross_entropy, rms_norm, swiglu};
use tch::{Device, Kind, Reduction, Tensor};
use tch_ext::check_gradients;
use tch_ext::cuda::{here, seed};

/// On this machine's processor, and by the kernels for CUDA.
fn both(test: impl Fn()) {
    test();
    tch_ext::cuda::emulated(test);
}

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Double, here()))
}

fn near(a: &Tensor, b: &Tensor) {
    let error = (a - b).abs().max().double_value(&[]);
    assert!(error < 1e-12, "{error:e}");
}

#[test]
fn rms_norm_is_its_definition() {
    both(rms_norm_is_its_definition_here);
}

fn rms_norm_is_its_definition_here() {
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
    both(swiglu_is_its_definition_here);
}

fn swiglu_is_its_definition_here() {
    let (gate, up) = (random(&[5, 7]), random(&[5, 7]));
    near(&swiglu(&gate, &up).tensor(), &(&gate * gate.sigmoid() * &up));
    let worst = check_gradients(&[gate, up], |t| swiglu(&t[0], &t[1]).tensor());
    assert!(worst < 1e-7, "{worst:e}");
}

/// More rows than a chunk holds, some not supervised.
#[test]
fn cross_entropy_is_its_definition() {
    both(cross_entropy_is_its_definition_here);
}

fn cross_entropy_is_its_definition_here() {
    let (n, d, vocab) = (601, 6, 11);
    let (hidden, head) = (random(&[n, d]), Linear::dense(random(&[vocab, d]), None));
    let labels = Tensor::randint(vocab, [n], (Kind::Int64, here()));
    let _ = labels.narrow(0, 100, 150).fill_(IGNORE);
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
        assert_eq!(count, 451);
        loss
    };
    // The sum is kept in f32, so the value is compared as one.
    let (a, b) = (ours(&hidden).double_value(&[]), definition(&hidden).double_value(&[]));
    assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
    near(&gradient(&ours), &gradient(&definition));
}

/// A step's factor is one over the supervised tokens: rounded to bf16 it would be off by up to 0.39 %, in all gradients alike.
#[test]
fn the_factor_of_a_loss_is_not_rounded() {
    for kind in [Kind::BFloat16, Kind::Half, Kind::Float] {
        let head = Linear::dense(random(&[50, 16]).to_kind(kind), None);
        let (hidden, labels) = (random(&[40, 16]).to_kind(kind), Tensor::arange(40, (Kind::Int64, here())));
        let gradient = |factor: f64| {
            let h = hidden.copy().set_requires_grad(true);
            (cross_entropy(&h, &labels, &head, Mode::Train).0 * factor).backward();
            h.grad()
        };
        let want = (gradient(1.0).to_kind(Kind::Float) * (1.0 / 2040.0)).to_kind(kind);
        assert_eq!(gradient(1.0 / 2040.0), want, "{kind:?}");
    }
}

/// In the dtypes that are trained in: values and gradients against f64, from the same rounded inputs.
#[test]
fn in_their_own_dtype_they_are_their_definition_rounded() {
    both(in_their_own_dtype_they_are_their_definition_rounded_here);
}

fn in_their_own_dtype_they_are_their_definition_rounded_here() {
    seed(8);
    for (kind, eps) in [(Kind::Float, 2e-6), (Kind::BFloat16, 1e-2)] {
        let leaf = |size: &[i64]| random(size).to_kind(kind).set_requires_grad(true);
        let compare = |what: &str,
                       ours: &[Tensor],
                       f: &dyn Fn(&[Tensor]) -> Tensor,
                       g: &dyn Fn(&[Tensor]) -> Tensor| {
            let exact: Vec<Tensor> =
                ours.iter().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true)).collect();
            let (got, want) = (f(ours), g(&exact));
            let weights = random(&got.size()).to_kind(got.kind());
            (&got * &weights).sum(Kind::Double).backward();
            (&want * weights.to_kind(Kind::Double)).sum(Kind::Double).backward();
            let pairs = ours.iter().zip(&exact).map(|(a, b)| (a.grad(), b.grad())).chain([(got, want)]);
            for (i, (a, b)) in pairs.enumerate() {
                let error = ((a.to_kind(Kind::Double) - &b).norm() / b.norm()).double_value(&[]);
                assert!(error < eps, "{what}, {kind:?}, {i}: {error:e}");
            }
        };
        let w = random(&[576]).to_kind(kind);
        let norm = |x: &Tensor| {
            let mean = x.square().mean_dim(Some([-1i64].as_slice()), true, None);
            x / (mean + 1e-5).sqrt() * w.to_kind(Kind::Double)
        };
        compare("norm", &[leaf(&[70, 576])], &|t| rms_norm(&t[0], &w, 1e-5).tensor(), &|t| norm(&t[0]));
        let pair = [leaf(&[70, 333]), leaf(&[70, 333])];
        compare("swiglu", &pair, &|t| swiglu(&t[0], &t[1]).tensor(), &|t| &t[0] * t[0].sigmoid() * &t[1]);
        // More rows than exist at one time, and vocabularies that no vector divides, even and odd.
        for vocabulary in [1030, 1031] {
            let head = random(&[vocabulary, 64]).to_kind(kind);
            let labels = Tensor::randint(vocabulary, [451], (Kind::Int64, here()));
            let (ours, wide) = (Linear::dense(head.shallow_clone(), None), head.to_kind(Kind::Double));
            let definition = |t: &[Tensor]| {
                let logits = t[0].matmul(&wide.tr());
                logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, IGNORE, 0.0)
            };
            let fused = |t: &[Tensor]| cross_entropy(&t[0], &labels, &ours, Mode::Train).0;
            compare("loss", &[leaf(&[451, 64])], &fused, &definition);
        }
    }
}

#[test]
fn a_panic_leaves_the_thread_its_gradients() {
    let (gate, up) = (random(&[5, 8]), random(&[5, 7]));
    assert!(catch_unwind(AssertUnwindSafe(|| swiglu(&gate, &up))).is_err());
    assert!(tch_ext::grad_enabled());
}

/// A plain softmax with a mask made row by row, in f64.
fn attention_defined(q: &Tensor, k: &Tensor, v: &Tensor, window: Option<i64>) -> Tensor {
    let (t, s, dim) = (q.size()[2], k.size()[2], q.size()[3]);
    let group = q.size()[1] / k.size()[1];
    let spread = |x: &Tensor| x.repeat_interleave_self_int(group, 1, None);
    let scores = q.matmul(&spread(k).transpose(2, 3)) / (dim as f64).sqrt();
    let hidden = Tensor::zeros([t, s], (Kind::Bool, here()));
    for row in 0..t {
        for key in 0..s {
            let position = s - t + row;
            if key > position || window.is_some_and(|w| position - key >= w) {
                let _ = hidden.narrow(0, row, 1).narrow(1, key, 1).fill_(1);
            }
        }
    }
    scores.masked_fill(&hidden, f64::NEG_INFINITY).softmax(-1, Kind::Double).matmul(&spread(v))
}

/// Texts one behind another are each as if alone, in values and gradients.
#[test]
fn packed_texts_do_not_see_each_other() {
    seed(6);
    for (texts, window) in [
        (&[3i64, 1, 5][..], None),
        (&[64, 64], None),
        (&[10, 120, 70, 3, 61], None),
        (&[40, 100, 90], Some(17)),
        (&[200], None),
        (&[1; 70], None),
    ] {
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let n = texts.iter().sum();
            let leaf = |heads| random(&[1, heads, n, 16]).to_kind(kind).set_requires_grad(true);
            let ours = [leaf(4), leaf(2), leaf(2)];
            let exact = ours.each_ref().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true));
            let got = attention(
                &ours[0],
                &ours[1],
                &ours[2],
                window,
                Some(&Pieces::of(&Piece::texts(texts)).unwrap()),
            );
            let mut start = 0;
            let each = texts.iter().map(|&n| {
                let [q, k, v] = exact.each_ref().map(|x| x.narrow(2, start, n));
                start += n;
                attention_defined(&q, &k, &v, window)
            });
            let want = Tensor::cat(&each.collect::<Vec<_>>(), 2);
            // Of texts of one token the gradients of q and k are 0, but for what rounding leaves.
            agree((&got, &ours), (&want, &exact), 0.1, &format!("{texts:?}, window {window:?}"));
        }
    }
}

/// Outputs, and the gradients of inputs: as far apart as the dtype lets them. What is smaller than `least` of the outputs'
/// gradient is measured by that.
fn agree(
    (got, ours): (&Tensor, &[Tensor; 3]),
    (want, exact): (&Tensor, &[Tensor; 3]),
    least: f64,
    what: &str,
) {
    let kind = got.kind();
    let weights = random(&got.size()).to_kind(kind);
    (got * &weights).sum(Kind::Double).backward();
    (want * weights.to_kind(Kind::Double)).sum(Kind::Double).backward();
    let tolerance = match kind {
        Kind::BFloat16 => 2e-2,
        // libtorch's own kernel sums in f32.
        Kind::Float if here() != Device::Cpu => 3e-6,
        Kind::Float => 2e-6,
        _ => 1e-10,
    };
    let gradients = ours.iter().zip(exact).map(|(a, b)| (a.grad(), b.grad()));
    let pairs = gradients.chain([(got.shallow_clone(), want.shallow_clone())]);
    for (i, (a, b)) in pairs.enumerate() {
        let size = b.norm().double_value(&[]).max(least * weights.norm().double_value(&[]));
        let error = (a.to_kind(Kind::Double) - &b).norm().double_value(&[]) / size;
        assert!(error < tolerance, "{what}, {kind:?}, {i}: {error:e}");
    }
}

/// A text behind a shared beginning is as if it had that beginning to itself, and the beginning gets the gradients of all.
#[test]
fn texts_behind_a_beginning_are_as_if_it_were_theirs() {
    seed(9);
    let alone = |len| Piece { len, behind: None };
    let behind = |at, len| Piece { len, behind: Some(at) };
    for (pieces, window) in [
        (vec![alone(9), behind(0, 3), behind(0, 5)], None),
        (vec![alone(70), behind(0, 3), behind(0, 130), behind(0, 1)], None),
        (
            vec![alone(10), alone(64), behind(1, 20), alone(7), behind(0, 5), behind(0, 66), behind(1, 40)],
            None,
        ),
        (vec![alone(40), behind(0, 90), alone(33), behind(2, 8), behind(0, 20)], Some(17)),
        (vec![alone(100), behind(0, 3)], Some(2)),
        // Beginnings that go on from beginnings.
        (
            vec![alone(9), behind(0, 3), behind(1, 70), behind(1, 5), behind(0, 2), behind(2, 4), alone(6)],
            None,
        ),
        (vec![alone(20), behind(0, 33), behind(1, 10), behind(2, 66), behind(1, 1), behind(2, 8)], Some(30)),
    ] {
        let starts: Vec<i64> =
            pieces.iter().scan(0, |next, piece| Some(std::mem::replace(next, *next + piece.len))).collect();
        for kind in [Kind::Double, Kind::Float, Kind::BFloat16] {
            let n = pieces.iter().map(|piece| piece.len).sum();
            let leaf = |heads| random(&[1, heads, n, 16]).to_kind(kind).set_requires_grad(true);
            let ours = [leaf(4), leaf(2), leaf(2)];
            let exact = ours.each_ref().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true));
            let joined = Pieces::of(&pieces).unwrap();
            let got = attention(&ours[0], &ours[1], &ours[2], window, Some(&joined));
            let each = pieces.iter().zip(&starts).map(|(piece, &start)| {
                let own = |x: &Tensor| x.narrow(2, start, piece.len);
                let mut before = Vec::new();
                let mut at = piece.behind;
                while let Some(i) = at {
                    before.insert(0, i);
                    at = pieces[i].behind;
                }
                let seen = |x: &Tensor| {
                    let leads = before.iter().map(|&at| x.narrow(2, starts[at], pieces[at].len));
                    Tensor::cat(&leads.chain([own(x)]).collect::<Vec<_>>(), 2)
                };
                attention_defined(&own(&exact[0]), &seen(&exact[1]), &seen(&exact[2]), window)
            });
            let want = Tensor::cat(&each.collect::<Vec<_>>(), 2);
            agree((&got, &ours), (&want, &exact), 0.0, &format!("{pieces:?}, window {window:?}"));
        }
    }
    for bad in [vec![behind(0, 3)], vec![alone(3), behind(2, 1), alone(1)]] {
        assert!(Pieces::of(&bad).is_err(), "{bad:?}");
    }
}

/// Causal, grouped, windowed, and behind a cache; block borders; values and gradients in every dtype.
#[test]
fn attention_is_its_definition() {
    seed(5);
    let sizes = [
        (5, 5, 8, None),
        (1, 6, 8, None),
        (3, 7, 8, None),
        (6, 6, 8, Some(3)),
        (2, 9, 8, Some(4)),
        (64, 64, 16, None),
        (65, 65, 64, None),
        (150, 150, 80, None),
        (131, 200, 32, None),
        (200, 200, 16, Some(70)),
        (40, 230, 16, Some(65)),
        (130, 130, 128, Some(3)),
    ];
    for ((t, s, dim, window), kind) in
        sizes.into_iter().flat_map(|s| [Kind::Double, Kind::Float, Kind::BFloat16].map(|k| (s, k)))
    {
        let leaf = |heads, n| random(&[2, heads, n, dim]).to_kind(kind).set_requires_grad(true);
        let ours = [leaf(6, t), leaf(2, s), leaf(2, s)];
        let exact = ours.each_ref().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true));
        let (got, want) = (
            attention(&ours[0], &ours[1], &ours[2], window, None),
            attention_defined(&exact[0], &exact[1], &exact[2], window),
        );
        let weights = random(&got.size()).to_kind(kind);
        (&got * &weights).sum(Kind::Double).backward();
        (&want * weights.to_kind(Kind::Double)).sum(Kind::Double).backward();
        let tolerance = if kind == Kind::BFloat16 {
            2e-2
        } else if kind == Kind::Float {
            2e-6
        } else {
            1e-10
        };
        let pairs = ours.iter().zip(&exact).map(|(a, b)| (a.grad(), b.grad())).chain([(got, want)]);
        for (i, (a, b)) in pairs.enumerate() {
            let error = ((a.to_kind(Kind::Double) - &b).norm() / b.norm()).double_value(&[]);
            assert!(error < tolerance, "{t} of {s}, window {window:?}, {kind:?}, {i}: {error:e}");
        }
    }
}

/// A generated token: one query, keys in memory that is longer than they are.
#[test]
fn one_query_sees_all_keys_of_its_window() {
    for (kind, eps) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1e-2)] {
        for (dim, window) in [(64, None), (40, Some(9)), (64, Some(1)), (16, Some(500))] {
            let q = random(&[2, 6, 1, dim]).to_kind(kind);
            let [k, v] = [(); 2].map(|()| random(&[2, 2, 100, dim]).to_kind(kind).narrow(2, 0, 70));
            let got = tch::no_grad(|| attention(&q, &k, &v, window, None));
            let [q, k, v] = [q, k, v].map(|x| x.to_kind(Kind::Double));
            let want = attention_defined(&q, &k, &v, window);
            let error = ((got.to_kind(Kind::Double) - &want).norm() / want.norm()).double_value(&[]);
            assert!(error < eps, "{kind:?}, {dim}, {window:?}: {error:e}");
        }
    }
}
