//! Who is best, and how far the others are behind.

use super::gather::{self, Read};
use super::results::{Cell, Measure};
use super::stats;

/// What decides.
fn score(cell: &Cell) -> Option<f64> {
    let of = |measure: Measure| cell.measures.get(&measure).map(|values| values.mean);
    of(Measure::Accuracy).or(of(Measure::ExactMatch))
}

/// Marks the best of one set's adapters, ours alone, and puts an interval to every other cell. A single lucky seed makes no
/// best beside those that ran more of them: who has fewer seeds than another is no candidate. `runs` are each cell's.
pub(crate) fn judge(cells: &mut [Cell], runs: &[&[Read]]) {
    let ours = |cell: &Cell| cell.is_adapter() && !cell.is_peer();
    let mut candidates: Vec<(usize, f64)> =
        (0..cells.len()).filter(|&i| ours(&cells[i])).filter_map(|i| Some((i, score(&cells[i])?))).collect();
    let most = candidates.iter().map(|&(i, _)| cells[i].seeds.len()).max();
    candidates.retain(|&(i, _)| Some(cells[i].seeds.len()) == most);
    let Some((best, _)) = candidates.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)) else { return };
    cells[best].best = true;
    let others = (0..cells.len()).filter(|&i| i != best);
    let (at, differences): (Vec<_>, Vec<_>) =
        others.filter_map(|i| Some((i, gather::behind(runs[i], runs[best])?))).unzip();
    for (i, interval) in at.into_iter().zip(stats::together(&differences)) {
        cells[i].behind = Some(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::super::machines::Place;
    use super::*;
    use std::collections::BTreeMap;

    /// Runs of one method, each seed's share of right answers of ten.
    fn runs(right: &[usize]) -> Vec<Read> {
        let run = |(seed, &right): (usize, &usize)| Read {
            seed: Some(seed as u64),
            measures: BTreeMap::from([(Measure::Accuracy, right as f64 / 10.0)]),
            right: (0..10).map(|row| row < right).collect(),
            steps: Vec::new(),
            layers: Vec::new(),
            labels: Vec::new(),
            commonest: None,
            commands: Vec::new(),
            place: Place::default(),
        };
        right.iter().enumerate().map(run).collect()
    }

    fn judged(all: &[(&str, &[usize])]) -> Vec<Cell> {
        let runs: Vec<_> = all.iter().map(|(_, right)| runs(right)).collect();
        let cell = |(&(method, _), runs): (&(&str, &[usize]), &Vec<Read>)| Cell {
            method: method.into(),
            seeds: runs.iter().filter_map(|run| run.seed).collect(),
            measures: BTreeMap::from([(
                Measure::Accuracy,
                stats::values(runs.iter().map(|run| run.measures[&Measure::Accuracy]).collect()),
            )]),
            ..Cell::default()
        };
        let mut cells: Vec<_> = all.iter().zip(&runs).map(cell).collect();
        judge(&mut cells, &runs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        cells
    }

    #[test]
    fn the_best_is_an_adapter_of_ours() {
        let cells =
            judged(&[("none", &[9]), ("full", &[9]), ("lora", &[6]), ("dora", &[7]), ("lora (peft)", &[9])]);
        let best: Vec<_> = cells.iter().map(|cell| cell.best).collect();
        assert_eq!(best, [false, false, false, true, false]);
        assert!(judged(&[("lora", &[6]), ("qlora+full", &[9])])[0].best);
        let behind: Vec<_> = cells.iter().map(|cell| cell.behind.map(|b| (b.mean * 10.0).round())).collect();
        assert_eq!(behind, [Some(2.0), Some(2.0), Some(-1.0), None, Some(2.0)]);
    }

    #[test]
    fn one_lucky_seed_makes_no_best() {
        let cells = judged(&[("lora", &[6, 5]), ("dora", &[8]), ("rslora", &[6, 6])]);
        assert!(cells[2].best && !cells[1].best, "{cells:?}");
        // It stands beside the seed that both have.
        assert!((cells[1].behind.unwrap().mean - 0.2).abs() < 1e-12, "{cells:?}");
        assert!(judged(&[("none", &[9])]).iter().all(|cell| !cell.best && cell.behind.is_none()));
    }
}
