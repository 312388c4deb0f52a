//! What the page and the Markdown both say, in order.

use super::table::Table;
use super::view::{Section, sections};
use super::{findings, tables};
use crate::compare::results::Comparison;
use std::borrow::Cow;

pub(super) struct Page<'a> {
    pub(super) title: String,
    /// A few sentences a set.
    pub(super) headlines: Vec<String>,
    /// Name and value.
    pub(super) facts: Vec<(&'static str, Cow<'a, str>)>,
    pub(super) command: &'a str,
    pub(super) plan: &'a str,
    pub(super) data: Table,
    pub(super) parts: Vec<Part<'a>>,
}

/// One set.
pub(super) struct Part<'a> {
    pub(super) section: Section<'a>,
    pub(super) findings: Vec<String>,
    /// Scores and failures, before the figures.
    pub(super) scores: Vec<Table>,
    pub(super) further: Option<Table>,
    pub(super) peers: Option<Table>,
    pub(super) tuning: Option<Table>,
}

impl<'a> Page<'a> {
    pub(super) fn new(comparison: &'a Comparison) -> Self {
        let parts: Vec<_> = sections(comparison).into_iter().map(Part::new).collect();
        let facts =
            [("model", &comparison.model), ("machine", &comparison.machine), ("date", &comparison.date)];
        let facts = facts.map(|(name, value)| (name, Cow::Borrowed(value.as_str())));
        let runs = findings::runs_left(comparison).map(|left| ("runs", Cow::Owned(left)));
        Self {
            title: format!("Fine-tuning methods compared: {}", comparison.name),
            headlines: parts.iter().map(|part| findings::headline(&part.section)).collect(),
            facts: facts.into_iter().filter(|f| !f.1.is_empty()).chain(runs).collect(),
            command: &comparison.command,
            plan: &comparison.plan,
            data: tables::sets(comparison),
            parts,
        }
    }
}

impl<'a> Part<'a> {
    fn new(section: Section<'a>) -> Self {
        let scores = [Some(tables::summary(&section)), tables::failures(&section)];
        Self {
            findings: findings::further(&section),
            scores: scores.into_iter().flatten().collect(),
            further: tables::further(&section),
            peers: tables::pairs(&section),
            tuning: tables::tuning(&section),
            section,
        }
    }
}
