//! Sums of low-rank products by small decompositions: nothing of size `[out, in]` is built.

use lora_core::{Error, Result};
use tch::{Kind, Tensor};

/// `Σ_k c_k B_k A_k = B A`, with `B [out, R]` the B_k side by side and `A [R, in]` the c_k A_k one below another,
/// `R = Σ r_k`: exact for any ranks and scales (FLoRA; Wang et al. 2024, equation 4). In f64.
#[derive(Debug)]
pub struct Stack {
    b: Tensor,
    a: Tensor,
}

/// `U S Vᵀ`: `U [out, n]`, `S [n]` falling, `Vᵀ [n, in]`.
#[derive(Debug)]
pub struct Decomposition {
    /// Left singular vectors.
    pub u: Tensor,
    /// Singular values.
    pub s: Tensor,
    /// Right singular vectors, transposed.
    pub vt: Tensor,
}

impl Stack {
    /// Of `(c, B [out, r], A [r, in])`.
    ///
    /// # Errors
    /// [`Error::data`] for no products, and for shapes that do not fit.
    pub fn new(products: &[(f64, &Tensor, &Tensor)]) -> Result<Self> {
        let Some((_, first_b, first_a)) = products.first() else {
            return Err(Error::data("there is nothing to sum"));
        };
        let (out, inp) = (first_b.size().first().copied(), first_a.size().last().copied());
        for (_, b, a) in products {
            let ((o, r), (q, i)) = (b.size2()?, a.size2()?);
            if r != q || Some(o) != out || Some(i) != inp {
                let what = format!("B {:?} and A {:?} beside B {:?}", b.size(), a.size(), first_b.size());
                return Err(Error::data(format!("the factors do not fit together: {what}")));
            }
        }
        let wide = |t: &Tensor| t.detach().to_kind(Kind::Double);
        let b: Vec<_> = products.iter().map(|(_, b, _)| wide(b)).collect();
        let a: Vec<_> = products.iter().map(|(c, _, a)| wide(a) * *c).collect();
        Ok(Self { b: Tensor::cat(&b, 1), a: Tensor::cat(&a, 0) })
    }

    /// The two factors as they are, of rank R.
    pub fn into_factors(self) -> (Tensor, Tensor) {
        (self.b, self.a)
    }

    /// Singular values and vectors, `n = min(R, out, in)` of them, each `u` with its largest number positive: of
    /// `R_B R_Aᵀ [R, R]`, where `B = Q_B R_B` and `Aᵀ = Q_A R_A`.
    ///
    /// # Errors
    /// If no decomposition is found: for numbers that are not finite.
    pub fn decompose(&self) -> Result<Decomposition> {
        let (q_b, r_b) = Tensor::f_linalg_qr(&self.b, "reduced")?;
        let (q_a, r_a) = Tensor::f_linalg_qr(&self.a.tr(), "reduced")?;
        let (u, s, v) = r_b.matmul(&r_a.tr()).f_svd(true, true)?;
        let (u, v) = (q_b.matmul(&u), q_a.matmul(&v));
        // A pair of vectors is told up to its sign, which a last bit may turn: the largest number of each u is positive.
        let sign = u.gather(0, &u.abs().argmax(0, true), false).sign();
        Ok(Decomposition { u: &u * &sign, s, vt: (&v * &sign).tr() })
    }
}

/// What share of two factors' size their product's rounding is, where they are kept in `kind`: in f64 that of all that is
/// computed on the way, in f64 itself.
pub(crate) fn rounding(kind: Kind) -> f64 {
    if kind == Kind::Double { 64.0 * f64::EPSILON } else { f64::from(f32::EPSILON) }
}

impl Decomposition {
    /// The rank-`r` factors nearest to the sum (Eckart and Young 1936): `B = U S`, `A = Vᵀ`, cut off; padded with
    /// zeros where the sum has fewer dimensions.
    pub fn at_rank(&self, r: i64) -> (Tensor, Tensor) {
        let have = self.s.size()[0];
        let n = r.min(have);
        let b = self.u.narrow(1, 0, n) * self.s.narrow(0, 0, n).unsqueeze(0);
        let a = self.vt.narrow(0, 0, n);
        (b.constant_pad_nd([0, r - n]), a.constant_pad_nd([0, 0, 0, r - n]))
    }

    /// How many singular values are larger.
    pub(crate) fn rank_above(&self, least: f64) -> i64 {
        self.s.gt(least).sum(Kind::Int64).int64_value(&[])
    }

    /// The least rank that keeps this share of the sum's squared norm, at least 1 (FLoRIST's threshold).
    pub fn rank_for(&self, energy: f64) -> i64 {
        let squares = self.s.square();
        let total = squares.sum(Kind::Double).double_value(&[]);
        let reached = squares.cumsum(0, Kind::Double).lt(energy * total).sum(Kind::Int64).int64_value(&[]);
        (reached + 1).min(self.s.size()[0])
    }
}
