//! The rules: from the clients' factors to what all of them go on with.

use super::stack::{Decomposition, Stack, rounding};
use super::trains::Trains;
use super::upload::{Layer, Upload, shares};
use lora_core::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use tch::{Kind, Tensor};

/// How uploads become one model. With shares `p_k`, and scales `s_k` (folded, so that clients may differ in them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// `Ā = Σ p_k A_k`, `B̄ = Σ p_k B_k` (FedIT; Zhang et al. 2024): FedAvg on the factors. Not exact: `B̄ Ā` is not
    /// `Σ p_k B_k A_k`.
    FedIt,
    /// A stays as all started with it, `B̄ = Σ p_k B_k` (FFA-LoRA; Sun et al. 2024). Exact.
    Ffa,
    /// B in odd rounds, A in even ones, while the other stays (RoLoRA; Chen et al. 2025). Exact.
    RoLora {
        /// From 1.
        round: u64,
    },
    /// FedIT, and what it misses as a side adapter of rank at most `Σ r_k + r` (FedEx-LoRA; Singhal et al. 2025; there
    /// it is added to the weight, here the base stays as it is, in 4 bits too). Exact.
    FedEx,
    /// All factors side by side, of rank `Σ r_k` (FLoRA; Wang et al. 2024). Exact, ranks may differ.
    Flora,
    /// The sum cut to each client's rank (FlexLoRA; Bai et al. 2024): the nearest there is.
    FlexLora,
    /// B alone is trained; `U Σ Vᵀ = B̄ Â`, then `B̂ = U Σ`, `Â = Vᵀ` (FedSVD; Lee et al. 2025). Exact.
    FedSvd,
    /// `Ā` alone is shared, each client keeps its B (FedSA-LoRA; Guo et al. 2025). There is no common model.
    FedSa,
}

/// What clients replace their factors with; none: they keep theirs.
#[derive(Debug)]
pub struct Shared {
    /// `A [r, in]`.
    pub a: Option<Tensor>,
    /// `B [out, r]`.
    pub b: Option<Tensor>,
    /// That belongs to them.
    pub scale: f64,
}

/// One round's result.
#[derive(Debug, Default)]
pub struct Aggregate {
    /// By module.
    pub layers: BTreeMap<String, Shared>,
    /// [`Rule::FedEx`]'s side adapters: to be added to what lies beside the weight already.
    pub side: BTreeMap<String, Layer>,
    /// Means, by name. A mean of DoRA's magnitudes is never exact: the model's rows are `m W'/‖W'‖`.
    pub others: BTreeMap<String, Tensor>,
    /// [`Rule::FlexLora`]'s whole sums, of which a client of rank r takes [`Decomposition::at_rank`].
    pub sums: BTreeMap<String, Decomposition>,
}

impl Rule {
    /// Whether it is a sum of what clients send, and so goes with secure aggregation.
    pub fn is_linear(self) -> bool {
        !matches!(self, Self::FedEx | Self::Flora | Self::FlexLora)
    }

    /// What clients train, and what of it they send.
    pub fn trains(self) -> (Trains, Trains) {
        match self {
            Self::Ffa | Self::FedSvd => (Trains::B, Trains::B),
            Self::RoLora { round } if round % 2 == 1 => (Trains::B, Trains::B),
            Self::RoLora { .. } => (Trains::A, Trains::A),
            Self::FedSa => (Trains::All, Trains::A),
            Self::FedIt | Self::FedEx | Self::Flora | Self::FlexLora => (Trains::All, Trains::All),
        }
    }

    /// Puts the uploads together. `before` are the factors that all clients started this round from, which the rules
    /// that keep one of them need: [`Rule::Ffa`], [`Rule::RoLora`], [`Rule::FedSvd`].
    ///
    /// # Errors
    /// Uploads that do not fit together; a rule that needs equal ranks and does not get them; a client that changed
    /// the factor that was to stay.
    pub fn aggregate(self, uploads: &[Upload]) -> Result<Aggregate> {
        let shares = shares(uploads)?;
        let Some(first) = uploads.first() else { return Ok(Aggregate::default()) };
        let mut all = Aggregate::default();
        for (module, layer) in &first.layers {
            let layers: Vec<_> =
                shares.iter().zip(uploads).filter_map(|(p, u)| Some((*p, u.layers.get(module)?))).collect();
            self.layer(module, &layers, &mut all)
                .map_err(|e| e.at(module))
                .map(|shared| all.layers.insert(module.clone(), shared.rounded(layer.a.kind())))?;
        }
        for (name, tensor) in &first.others {
            let values = shares.iter().zip(uploads).filter_map(|(p, u)| Some((*p, u.others.get(name)?)));
            all.others.insert(name.clone(), mean(values).to_kind(tensor.kind()));
        }
        Ok(all)
    }

    fn layer(self, module: &str, layers: &[(f64, &Layer)], all: &mut Aggregate) -> Result<Shared> {
        let (_, first) = layers[0];
        let scale = first.scale;
        let products: Vec<_> = layers.iter().map(|(p, l)| (p * l.scale, &l.b, &l.a)).collect();
        let a = || mean(layers.iter().map(|(p, l)| (*p, &l.a)));
        // B carries what a client's scale differs by.
        let b = || mean(layers.iter().map(|(p, l)| (p * l.scale / scale, &l.b)));
        Ok(match self {
            Self::FedIt => {
                self.equal_ranks(layers)?;
                Shared { a: Some(a()), b: Some(b()), scale }
            }
            Self::Ffa => {
                self.equal(layers, "A", |l| &l.a)?;
                Shared { a: None, b: Some(b()), scale }
            }
            Self::RoLora { round } if round % 2 == 1 => {
                self.equal(layers, "A", |l| &l.a)?;
                Shared { a: None, b: Some(b()), scale }
            }
            Self::RoLora { .. } => {
                self.equal(layers, "B", |l| &l.b)?;
                let a = mean(layers.iter().map(|(p, l)| (p * l.scale / scale, &l.a)));
                Shared { a: Some(a), b: None, scale }
            }
            Self::FedEx => {
                self.equal_ranks(layers)?;
                let (a, b) = (a(), b());
                let kind = first.a.kind();
                // What clients get is rounded, so what it misses is counted from there.
                let sent = (a.to_kind(kind), b.to_kind(kind));
                let mut missed = products;
                missed.push((-scale, &sent.1, &sent.0));
                let sum = Stack::new(&missed)?.decompose()?;
                // Differences of K clients have rank (K - 1) r; what is more is the mean's own rounding.
                let size = |t: &Tensor| t.norm().double_value(&[]);
                let rank = sum.rank_above(rounding(kind) * scale.abs() * size(&a) * size(&b));
                if rank > 0 {
                    let (side_b, side_a) = sum.at_rank(rank);
                    let side = Layer { a: side_a.to_kind(kind), b: side_b.to_kind(kind), scale: 1.0 };
                    all.side.insert(module.to_owned(), side);
                }
                Shared { a: Some(a), b: Some(b), scale }
            }
            Self::Flora => {
                let (b, a) = Stack::new(&products)?.into_factors();
                Shared { a: Some(a), b: Some(b), scale: 1.0 }
            }
            Self::FlexLora => {
                let sum = Stack::new(&products)?.decompose()?;
                let most = layers.iter().map(|(_, l)| l.rank()).max().unwrap_or(0);
                let (b, a) = sum.at_rank(most);
                all.sums.insert(module.to_owned(), sum);
                Shared { a: Some(a), b: Some(b), scale: 1.0 }
            }
            Self::FedSvd => {
                self.equal(layers, "A", |l| &l.a)?;
                let sum = Stack::new(&[(1.0, &b(), &first.a)])?.decompose()?;
                let (b, a) = sum.at_rank(first.rank());
                Shared { a: Some(a), b: Some(b), scale }
            }
            Self::FedSa => Shared { a: Some(a_of_equal(self, layers, a)?), b: None, scale },
        })
    }

    fn equal_ranks(self, layers: &[(f64, &Layer)]) -> Result<()> {
        let ranks: Vec<_> = layers.iter().map(|(_, l)| l.rank()).collect();
        if ranks.windows(2).all(|two| two[0] == two[1]) {
            return Ok(());
        }
        Err(Error::usage(format!("{self} needs one rank, and the clients have {ranks:?}"))
            .hint("flora and flexlora take different ranks"))
    }

    /// Whether a factor that was to stay is the same everywhere.
    fn equal(self, layers: &[(f64, &Layer)], name: &str, of: fn(&Layer) -> &Tensor) -> Result<()> {
        let first = of(layers[0].1);
        if layers.iter().all(|(_, l)| of(l) == first) {
            return Ok(());
        }
        Err(Error::data(format!("{self} keeps {name}, and clients sent different ones"))
            .hint("all must start the round from the same adapter and train the other factor alone"))
    }
}

fn a_of_equal(rule: Rule, layers: &[(f64, &Layer)], a: impl Fn() -> Tensor) -> Result<Tensor> {
    rule.equal_ranks(layers)?;
    Ok(a())
}

impl Shared {
    fn rounded(self, kind: Kind) -> Self {
        let round = |t: Option<Tensor>| t.map(|t| t.to_kind(kind));
        Self { a: round(self.a), b: round(self.b), scale: self.scale }
    }
}

/// `Σ c_k T_k` in f64, in the order given.
fn mean<'a>(parts: impl IntoIterator<Item = (f64, &'a Tensor)>) -> Tensor {
    let wide = |(c, t): (f64, &Tensor)| t.detach().to_kind(Kind::Double) * c;
    parts.into_iter().map(wide).reduce(|a, b| a + b).unwrap_or_else(Tensor::new)
}

const NAMES: [(&str, Rule); 8] = [
    ("fedit", Rule::FedIt),
    ("ffa", Rule::Ffa),
    ("rolora", Rule::RoLora { round: 1 }),
    ("fedex", Rule::FedEx),
    ("flora", Rule::Flora),
    ("flexlora", Rule::FlexLora),
    ("fedsvd", Rule::FedSvd),
    ("fedsa", Rule::FedSa),
];

impl FromStr for Rule {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let found = NAMES.iter().find(|(n, _)| *n == name).map(|(_, rule)| *rule);
        found.ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(n, _)| *n).collect();
            Error::usage(format!("there is no rule `{name}`"))
                .hint(format!("the rules are {}", names.join(", ")))
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let same = |rule: &Rule| std::mem::discriminant(rule) == std::mem::discriminant(self);
        f.write_str(NAMES.iter().find(|(_, rule)| same(rule)).map_or("", |(name, _)| name))
    }
}
