//! Rules for clients that may lie. They look at single uploads, so secure aggregation rules them out.

use super::upload::{Layer, Upload};
use lora_core::{Error, Result, all_finite};
use std::collections::BTreeMap;
use std::fmt;
use tch::{Kind, Tensor};

/// What an upload may be at most. LoRA has a gauge: `(c A, B / c)` is the same update with other factors, so both are
/// bounded.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Frobenius norm of each A and each B.
    pub factor: f64,
    /// Frobenius norm of each `s B A`.
    pub update: f64,
}

/// An upload that does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose.
    pub client: String,
    /// Why, with the module.
    pub why: String,
}

impl Bounds {
    /// Those that keep to the bounds and have the shapes of `before`, the factors that the round started from; and
    /// those that do not. A number that is not finite keeps to no bound.
    pub fn screen(&self, uploads: Vec<Upload>, before: &Upload) -> (Vec<Upload>, Vec<Refusal>) {
        let (mut kept, mut refused) = (Vec::new(), Vec::new());
        for upload in uploads {
            match self.fault(&upload, before) {
                Some(why) => refused.push(Refusal { client: upload.client, why }),
                None => kept.push(upload),
            }
        }
        (kept, refused)
    }

    fn fault(&self, upload: &Upload, before: &Upload) -> Option<String> {
        if !upload.layers.keys().eq(before.layers.keys()) || !upload.others.keys().eq(before.others.keys()) {
            return Some("it has other modules than this round".into());
        }
        for (name, layer) in &upload.layers {
            let sizes = |l: &Layer| (l.a.size(), l.b.size());
            if before.layers.get(name).is_none_or(|b| sizes(b) != sizes(layer) || b.scale != layer.scale) {
                return Some(format!("{name}: another shape or scale than this round's"));
            }
            let norms = [("A", norm(&layer.a), self.factor), ("B", norm(&layer.b), self.factor)];
            for (what, norm, bound) in
                norms.into_iter().chain([("s B A", product(layer, layer).sqrt(), self.update)])
            {
                // `!(<=)` holds for NaN too.
                if !(norm <= bound) {
                    return Some(format!("{name}: the norm of {what} is {norm:.3e}, above {bound:.3e}"));
                }
            }
        }
        let bad = upload.others.iter().find(|(name, t)| {
            before.others.get(*name).is_none_or(|b| b.size() != t.size())
                || !all_finite(t)
                || !(norm(t) <= self.factor)
        });
        bad.map(|(name, _)| format!("{name}: another shape than this round's, or numbers beyond the bound"))
    }
}

/// A robust rule instead of a mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Robust {
    /// The median of each number of A and of B (Yin et al. 2018): right with fewer than half of the clients lying.
    Median,
    /// The mean of each number without this share of the lowest and of the highest (Yin et al. 2018), in whole numbers of
    /// uploads, rounded down, but one at least: below one half; 0 is the plain mean.
    TrimmedMean(f64),
    /// The one upload that is nearest to its `n - f - 2` nearest ones (Krum; Blanchard et al. 2017), by `s B A` and all
    /// other tensors, with up to f of n clients lying, `n >= 2 f + 3`.
    Krum {
        /// How many may lie.
        lying: usize,
    },
}

impl fmt::Display for Robust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Median => f.write_str("the median"),
            Self::TrimmedMean(share) => write!(f, "the mean without {share} of each side"),
            Self::Krum { lying } => write!(f, "Krum with {lying} lying"),
        }
    }
}

impl Robust {
    /// How many must be asked: a trimmed mean so many that its share is one upload.
    pub fn least(self) -> usize {
        match self {
            Self::TrimmedMean(share) if share > 0.0 => {
                let n = (1.0 / share).ceil() as usize;
                // Their product may be rounded.
                if whole(share, n) > 0 { n } else { n.saturating_add(1) }
            }
            Self::Krum { lying } => lying.saturating_mul(2).saturating_add(3),
            Self::Median | Self::TrimmedMean(_) => 1,
        }
    }

    /// How many good replies it takes where [`Robust::least`] and more were asked: of a trimmed mean one between those that are cut.
    pub fn needs(self) -> usize {
        match self {
            Self::TrimmedMean(share) if share > 0.0 => 3,
            _ => self.least(),
        }
    }

    /// Whether it makes sense where so many are asked, before they are.
    ///
    /// # Errors
    /// [`Error::usage`] for fewer than [`Robust::least`], or a share that cannot be cut.
    pub fn takes(self, n: usize) -> Result<()> {
        let least = self.least();
        match self {
            Self::TrimmedMean(share) if !(0.0..0.5).contains(&share) => {
                Err(Error::usage(format!("{share} of each side cannot be cut")).hint("below one half"))
            }
            // It would be the plain mean, which one liar moves anywhere.
            Self::TrimmedMean(share) if n < least => {
                let what = format!("{share} of each side of {n} uploads is not one of them: nothing is cut");
                let hint = format!("it takes {least} uploads in every round, a larger share, or the median");
                Err(Error::usage(what).hint(hint))
            }
            Self::Krum { .. } if n < least => {
                let hint =
                    format!("it takes {least} uploads in every round, fewer that may lie, or the median");
                Err(Error::usage(format!("{self} needs {least} uploads, and there are {n}")).hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// One upload from many, which must fit together ([`Bounds::screen`] first). Weights do not count: whoever lies
    /// could lie about them.
    ///
    /// # Errors
    /// [`Error::usage`] for too few uploads: of Krum those of [`Robust::takes`], of a trimmed mean one that would cut all.
    pub fn aggregate(self, uploads: &[Upload]) -> Result<Upload> {
        let shares = super::upload::shares(uploads)?;
        let n = shares.len();
        let of = |stack: &Tensor| match self {
            Self::Median => median(stack),
            Self::TrimmedMean(share) => {
                let cut = cut(share, n);
                let (sorted, _) = stack.sort(0, false);
                sorted.narrow(0, cut, n as i64 - 2 * cut).mean_dim([0i64].as_slice(), false, Kind::Double)
            }
            Self::Krum { .. } => stack.select(0, 0),
        };
        match self {
            Self::TrimmedMean(_) => {
                self.takes(usize::MAX)?;
                if n < self.needs() {
                    let what = format!("one of each side of {n} uploads is cut: nothing is left");
                    return Err(Error::usage(what).hint("it takes three good replies at least"));
                }
            }
            Self::Krum { .. } | Self::Median => self.takes(n)?,
        }
        let chosen: Vec<&Upload> = match self {
            Self::Krum { lying } => uploads.get(krum(uploads, lying)).into_iter().collect(),
            _ => uploads.iter().collect(),
        };
        let join = |pick: &dyn Fn(&Upload) -> Option<Tensor>| {
            let all: Vec<_> =
                chosen.iter().filter_map(|u| pick(u)).map(|t| t.to_kind(Kind::Double)).collect();
            of(&Tensor::stack(&all, 0))
        };
        let mut result =
            Upload { client: String::new(), weight: 1.0, layers: BTreeMap::new(), others: BTreeMap::new() };
        for (name, layer) in &uploads[0].layers {
            if uploads
                .iter()
                .any(|u| u.layers[name].a.size() != layer.a.size() || u.layers[name].scale != layer.scale)
            {
                return Err(Error::usage("robust rules need one rank and one scale").at(name));
            }
            let a = join(&|u| u.layers.get(name).map(|l| l.a.shallow_clone())).to_kind(layer.a.kind());
            let b = join(&|u| u.layers.get(name).map(|l| l.b.shallow_clone())).to_kind(layer.b.kind());
            result.layers.insert(name.clone(), Layer { a, b, scale: layer.scale });
        }
        for (name, tensor) in &uploads[0].others {
            let value = join(&|u| u.others.get(name).map(Tensor::shallow_clone)).to_kind(tensor.kind());
            result.others.insert(name.clone(), value);
        }
        Ok(result)
    }
}

/// The middle, of an even number the mean of the two in the middle: libtorch's own takes the lower one.
fn median(stack: &Tensor) -> Tensor {
    let n = stack.size()[0];
    let (sorted, _) = stack.sort(0, false);
    (sorted.select(0, (n - 1) / 2) + sorted.select(0, n / 2)) / 2.0
}

/// How many of n a share is.
fn whole(share: f64, n: usize) -> i64 {
    (share * n as f64).floor() as i64
}

/// How many of n a trimmed mean leaves out at each side: one at least. Enough are asked that the share is one of them
/// ([`Robust::takes`]); but where replies are refused it may be none of those that are left. To fail then would let any client
/// end each round by a bad reply, and to cut nobody would be the mean; one more than asked is only more robust.
fn cut(share: f64, n: usize) -> i64 {
    if share > 0.0 { whole(share, n).max(1) } else { 0 }
}

/// The number of the upload that Krum chooses. It is taken whole, so all of it counts.
fn krum(uploads: &[Upload], lying: usize) -> usize {
    let n = uploads.len();
    let inner = |i: usize, j: usize| -> f64 {
        let pairs = uploads[i].layers.values().zip(uploads[j].layers.values());
        pairs.map(|(a, b)| product(a, b)).sum()
    };
    let own: Vec<f64> = (0..n).map(|i| inner(i, i)).collect();
    let apart = |i: usize, j: usize| -> f64 {
        let pairs = uploads[i].others.values().zip(uploads[j].others.values());
        pairs.map(|(a, b)| norm(&(a.to_kind(Kind::Double) - b.to_kind(Kind::Double))).powi(2)).sum()
    };
    let score = |i: usize| -> f64 {
        let distance = |j: usize| (own[i] + own[j] - 2.0 * inner(i, j)).max(0.0) + apart(i, j);
        let mut distances: Vec<f64> = (0..n).filter(|&j| j != i).map(distance).collect();
        distances.sort_by(f64::total_cmp);
        distances[..n - lying - 2].iter().sum()
    };
    let scores: Vec<f64> = (0..n).map(score).collect();
    (0..n).min_by(|&i, &j| scores[i].total_cmp(&scores[j])).unwrap_or(0)
}

fn norm(t: &Tensor) -> f64 {
    t.detach().to_kind(Kind::Double).norm().double_value(&[])
}

/// `<s B A, s' B' A'>` = `s s' tr((Bᵀ B') (A' Aᵀ))`: nothing of size `[out, in]` is built.
fn product(x: &Layer, y: &Layer) -> f64 {
    let wide = |t: &Tensor| t.detach().to_kind(Kind::Double);
    let (down, across) = (wide(&x.b).tr().matmul(&wide(&y.b)), wide(&y.a).matmul(&wide(&x.a).tr()));
    x.scale * y.scale * down.matmul(&across).trace().double_value(&[])
}
