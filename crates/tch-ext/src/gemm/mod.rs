//! Sums of matrix products, rounded once.
//!
//! On a CPU with AVX-512, in f32 and bf16: panels of the right-hand matrices are packed into the cache, libtorch's
//! small product (oneDNN's) adds up all terms of a tile in f32, and the tile is written once. Everywhere else the
//! same sums are libtorch's ordinary products.

mod pack;
mod panels;

use tch::{Kind, Tensor};

/// `a [m, k]` times `b [k, n]`, or times `bᵀ` of `b [n, k]`.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The left-hand matrix.
    pub a: &'a Tensor,
    /// The right-hand one.
    pub b: &'a Tensor,
    /// Whether it lies transposed.
    pub transposed: bool,
}

impl<'a> Product<'a> {
    /// `a b`.
    pub fn plain(a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { a, b, transposed: false }
    }

    /// `a bᵀ`.
    pub fn transposed(a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { a, b, transposed: true }
    }

    fn depth(&self) -> i64 {
        self.b.size()[usize::from(self.transposed)]
    }

    fn width(&self) -> i64 {
        self.b.size()[usize::from(!self.transposed)]
    }

    fn right(&self) -> Tensor {
        if self.transposed { self.b.tr() } else { self.b.shallow_clone() }
    }
}

/// `out [m, n] = gain ∘ scale (Σ products) + bias`, or added to what `out` holds.
#[derive(Debug)]
pub struct Sum<'a> {
    /// The terms; all of one dtype, m and n.
    pub products: Vec<Product<'a>>,
    /// Where it goes: that dtype, or f32. Its rows may lie apart.
    pub out: &'a Tensor,
    /// A factor.
    pub scale: f64,
    /// A factor `[n]` for each column, f32.
    pub gain: Option<&'a Tensor>,
    /// An addend `[n]` for each column.
    pub bias: Option<&'a Tensor>,
    /// Whether to add to `out` instead of replacing it.
    pub add: bool,
}

impl<'a> Sum<'a> {
    /// A plain sum.
    pub fn new(products: Vec<Product<'a>>, out: &'a Tensor) -> Self {
        Self { products, out, scale: 1.0, gain: None, bias: None, add: false }
    }
}

/// Computes the sums, all at once. No gradient is tracked. Shapes that do not fit panic, as tch's operators do.
pub fn gemm(sums: &[Sum<'_>]) {
    let _guard = tch::no_grad_guard();
    for sum in sums {
        let size = sum.out.size2().expect("a matrix");
        for p in &sum.products {
            assert!(
                (p.a.size()[0], p.width()) == size && p.a.size()[1] == p.depth(),
                "{:?} times {:?} (transposed: {}) into {size:?}",
                p.a.size(),
                p.b.size(),
                p.transposed
            );
        }
    }
    let kind = sums.first().and_then(|s| s.products.first()).map_or(Kind::Double, |p| p.a.kind());
    if !panels::fit(sums, kind) {
        sums.iter().for_each(plain);
    } else if kind == Kind::BFloat16 {
        panels::run::<half::bf16>(sums);
    } else {
        panels::run::<f32>(sums);
    }
}

/// The definition, by libtorch's products. The smallest comes first: rounded to half precision between the terms,
/// it loses least.
fn plain(sum: &Sum<'_>) {
    let mut products = sum.products.clone();
    products.sort_by_key(Product::depth);
    let mut total = products[0].a.matmul(&products[0].right());
    for p in &products[1..] {
        total = total.addmm(p.a, &p.right());
    }
    let kind = total.kind();
    if sum.scale != 1.0 {
        total = total * sum.scale;
    }
    if let Some(gain) = sum.gain {
        total = (total.to_kind(gain.kind()) * gain).to_kind(total.kind());
    }
    if let Some(bias) = sum.bias {
        total = total + bias.to_kind(kind);
    }
    let mut out = sum.out.shallow_clone();
    if sum.add {
        let _ = out.g_add_(&total);
    } else {
        out.copy_(&total);
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn random(rows: i64, columns: i64, kind: Kind) -> Tensor {
        Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(kind)
    }

    /// Against f64, with sizes that leave a rest in every direction.
    #[test]
    fn sums_are_those_of_f64() {
        tch::manual_seed(3);
        for kind in [Kind::BFloat16, Kind::Float, Kind::Double] {
            for (m, n, k) in [(1, 1, 1), (7, 64, 16), (65, 130, 33), (300, 200, 576), (33, 64, 5000), (2, 70, 2)] {
                let (x, w, h, b) = (random(m, k, kind), random(n, k, kind), random(m, 5, kind), random(5, n, kind));
                let gain = random(1, n, Kind::Float).reshape(-1);
                let out = Tensor::zeros([m, n], (kind, Device::Cpu));
                let add = Tensor::ones([m, n], (Kind::Float, Device::Cpu)).to_kind(master(kind));
                let products = || vec![Product::transposed(&x, &w), Product::plain(&h, &b)];
                gemm(&[
                    Sum { gain: Some(&gain), ..Sum::new(products(), &out) },
                    Sum { add: true, scale: 0.5, ..Sum::new(products(), &add) },
                ]);
                let wide = |t: &Tensor| t.to_kind(Kind::Double);
                let exact = wide(&x).matmul(&wide(&w).tr()) + wide(&h).matmul(&wide(&b));
                let size = (wide(&x).abs().matmul(&wide(&w).abs().tr()) + wide(&h).abs().matmul(&wide(&b).abs()))
                    .clamp_min(1e-30);
                let far = |got: &Tensor, want: &Tensor| {
                    ((wide(got) - want).abs() / &size).max().double_value(&[])
                };
                let eps = if kind == Kind::BFloat16 { 8e-3 } else if kind == Kind::Float { 2e-6 } else { 1e-7 };
                let gained = &exact * wide(&gain);
                assert!(far(&out, &gained) < eps * 4.0, "{kind:?} {m} {n} {k}: {}", far(&out, &gained));
                let added = &exact * 0.5 + 1.0;
                let eps = if kind == Kind::Double { 1e-12 } else { 4e-6 };
                assert!(far(&add, &added) < eps, "{kind:?} {m} {n} {k} added: {}", far(&add, &added));
            }
        }
    }

    fn master(kind: Kind) -> Kind {
        if kind == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// Views: rows that lie apart on either side and in the result.
    #[test]
    fn strided_matrices() {
        let (x, w) = (random(40, 96, Kind::BFloat16), random(96, 128, Kind::BFloat16));
        let out = Tensor::zeros([40, 100], (Kind::BFloat16, Device::Cpu));
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
}
