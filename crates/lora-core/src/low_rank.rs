//! The default update: `W' = W + s B A` (LoRA; Hu et al. 2021, arXiv 2106.09685, section 4.1).

use tch::{Kind, Tensor};
use tch_ext::cuda::{Arg, Source};
use tch_ext::{Product, Sum, gemm};

use crate::adapter::Adapter;
use crate::config::Init;
use crate::factors::{Copies, Factors};
use crate::recipe::LayerSpec;
use crate::weight::{BaseWeight, master_kind};
use crate::{Error, Result};

/// `A [rank, in]` and `B [out, rank]`, f32 masters; the scale is fixed at construction.
#[derive(Debug)]
pub struct LowRank {
    a: Tensor,
    b: Tensor,
    scale: f64,
    dropout: f64,
    copies: Copies,
}

impl LowRank {
    /// A starts random (as PEFT's `reset_lora_parameters`: kaiming-uniform, that is `U(±1/√in)`, or
    /// `N(0, 1/rank)`), B zero, so that `W' = W`; or both as they are given.
    ///
    /// # Errors
    /// [`Error::usage`] for a rank of 0 or above the larger side, a scale that is not finite, or a dropout
    /// outside `[0, 1)`.
    pub fn new(base: &dyn BaseWeight, spec: &LayerSpec<'_>) -> Result<Self> {
        let (out, inp) = base.shape();
        let &LayerSpec { rank, scale, dropout, init, given } = spec;
        if rank < 1 || rank > out.max(inp) {
            return Err(Error::usage(format!("rank {rank} does not fit a weight of {out} x {inp}"))
                .hint(format!("use a rank from 1 to {}", out.max(inp))));
        }
        if !scale.is_finite() || !(0.0..1.0).contains(&dropout) {
            return Err(Error::usage(format!("scale {scale} or dropout {dropout} is out of range"))
                .hint("alpha must be finite, dropout at least 0 and below 1"));
        }
        let options = (master_kind(base.kind()), base.device());
        let mut a = Tensor::empty([rank, inp], options);
        let _ = match init {
            Init::Kaiming => a.uniform_(-1.0 / (inp as f64).sqrt(), 1.0 / (inp as f64).sqrt()),
            Init::Gaussian => a.normal_(0.0, 1.0 / rank as f64),
        };
        let mut b = Tensor::zeros([out, rank], options);
        if let Some((given_a, given_b)) = given {
            if given_a.size() != a.size() || given_b.size() != b.size() {
                let what = format!(
                    "A {:?} and B {:?} do not fit a weight of {out} x {inp}",
                    given_a.size(),
                    given_b.size()
                );
                return Err(Error::data(what));
            }
            a.copy_(given_a);
            b.copy_(given_b);
        }
        Ok(Self {
            a: a.set_requires_grad(true),
            b: b.set_requires_grad(true),
            scale,
            dropout,
            copies: Copies::default(),
        })
    }
}

impl Adapter for LowRank {
    fn effective(&self, w: &Tensor) -> Tensor {
        // Summed in the master dtype: a bf16 weight is rounded once.
        let master = self.a.kind();
        (w.to_kind(master) + self.b.matmul(&self.a) * self.scale).to_kind(w.kind())
    }

    fn params(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("lora_A.weight", &self.a), ("lora_B.weight", &self.b)]
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn factors(&self, _: &dyn BaseWeight, _: &Tensor) -> Option<Factors<'_>> {
        let &Self { ref a, ref b, scale, dropout, ref copies } = self;
        Some(Factors { a, b, scale, dropout, copies, gain: None })
    }

    /// `‖W + sBA‖² = ‖W‖² + s (2 W Aᵀ + B (s A Aᵀ)) ∘ B`, summed over rows: nothing of size `[out, in]` is built,
    /// and `‖W‖²` is the storage's own cached one. What lies beside W adds its own `B' (A' Aᵀ)` to `W Aᵀ`.
    fn row_norms(&self, base: &dyn BaseWeight, w: &Tensor) -> Tensor {
        let _guard = tch::no_grad_guard();
        let wa = self.b.empty_like();
        let a = self.a.to_kind(w.kind());
        let beside = base.beside().map(|(there_a, there_b)| {
            let through = there_a.matmul(&self.a.tr());
            (there_b.to_kind(w.kind()), through.to_kind(w.kind()))
        });
        let mut products = vec![Product::transposed(w, &a)];
        products.extend(beside.as_ref().map(|(b, through)| Product::plain(b, through)));
        gemm(&[Sum::new(products, &wa)]);
        let (gram, squares) = (self.a.matmul(&self.a.tr()), base.row_norms_sq());
        self.row_norms_on_cuda(&squares, &wa, &gram).unwrap_or_else(|| {
            let own = self.b.matmul(&(gram * self.scale));
            let update = ((wa * 2.0 + own) * &self.b).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>);
            (squares + update * self.scale).clamp_min_(0.0).sqrt_()
        })
    }
}

// A block writes one of `out` norms, and reads a row of `rank` numbers; the others are as large as `run` is told.
static ROW_NORMS: Source = tch_ext::cuda_source!("row_norms", include_str!("row_norms.cu"));
/// The kernels of this file.
pub(crate) const CUDA_SOURCE: &Source = &ROW_NORMS;

impl LowRank {
    fn row_norms_on_cuda(&self, squares: &Tensor, wa: &Tensor, gram: &Tensor) -> Option<Tensor> {
        let b = self.b.contiguous();
        let (kind, out, rank) = (b.kind(), b.size()[0] as usize, b.size()[1] as usize);
        let ready = ROW_NORMS.on(&[&b], 1)?;
        let (norms, of) = (squares.empty_like(), |t, n| Arg::Of(t, kind, n));
        let tensors = [of(&norms, out), of(squares, out), of(wa, out * rank), of(&b, out * rank)];
        let rest = [of(gram, rank * rank), Arg::Int(rank), Arg::Float(self.scale)];
        let args: Vec<Arg<'_>> = tensors.into_iter().chain(rest).collect();
        ready.run("row_norms", out, rank.next_multiple_of(32).min(256), &args);
        Some(norms)
    }
}
