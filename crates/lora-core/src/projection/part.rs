//! What backward keeps of each layer.

use tch::{Kind, Tensor};
use tch_ext::{Product, Saved, Sum, gemm};

use super::gain::floored;
use crate::adapter::Mode;
use crate::factors::Factors;
use crate::weight::BaseWeight;

/// One layer, as backward needs it.
pub(super) struct Part {
    pub(super) weight: Box<dyn BaseWeight>,
    pub(super) low: Option<Low>,
}

/// What lies beside a weight ([`BaseWeight::beside`]), in the compute dtype: frozen, and seen by no dropout.
pub(super) struct Side {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
}

impl Side {
    pub(super) fn of(weight: &dyn BaseWeight, kind: Kind) -> Option<Self> {
        weight.beside().map(|(a, b)| Self { a: a.to_kind(kind), b: b.to_kind(kind) })
    }

    /// `x Aᵀ [n, r]`.
    pub(super) fn through(&self, x: &Tensor) -> Tensor {
        let h = Tensor::empty([x.size()[0], self.a.size()[0]], (x.kind(), x.device()));
        gemm(&[Sum::new(vec![Product::transposed(x, &self.a)], &h)]);
        h
    }

    /// The gradient of that, `dv B [n, r]`.
    pub(super) fn back(&self, dv: &Tensor) -> Tensor {
        let dh = Tensor::empty([dv.size()[0], self.b.size()[1]], (dv.kind(), dv.device()));
        gemm(&[Sum::new(vec![Product::plain(dv, &self.b)], &dh)]);
        dh
    }
}

/// Its update in the compute dtype: `a = s A [r, in]`, `b = B [out, r]`.
pub(super) struct Low {
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f64,
    /// Its first column in `h`, and how many it has: its rank.
    pub(super) first: i64,
    pub(super) rank: i64,
    /// Dropout: x is multiplied with it.
    pub(super) mask: Option<Tensor>,
    pub(super) gain: Option<Kept>,
}

/// The gain, and what its gradient needs.
pub(super) struct Kept {
    pub(super) value: Tensor,
    pub(super) slope: Tensor,
    /// The layer's output after the gain, which the layer's reader often keeps anyway and may change in place; or
    /// before it: see [`before`].
    pub(super) y: Option<Saved>,
    pub(super) before: bool,
}

/// Whether backward keeps a layer's output before its gain: after it a large bias would swamp it, or a small gain leave
/// nothing of it in f16.
pub(super) fn before(bias: bool, kind: Kind) -> bool {
    bias || kind == Kind::Half
}

impl Low {
    pub(super) fn new(
        f: &Factors<'_>,
        x: &Tensor,
        bias: Option<&Tensor>,
        rank: &mut i64,
        (mode, backward): (Mode, bool),
    ) -> Self {
        let (first, mine) = (*rank, f.a.size()[0]);
        *rank += mine;
        let keep = 1.0 - f.dropout;
        let (a, b) = f.in_kind(x.kind());
        let drops = mode == Mode::Train && f.dropout > 0.0;
        Self {
            a,
            b,
            scale: f.scale,
            first,
            rank: mine,
            mask: drops.then(|| x.empty_like().bernoulli_float_(keep) / keep),
            gain: f.gain.as_ref().map(|g| {
                let before = backward && before(bias.is_some(), x.kind());
                let divided = backward && !before;
                let value = if divided { floored(&g.value) } else { g.value.shallow_clone() };
                Kept { before, value, slope: g.slope.shallow_clone(), y: None }
            }),
        }
    }

    /// How many leaves it has.
    pub(super) fn leaves(&self) -> usize {
        if self.gain.is_some() { 3 } else { 2 }
    }

    /// Its columns of `h` or of h's gradient.
    pub(super) fn columns(&self, h: &Tensor) -> Tensor {
        h.narrow(1, self.first, self.rank)
    }

    /// What of x it sees.
    pub(super) fn seen(&self, x: &Tensor) -> Tensor {
        self.mask.as_ref().map_or_else(|| x.shallow_clone(), |mask| x * mask)
    }
}

impl Kept {
    pub(super) fn finish(&mut self, out: Tensor, bias: Option<&Tensor>, kind: Kind) -> Tensor {
        self.y = Some(Saved::new(out.to_kind(kind)));
        if !self.before {
            return out;
        }
        let y = &out * &self.value;
        bias.map_or(y.shallow_clone(), |bias| &y + bias).to_kind(kind)
    }
}

pub(super) fn gain(low: &Option<Low>) -> Option<&Kept> {
    low.as_ref().and_then(|low| low.gain.as_ref())
}

/// `h = x (sA)ᵀ [n, all ranks]`, and each update's columns of it: at once where no dropout tells the layers' inputs
/// apart. Backward wants h whole.
pub(super) fn hidden(
    x: &Tensor,
    lows: &[Option<Low>],
    rank: i64,
    backward: bool,
) -> (Option<Tensor>, Vec<Tensor>) {
    let lows: Vec<&Low> = lows.iter().flatten().collect();
    let rows = x.size()[0];
    let empty = |rank: i64| Tensor::empty([rows, rank], (x.kind(), x.device()));
    // For a generated token or two, putting the A together takes longer than multiplying with them.
    let few = rows <= 4;
    let whole = (backward || !few).then(|| empty(rank));
    let columns: Vec<Tensor> = match (&lows[..], &whole) {
        (_, None) => lows.iter().map(|low| empty(low.rank)).collect(),
        ([_], Some(h)) => vec![h.shallow_clone()],
        (_, Some(h)) => lows.iter().map(|low| low.columns(h)).collect(),
    };
    if let (Some(h), true) = (&whole, !few && lows.len() > 1 && lows.iter().all(|low| low.mask.is_none())) {
        let a = Tensor::cat(&lows.iter().map(|low| &low.a).collect::<Vec<_>>(), 0);
        gemm(&[Sum::new(vec![Product::transposed(x, &a)], h)]);
    } else {
        let seen: Vec<Tensor> = lows.iter().map(|low| low.seen(x)).collect();
        let sums = lows.iter().zip(&seen).zip(&columns);
        let sums = sums.map(|((low, x), h)| Sum::new(vec![Product::transposed(x, &low.a)], h));
        gemm(&sums.collect::<Vec<_>>());
    }
    (whole, columns)
}
