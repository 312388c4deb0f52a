//! Sums against f64.

use tch::{Device, Kind};

use crate::cuda::{emulated, here, seed};

use super::*;

mod edges;

fn random(rows: i64, columns: i64, kind: Kind) -> Tensor {
    Tensor::randn([rows, columns], (Kind::Float, here())).to_kind(kind)
}

fn by_libtorch(sums: &[Sum<'_>]) {
    tch::no_grad(|| sums.iter().for_each(plain));
}

/// With the kernels for CUDA.
fn on_a_device(sums: &[Sum<'_>]) {
    // The gain is f32: in f64 libtorch's own product takes it.
    match sums[0].out.kind() {
        Kind::Double => by_libtorch(sums),
        _ => emulated(|| by_libtorch(sums)),
    }
}

/// Against f64, with sizes that leave a rest in every direction.
#[test]
fn sums_are_those_of_f64() {
    seed(3);
    let ways: [fn(&[Sum<'_>]); 3] = [gemm, by_libtorch, on_a_device];
    for (kind, gemm) in
        [Kind::BFloat16, Kind::Float, Kind::Double].into_iter().flat_map(|k| ways.map(|w| (k, w)))
    {
        for (m, n, k) in [
            (1, 1, 1),
            (3, 65, 130),
            (7, 64, 16),
            (65, 130, 33),
            (300, 200, 576),
            (33, 64, 5000),
            (2, 70, 2),
            (4, 100, 640),
            (1, 3, 77),
            (9, 70, 39),
            (16, 33, 8),
            // More columns than a block of a kernel takes, and more rows.
            (70, 2600, 8),
        ] {
            let (x, w, h, b) =
                (random(m, k, kind), random(n, k, kind), random(m, 5, kind), random(5, n, kind));
            let gain = random(1, n, Kind::Float).reshape(-1);
            let out = Tensor::zeros([m, n], (kind, here()));
            let add = Tensor::ones([m, n], (Kind::Float, here())).to_kind(master(kind));
            let (onto, sum) = (random(m, n + 3, kind).narrow(1, 2, n), Tensor::zeros([m, n], (kind, here())));
            let bt = b.tr().contiguous();
            // Few rows have a way of their own, if all lies transposed.
            let second = if m <= 16 { Product::transposed(&h, &bt) } else { Product::plain(&h, &b) };
            let products = || vec![Product::transposed(&x, &w), second];
            gemm(&[
                Sum { gain: Some(&gain), ..Sum::new(products(), &out) },
                Sum { add: true, scale: 0.5, ..Sum::new(products(), &add) },
                Sum { onto: Some(&onto), ..Sum::new(products(), &sum) },
            ]);
            let wide = |t: &Tensor| t.to_kind(Kind::Double);
            let exact = wide(&x).matmul(&wide(&w).tr()) + wide(&h).matmul(&wide(&b));
            let size = (wide(&x).abs().matmul(&wide(&w).abs().tr()) + wide(&h).abs().matmul(&wide(&b).abs()))
                .clamp_min(1e-30);
            let far =
                |got: &Tensor, want: &Tensor| ((wide(got) - want).abs() / &size).max().double_value(&[]);
            let eps = if kind == Kind::BFloat16 {
                8e-3
            } else if kind == Kind::Float {
                2e-6
            } else {
                1e-7
            };
            let gained = &exact * wide(&gain);
            assert!(far(&out, &gained) < eps * 4.0, "{kind:?} {m} {n} {k}: {}", far(&out, &gained));
            let summed = &exact + wide(&onto);
            assert!(far(&sum, &summed) < eps * 4.0, "{kind:?} {m} {n} {k} onto: {}", far(&sum, &summed));
            let added = &exact * 0.5 + 1.0;
            let eps = if kind == Kind::Double { 1e-12 } else { 4e-6 };
            assert!(far(&add, &added) < eps, "{kind:?} {m} {n} {k} added: {}", far(&add, &added));
        }
    }
}

fn master(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// A term below the last digit of the others moves their sum by itself on average, whichever way it is added up; in shapes
/// of SmolLM2 too, whose sums a GPU may divide.
#[test]
fn small_terms_arrive() {
    seed(4);
    const SMALL: f64 = 1e-3;
    for (gemm, (m, n, k)) in [gemm, by_libtorch]
        .into_iter()
        .flat_map(|g| [(100, 300, 64), (985, 576, 1536), (985, 192, 576)].map(|s| (g, s)))
    {
        let kind = Kind::BFloat16;
        let (x, w, onto) = (random(m, k, kind), random(n, k, kind), random(m, n, kind) * 16.0);
        let w = w / (k as f64 / 64.0).sqrt();
        let (h, b) = (random(m, 8, kind).zeros_like() + SMALL, random(n, 8, kind).ones_like() / 8.0);
        for onto in [None, Some(&onto)] {
            let mean = |products: Vec<Product<'_>>| {
                let out = Tensor::zeros([m, n], (kind, here()));
                gemm(&[Sum { onto, ..Sum::new(products, &out) }]);
                out.mean(Kind::Double).double_value(&[])
            };
            let (large, small) = (Product::transposed(&x, &w), Product::transposed(&h, &b));
            let moved = mean(vec![large, small]) - mean(vec![large]);
            let error = (moved / SMALL - 1.0).abs();
            assert!(error < 0.4, "{m} {n} {k}, onto {}: {moved:e}", onto.is_some());
        }
    }
}

/// Views: rows that lie apart on either side and in the result.
#[test]
fn strided_matrices() {
    let (x, w) = (random(40, 96, Kind::BFloat16), random(96, 128, Kind::BFloat16));
    let out = Tensor::zeros([40, 100], (Kind::BFloat16, here()));
    let (a, b, o) = (x.narrow(1, 10, 33), w.narrow(0, 20, 33).narrow(1, 3, 70), out.narrow(1, 8, 70));
    gemm(&[Sum::new(vec![Product::plain(&a, &b)], &o)]);
    let want = a.to_kind(Kind::Double).matmul(&b.to_kind(Kind::Double));
    assert!((o.to_kind(Kind::Double) - &want).abs().max().double_value(&[]) < 0.1);
    assert_eq!(out.narrow(1, 0, 8).abs().sum(Kind::Float).double_value(&[]), 0.0);
    assert_eq!(out.narrow(1, 78, 22).abs().sum(Kind::Float).double_value(&[]), 0.0);
}

#[test]
#[should_panic(expected = "times")]
fn shapes_must_fit() {
    let (a, b) = (random(2, 3, Kind::Float), random(4, 5, Kind::Float));
    gemm(&[Sum::new(vec![Product::plain(&a, &b)], &random(2, 5, Kind::Float))]);
}

/// Else what lies behind them would be read.
#[test]
fn addends_and_gains_must_fit() {
    let (a, b, out) = (random(2, 3, Kind::Float), random(3, 5, Kind::Float), random(2, 5, Kind::Float));
    let (row, short) = (random(1, 5, Kind::Float), random(1, 4, Kind::Float).reshape(-1));
    let sum = || Sum::new(vec![Product::plain(&a, &b)], &out);
    for bad in [
        Sum { onto: Some(&row), ..sum() },
        Sum { gain: Some(&short), ..sum() },
        Sum { bias: Some(&short), ..sum() },
    ] {
        let text = crate::function::caught(|| gemm(&[bad])).unwrap_err();
        assert!(text.contains("[2, 5] onto [1, 5]") || text.contains("[4] for 5 columns"), "{text}");
    }
}

#[test]
#[should_panic(expected = "a block of the panels")]
fn a_block_must_be_there() {
    let (mut panels, numbers) = (Panels::<f32>::default(), [1.0; 2 * 70]);
    panels.pack(View::new(&numbers, 2, 70, 70));
    panels.multiply(2, 0, View::new(&numbers, 1, 2, 2), &mut [0.0; 64], 64, false);
}

/// A depth that varies is filled up with zeros, whatever lay in the panel.
#[test]
fn sums_over_tokens_are_those_of_f64() {
    seed(5);
    for kind in [Kind::BFloat16, Kind::Float] {
        // Few rows and columns: this thread's alone, which finds its panel as the sum before has left it.
        let spoilt = (random(3, 4096, kind), random(4096, 64, kind) * f64::NAN);
        let nothing = random(3, 64, Kind::Float);
        for (m, n, k) in
            [(3, 64, 1), (3, 64, 33), (3, 40, 1000), (3, 64, 1025), (70, 130, 4100), (8, 200, 96)]
        {
            gemm(&[Sum::new(vec![Product::plain(&spoilt.0, &spoilt.1)], &nothing)]);
            let (a, x) = (random(k, m + 3, kind).narrow(1, 2, m), random(k, n, kind));
            let (h, b) = (random(m, 5, kind), random(5, n, kind));
            let out = Tensor::zeros([m, n], (Kind::Float, here()));
            let products = vec![Product::plain(&h, &b), Product::over_tokens(&a, &x)];
            gemm(&[Sum { scale: 0.5, ..Sum::new(products, &out) }]);
            let wide = |t: &Tensor| t.to_kind(Kind::Double);
            let want = (wide(&a).tr().matmul(&wide(&x)) + wide(&h).matmul(&wide(&b))) * 0.5;
            let error = (wide(&out) - want).abs().max().double_value(&[]) / (k as f64).sqrt();
            assert!(error < 1e-4, "{kind:?} {m} {n} {k}: {error:e}");
        }
    }
}

/// Tiles and what is left beside them.
#[test]
fn transposes_are_transposed() {
    fn check<T: Small + PartialEq + std::fmt::Debug>(number: impl Fn(usize) -> T) {
        for (rows, columns, stride) in
            [(1, 1, 1), (64, 64, 64), (37, 70, 40), (96, 17, 100), (3, 200, 5), (5, 0, 5), (0, 3, 2)]
        {
            let from: Vec<T> = (0..rows * (columns + 3)).map(&number).collect();
            let mut to = vec![number(0); columns * stride];
            transpose(View::new(&from, rows, columns, columns + 3), &mut to, stride);
            for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                assert_eq!(to[j * stride + i], from[i * (columns + 3) + j], "{rows} {columns} at {i} {j}");
            }
        }
    }
    check(|i| i as f32);
    check(|i| half::bf16::from_bits(i as u16));
}

/// A large term swallows the ones that are added up one by one with it: no more than a chain of them.
#[test]
fn sums_of_f32_are_cut_into_chains() {
    if !product::supported(false) {
        return;
    }
    const DEPTH: i64 = 8192;
    let large = f64::from(1 << 24);
    for rows in [1, 70] {
        for transposed in [false, true] {
            let ones = |n, m| Tensor::ones([n, m], (Kind::Float, Device::Cpu));
            let a = ones(rows, DEPTH);
            let _ = a.narrow(1, 0, 1).fill_(large);
            let (b, out) = (if transposed { ones(64, DEPTH) } else { ones(DEPTH, 64) }, ones(rows, 64));
            gemm(&[Sum::new(
                vec![if transposed { Product::transposed(&a, &b) } else { Product::plain(&a, &b) }],
                &out,
            )]);
            let least = out.min().double_value(&[]) - large;
            assert!(least >= (DEPTH - 1024) as f64, "{rows} rows: only {least} of {DEPTH} ones arrived");
        }
    }
}

/// Left-hand views that begin alike and hold as many numbers are not one.
#[test]
fn views_of_one_matrix_are_told_apart() {
    for kind in [Kind::BFloat16, Kind::Float] {
        let x = random(4, 6, kind);
        let (wide, tall) = (x.narrow(0, 0, 2), x.narrow(1, 0, 3));
        let (b, c) = (random(5, 6, kind), random(5, 3, kind));
        let [y, z] = [2, 4].map(|rows| Tensor::empty([rows, 5], (Kind::Float, here())));
        gemm(&[
            Sum::new(vec![Product::transposed(&wide, &b)], &y),
            Sum::new(vec![Product::transposed(&tall, &c)], &z),
        ]);
        for (a, b, out) in [(wide, b, y), (tall, c, z)] {
            let want = a.to_kind(Kind::Double).matmul(&b.to_kind(Kind::Double).tr());
            let error = (out.to_kind(Kind::Double) - want).abs().max().double_value(&[]);
            assert!(error < 1e-5, "{kind:?}: {error:e}");
        }
    }
}

/// A product over nothing is zero, whatever lay there.
#[test]
fn a_product_over_nothing_is_zero() {
    for kind in [Kind::BFloat16, Kind::Float] {
        let (a, b) = (random(70, 0, kind), random(0, 130, kind));
        let out = random(70, 130, Kind::Float);
        gemm(&[Sum::new(vec![Product::plain(&a, &b)], &out)]);
        assert_eq!(out.count_nonzero(None).int64_value(&[]), 0, "{kind:?}");
        // And one of no rows is nothing.
        for into in [kind, Kind::Float] {
            let (a, b, out) = (random(5, 0, kind), random(5, 3, kind), random(0, 3, into));
            gemm(&[Sum::new(vec![Product::over_tokens(&a, &b)], &out)]);
        }
    }
}

/// Products with a thin matrix, on either side, into a part of a larger one.
#[test]
fn thin_matrices_are_multiplied_as_others() {
    seed(6);
    for kind in [Kind::BFloat16, Kind::Float] {
        for (rows, columns, depth) in [
            (5, 1, 33),
            (97, 8, 576),
            (200, 24, 1001),
            (100, 31, 64),
            (98, 33, 40),
            (1, 70, 1),
            (3, 31, 2),
            (8, 200, 1024),
            (12, 33, 65),
            (13, 64, 7),
            (16, 40, 500),
            (24, 96, 129),
            (31, 32, 200),
            (33, 100, 96),
        ] {
            let view = |n: i64, m: i64| random(n + 1, m + 3, kind).narrow(0, 1, n).narrow(1, 2, m);
            let (a, b) = (view(rows, depth), view(depth, columns));
            let (at, bt) = (view(depth, rows), view(columns, depth));
            for product in
                [Product::plain(&a, &b), Product::transposed(&a, &bt), Product::over_tokens(&at, &b)]
            {
                let wide = |t: &Tensor| t.to_kind(Kind::Double);
                let exact = wide(&product.left()).matmul(&wide(&product.right()));
                let size = wide(&product.left()).abs().matmul(&wide(&product.right()).abs()) + 1.0;
                for (into, add, scale) in [
                    (kind, false, 1.0),
                    (Kind::Float, false, 1.0),
                    (Kind::Float, true, 0.5),
                    (kind, true, 1.0),
                ] {
                    let whole = Tensor::ones([rows + 2, columns + 2], (into, here()));
                    let out = whole.narrow(0, 1, rows).narrow(1, 1, columns);
                    gemm(&[Sum { add, scale, ..Sum::new(vec![product], &out) }]);
                    let want = &exact * scale + f64::from(u8::from(add));
                    let error = ((wide(&out) - want).abs() / &size).max().double_value(&[]);
                    let eps = if into == Kind::BFloat16 { 4e-3 } else { 1e-6 };
                    let what = format!("{kind:?} {rows} {columns} {depth} {:?} {into:?} {add}", product.lie);
                    assert!(error < eps, "{what}: {error:e}");
                    let outside = whole.sum(Kind::Double) - out.sum(Kind::Double);
                    let places = 2 * (rows + columns) + 4;
                    assert_eq!(outside.double_value(&[]).round(), places as f64, "{what}: beside it");
                }
            }
        }
    }
}

/// Few rows go another way, but each number is the one that it would be among many. (By other products than ours it may not
/// be.)
#[test]
fn a_row_does_not_hang_on_those_beside_it() {
    if !product::multiplies_pairs() {
        return;
    }
    seed(7);
    for (depth, columns) in [(1536, 576), (65, 129), (4096, 97), (5000, 160), (1, 33)] {
        let (a, b) = (random(9, depth, Kind::BFloat16), random(depth, columns, Kind::BFloat16));
        let rows = |n: i64, into, add| {
            let out = Tensor::ones([n, columns], (into, here()));
            let product = Product::plain(&a, &b);
            let few = Product { a: &a.narrow(0, 0, n), ..product };
            gemm(&[Sum { scale: 0.7, add, ..Sum::new(vec![few], &out) }]);
            out
        };
        for (into, add) in [(Kind::BFloat16, false), (Kind::BFloat16, true), (Kind::Float, true)] {
            let many = rows(9, into, add);
            for n in 1..=5 {
                assert_eq!(
                    rows(n, into, add),
                    many.narrow(0, 0, n),
                    "{n} x {columns} x {depth} {into:?} {add}"
                );
            }
        }
    }
}

/// All of this crate's tests again, with less than the machine has, and with what others have.
#[test]
fn with_fewer_instructions() {
    const MOST: &str = "ONEDNN_MAX_CPU_ISA";
    if std::env::var_os(MOST).is_some() || std::env::var_os(product::ONEDNN).is_some() {
        return;
    }
    for (variable, value) in [(MOST, "AVX2"), (MOST, "SSE41"), (MOST, "AVX512_CORE"), (product::ONEDNN, "1")]
    {
        let program = std::env::current_exe().expect("this program");
        let output = std::process::Command::new(program).env(variable, value).output().expect("it runs");
        assert!(output.status.success(), "{value}: {}", String::from_utf8_lossy(&output.stdout));
    }
}
