//! A frozen weight and a frozen low-rank change of it, kept apart so that a packed weight stays as it is.

use std::cell::OnceCell;

use tch::{Device, Kind, Tensor};

use crate::weight::{BaseWeight, Dense, all_finite, master_kind, row_norms_sq};
use crate::{Error, Result};

/// `W + B A`. `dense` makes it anew from a packed W each time; a dense W is added to once ([`beside`]).
#[derive(Debug)]
struct Beside {
    base: Box<dyn BaseWeight>,
    a: Tensor,
    b: Tensor,
    norms_sq: OnceCell<Tensor>,
}

/// The weight `W + B A` as a storage: `a [r, in]`, `b [out, r]`, of any r.
///
/// # Errors
/// [`Error::data`] for other shapes, [`Error::non_finite`] for numbers that are not finite.
pub fn beside(base: Box<dyn BaseWeight>, a: &Tensor, b: &Tensor) -> Result<Box<dyn BaseWeight>> {
    let _guard = tch::no_grad_guard();
    let (out, inp) = base.shape();
    let fits = matches!((&a.size()[..], &b.size()[..]), ([r, i], [o, q]) if (r, *i, *o) == (q, inp, out));
    if !fits {
        let what = format!("A {:?} and B {:?} do not fit a weight of {out} x {inp}", a.size(), b.size());
        return Err(Error::data(what));
    }
    if !all_finite(a) || !all_finite(b) {
        return Err(Error::non_finite("what lies beside the weight is not finite"));
    }
    let kept = |t: &Tensor| t.detach().to_device(base.device()).to_kind(master_kind(base.kind()));
    let made = Beside { a: kept(a), b: kept(b), base, norms_sq: OnceCell::new() };
    let packed = made.base.bytes() < (out * inp).unsigned_abs() * made.kind().elt_size_in_bytes() as u64;
    Ok(if packed { Box::new(made) } else { Box::new(Dense::new(made.dense(made.kind()))) })
}

impl BaseWeight for Beside {
    fn shape(&self) -> (i64, i64) {
        self.base.shape()
    }

    fn device(&self) -> Device {
        self.base.device()
    }

    fn kind(&self) -> Kind {
        self.base.kind()
    }

    fn bytes(&self) -> u64 {
        let of = |t: &Tensor| (t.numel() * t.kind().elt_size_in_bytes()) as u64;
        self.base.bytes() + of(&self.a) + of(&self.b)
    }

    /// Summed in the master dtype and rounded once.
    fn dense(&self, kind: Kind) -> Tensor {
        let _guard = tch::no_grad_guard();
        let exact = master_kind(self.kind());
        self.base.dense(exact).addmm(&self.b, &self.a).to_kind(kind)
    }

    fn to_device(&self, device: Device) -> Box<dyn BaseWeight> {
        let (base, norms_sq) = (self.base.to_device(device), OnceCell::new());
        Box::new(Self { base, a: self.a.to_device(device), b: self.b.to_device(device), norms_sq })
    }

    fn row_norms_sq(&self) -> Tensor {
        self.norms_sq.get_or_init(|| row_norms_sq(&self.dense(self.kind()))).shallow_clone()
    }
}
