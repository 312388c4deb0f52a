//! The storage hole: how the frozen `W [out, in]` is kept.

use std::cell::OnceCell;
use std::fmt::Debug;

use tch::{Device, Kind, Tensor};

/// A frozen `W [out, in]`, however it is stored. It never changes, so what is derived from it may be cached.
pub trait BaseWeight: Debug + Send {
    /// `(out, in)`.
    fn shape(&self) -> (i64, i64);

    /// Where it lies.
    fn device(&self) -> Device;

    /// The dtype that it is meant to be computed in.
    fn kind(&self) -> Kind;

    /// Bytes that the storage takes.
    fn bytes(&self) -> u64;

    /// `W [out, in]` in `kind`.
    fn dense(&self, kind: Kind) -> Tensor;

    /// Factors `A [r, in]` and `B [out, r]`, in the master dtype, whose product is a part of W that lies beside the rest:
    /// products take it by itself, so that half precision does not round it away ([`crate::beside()`]).
    fn beside(&self) -> Option<(&Tensor, &Tensor)> {
        None
    }

    /// `W [out, in]` in `kind` without what lies beside it, as products take it.
    fn bare(&self, kind: Kind) -> Tensor {
        self.dense(kind)
    }

    /// The same weight on `device`; another handle on the same storage where it lies there already.
    fn to_device(&self, device: Device) -> Box<dyn BaseWeight>;

    /// Another handle on the same storage.
    fn share(&self) -> Box<dyn BaseWeight> {
        self.to_device(self.device())
    }

    /// The tensors that a checkpoint keeps a packed weight as: see [`crate::Parts`]. `None` for a dense one.
    fn parts(&self) -> Option<Vec<(String, Tensor)>> {
        None
    }

    /// `‖Wᵢ‖²` of each row of the weight in its `kind`, and of what lies beside it in full, which is what products see: f32
    /// (f64 for an f64 weight) `[out]`; computed once.
    fn row_norms_sq(&self) -> Tensor;
}

/// The default storage: the weight as it is, in f32, bf16, f16 or f64.
#[derive(Debug)]
pub struct Dense {
    weight: Tensor,
    norms_sq: OnceCell<Tensor>,
}

impl Dense {
    /// Keeps `weight [out, in]`.
    pub fn new(weight: Tensor) -> Self {
        Self { weight: weight.detach(), norms_sq: OnceCell::new() }
    }
}

impl BaseWeight for Dense {
    fn shape(&self) -> (i64, i64) {
        let size = self.weight.size();
        (size[0], size[1])
    }

    fn device(&self) -> Device {
        self.weight.device()
    }

    fn kind(&self) -> Kind {
        self.weight.kind()
    }

    fn bytes(&self) -> u64 {
        (self.weight.numel() * self.weight.kind().elt_size_in_bytes()) as u64
    }

    fn dense(&self, kind: Kind) -> Tensor {
        self.weight.to_kind(kind)
    }

    fn to_device(&self, device: Device) -> Box<dyn BaseWeight> {
        Box::new(Self::new(self.weight.to_device(device)))
    }

    fn row_norms_sq(&self) -> Tensor {
        self.norms_sq.get_or_init(|| row_norms_sq(&self.weight)).shallow_clone()
    }
}

/// The dtype in which trainable parameters and norms are kept beside a weight of `kind`: f32, or f64 for f64.
pub fn master_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
}

/// The whole weight in the master dtype: `w [out, in]`, its [`BaseWeight::bare`], and what lies beside it.
pub(crate) fn whole(base: &dyn BaseWeight, w: &Tensor) -> Tensor {
    let w = w.to_kind(master_kind(w.kind()));
    match base.beside() {
        Some((a, b)) => w.addmm(&b.to_kind(w.kind()), &a.to_kind(w.kind())),
        None => w,
    }
}

/// `‖wᵢ‖²` of each row of `w [out, in]`, in the master dtype; for storages to cache.
pub fn row_norms_sq(w: &Tensor) -> Tensor {
    let _guard = tch::no_grad_guard();
    w.to_kind(master_kind(w.kind())).square().sum_dim_intlist([1i64].as_slice(), false, None)
}

/// Whether no element is NaN or infinite.
pub fn all_finite(t: &Tensor) -> bool {
    t.isfinite().all().int64_value(&[]) == 1
}
