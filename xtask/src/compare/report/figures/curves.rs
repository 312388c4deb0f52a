//! Curves over the steps of training: the loss, the gradient norm; and the gradient norm layer by layer.

use super::Figure;
use super::axis::Axis;
use super::panel::{Kind, Panel, Point, Series};
use crate::compare::report::numbers::number;
use crate::compare::report::view::{Entrant, Section};

/// As many points of a curve as a small panel can show.
const POINTS: usize = 120;

type Curve = for<'a> fn(&'a Entrant<'_>) -> &'a [[f64; 4]];

/// Every method at its best rank, then all at each rank.
pub(super) fn figure(section: &Section<'_>) -> Option<Figure> {
    let losses: Curve = |entrant| &entrant.cell.loss_curve;
    let best = section.best_of_series();
    let mut panels: Vec<_> = panel("Each at its best", &best, losses, true).into_iter().collect();
    let ranks = section.ranks();
    for rank in ranks.iter().filter(|_| ranks.len() > 1) {
        let all: Vec<_> = section.ours().filter(|entrant| entrant.cell.rank == Some(*rank)).collect();
        panels.extend(panel(&format!("Rank {rank}"), &all, losses, false));
    }
    share(&mut panels);
    let text = "Loss in nats a token, smoothed over some steps. The line is the mean over the seeds, the band reaches from \
                the lowest to the highest.";
    Figure::new("Training loss", text, panels)
}

pub(super) fn gradients(section: &Section<'_>) -> Option<Figure> {
    let best = section.best_of_series();
    let panels = [
        panel("Over the steps, each at its best", &best, |entrant| &entrant.cell.gradient_curve, true),
        layers(&best),
    ];
    let text =
        "The norm before clipping, all parameters that train together; by layer, the median over the steps.";
    Figure::new("Gradient norms", text, panels.into_iter().flatten().collect())
}

fn panel(title: &str, entrants: &[&Entrant<'_>], curve: Curve, named: bool) -> Option<Panel> {
    let mut series: Vec<Series> = entrants
        .iter()
        .map(|entrant| Series {
            name: entrant.series.clone(),
            full_name: entrant.name.clone(),
            look: entrant.look,
            kind: Kind::Curve,
            points: thin(curve(entrant)).into_iter().map(|at| point(at, &entrant.name)).collect(),
        })
        .collect();
    let words: Vec<_> = entrants
        .iter()
        .zip(&series)
        .filter_map(|(e, series)| told(&e.name, &series.points, "step"))
        .collect();
    series.retain(drawable);
    let points = || series.iter().flat_map(|s| &s.points);
    let x = Axis::steps(points().map(|p| p.x))?;
    let y = Axis::falling(points().flat_map(|p| [p.y, p.low, p.high]))?;
    Some(Panel {
        words: words.join(" "),
        title: title.into(),
        note: String::new(),
        named,
        x,
        y,
        series,
        front: Vec::new(),
    })
}

/// One scale for all, so that they can be compared.
pub(super) fn share(panels: &mut [Panel]) {
    let points = || panels.iter().flat_map(|panel| &panel.series).flat_map(|series| &series.points);
    let Some(x) = Axis::steps(points().map(|p| p.x)) else { return };
    let Some(y) = Axis::falling(points().flat_map(|p| [p.y, p.low, p.high])) else { return };
    for panel in panels {
        (panel.x, panel.y) = (x.clone(), y.clone());
    }
}

/// A run that went wrong at once has no line.
fn drawable(series: &Series) -> bool {
    series.points.len() > 1
}

fn layers(entrants: &[&Entrant<'_>]) -> Option<Panel> {
    let drawn = entrants.iter().filter(|entrant| entrant.cell.gradient_layers.len() > 1);
    let series: Vec<Series> = drawn
        .map(|entrant| {
            let layers = entrant.cell.gradient_layers.iter().enumerate().filter(|(_, norm)| norm.is_finite());
            let points = layers.map(|(i, norm)| point([(i + 1) as f64, *norm, *norm, *norm], &entrant.name));
            Series {
                name: entrant.series.clone(),
                full_name: entrant.name.clone(),
                look: entrant.look,
                kind: Kind::Curve,
                points: points.collect(),
            }
        })
        .collect();
    let words: Vec<_> = series.iter().filter_map(|s| told(&s.name, &s.points, "layer")).collect();
    let points = || series.iter().flat_map(|s| &s.points);
    let mut x = Axis::steps(points().map(|p| p.x))?;
    x.name = "layer, of those that train".into();
    let y = Axis::new("", points().map(|p| p.y))?;
    let title = "By layer, each at its best".into();
    Some(Panel {
        words: words.join(" "),
        title,
        note: String::new(),
        named: false,
        x,
        y,
        series,
        front: Vec::new(),
    })
}

fn point([x, y, low, high]: [f64; 4], name: &str) -> Point {
    Point { x, y, low, high, title: name.to_owned(), tag: String::new() }
}

fn told(name: &str, points: &[Point], what: &str) -> Option<String> {
    let (first, last) = (points.first()?, points.last()?);
    let value = |point: &Point| format!("{} at {what} {:.0}", number(point.y, 3, false), point.x);
    Some(format!("{name}: {}, {}.", value(first), value(last)))
}

/// At most [`POINTS`]: neighbours become one, whose band holds theirs. What is no number is left out.
pub(super) fn thin(curve: &[[f64; 4]]) -> Vec<[f64; 4]> {
    let curve: Vec<_> = curve.iter().filter(|point| point.iter().all(|v| v.is_finite())).collect();
    let each = curve.len().div_ceil(POINTS).max(1);
    let mean =
        |part: &[&[f64; 4]], i: usize| part.iter().map(|point| point[i]).sum::<f64>() / part.len() as f64;
    let joined = |part: &[&[f64; 4]]| {
        let low = part.iter().map(|point| point[2]).fold(f64::INFINITY, f64::min);
        let high = part.iter().map(|point| point[3]).fold(f64::NEG_INFINITY, f64::max);
        [mean(part, 0), mean(part, 1), low, high]
    };
    let mut thinned: Vec<_> = curve.chunks(each).map(joined).collect();
    // It still begins and ends where it did.
    if let Some((first, thin)) = curve.first().zip(thinned.first_mut()) {
        thin[0] = first[0];
    }
    if let Some((last, thin)) = curve.last().zip(thinned.last_mut()) {
        thin[0] = last[0];
    }
    thinned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_band() {
        let long: Vec<[f64; 4]> = (0..1000).map(|i| [f64::from(i), 1.0, 0.5, f64::from(i)]).collect();
        let thinned = thin(&long);
        assert!(thinned.len() <= POINTS && thinned.len() > POINTS / 2, "{}", thinned.len());
        assert_eq!(thinned[0], [0.0, 1.0, 0.5, 8.0]);
        assert_eq!((thinned[1][0], thinned.last().unwrap()[0]), (13.0, 999.0));
        let odd = [[1.0, 2.0, 2.0, 2.0], [2.0, f64::NAN, 1.0, 1.0], [3.0, 1.0, 1.0, f64::INFINITY]];
        assert_eq!(thin(&odd), [odd[0]]);
        assert!(thin(&[]).is_empty());
    }
}
