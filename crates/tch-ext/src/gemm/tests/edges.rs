//! Sums of nothing.

use tch::Kind;

use super::*;

fn double(t: &Tensor) -> Tensor {
    t.to_kind(Kind::Double)
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
