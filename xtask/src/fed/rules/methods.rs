//! The runs that a comparison of rules is made of.

use super::{Args, CLIENTS};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// A run to be done.
#[derive(Debug, Clone)]
pub(super) struct Method {
    pub(super) name: String,
    pub(super) lr: f64,
    pub(super) seed: u64,
    pub(super) epsilon: Option<f64>,
    /// To choose a rate by: trained on a part of the training rows, judged by the rest.
    pub(super) tuning: bool,
}

impl Method {
    /// A federation's, not all rows in one place or a client alone.
    pub(super) fn is_rule(&self) -> bool {
        self.name != "central" && !self.name.ends_with(" alone")
    }
}

/// The rate of each method that has none of its own.
pub(super) type Rates = BTreeMap<String, f64>;

impl Args {
    /// Refuses what is asked for twice: a mean would take it for two runs.
    pub(super) fn check(&self) -> Result<()> {
        each_once("--seeds", &self.seeds)?;
        each_once("--epsilons", &self.epsilons)?;
        each_once("--rates", &self.rates)?;
        let mut rules = Vec::new();
        for rule in &self.rule {
            let (name, own) = named(rule)?;
            let rate = own.or_else(|| self.rates.is_empty().then_some(self.lr));
            rules.push(rate.map_or_else(|| name.to_owned(), |lr| format!("{name}:{lr:e}")));
        }
        each_once("--rule", &rules)
    }

    pub(super) fn methods(&self, chosen: &Rates) -> Result<Vec<Method>> {
        let rate = |name: &str| chosen.get(name).copied().unwrap_or(self.lr);
        let mut wanted = vec![("central".to_owned(), rate("central"))];
        wanted.extend(CLIENTS.map(|client| (format!("{client} alone"), rate("central"))));
        for rule in &self.rule {
            let (name, own) = named(rule)?;
            let one = (name.to_owned(), own.unwrap_or_else(|| rate(name)));
            // The rate that was chosen may be one that was named, too.
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
        let mut methods = Vec::new();
        for &seed in &self.seeds {
            for (name, lr) in &wanted {
                let promises = self.epsilons.iter().copied().map(Some);
                let of = |epsilon| Method { name: name.clone(), lr: *lr, seed, epsilon, tuning: false };
                methods.extend([None].into_iter().chain(promises).map(of));
            }
        }
        Ok(methods)
    }
}

/// A rule, and its own rate, if it has one.
fn named(rule: &str) -> Result<(&str, Option<f64>)> {
    let Some((name, lr)) = rule.split_once(':') else { return Ok((rule, None)) };
    let lr = lr.parse::<f64>().with_context(|| format!("`{rule}` has no rate"))?;
    Ok((name, Some(lr)))
}

fn each_once<T: PartialEq + Debug>(option: &str, values: &[T]) -> Result<()> {
    for (at, value) in values.iter().enumerate() {
        if values[..at].contains(value) {
            bail!(
                "{option} has {value:?} twice\n  hint: leave one out: it is one run, and would be counted as two"
            );
        }
    }
    Ok(())
}
