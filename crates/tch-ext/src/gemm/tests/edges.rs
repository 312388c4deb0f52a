//! Sums onto themselves, over one another, and of nothing.

use tch::Kind;

use super::*;

const KINDS: [Kind; 4] = [Kind::BFloat16, Kind::Float, Kind::Double, Kind::Half];

fn double(t: &Tensor) -> Tensor {
    t.to_kind(Kind::Double)
}

/// Whatever adds them up: few rows, many, and libtorch, which overwrites what is there first.
#[test]
fn a_sum_onto_what_it_replaces() {
    for (kind, rows) in KINDS.into_iter().flat_map(|kind| [(kind, 3), (kind, 70)]) {
        for gemm in [gemm, by_libtorch] {
            let (a, b, c) = (random(rows, 8, kind), random(40, 8, kind), random(40, 3, kind));
            let h = random(rows, 3, kind);
            for (scale, add) in [(1.0, false), (0.5, false), (1.0, true), (0.5, true)] {
                let whole = random(rows, 50, kind);
                let out = whole.narrow(1, 4, 40);
                let before = double(&out.copy());
                let products = vec![Product::transposed(&a, &b), Product::transposed(&h, &c)];
                gemm(&[Sum { onto: Some(&out), scale, add, ..Sum::new(products, &out) }]);
                let sum = double(&a).matmul(&double(&b).tr()) + double(&h).matmul(&double(&c).tr());
                let want = sum * scale + before * if add { 2.0 } else { 1.0 };
                let error = (double(&out) - want).abs().max().double_value(&[]);
                let eps = if matches!(kind, Kind::BFloat16 | Kind::Half) { 0.3 } else { 1e-4 };
                assert!(error < eps, "{kind:?} {rows} {scale} {add}: {error:e}");
            }
        }
    }
}

/// Of one row or column there is no step, and what is said of it makes no other matrix.
#[test]
fn a_sum_onto_itself_by_another_stride() {
    for kind in KINDS {
        for gemm in [gemm, by_libtorch] {
            for (rows, columns, step) in [(1, 6, [5, 1]), (6, 1, [24, 3])] {
                let (a, b, all) = (random(rows, 8, kind), random(8, columns, kind), random(6, 24, kind));
                let out = all.narrow(0, 0, rows).narrow(1, 12, columns);
                let onto = all.as_strided([rows, columns], step, 12);
                assert_eq!(onto, out);
                assert_ne!(onto.stride(), out.stride());
                let want = double(&a).matmul(&double(&b)) + double(&out);
                gemm(&[Sum { onto: Some(&onto), ..Sum::new(vec![Product::plain(&a, &b)], &out) }]);
                let error = (double(&out) - want).abs().max().double_value(&[]);
                assert!(error < 0.2, "{kind:?} {rows} {columns}: {error:e}");
            }
        }
    }
}

/// Threads would write and read there at once. What lies beside it may be columns of the same matrix.
#[test]
fn what_is_read_or_written_besides_is_not_written_over() {
    for kind in KINDS {
        let all = random(6, 24, kind);
        let columns = |first, n| all.narrow(1, first, n);
        let [a, b, out, other] = [0, 6, 12, 18].map(|first| columns(first, 6));
        let into = |out| Sum::new(vec![Product::plain(&a, &b)], out);
        gemm(&[Sum { onto: Some(&other), ..into(&out) }]);
        gemm(&[into(&out), into(&other)]);
        // Rows of columns, and one alone.
        let [upper, lower] = [0, 3].map(|first| out.narrow(0, first, 3));
        let [left, right] = [0, 3].map(|first| a.narrow(0, first, 3));
        gemm(&[(&left, &upper), (&right, &lower)].map(|(a, out)| Sum::new(vec![Product::plain(a, &b)], out)));
        let (one, row) = (a.narrow(0, 2, 1), other.narrow(0, 2, 1));
        gemm(&[Sum::new(vec![Product::plain(&one, &b)], &row)]);
        let want = double(&a).matmul(&double(&b));
        for out in [&out, &other] {
            let error = (double(out) - &want).abs().max().double_value(&[]);
            assert!(error < 0.2, "{kind:?}: {error:e}");
        }

        let (turned, aside, in_a, in_out) = (out.tr(), columns(13, 6), columns(5, 6), columns(11, 3));
        let (wide, tall, short) = (columns(8, 9), random(9, 6, kind), random(3, 6, kind));
        let square = random(6, 6, Kind::Float);
        let (first, second) = (square.get(0), square.get(1));
        let on_one_another = random(1, 6, kind).expand([6, 6], false);
        let by_half = random(6, 6, kind).as_strided([6, 6], [3, 1], 0);
        let (other_rows, two, many) =
            (all.as_strided([2, 14], [48, 1], 24), random(2, 6, kind), random(14, 6, kind));
        // From one row into the next, as far as `out`.
        let (around, deep, long) =
            (all.as_strided([5, 18], [24, 1], 20), random(5, 6, kind), random(18, 6, kind));
        for (what, refused) in [
            ("a", vec![into(&a)]),
            ("b", vec![into(&b)]),
            ("a part of a", vec![into(&in_a)]),
            ("twice", vec![into(&out), into(&out)]),
            ("partly twice", vec![into(&out), into(&aside)]),
            ("what another reads", vec![into(&out), Sum::new(vec![Product::plain(&out, &b)], &other)]),
            ("what is wider", vec![into(&out), Sum::new(vec![Product::over_tokens(&wide, &a)], &tall)]),
            ("what is narrower", vec![into(&out), Sum::new(vec![Product::plain(&in_out, &short)], &other)]),
            ("onto its transpose", vec![Sum { onto: Some(&turned), ..into(&out) }]),
            ("onto what lies aside", vec![Sum { onto: Some(&aside), ..into(&out) }]),
            (
                "every other row",
                vec![into(&out), Sum::new(vec![Product::over_tokens(&other_rows, &two)], &many)],
            ),
            ("a row's end", vec![into(&out), Sum::new(vec![Product::over_tokens(&around, &deep)], &long)]),
            ("rows on one another", vec![into(&on_one_another)]),
            ("rows on halves of others", vec![into(&by_half)]),
            ("the gain", vec![Sum { gain: Some(&first), ..into(&square) }]),
            ("the bias", vec![Sum { bias: Some(&second), ..into(&square) }]),
        ] {
            let text = crate::function::caught(|| gemm(&refused)).expect_err(what);
            let said = [" lies over ", " lie over "].iter().any(|words| text.contains(words));
            assert!(said, "{kind:?} {what}: {text}");
        }
    }
}

/// Nothing but its addends, whatever lay there; what is added to stays.
#[test]
fn an_empty_sum_is_zero() {
    for (kind, rows) in KINDS.into_iter().flat_map(|kind| [(kind, 3), (kind, 70)]) {
        let (bias, onto) = (random(1, 5, kind).reshape(-1), random(rows, 5, kind));
        for add in [false, true] {
            let out = random(rows, 5, kind);
            let before = if add { out.copy() } else { out.zeros_like() };
            let sum = || Sum { add, ..Sum::new(vec![], &out) };
            gemm(&[sum()]);
            assert_eq!(out, before, "{kind:?} {add}");
            gemm(&[Sum { bias: Some(&bias), onto: Some(&onto), scale: 0.5, ..sum() }]);
            let error = (double(&out) - double(&before) - double(&bias) - double(&onto)).abs().max();
            assert!(error.double_value(&[]) < 0.1, "{kind:?} {add}");
        }
    }
}

/// Small products too, and nothing beside them is touched.
#[test]
fn a_small_product_over_nothing_is_zero() {
    fn check<T: Small>(number: T) {
        let mut panels = Panels::<T>::default();
        if !T::supported() {
            return;
        }
        panels.pack(View::new(&[number; 4 * 70], 4, 70, 70));
        for (add, want) in [(false, 0.0), (true, 3.0)] {
            let mut c = [3.0; 2 * 80 + 6];
            panels.multiply(1, 2, View::new(&[number; 10], 3, 0, 5), &mut c, 80, add);
            for (at, c) in c.into_iter().enumerate() {
                assert_eq!(c, if at % 80 < 6 { want } else { 3.0 }, "{at}");
            }
        }
        // Of a matrix that has no depth at all.
        panels.pack(View::new(&[], 0, 5, 5));
        let mut c = [3.0; 5];
        panels.multiply(0, 0, View::new(&[], 1, 0, 0), &mut c, 5, false);
        assert_eq!(c, [0.0; 5]);
    }
    check(1f32);
    check(half::bf16::ONE);
}

/// Where there is nothing to write there may be no memory. (With debug assertions a slice of it ends the program.)
#[test]
fn sums_without_rows_or_columns_are_nothing() {
    for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
        for (lie, rows) in [Lie::Plain, Lie::Transposed, Lie::OverTokens].map(|lie| (lie, [3, 70])) {
            // Rows and columns of both, and what is summed over.
            let both = |m: i64, n: i64, k: i64| {
                let a = if lie == Lie::OverTokens { random(k, m, kind) } else { random(m, k, kind) };
                (a, if lie == Lie::Transposed { random(n, k, kind) } else { random(k, n, kind) })
            };
            for m in rows {
                let sizes = [(0, 9, 5), (m, 0, 5), (m, 9, 5), (0, 0, 0)];
                let operands =
                    sizes.map(|(m, n, k)| (both(m, n, k), random(m, n, Kind::Float).to_kind(master(kind))));
                gemm(&operands.each_ref().map(|((a, b), out)| Sum::new(vec![Product { a, b, lie }], out)));
                let ((a, b), out) = &operands[2];
                let product = Product { a, b, lie };
                let error = double(out) - double(&product.left()).matmul(&double(&product.right()));
                assert!(error.abs().max().double_value(&[]) < 1e-4, "{kind:?} {lie:?} {m}");
            }
        }
    }
    let nothing = pack::Matrix { data: std::ptr::null::<f32>(), stride: 1 };
    // SAFETY: there are no elements to read or to write.
    unsafe { turn::transpose(nothing, (0, 5), (0, 0), std::ptr::dangling_mut(), 5) };
}
