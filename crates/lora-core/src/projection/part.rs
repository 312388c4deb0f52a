//! What backward keeps of each layer.

use tch::{Kind, Tensor};
use tch_ext::{Product, Sum, gemm};

use crate::adapter::Mode;
use crate::factors::Factors;
use crate::weight::BaseWeight;

/// One layer, as backward needs it.
pub(super) struct Part {
    pub(super) weight: Box<dyn BaseWeight>,
    pub(super) low: Option<Low>,
}

/// Its update in the compute dtype: `a = s A [r, in]`, `b = B [out, r]`.
pub(super) struct Low {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f64,
    /// Its first column in `h`.
    pub(super) first: i64,
    /// Dropout: x is multiplied with it.
    pub(super) mask: Option<Tensor>,
    pub(super) gain: Option<Kept>,
}

/// The gain, and what its gradient needs.
pub(super) struct Kept {
    pub(super) value: Tensor,
    pub(super) slope: Tensor,
    /// The layer's output after the gain, which the layer's reader often keeps anyway; or before it, since a gain
    /// of 0 cannot be divided by, and a large bias would swamp it.
    pub(super) y: Option<Tensor>,
    pub(super) before: bool,
}

impl Low {
    pub(super) fn new(
        f: &Factors<'_>,
        x: &Tensor,
        bias: Option<&Tensor>,
        rank: &mut i64,
        mode: Mode,
    ) -> Self {
        let first = *rank;
        *rank += f.a.size()[0];
        let keep = 1.0 - f.dropout;
        let (a, b) = f.in_kind(x.kind());
        let drops = mode == Mode::Train && f.dropout > 0.0;
        Self {
            a,
            b,
            scale: f.scale,
            first,
            mask: drops.then(|| x.empty_like().bernoulli_float_(keep) / keep),
            gain: f.gain.as_ref().map(|g| Kept {
                before: bias.is_some() || g.value.eq(0.0).any().int64_value(&[]) != 0,
                value: g.value.shallow_clone(),
                slope: g.slope.shallow_clone(),
                y: None,
            }),
        }
    }

    /// Its columns of `h` or of h's gradient.
    pub(super) fn columns(&self, h: &Tensor) -> Tensor {
        h.narrow(1, self.first, self.a.size()[0])
    }

    /// What of x it sees.
    pub(super) fn seen(&self, x: &Tensor) -> Tensor {
        self.mask.as_ref().map_or_else(|| x.shallow_clone(), |mask| x * mask)
    }
}

impl Kept {
    pub(super) fn finish(&mut self, out: Tensor, bias: Option<&Tensor>, kind: Kind) -> Tensor {
        self.y = Some(out.to_kind(kind));
        if !self.before {
            return out;
        }
        let y = &out * &self.value;
        bias.map_or(y.shallow_clone(), |bias| &y + bias).to_kind(kind)
    }
}

impl Part {
    pub(super) fn gain(&self) -> Option<&Kept> {
        self.low.as_ref().and_then(|low| low.gain.as_ref())
    }
}

/// `h = x (sA)ᵀ [n, all ranks]`, and each update's columns of it: at once where no dropout tells the layers' inputs
/// apart.
pub(super) fn hidden(x: &Tensor, parts: &[Part], rank: i64) -> (Tensor, Vec<Tensor>) {
    let h = Tensor::empty([x.size()[0], rank], (x.kind(), x.device()));
    let lows: Vec<&Low> = parts.iter().filter_map(|p| p.low.as_ref()).collect();
    let columns: Vec<Tensor> = match &lows[..] {
        [_] => vec![h.shallow_clone()],
        _ => lows.iter().map(|low| low.columns(&h)).collect(),
    };
    // For a generated token or two, putting the A together takes longer than multiplying with them.
    if lows.len() == 1 || x.size()[0] <= 4 || lows.iter().any(|low| low.mask.is_some()) {
        let seen: Vec<Tensor> = lows.iter().map(|low| low.seen(x)).collect();
        let sums = lows.iter().zip(&seen).zip(&columns);
        let sums = sums.map(|((low, x), h)| Sum::new(vec![Product::transposed(x, &low.a)], h));
        gemm(&sums.collect::<Vec<_>>());
    } else if !lows.is_empty() {
        let a = Tensor::cat(&lows.iter().map(|low| &low.a).collect::<Vec<_>>(), 0);
        gemm(&[Sum::new(vec![Product::transposed(x, &a)], &h)]);
    }
    (h, columns)
}
