//! The comparison as the reports go through it: set after set, each cell with the name it bears everywhere.

use super::figures::look::{Look, Looks};
use super::numbers::short;
use super::text::count;
use crate::compare::plan::NONE;
use crate::compare::results::{Cell, Commonest, Comparison, Measure, Pair, Set, Tried};
use std::collections::{BTreeMap, BTreeSet};

/// All there is on one set.
pub(super) struct Section<'a> {
    pub(super) name: &'a str,
    pub(super) entrants: Vec<Entrant<'a>>,
    pub(super) pairs: Vec<&'a Pair>,
    pub(super) tuning: Vec<&'a Tried>,
    /// What decides who is best.
    pub(super) score: Option<Measure>,
    /// None where the comparison has cells alone.
    pub(super) set: Option<&'a Set>,
}

/// A cell and its names.
pub(super) struct Entrant<'a> {
    pub(super) cell: &'a Cell,
    /// Its place in the comparison; links go there.
    pub(super) id: usize,
    /// `dora r=16`, and its alpha where several differ in nothing else.
    pub(super) name: String,
    /// What is one line over the ranks: the method, and alpha's rule where there are several.
    pub(super) series: String,
    pub(super) look: Look,
}

/// What may decide, the first that was measured.
const SCORES: [Measure; 3] = [Measure::Accuracy, Measure::ExactMatch, Measure::Loss];

pub(super) fn sections(comparison: &Comparison) -> Vec<Section<'_>> {
    let mut names: Vec<&str> = comparison.sets.iter().map(|set| set.name.as_str()).collect();
    for cell in &comparison.cells {
        if !names.contains(&cell.set.as_str()) {
            names.push(&cell.set);
        }
    }
    let mut looks = Looks::default();
    names.into_iter().map(|name| section(comparison, name, &mut looks)).collect()
}

fn section<'a>(comparison: &'a Comparison, name: &'a str, looks: &mut Looks) -> Section<'a> {
    let cells: Vec<_> = comparison.cells.iter().enumerate().filter(|(_, cell)| cell.set == name).collect();
    let alone: Vec<&Cell> = cells.iter().map(|(_, cell)| *cell).collect();
    let entrants: Vec<_> = cells
        .iter()
        .map(|&(id, cell)| {
            let series = series(cell, &alone);
            Entrant { cell, id, name: cell_name(cell, &alone), look: looks.of(&series), series }
        })
        .collect();
    let score = SCORES.into_iter().find(|score| alone.iter().any(|cell| cell.measures.contains_key(score)));
    Section {
        name,
        entrants,
        pairs: comparison.pairs.iter().filter(|pair| pair.set == name).collect(),
        tuning: comparison.tuning.iter().filter(|tried| tried.set == name).collect(),
        score,
        set: comparison.sets.iter().find(|set| set.name == name),
    }
}

/// Those of the same method and rank, this one among them.
fn alike<'a>(cell: &Cell, cells: &[&'a Cell]) -> Vec<&'a Cell> {
    cells.iter().copied().filter(|other| other.method == cell.method && other.rank == cell.rank).collect()
}

fn cell_name(cell: &Cell, cells: &[&Cell]) -> String {
    let mut name = cell.method.clone();
    if let Some(rank) = cell.rank {
        name += &format!(" r={rank}");
    }
    if let Some(alpha) = cell.alpha.filter(|_| alike(cell, cells).len() > 1) {
        name += &format!(" α={}", short(alpha));
    }
    name
}

/// Where a method has several alphas at a rank, the first of every rank are one line, the second another.
fn series(cell: &Cell, cells: &[&Cell]) -> String {
    let of_method: Vec<_> = cells.iter().copied().filter(|other| other.method == cell.method).collect();
    if of_method.iter().all(|other| alike(other, cells).len() == 1) {
        return cell.method.clone();
    }
    let place = |of: &Cell| alike(of, cells).iter().position(|other| std::ptr::eq(*other, of));
    let line: Vec<_> = of_method.iter().copied().filter(|other| place(other) == place(cell)).collect();
    let all = |rule: &dyn Fn(f64, f64) -> bool| {
        line.iter().all(|c| c.alpha.zip(c.rank).is_some_and(|(alpha, rank)| rule(alpha, rank as f64)))
    };
    let rule = if all(&|alpha, rank| alpha == rank) {
        "α=r".to_owned()
    } else if all(&|alpha, rank| alpha == 2.0 * rank) {
        "α=2r".to_owned()
    } else {
        cell.alpha.filter(|first| all(&|alpha, _| alpha == *first)).map_or_else(
            || format!("α no. {}", place(cell).unwrap_or(0) + 1),
            |alpha| format!("α={}", short(alpha)),
        )
    };
    format!("{} {rule}", cell.method)
}

impl<'a> Section<'a> {
    /// The cells that trained by our code, or were not trained.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Entrant<'a>> {
        self.entrants.iter().filter(|entrant| !entrant.is_peer())
    }

    pub(super) fn best(&self) -> Option<&Entrant<'a>> {
        self.entrants.iter().find(|entrant| entrant.cell.best)
    }

    /// Whose difference from the best says nothing.
    pub(super) fn ties(&self) -> impl Iterator<Item = &Entrant<'a>> {
        self.ours().filter(|entrant| entrant.ties())
    }

    /// What a constant answer would score.
    pub(super) fn commonest(&self) -> Option<&'a Commonest> {
        self.set?.commonest.as_ref()
    }

    /// Whether there are differences from the best, and none of them is over more than one seed.
    pub(super) fn rows_alone(&self) -> bool {
        let mut behind = self.entrants.iter().filter_map(|entrant| entrant.cell.behind).peekable();
        behind.peek().is_some() && behind.all(|interval| interval.is_of_rows_alone())
    }

    /// Why a measure compares nothing here: times where runs shared a machine; times and memory where there were several. None
    /// where it does.
    pub(super) fn not_comparable(&self, measure: Measure) -> Option<&'static str> {
        let trained = || self.entrants.iter().map(|entrant| entrant.cell).filter(|c| c.method != NONE);
        let several =
            |of: fn(&Cell) -> &Vec<String>| trained().flat_map(of).collect::<BTreeSet<_>>().len() > 1;
        let several = several(|cell| &cell.machines) || several(|cell| &cell.devices);
        match measure.is_time() {
            true if several => Some("several machines"),
            true if trained().any(|cell| cell.shared) => Some("shared machine"),
            false if several && measure == Measure::PeakBytes => Some("several machines"),
            _ => None,
        }
    }

    /// Each series' entrant of the best score; where none has a score, its last.
    pub(super) fn best_of_series(&self) -> Vec<&Entrant<'a>> {
        let mut best: BTreeMap<&str, &Entrant<'a>> = BTreeMap::new();
        let value = |entrant: &Entrant<'_>| {
            let score = self.score?;
            entrant.finite(score).map(|v| if score.shown().better < 0 { -v } else { v })
        };
        for entrant in self.ours() {
            let beaten = best.get(entrant.series.as_str()).is_some_and(|held| value(held) > value(entrant));
            if !beaten {
                best.insert(&entrant.series, entrant);
            }
        }
        self.entrants
            .iter()
            .filter(|e| best.get(e.series.as_str()).is_some_and(|b| std::ptr::eq(*b, *e)))
            .collect()
    }

    /// In order, each once.
    pub(super) fn ranks(&self) -> Vec<u64> {
        let mut ranks: Vec<_> = self.entrants.iter().filter_map(|entrant| entrant.cell.rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }
}

impl Entrant<'_> {
    /// The mean, if it is a number one can draw.
    pub(super) fn finite(&self, measure: Measure) -> Option<f64> {
        self.cell.measures.get(&measure).map(|values| values.mean).filter(|mean| mean.is_finite())
    }

    /// Not the floor, nor the ceiling.
    pub(super) fn is_adapter(&self) -> bool {
        self.cell.is_adapter()
    }

    pub(super) fn is_peer(&self) -> bool {
        self.cell.is_peer()
    }

    /// What stands beside its name.
    pub(super) fn marks(&self) -> String {
        let mut marks = Vec::new();
        if self.cell.best {
            marks.push("★ best".to_owned());
        }
        if self.ties() {
            marks.push("≈ tie".to_owned());
        }
        if !self.cell.failures.is_empty() {
            marks.push(format!("✗ {}", count(self.cell.failures.len(), "failure")));
        }
        marks.join(", ")
    }

    pub(super) fn ties(&self) -> bool {
        !self.cell.best && self.cell.behind.is_some_and(|behind| behind.is_tie())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::peer;

    fn cell(method: &str, rank: u64, alpha: f64) -> Cell {
        Cell { method: method.into(), rank: Some(rank), alpha: Some(alpha), ..Cell::default() }
    }

    #[test]
    fn alpha_is_named_where_it_tells_cells_apart() {
        let cells =
            [cell("lora", 8, 16.0), cell("lora", 16, 32.0), cell("dora", 8, 8.0), cell("dora", 8, 16.0)];
        let of: Vec<&Cell> = cells.iter().collect();
        let names: Vec<_> = of.iter().map(|cell| cell_name(cell, &of)).collect();
        assert_eq!(names, ["lora r=8", "lora r=16", "dora r=8 α=8", "dora r=8 α=16"]);
        let lines: Vec<_> = of.iter().map(|cell| series(cell, &of)).collect();
        assert_eq!(lines, ["lora", "lora", "dora α=r", "dora α=2r"]);
    }

    #[test]
    fn a_peer_is_told_by_its_brackets() {
        assert_eq!(peer("qlora+dora (peft)"), Some(("qlora+dora", "peft")));
        assert_eq!(peer("lora"), None);
    }
}
