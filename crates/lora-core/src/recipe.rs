//! `W' = top( storage(W) + scaling(α, r) · update )`: one variant a hole, and recipes that combine them.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use tch::Tensor;

use crate::adapter::Adapter;
use crate::config::Init;
use crate::low_rank::LowRank;
use crate::storage::{AsIs, Packing, Storage, no_options};
use crate::weight::BaseWeight;
use crate::{Error, Result};

/// Makes a storage from the options behind its name (`qlora:fp4:128`: `fp4:128`; often none).
pub type NewStorage = fn(&str) -> Result<Arc<dyn Storage>>;
/// Makes an update for a frozen weight.
pub type Update = fn(&dyn BaseWeight, &LayerSpec<'_>) -> Result<Box<dyn Adapter>>;
/// The scale from α and r.
pub type Scaling = fn(f64, i64) -> f64;
/// Puts something over an update.
pub type Top = fn(Box<dyn Adapter>, &dyn BaseWeight) -> Result<Box<dyn Adapter>>;

/// What an update is made from.
#[derive(Debug, Clone, Copy)]
pub struct LayerSpec<'a> {
    /// The rank r.
    pub rank: i64,
    /// `scaling(α, r)`, computed by the [`Recipe`] alone.
    pub scale: f64,
    /// Probability of dropping an input of the update in training.
    pub dropout: f64,
    /// How A starts, if it is not given.
    pub init: Init,
    /// A `[rank, in]` and B `[out, rank]` to start with.
    pub given: Option<(&'a Tensor, &'a Tensor)>,
}

/// Which hole of the formula a variant fills, and with what.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// How the frozen weight is kept, and how checkpoints keep it so, if they do.
    Storage(NewStorage, Option<&'static dyn Packing>),
    /// The trainable change.
    Update(Update),
    /// Its size, from α and r.
    Scaling(Scaling),
    /// What is done to the sum.
    Top(Top),
}

impl Part {
    fn hole(&self) -> &'static str {
        match self {
            Part::Storage(..) => "storage",
            Part::Update(_) => "update",
            Part::Scaling(_) => "scaling",
            Part::Top(_) => "top",
        }
    }
}

/// A method: a name for one part.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// As in `--variant`.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Where it comes from.
    pub paper: &'static str,
    /// The boolean of `adapter_config.json` that asks for it, if the adapter depends on it.
    pub flag: Option<&'static str>,
    /// Which hole it fills.
    pub part: Part,
}

/// The weight as it is.
pub const DENSE: Variant = Variant {
    name: "dense",
    about: "the frozen weight as it is",
    paper: "",
    flag: None,
    part: Part::Storage(
        |options| {
            no_options("dense", options)?;
            Ok(Arc::new(AsIs))
        },
        None,
    ),
};

/// The low-rank update with scaling α/r.
pub const LORA: Variant = Variant {
    name: "lora",
    about: "a low-rank update B A, scaled by alpha/r",
    paper: "Hu et al. 2021, arXiv 2106.09685",
    flag: None,
    part: Part::Update(|base, spec| Ok(Box::new(LowRank::new(base, spec)?))),
};

/// One choice for each hole; an empty hole takes its default (dense, low rank, α/r, nothing).
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    storage: Option<Chosen>,
    update: Option<Variant>,
    scaling: Option<Variant>,
    top: Option<Variant>,
}

/// A storage by name, and as made from its options.
#[derive(Debug, Clone)]
struct Chosen {
    spec: String,
    made: Arc<dyn Storage>,
}

impl Recipe {
    /// Reads `qlora+dora+rslora`: names out of `variants`, in any order. A storage's options stand behind its name,
    /// after colons.
    ///
    /// # Errors
    /// [`Error::usage`] for a name that is not there, for two names that fill one hole, and for options that there
    /// are not.
    ///
    /// ```
    /// use lora_core::{DENSE, LORA, Recipe};
    /// assert_eq!(Recipe::parse("lora", &[DENSE, LORA]).unwrap().to_string(), "lora");
    /// let e = Recipe::parse("lora+lora", &[DENSE, LORA]).unwrap_err();
    /// assert_eq!(e.to_string(), "`lora` and `lora` both fill the update hole");
    /// ```
    pub fn parse(spec: &str, variants: &[Variant]) -> Result<Self> {
        let mut recipe = Self::default();
        for spec in spec.split('+').map(str::trim) {
            let (name, options) = spec.split_once(':').unwrap_or((spec, ""));
            let found = variants.iter().find(|v| v.name == name);
            recipe.fill(found.ok_or_else(|| unknown(name, variants))?, options)?;
        }
        Ok(recipe)
    }

    /// The recipe that an adapter's configuration asks for by its flags (`use_dora`, ...), on dense storage.
    ///
    /// # Errors
    /// [`Error::unsupported`] for a flag that no variant in `variants` answers to.
    pub fn from_flags(flags: &BTreeSet<String>, variants: &[Variant]) -> Result<Self> {
        let mut recipe = Self::default();
        for flag in flags {
            let found = variants.iter().find(|v| v.flag == Some(flag));
            recipe.fill(
                found.ok_or_else(|| {
                    Error::unsupported(format!("no variant here implements `{flag}`"))
                        .at("adapter_config.json")
                        .hint("the adapter needs a method that this program was built without")
                })?,
                "",
            )?;
        }
        Ok(recipe)
    }

    fn fill(&mut self, variant: &Variant, options: &str) -> Result<()> {
        let hole = match variant.part {
            Part::Storage(new, _) => {
                let colon = if options.is_empty() { "" } else { ":" };
                let chosen =
                    Chosen { spec: format!("{}{colon}{options}", variant.name), made: new(options)? };
                return match self.storage.replace(chosen) {
                    Some(other) => Err(twice(&other.spec, variant)),
                    None => Ok(()),
                };
            }
            Part::Update(_) => &mut self.update,
            Part::Scaling(_) => &mut self.scaling,
            Part::Top(_) => &mut self.top,
        };
        no_options(variant.name, options)?;
        match hole.replace(*variant) {
            Some(other) => Err(twice(other.name, variant)),
            None => Ok(()),
        }
    }

    /// The same recipe on another recipe's storage.
    #[must_use]
    pub fn stored_as(mut self, other: &Self) -> Self {
        self.storage.clone_from(&other.storage);
        self
    }

    /// The variants of all holes but the storage, which no adapter depends on.
    fn parts(&self) -> impl Iterator<Item = &Variant> {
        [&self.update, &self.scaling, &self.top].into_iter().flatten()
    }

    /// The flags that `adapter_config.json` must set for this recipe.
    pub fn flags(&self) -> BTreeSet<String> {
        self.parts().filter_map(|v| v.flag).map(str::to_owned).collect()
    }

    /// Whether the frozen weights are kept as they come.
    pub fn is_dense(&self) -> bool {
        self.storage().keeps_the_tensor()
    }

    /// The storage that it names, with options; `None` where that is left open.
    pub fn storage_name(&self) -> Option<&str> {
        self.storage.as_ref().map(|chosen| chosen.spec.as_str())
    }

    /// The recipe's storage.
    pub fn storage(&self) -> &dyn Storage {
        self.storage.as_ref().map_or(&AsIs, |chosen| chosen.made.as_ref())
    }

    /// Keeps `weight [out, in]` as the recipe's storage does.
    ///
    /// # Errors
    /// What the storage refuses.
    pub fn store(&self, weight: Tensor) -> Result<Box<dyn BaseWeight>> {
        self.storage().store(weight)
    }

    /// `scaling(α, r)`: the only place where it is computed.
    pub fn scale(&self, alpha: f64, rank: i64) -> f64 {
        match self.scaling {
            Some(Variant { part: Part::Scaling(f), .. }) => f(alpha, rank),
            _ => alpha / rank as f64,
        }
    }

    /// A fresh adapter for `base`: it changes nothing yet.
    ///
    /// # Errors
    /// [`Error::usage`] for a rank that does not fit, and what the variants refuse.
    pub fn adapter(
        &self,
        base: &dyn BaseWeight,
        rank: i64,
        alpha: f64,
        dropout: f64,
        init: Init,
    ) -> Result<Box<dyn Adapter>> {
        if rank < 1 {
            return Err(Error::usage(format!("rank {rank} is not positive")).hint("use a rank of 1 or more"));
        }
        self.make(base, &LayerSpec { rank, scale: self.scale(alpha, rank), dropout, init, given: None })
    }

    /// An adapter that starts with `A [rank, in]` and `B [out, rank]`.
    ///
    /// # Errors
    /// [`Error::data`] for shapes that do not fit, and what the variants refuse.
    pub fn adapter_from(
        &self,
        base: &dyn BaseWeight,
        (a, b): (&Tensor, &Tensor),
        alpha: f64,
        dropout: f64,
    ) -> Result<Box<dyn Adapter>> {
        let rank = a.size().first().copied().unwrap_or(0);
        let scale = self.scale(alpha, rank);
        self.make(base, &LayerSpec { rank, scale, dropout, init: Init::Kaiming, given: Some((a, b)) })
    }

    fn make(&self, base: &dyn BaseWeight, spec: &LayerSpec<'_>) -> Result<Box<dyn Adapter>> {
        let Part::Update(update) = self.update.unwrap_or(LORA).part else {
            unreachable!("`fill` puts updates here")
        };
        let adapter = update(base, spec)?;
        match self.top {
            Some(Variant { part: Part::Top(top), .. }) => top(adapter, base),
            _ => Ok(adapter),
        }
    }
}

/// As [`Recipe::parse`] reads it.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = self.storage.iter().map(|chosen| chosen.spec.as_str());
        let names: Vec<_> = storage.chain(self.parts().map(|v| v.name)).collect();
        f.write_str(if names.is_empty() { LORA.name } else { "" })?;
        f.write_str(&names.join("+"))
    }
}

fn twice(other: &str, variant: &Variant) -> Error {
    let (name, hole) = (variant.name, variant.part.hole());
    Error::usage(format!("`{other}` and `{name}` both fill the {hole} hole"))
        .hint("a recipe takes one variant for each of storage, update, scaling and top")
}

fn unknown(name: &str, variants: &[Variant]) -> Error {
    let names: Vec<_> = variants.iter().map(|v| v.name).collect();
    Error::usage(format!("there is no variant `{name}`"))
        .hint(format!("the variants are {}; join several by `+`", names.join(", ")))
}
