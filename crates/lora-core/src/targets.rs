//! Which modules get an adapter, and of what rank: PEFT's matching, without its silences.

mod names;
mod pattern;
mod python;

use std::collections::{BTreeSet, HashSet};

use fancy_regex::Regex;

use crate::config::AdapterConfig;
use crate::{Error, ErrorKind, Result};
use names::{groups, last_names, nearest};
use pattern::{matches, too_long};

pub use names::compact_names;
pub(crate) use pattern::{full_pattern, layer_pattern, rank_key_pattern};

/// Which modules, as PEFT's `target_modules` and `exclude_modules` say it.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// `"all-linear"`: every linear layer but the output head.
    AllLinear,
    /// A module is meant when its path is one of these, or ends in `.` and one of these.
    Names(Vec<String>),
    /// A module is meant when this (Python `re`) matches its whole path.
    Regex(String),
}

/// One module that gets an adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// Its path, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The rank there.
    pub r: i64,
    /// The alpha there.
    pub alpha: f64,
}

/// `name` itself, or the last components of it.
fn is_suffix(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// `Targets`, ready to match.
enum Matcher<'a> {
    Names(&'a [String]),
    Pattern(Regex),
    AllBut(Option<&'a str>),
}

impl<'a> Matcher<'a> {
    fn new(targets: &'a Targets, output_head: Option<&'a str>) -> Result<Self> {
        Ok(match targets {
            Targets::AllLinear => Self::AllBut(output_head),
            Targets::Names(names) => Self::Names(names),
            Targets::Regex(pattern) => Self::Pattern(full_pattern(pattern)?),
        })
    }

    fn is_exact(&self, name: &str) -> bool {
        matches!(self, Self::Names(names) if names.iter().any(|n| n == name))
    }

    fn matches(&self, name: &str) -> Result<bool> {
        match self {
            Self::Names(names) => Ok(names.iter().any(|n| is_suffix(name, n))),
            Self::Pattern(pattern) => matches(pattern, name),
            Self::AllBut(head) => Ok(*head != Some(name)),
        }
    }
}

/// `layers_to_transform` and `layers_pattern`, ready to match.
struct Layers<'a> {
    wanted: &'a [i64],
    patterns: Vec<Regex>,
}

impl<'a> Layers<'a> {
    fn new(config: &'a AdapterConfig) -> Result<Option<Self>> {
        let Some(wanted) = config.layers_to_transform.as_deref().filter(|l| !l.is_empty()) else {
            return Ok(None);
        };
        let patterns = match config.layers_pattern.as_slice() {
            [] => vec![layer_pattern(None)?],
            lists => lists.iter().map(|list| layer_pattern(Some(list))).collect::<Result<_>>()?,
        };
        Ok(Some(Self { wanted, patterns }))
    }

    /// The layer that a module is in: what the first pattern that matches says.
    fn index(&self, name: &str) -> Result<Option<i64>> {
        for pattern in &self.patterns {
            let found = pattern.captures(name).map_err(|_| too_long(pattern, name))?;
            if let Some(found) = found {
                return Ok(found.name("idx").and_then(|m| m.as_str().parse().ok()));
            }
        }
        Ok(None)
    }
}

impl AdapterConfig {
    /// The modules that get an adapter, in the model's order.
    ///
    /// `modules` are the model's linear layers: path, as in the Hugging Face model, and `(out, in)`.
    /// `output_head` is the one that `"all-linear"` leaves out. As PEFT's `check_target_module_exists`,
    /// `_maybe_include_all_linear_layers` and `get_pattern_key`.
    ///
    /// # Errors
    /// Where PEFT fails: nothing matches, or something is meant that is no linear layer. And where PEFT is
    /// silent: a rank above what the module can hold; of a configuration that is to be trained by, a name, layer or pattern
    /// key without effect.
    pub fn select(
        &self,
        modules: &[(String, (i64, i64))],
        output_head: Option<&str>,
    ) -> Result<Vec<Selection>> {
        self.check()?;
        let target = Matcher::new(&self.target_modules, output_head)?;
        let excluded = self.exclude_modules.as_ref().map(|t| Matcher::new(t, None)).transpose()?;
        let layers = Layers::new(self)?;
        if !self.trained {
            self.no_idle_names(modules)?;
            self.no_idle_layers(layers.as_ref(), modules)?;
        }

        let meant = |name: &str| -> Result<bool> {
            if let Some(excluded) = &excluded
                && excluded.matches(name)?
            {
                return Ok(false);
            }
            // As in PEFT, a path named whole is meant whatever its layer.
            Ok(target.is_exact(name)
                || target.matches(name)?
                    && match &layers {
                        Some(layers) => layers.index(name)?.is_some_and(|i| layers.wanted.contains(&i)),
                        None => true,
                    })
        };
        // PEFT walks over all modules and fails at one that it cannot adapt.
        if !matches!(target, Matcher::AllBut(_)) {
            for group in groups(modules.iter().map(|(name, _)| name.as_str())) {
                if meant(group)? {
                    let hint = "a pattern must match the whole path of linear layers only, such as \
                                `.*\\.(q_proj|v_proj)`";
                    return Err(Error::usage(format!("`{group}` is meant too, which is no linear layer"))
                        .at("target_modules")
                        .hint(hint));
                }
            }
        }
        let mut selected = Vec::new();
        for (name, shape) in modules {
            if meant(name)? {
                selected.push((name, *shape));
            }
        }
        if selected.is_empty() {
            let hint = format!("the linear layers are called {}", last_names(modules));
            return Err(Error::usage("no module of the model is meant").at("target_modules").hint(hint));
        }
        self.with_ranks(&selected)
    }

    /// A typo in one of seven names must not pass.
    fn no_idle_names(&self, modules: &[(String, (i64, i64))]) -> Result<()> {
        let Targets::Names(names) = &self.target_modules else {
            return Ok(());
        };
        let idle: Vec<_> =
            names.iter().filter(|n| !modules.iter().any(|(name, _)| is_suffix(name, n))).collect();
        let Some(first) = idle.first() else {
            return Ok(());
        };
        let named = format!("the linear layers are called {}", last_names(modules));
        let hint = match nearest(first, modules) {
            Some(near) => format!("did you mean `{near}`? {named}"),
            None => named,
        };
        let what = idle.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
        Err(Error::usage(format!("the model has no linear layer {what}")).at("target_modules").hint(hint))
    }

    fn no_idle_layers(&self, layers: Option<&Layers<'_>>, modules: &[(String, (i64, i64))]) -> Result<()> {
        let Some(layers) = layers else {
            return Ok(());
        };
        let mut present = BTreeSet::new();
        for (name, _) in modules {
            present.extend(layers.index(name)?);
        }
        let hint = match (present.first(), present.last()) {
            (Some(first), Some(last)) => format!("its layers are {first} to {last}"),
            _ => "no path has a layer's index where `layers_pattern` looks for it".to_owned(),
        };
        match layers.wanted.iter().find(|layer| !present.contains(layer)) {
            Some(layer) => Err(Error::usage(format!("the model has no layer {layer}"))
                .at("layers_to_transform")
                .hint(hint)),
            None => Ok(()),
        }
    }

    fn with_ranks(&self, selected: &[(&String, (i64, i64))]) -> Result<Vec<Selection>> {
        let ranks = Overrides::new(&self.rank_pattern)?;
        let alphas = Overrides::new(&self.alpha_pattern)?;
        let mut faults = Vec::new();
        let mut used = (HashSet::new(), HashSet::new());
        let mut selections = Vec::with_capacity(selected.len());
        for &(name, (out, inn)) in selected {
            let r = ranks.of(name, &mut used.0)?.unwrap_or(self.r);
            let alpha = alphas.of(name, &mut used.1)?.unwrap_or(self.lora_alpha);
            // A rank between the two sides adds nothing, but PEFT's adapters have it: 256 on all linears, say.
            if r > out.max(inn) {
                faults.push(format!("`{name}` is {out} x {inn}, too small for the rank {r}"));
            }
            selections.push(Selection { name: name.clone(), r, alpha });
        }
        // One fault of many alike says it all.
        if faults.len() > 8 {
            let more = faults.len() - 8;
            faults.truncate(8);
            faults.push(format!("and {more} more such modules"));
        }
        let idle =
            |field: &str, key: &str| format!("`{field}` has {key:?}, which no selected module matches");
        if !self.trained {
            faults.extend(ranks.idle(&used.0).map(|key| idle("rank_pattern", key)));
            faults.extend(alphas.idle(&used.1).map(|key| idle("alpha_pattern", key)));
        }
        if faults.is_empty() {
            return Ok(selections);
        }
        Err(Error::faults(ErrorKind::Usage, "the ranks do not fit the model", faults))
    }
}

/// `rank_pattern` or `alpha_pattern`, ready to match.
struct Overrides<'a, T>(Vec<(Regex, &'a (String, T))>);

impl<'a, T: Copy> Overrides<'a, T> {
    fn new(pairs: &'a [(String, T)]) -> Result<Self> {
        pairs.iter().map(|p| Ok((rank_key_pattern(&p.0)?, p))).collect::<Result<_>>().map(Self)
    }

    /// The value of the first key that matches; `used` takes in every key that does.
    fn of(&self, name: &str, used: &mut HashSet<&'a str>) -> Result<Option<T>> {
        let mut first = None;
        for (pattern, (key, value)) in &self.0 {
            if matches(pattern, name)? {
                used.insert(key);
                first = first.or(Some(*value));
            }
        }
        Ok(first)
    }

    fn idle(&self, used: &HashSet<&'a str>) -> impl Iterator<Item = &'a str> {
        self.0.iter().map(|(_, (key, _))| key.as_str()).filter(|key| !used.contains(key))
    }
}
