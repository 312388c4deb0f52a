//! Starts of A and B that look at the weight, and change what is frozen: LoftQ, PiSSA and OLoRA.
//!
//! Each splits `W` into `R + s B A`, with `R` frozen as the storage keeps it. PEFT's LoftQ forgets the scale s and so
//! begins beside W for every s but 1; here B takes it into account, as PEFT's PiSSA does.

use std::fmt;
use std::str::FromStr;

use tch::{Kind, Tensor};

use crate::storage::Storage;
use crate::weight::master_kind;
use crate::{Error, Result};

/// A start, by PEFT's name for it in `init_lora_weights`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The best low-rank approximation of what quantising takes away (Li et al. 2023, arXiv 2310.08659, algorithm 1).
    LoftQ,
    /// The largest singular values of the weight (Meng et al. 2024, arXiv 2404.02948, section 3).
    Pissa,
    /// The first columns of its orthogonal factor (Büyükakyüz 2024, arXiv 2406.01775).
    Olora,
}

/// A weight, split.
#[derive(Debug)]
pub struct Started {
    /// `A [rank, in]`, in the master dtype.
    pub a: Tensor,
    /// `B [out, rank]`.
    pub b: Tensor,
    /// What the storage is to be given instead of W `[out, in]`, in W's dtype.
    pub residual: Tensor,
    /// `‖W - (stored + s B A)‖ / ‖W‖`.
    pub error: f64,
    /// `‖W - stored(W)‖ / ‖W‖`: what it would be without.
    pub plain: f64,
}

impl Start {
    /// Splits `w [out, in]` for an adapter of `rank` and `scale` beside `storage`. `rounds`: how often what is stored
    /// and what lies beside are fitted to each other (LoftQ's T).
    ///
    /// # Errors
    /// [`Error::usage`] for LoftQ on a storage that takes nothing away, a rank that does not fit, a scale of 0, no
    /// rounds, and more than one for OLoRA; what the storage refuses.
    pub fn of(
        self,
        w: &Tensor,
        storage: &dyn Storage,
        (rank, scale): (i64, f64),
        rounds: usize,
    ) -> Result<Started> {
        let _guard = tch::no_grad_guard();
        let (out, inp) = w.size2()?;
        self.check(storage, rounds)?;
        if rank < 1 || rank > out.min(inp) || scale == 0.0 || !scale.is_finite() {
            let what = format!("rank {rank} and scale {scale} do not fit a weight of {out} x {inp}");
            return Err(Error::usage(what).hint("the rank is at most the smaller side, the scale is not 0"));
        }
        let kind = w.kind();
        let exact = w.to_kind(master_kind(kind));
        let stored = |t: &Tensor| -> Result<Tensor> { Ok(storage.store(t.copy())?.dense(exact.kind())) };
        let size = exact.norm().double_value(&[]).max(f64::MIN_POSITIVE);
        let share = |t: Tensor| t.norm().double_value(&[]) / size;
        let mut residual = w.copy();
        let mut kept = stored(&residual)?;
        let plain = share(&exact - &kept);
        let (mut b, mut a) = match self {
            Self::LoftQ => principal(&(&exact - &kept), rank)?,
            Self::Pissa => principal(&exact, rank)?,
            Self::Olora => orthogonal(&exact, rank)?,
        };
        if self == Self::Olora {
            // As in PEFT, the factors are not scaled; the residual makes up for it.
            b *= scale;
        }
        for round in 0..rounds {
            // LoftQ has been through its first storing above.
            if self == Self::LoftQ && round == 0 {
                continue;
            }
            if round > 0 && self == Self::Pissa {
                (b, a) = principal(&(&exact - &kept), rank)?;
            }
            residual = (&exact - b.matmul(&a)).to_kind(kind);
            kept = stored(&residual)?;
            if self == Self::LoftQ {
                (b, a) = principal(&(&exact - &kept), rank)?;
            }
        }
        let error = share(&exact - &kept - b.matmul(&a));
        Ok(self.scaled(Started { a, b, residual, error, plain }, scale))
    }

    /// `s B A` as B and A.
    fn scaled(self, started: Started, scale: f64) -> Started {
        let Started { a, b, .. } = started;
        let (a, b) = match self {
            Self::Olora => (a, b / scale),
            // Both sides alike, as PEFT's PiSSA.
            _ => {
                let root = scale.abs().sqrt();
                (a / root, b / (root * scale.signum()))
            }
        };
        Started { a, b, ..started }
    }

    /// Whether such a start makes sense beside `storage`.
    ///
    /// # Errors
    /// See [`Start::of`].
    pub fn check(self, storage: &dyn Storage, rounds: usize) -> Result<()> {
        if self == Self::LoftQ && storage.keeps_the_tensor() {
            return Err(Error::usage(
                "LoftQ makes up for what quantising takes away, and here nothing is quantised",
            )
            .hint("name a storage that quantises; or start with pissa or olora"));
        }
        if rounds == 0 || (self == Self::Olora && rounds > 1) {
            return Err(Error::usage(format!("{rounds} rounds of {self}"))
                .hint("give 1 or more; for olora, which does not iterate, 1"));
        }
        Ok(())
    }
}

/// The best approximation of rank r as `B [out, r]` and `A [r, in]`, singular values shared between them. From the
/// eigenvectors of the smaller of `M Mᵀ` and `Mᵀ M` in f64: of the largest singular values nothing is lost by
/// squaring, and the work is that of the smaller side.
fn principal(m: &Tensor, rank: i64) -> Result<(Tensor, Tensor)> {
    let (out, inp) = m.size2()?;
    let wide = m.to_kind(Kind::Double);
    let wide = if out <= inp { wide } else { wide.tr() };
    let gram = wide.matmul(&wide.tr());
    let (_, vectors) = gram.f_linalg_eigh("L")?;
    // The largest come last.
    let u = vectors.narrow(1, vectors.size()[1] - rank, rank).flip([1]);
    let rest = u.tr().matmul(&wide);
    let root = rest.norm_scalaropt_dim(2.0, [1i64].as_slice(), true).sqrt();
    // A direction without length has nothing to share.
    let safe = root.where_self(&root.gt(0.0), &root.ones_like());
    let (left, right) = (u * root.tr(), rest / safe);
    let (b, a) = if out <= inp { (left, right) } else { (right.tr(), left.tr()) };
    Ok((b.to_kind(m.kind()).contiguous(), a.to_kind(m.kind()).contiguous()))
}

/// `Q [out, r]` and `R [r, in]` of the QR decomposition.
fn orthogonal(m: &Tensor, rank: i64) -> Result<(Tensor, Tensor)> {
    let (q, r) = Tensor::f_linalg_qr(m, "reduced")?;
    Ok((q.narrow(1, 0, rank).contiguous(), r.narrow(0, 0, rank).contiguous()))
}

impl FromStr for Start {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "loftq" => Ok(Self::LoftQ),
            "pissa" => Ok(Self::Pissa),
            "olora" => Ok(Self::Olora),
            _ => Err(Error::usage(format!("`{name}` is no start that looks at the weight"))
                .hint("there are loftq, pissa and olora")),
        }
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LoftQ => "loftq",
            Self::Pissa => "pissa",
            Self::Olora => "olora",
        })
    }
}
