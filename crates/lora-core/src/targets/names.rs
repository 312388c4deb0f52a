//! Modules by name.

use std::collections::{BTreeSet, HashSet};

use strsim::osa_distance;

use super::{Selection, Targets};
use crate::Result;
use crate::config::AdapterConfig;

impl AdapterConfig {
    /// The same with names in the place of patterns; what names cannot say stays as it is.
    ///
    /// # Errors
    /// Those of [`AdapterConfig::select`].
    pub(crate) fn by_name(
        &self,
        modules: &[(String, (i64, i64))],
        output_head: Option<&str>,
    ) -> Result<Self> {
        let selected = self.select(modules, output_head)?;
        let all: Vec<_> = modules.iter().map(|(name, _)| name.clone()).collect();
        let mut named = self.clone();
        let by_regex = |targets: &Targets| matches!(targets, Targets::Regex(_));
        if by_regex(&self.target_modules)
            || self.exclude_modules.as_ref().is_some_and(by_regex)
            || !self.layers_pattern.iter().all(|list| is_name(list))
        {
            let chosen: Vec<_> = selected.iter().map(|s| s.name.clone()).collect();
            named.target_modules = Targets::Names(compact_names(&chosen, &all));
            (named.exclude_modules, named.layers_to_transform) = (None, None);
            named.layers_pattern.clear();
        }
        if !self.rank_pattern.iter().all(|(key, _)| is_name(key)) {
            named.rank_pattern = differing(&selected, |s| s.r, self.r, &all);
        }
        if !self.alpha_pattern.iter().all(|(key, _)| is_name(key)) {
            named.alpha_pattern = differing(&selected, |s| s.alpha, self.lora_alpha, &all);
        }
        let same = named.select(modules, output_head).is_ok_and(|again| again == selected);
        Ok(if same { named } else { self.clone() })
    }
}

/// A pattern in which nothing stands for anything else, but for dots.
fn is_name(pattern: &str) -> bool {
    pattern.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
}

/// The modules whose value is not the `usual` one, by the shortest names, each with its value.
fn differing<T: Copy + PartialEq>(
    selected: &[Selection],
    value: impl Fn(&Selection) -> T,
    usual: T,
    all: &[String],
) -> Vec<(String, T)> {
    let mut left: Vec<_> = selected.iter().filter(|s| value(s) != usual).collect();
    let mut pairs = Vec::new();
    while let Some(first) = left.first().map(|s| value(s)) {
        let same = left.extract_if(.., |s| value(s) == first).map(|s| s.name.clone());
        let names = compact_names(&same.collect::<Vec<_>>(), all);
        pairs.extend(names.into_iter().map(|name| (name, first)));
    }
    pairs
}

/// The modules that hold the given ones: `a` and `a.b` for `a.b.c`.
pub(super) fn groups<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    names.flat_map(|name| name.match_indices('.').filter_map(|(dot, _)| name.get(..dot))).collect()
}

/// All that a list could call a module: `c`, `b.c` and `a.b.c` for `a.b.c`, shortest first.
fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    let starts = name.rmatch_indices('.').map(|(dot, _)| dot + 1).chain([0]);
    starts.filter_map(|start| name.get(start..))
}

/// The shortest list of names that, as `target_modules`, means exactly `selected` among `all`; sorted.
///
/// Each is the shortest suffix of a selected path that no other path ends in, hence the list is the shortest
/// there is. (A path that is itself a suffix of one not selected has no such name; it is given whole.)
pub fn compact_names(selected: &[String], all: &[String]) -> Vec<String> {
    let chosen: HashSet<&str> = selected.iter().map(String::as_str).collect();
    let groups = groups(all.iter().map(String::as_str));
    let others = all.iter().map(String::as_str).chain(groups).filter(|name| !chosen.contains(name));
    let taken: HashSet<&str> = others.flat_map(suffixes).collect();
    let shortest = |name: &'_ String| suffixes(name).find(|s| !taken.contains(s)).unwrap_or(name).to_owned();
    selected.iter().map(shortest).collect::<BTreeSet<_>>().into_iter().collect()
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The distinct last components, for a message.
pub(super) fn last_names(modules: &[(String, (i64, i64))]) -> String {
    let mut names: Vec<_> =
        modules.iter().map(|(name, _)| last(name)).collect::<BTreeSet<_>>().into_iter().collect();
    let more = names.len().saturating_sub(12);
    names.truncate(12);
    let list = names.join(", ");
    if more == 0 { list } else { format!("{list} and {more} more") }
}

/// The last component nearest to that of `name`, if it is near: at most a third of the letters differ.
pub(super) fn nearest<'a>(name: &str, modules: &'a [(String, (i64, i64))]) -> Option<&'a str> {
    let wanted = last(name);
    let near = modules.iter().map(|(name, _)| last(name)).min_by_key(|near| osa_distance(wanted, near))?;
    let distance = osa_distance(wanted, near);
    (distance > 0 && distance <= (wanted.chars().count() / 3).max(1)).then_some(near)
}
