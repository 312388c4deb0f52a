//! The normal form of an update.

use tch::Tensor;

/// `W' = diag(g) (W + s B A)`: what LoRA, rsLoRA and DoRA come to, on any storage. One function computes it for all
/// of them, with [`crate::project`].
#[derive(Debug)]
pub struct Factors<'a> {
    /// `A [r, in]`, a leaf.
    pub a: &'a Tensor,
    /// `B [out, r]`, a leaf.
    pub b: &'a Tensor,
    /// `s`.
    pub scale: f64,
    /// The share of inputs that the update does not see while training.
    pub dropout: f64,
    /// `g`, if it is not 1.
    pub gain: Option<Gain<'a>>,
}

/// `g = m / n` for each row, n without gradient.
#[derive(Debug)]
pub struct Gain<'a> {
    /// `m [out]`, a leaf.
    pub magnitude: &'a Tensor,
    /// `g [out]`, in m's dtype.
    pub value: Tensor,
    /// `dg/dm = 1 / n`; 0 where g does not depend on m.
    pub slope: Tensor,
}

impl<'a> Factors<'a> {
    /// The leaves, in the order A, B, m.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &'a Tensor> + use<'a> {
        [self.a, self.b].into_iter().chain(self.gain.as_ref().map(|g| g.magnitude))
    }
}
