//! The score against what it costs, and who is beaten by no one.

use super::Figure;
use super::axis::Axis;
use super::panel::{Kind, Panel, Point, Series};
use super::ranks::capital;
use crate::compare::report::numbers::with_unit;
use crate::compare::report::text::list;
use crate::compare::report::view::{Entrant, Section};
use crate::compare::results::Measure;

pub(super) fn figure(section: &Section<'_>) -> Option<Figure> {
    let score = section.score?;
    let costs = [Measure::PeakBytes, Measure::TrainSeconds];
    let costs = costs.into_iter().filter(|cost| section.not_comparable(*cost).is_none());
    let panels: Vec<_> = costs.filter_map(|cost| panel(section, score, cost)).collect();
    let text = "Each mark is a method at one rank. The line joins those of ours that no other beats in both (the Pareto \
                front); they bear their names where there is room.";
    Figure::new("What the score costs", text, panels)
}

fn panel(section: &Section<'_>, score: Measure, cost: Measure) -> Option<Panel> {
    let (shown, costs) = (score.shown(), cost.shown());
    let drawn: Vec<(&Entrant<'_>, f64, f64)> =
        section.entrants.iter().filter_map(|e| Some((e, e.finite(cost)?, e.finite(score)?))).collect();
    if drawn.len() < 2 {
        return None;
    }
    let more = shown.better >= 0;
    let ours: Vec<_> = drawn.iter().filter(|(e, ..)| !e.is_peer()).collect();
    let mut front: Vec<_> =
        ours.iter().filter(|at| !ours.iter().any(|other| beats(other, at, more))).collect();
    front.sort_by(|a, b| a.1.total_cmp(&b.1));
    let on_front = |e: &Entrant<'_>| front.iter().any(|(other, ..)| std::ptr::eq(*other, e));

    let mut series: Vec<Series> = Vec::new();
    for (entrant, cost, score) in &drawn {
        let sd = entrant.cell.measures.get(&section.score?).and_then(|v| v.sd).unwrap_or(0.0);
        // Many bars would hide the marks.
        let sd = if drawn.len() <= 16 && sd.is_finite() { sd } else { 0.0 };
        let point = Point {
            x: cost * costs.times,
            y: score * shown.times,
            low: (score - sd) * shown.times,
            high: (score + sd) * shown.times,
            title: format!(
                "{}: {} {}, {} {}",
                entrant.name,
                shown.name,
                with_unit(*score, &shown),
                costs.name,
                with_unit(*cost, &costs)
            ),
            tag: if on_front(entrant) { entrant.name.clone() } else { String::new() },
        };
        match series.iter_mut().find(|series| series.name == entrant.series) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name: entrant.series.clone(),
                full_name: entrant.series.clone(),
                look: entrant.look,
                kind: Kind::Dots,
                points: vec![point],
            }),
        }
    }
    let points = || series.iter().flat_map(|s| &s.points);
    let x = Axis::new(&format!("{}, {}", costs.name, costs.unit), points().map(|p| p.x))?;
    let y = Axis::new("", points().flat_map(|p| [p.y, p.low, p.high]))?;
    let unit = if shown.unit.is_empty() { String::new() } else { format!(", {}", shown.unit) };
    let names: Vec<String> = front.iter().map(|(e, ..)| e.name.clone()).collect();
    let title = format!("{}{unit}, against {}", capital(shown.name), costs.name);
    let corners = front.iter().map(|(_, cost, score)| (cost * costs.times, score * shown.times)).collect();
    Some(Panel {
        words: format!("{title}. {} cells. On the Pareto front: {}.", drawn.len(), list(&names, 12)),
        title,
        note: String::new(),
        named: false,
        x,
        y,
        front: stairs(corners),
        series,
    })
}

type At<'a, 'b> = (&'a Entrant<'b>, f64, f64);

/// At least as good in both, and better in one.
fn beats(other: &At<'_, '_>, at: &At<'_, '_>, more: bool) -> bool {
    let (better, equal) = (if more { other.2 > at.2 } else { other.2 < at.2 }, other.2 == at.2);
    (other.1 < at.1 && (better || equal)) || (other.1 == at.1 && better)
}

/// Nothing lies between two cells; so the line goes level, then up.
fn stairs(corners: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let mut line: Vec<(f64, f64)> = Vec::new();
    for (x, y) in corners {
        if let Some((_, before)) = line.last().copied() {
            line.push((x, before));
        }
        line.push((x, y));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_goes_in_stairs() {
        assert_eq!(stairs(vec![(1.0, 5.0), (2.0, 7.0)]), [(1.0, 5.0), (2.0, 5.0), (2.0, 7.0)]);
        assert!(stairs(Vec::new()).is_empty());
    }
}
