//! A frozen weight and a frozen low-rank change of it, kept apart: a packed weight stays as it is, and of a change that is
//! small beside a weight in half precision nothing is lost.

use std::cell::OnceCell;

use tch::{Device, Kind, Tensor};

use crate::weight::{BaseWeight, Dense, all_finite, master_kind, row_norms_sq, whole};
use crate::{Error, Result};

/// `W + B A`, where nothing adds them: a layer multiplies with each.
#[derive(Debug)]
struct Beside {
    base: Box<dyn BaseWeight>,
    a: Tensor,
    b: Tensor,
    norms_sq: OnceCell<Tensor>,
}

/// The weight `W + B A` as a storage: `a [r, in]`, `b [out, r]`, of any r. To a dense W in f32 or f64, which loses nothing by
/// it, B A is added once.
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
    if a.numel() == 0 {
        return Ok(base);
    }
    let exact = master_kind(base.kind());
    let kept = |t: &Tensor| t.detach().to_device(base.device()).to_kind(exact).contiguous();
    let (mut a, mut b) = (kept(a), kept(b));
    if let Some((there_a, there_b)) = base.beside() {
        a = Tensor::cat(&[there_a, &a], 0);
        b = Tensor::cat(&[there_b, &b], 1);
    }
    let made = Beside { base, a, b, norms_sq: OnceCell::new() };
    let packed = made.base.bytes() < (out * inp).unsigned_abs() * made.kind().elt_size_in_bytes() as u64;
    let apart = packed || made.kind() != exact;
    Ok(if apart { Box::new(made) } else { Box::new(Dense::new(made.dense(exact))) })
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
        self.base.bare(exact).addmm(&self.b, &self.a).to_kind(kind)
    }

    fn beside(&self) -> Option<(&Tensor, &Tensor)> {
        Some((&self.a, &self.b))
    }

    fn bare(&self, kind: Kind) -> Tensor {
        self.base.bare(kind)
    }

    fn to_device(&self, device: Device) -> Box<dyn BaseWeight> {
        let (base, norms_sq) = (self.base.to_device(device), OnceCell::new());
        Box::new(Self { base, a: self.a.to_device(device), b: self.b.to_device(device), norms_sq })
    }

    fn row_norms_sq(&self) -> Tensor {
        self.norms_sq.get_or_init(|| row_norms_sq(&whole(self, &self.bare(self.kind())))).shallow_clone()
    }
}
