//! Sums of matrix products, rounded once.
//!
//! On a CPU with AVX-512 or AVX2, in f32 and bf16: panels of the right-hand matrices are packed into the cache, a small
//! product (ours; in bf16 oneDNN's, where an AVX-512 processor has tiles or no products of bf16) adds up all terms of a
//! tile in f32, and the tile is written once; products with a thin matrix of bf16 are read as they lie. Everywhere else
//! the same sums are libtorch's ordinary products.

mod ahead;
mod avx2;
mod avx512;
mod columns;
mod dots;
mod few;
mod finish;
mod flat;
mod lines;
mod onednn;
mod pack;
mod panels;
mod places;
mod product;
mod small;
mod thin;
mod tile;
mod turn;

pub use columns::CUDA_SOURCES;
pub(crate) use onednn::InLoop;
pub use small::{Panels, Small, View, transpose};

use tch::{Device, Kind, Tensor};

use crate::Region;
use flat::Flats;

static PRODUCTS: Region = Region::new("matrix products");

/// `a [m, k]` times `b [k, n]`; or `b [n, k]` or `a [k, m]` lies transposed. Both of one dtype.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    /// The left-hand matrix.
    pub a: &'a Tensor,
    /// The right-hand one.
    pub b: &'a Tensor,
    /// How they lie.
    pub lie: Lie,
}

/// How the matrices of a product lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// `a b`.
    Plain,
    /// `a bᵀ`.
    Transposed,
    /// `aᵀ b`. k is expected to be another in each step, as a batch's number of tokens is: it is cut and filled up, so that
    /// a product which is compiled for each shape (oneDNN's) meets few.
    OverTokens,
}

impl<'a> Product<'a> {
    /// `a b`.
    pub fn plain(a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { a, b, lie: Lie::Plain }
    }

    /// `a bᵀ`.
    pub fn transposed(a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { a, b, lie: Lie::Transposed }
    }

    /// `aᵀ b` of `a [tokens, m]` and `b [tokens, n]`, summed over the tokens of a batch or of a text.
    pub fn over_tokens(a: &'a Tensor, b: &'a Tensor) -> Self {
        Self { a, b, lie: Lie::OverTokens }
    }

    fn depth(&self) -> i64 {
        self.b.size()[usize::from(self.lie == Lie::Transposed)]
    }

    fn left(&self) -> Tensor {
        if self.lie == Lie::OverTokens { self.a.tr() } else { self.a.shallow_clone() }
    }

    fn right(&self) -> Tensor {
        if self.lie == Lie::Transposed { self.b.tr() } else { self.b.shallow_clone() }
    }
}

/// `out [m, n] = gain ∘ scale (Σ products) + bias + onto`, or added to what `out` holds.
#[derive(Debug)]
pub struct Sum<'a> {
    /// The terms; all of one dtype, m and n.
    pub products: Vec<Product<'a>>,
    /// Where it goes: that dtype, or f32. Its rows may lie apart, and what lies between them be read or written too.
    pub out: &'a Tensor,
    /// A factor.
    pub scale: f64,
    /// A factor `[n]` for each column, f32.
    pub gain: Option<&'a Tensor>,
    /// An addend `[n]` for each column.
    pub bias: Option<&'a Tensor>,
    /// An addend `[m, n]`, of out's dtype. It may be `out` itself.
    pub onto: Option<&'a Tensor>,
    /// Whether to add to `out` instead of replacing it.
    pub add: bool,
}

impl<'a> Sum<'a> {
    /// A plain sum.
    pub fn new(products: Vec<Product<'a>>, out: &'a Tensor) -> Self {
        Self { products, out, scale: 1.0, gain: None, bias: None, onto: None, add: false }
    }
}

/// Computes the sums, all at once. No gradient is tracked. Shapes that do not fit panic, as tch's operators do; so does an
/// `out` whose rows lie over one another, or over what any of the sums reads or writes besides.
pub fn gemm(sums: &[Sum<'_>]) {
    let (_guard, _inside) = (tch::no_grad_guard(), PRODUCTS.enter());
    let mut sums: Vec<Flats<'_>> = sums.iter().map(Flats::of).collect();
    sums.retain(|flats| !flats.is_empty());
    places::check(&sums);
    let half = sums.first().and_then(|f| f.products.first()).is_some_and(|(a, _)| a.is_half());
    match (panels::fit(&sums, half), few::fit(&sums), half) {
        (false, ..) => sums.iter().for_each(|flats| plain(flats.sum)),
        (_, true, true) => few::run::<half::bf16>(&sums),
        (_, true, false) => few::run::<f32>(&sums),
        (_, false, true) => panels::run::<half::bf16>(&sums),
        (_, false, false) => panels::run::<f32>(&sums),
    }
}

/// The definition, by libtorch's products, each adding to what is there. The smallest comes first and what is added last:
/// in half precision a term of less than half a digit of what it is added to would be lost, and the steps of a training
/// are such terms.
fn plain(sum: &Sum<'_>) {
    if sum.add && (sum.scale != 1.0 || sum.gain.is_some()) {
        let own = sum.out.empty_like();
        plain(&Sum { products: sum.products.clone(), out: &own, add: false, ..*sum });
        let _ = sum.out.shallow_clone().g_add_(&own);
        return;
    }
    let mut products = sum.products.clone();
    products.sort_by_key(Product::depth);
    let mut out = sum.out.shallow_clone();
    // What lies there is overwritten before it is added.
    let kept = sum.onto.filter(|onto| onto.data_ptr() == out.data_ptr()).map(Tensor::copy);
    if products.is_empty() && !sum.add {
        let _ = out.zero_();
    }
    for (i, p) in products.iter().enumerate() {
        into(&mut out, p, sum.add || i > 0);
    }
    if sum.scale != 1.0 {
        let _ = out.g_mul_scalar_(sum.scale);
    }
    // In the wider of the two dtypes, and rounded once.
    if let Some(gain) = sum.gain {
        columns::scale(&mut out, gain);
    }
    for addend in [sum.bias, kept.as_ref().or(sum.onto)].into_iter().flatten() {
        let _ = out.g_add_(addend);
    }
}

/// One product, in the place of what `out` holds or added to it.
fn into(out: &mut Tensor, p: &Product<'_>, add: bool) {
    let (left, right) = (p.left(), p.right());
    match (left.kind() == out.kind(), add) {
        (true, false) => drop(left.mm_out(out, &right)),
        (true, true) => drop(out.addmm_(&left, &right)),
        // Sums of half precision that are not rounded to it; on a CPU there is no such product.
        (false, _) => {
            let wide = match out.device() {
                Device::Cuda(_) if out.kind() == Kind::Float && !add => {
                    return drop(left.mm_dtype_out(out, &right, Kind::Float));
                }
                Device::Cuda(_) if out.kind() == Kind::Float => left.mm_dtype(&right, Kind::Float),
                _ => left.to_kind(out.kind()).matmul(&right.to_kind(out.kind())),
            };
            if add {
                let _ = out.g_add_(&wide);
            } else {
                out.copy_(&wide);
            }
        }
    }
}

#[cfg(test)]
mod tests;
