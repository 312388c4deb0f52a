//! Ours over a peer's: the training losses, which should be one line.

use super::Figure;
use super::axis::Axis;
use super::curves::{share, thin};
use super::look::Look;
use super::panel::{Kind, Panel, Point, Series};
use crate::compare::report::numbers::at_most;
use crate::compare::report::view::Section;
use crate::compare::results::Pair;

pub(super) fn figure(section: &Section<'_>) -> Option<Figure> {
    let mut panels: Vec<_> = section.pairs.iter().filter_map(|pair| panel(pair)).collect();
    share(&mut panels);
    let text = "Training loss of the first seed in nats a token, from the same start on the same batches. The nearer the \
                two lines, the better.";
    Figure::new("Training loss, ours and the peer’s", text, panels)
}

fn panel(pair: &Pair) -> Option<Panel> {
    let line = |side: usize, name: &str, look: Look| Series {
        name: name.to_owned(),
        full_name: name.to_owned(),
        look,
        kind: Kind::Curve,
        points: points(pair, side),
    };
    let series = vec![line(0, "ours", Look::OURS), line(1, &pair.peer, Look::THEIRS)];
    let all = || series.iter().flat_map(|s| &s.points);
    let y = Axis::falling(all().map(|p| p.y))?;
    let title = format!("{} r={}, {}", pair.method, pair.rank, pair.dtype);
    let worst = pair.worst_loss_difference.filter(|worst| worst.is_finite());
    let worst = worst.map(|worst| format!("Never more than {} % apart.", at_most(worst)));
    Some(Panel {
        words: format!("Training loss of ours and {}. {}", pair.peer, worst.clone().unwrap_or_default()),
        title,
        note: worst.unwrap_or_default(),
        named: false,
        x: Axis::steps(all().map(|p| p.x))?,
        y,
        series,
        front: Vec::new(),
    })
}

fn points(pair: &Pair, side: usize) -> Vec<Point> {
    let curve: Vec<[f64; 4]> = pair
        .losses
        .iter()
        .enumerate()
        .map(|(i, both)| [(i + 1) as f64, both[side], both[side], both[side]])
        .collect();
    // A single seed has no band.
    thin(&curve).into_iter().map(|[x, y, ..]| Point { x, y, low: y, high: y, ..Point::default() }).collect()
}
