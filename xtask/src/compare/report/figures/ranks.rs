//! Against the rank: the score, and beside it the gradient norm, which is what rsLoRA's scale is for.

use super::Figure;
use super::axis::Axis;
use super::panel::{Kind, Panel, Point, Series};
use crate::compare::report::numbers::{of, spread, with_unit};
use crate::compare::report::view::{Entrant, Section};
use crate::compare::results::Measure;

pub(super) fn figure(section: &Section<'_>) -> Option<Figure> {
    let measures = section.score.into_iter().chain([Measure::GradientNorm]);
    let panels: Vec<_> = measures.filter_map(|measure| panel(section, measure)).collect();
    let text = "Means over the seeds; the bars are one standard deviation to either side. Methods stand a little aside of \
                one another so that their bars can be told apart. A line from side to side has no rank.";
    Figure::new("Against the rank", text, panels)
}

fn panel(section: &Section<'_>, measure: Measure) -> Option<Panel> {
    let shown = measure.shown();
    let mut series: Vec<Series> = Vec::new();
    for entrant in section.entrants.iter().filter(|entrant| entrant.cell.rank.is_some()) {
        let Some(point) = point(entrant, measure) else { continue };
        match series.iter_mut().find(|series| series.name == entrant.series) {
            Some(series) => series.points.push(point),
            None => series.push(Series {
                name: entrant.series.clone(),
                full_name: entrant.series.clone(),
                look: entrant.look,
                kind: Kind::Line,
                points: vec![point],
            }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a.x.total_cmp(&b.x));
    }
    let drawn = |rank: &u64| series.iter().flat_map(|s| &s.points).any(|point| point.x == *rank as f64);
    let ranks: Vec<u64> = section.ranks().into_iter().filter(drawn).collect();
    if ranks.len() < 2 {
        return None;
    }
    let ends: Vec<f64> = series.iter().flat_map(|s| &s.points).flat_map(|p| [p.y, p.low, p.high]).collect();
    let low = ends.iter().copied().fold(f64::INFINITY, f64::min);
    let high = ends.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut note = Vec::new();
    let mut levels = Vec::new();
    for entrant in section.entrants.iter().filter(|entrant| entrant.cell.rank.is_none()) {
        let Some(point) = point(entrant, measure) else { continue };
        // One that is far off would press all others together.
        let far = high - low;
        if point.y < low - far || point.y > high + far {
            let value = entrant.finite(measure).unwrap_or_default();
            note.push(format!("Off the scale: {}, {}.", entrant.name, with_unit(value, &shown)));
        } else {
            levels.push(Series {
                name: entrant.series.clone(),
                full_name: entrant.series.clone(),
                look: entrant.look,
                kind: Kind::Level,
                points: vec![point],
            });
        }
    }
    let values: Vec<f64> =
        ends.into_iter().chain(levels.iter().flat_map(|s| &s.points).map(|p| p.y)).collect();
    let words = words(&series, measure);
    series.extend(levels);
    let unit = if shown.unit.is_empty() { String::new() } else { format!(", {}", shown.unit) };
    let y = Axis::new("", values)?;
    Some(Panel {
        title: format!("{}{unit}", capital(shown.name)),
        note: note.join(" "),
        named: false,
        words,
        x: Axis::ranks(&ranks)?,
        y,
        series,
        front: Vec::new(),
    })
}

fn point(entrant: &Entrant<'_>, measure: Measure) -> Option<Point> {
    let shown = measure.shown();
    let mean = entrant.finite(measure)?;
    let values = entrant.cell.measures.get(&measure)?;
    let sd = values.sd.filter(|sd| sd.is_finite()).unwrap_or(0.0);
    let around = spread(values, measure).map_or_else(String::new, |sd| format!(" ± {sd}"));
    Some(Point {
        x: entrant.cell.rank.unwrap_or_default() as f64,
        y: mean * shown.times,
        low: (mean - sd) * shown.times,
        high: (mean + sd) * shown.times,
        title: format!("{}: {} {}{around} {}", entrant.name, shown.name, of(mean, &shown), shown.unit)
            .trim_end()
            .to_owned(),
        tag: String::new(),
    })
}

fn words(series: &[Series], measure: Measure) -> String {
    let shown = measure.shown();
    let value = |point: &Point| with_unit(point.y / shown.times, &shown);
    let each = series.iter().filter_map(|series| {
        let (first, last) = (series.points.first()?, series.points.last()?);
        Some(format!(
            "{}: {} at rank {}, {} at rank {}.",
            series.name,
            value(first),
            first.x,
            value(last),
            last.x
        ))
    });
    let each: Vec<_> = each.collect();
    format!("{} against the rank. {}", capital(shown.name), each.join(" "))
}

pub(super) fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
