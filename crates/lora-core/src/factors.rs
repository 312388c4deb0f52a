//! The normal form of an update.

use std::cell::RefCell;

use tch::{Kind, Tensor};

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
    /// A and B in the dtype that is computed in, made once for all uses until they change.
    pub copies: &'a Copies,
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

/// Compute copies of two f32 masters.
#[derive(Debug, Default)]
pub struct Copies(RefCell<Option<Copy>>);

#[derive(Debug)]
struct Copy {
    /// The masters' versions, and the dtype: what the copies were made from.
    of: (i64, i64, Kind),
    a: Tensor,
    b: Tensor,
}

impl Factors<'_> {
    /// `s A [r, in]` and `B [out, r]` in `kind`, without gradient.
    pub(crate) fn in_kind(&self, kind: Kind) -> (Tensor, Tensor) {
        let of = (self.a.internal_version(), self.b.internal_version(), kind);
        let mut copies = self.copies.0.borrow_mut();
        let copy = copies.take().filter(|copy| copy.of == of).unwrap_or_else(|| {
            let (a, b) = (self.a.detach(), self.b.detach());
            let b = if b.kind() == kind { b.copy() } else { b.to_kind(kind) };
            Copy { of, a: (a * self.scale).to_kind(kind), b: b.contiguous() }
        });
        let both = (copy.a.shallow_clone(), copy.b.shallow_clone());
        *copies = Some(copy);
        both
    }
}

impl<'a> Factors<'a> {
    /// The leaves, in the order A, B, m.
    pub(crate) fn leaves(&self) -> impl Iterator<Item = &'a Tensor> + use<'a> {
        [self.a, self.b].into_iter().chain(self.gain.as_ref().map(|g| g.magnitude))
    }
}
