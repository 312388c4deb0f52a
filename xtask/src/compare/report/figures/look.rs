//! What tells one line from another: colour, dashes and the shape of its marks, so that no one needs all three.

use crate::compare::results::peer;

/// How a method is drawn, the same in every figure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::compare::report) struct Look {
    /// 0: grey, for what is no adapter; else one of the page's eight, or [`INK`].
    colour: usize,
    dash: usize,
    mark: usize,
    /// A peer: the method's own colour, marks hollow.
    hollow: bool,
}

const COLOURS: usize = 8;
/// The text's own.
const INK: usize = 9;
const DASHES: [&str; 5] = ["", "7 3", "2 2.5", "9 3 2 3", "4 2"];
const PEER: &str = "1.5 3";
/// Around 0, 0; of much the same area.
const MARKS: [&str; 7] = [
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "M-3.3 -3.3h6.6v6.6h-6.6z",
    "M0 -4.6L4.3 3.2H-4.3z",
    "M0 -4.9L4.6 0L0 4.9L-4.6 0z",
    "M0 4.6L4.3 -3.2H-4.3z",
    "M-1.5 -4.4h3v2.9h2.9v3h-2.9v2.9h-3v-2.9h-2.9v-3h2.9z",
    "M0 -4.6L4.4 -1.4L2.7 3.7H-2.7L-4.4 -1.4z",
];

/// Who has which look; given in the order of appearance.
#[derive(Default)]
pub(in crate::compare::report) struct Looks(Vec<String>);

impl Looks {
    pub(in crate::compare::report) fn of(&mut self, series: &str) -> Look {
        if let Some((method, _)) = peer(series) {
            return Look { hollow: true, ..self.of(method) };
        }
        let grey = |dash, mark| Look { colour: 0, dash, mark, hollow: false };
        match series {
            "none" => return grey(2, 5),
            "full" => return grey(1, 6),
            _ => {}
        }
        let place = self.0.iter().position(|known| known == series).unwrap_or_else(|| {
            self.0.push(series.to_owned());
            self.0.len() - 1
        });
        let (dash, mark) = (place % DASHES.len(), place % MARKS.len());
        Look { colour: place % COLOURS + 1, dash, mark, hollow: false }
    }
}

impl Look {
    pub(super) const OURS: Self = Self { colour: 1, dash: 0, mark: 0, hollow: false };
    pub(super) const THEIRS: Self = Self { colour: INK, dash: 0, mark: 3, hollow: true };

    /// The group's class: its colour.
    pub(super) fn class(&self) -> String {
        format!("c{}", self.colour)
    }

    /// The class of a group of lines.
    pub(super) fn line(&self) -> String {
        format!("line {}", self.dash_class())
    }

    fn dash_class(&self) -> String {
        if self.hollow { "dp".into() } else { format!("d{}", self.dash) }
    }

    /// Its mark, with what a pointer resting on it is told.
    pub(super) fn mark(&self, (x, y): (f64, f64), title: &str) -> String {
        let hollow = if self.hollow { " hollow" } else { "" };
        let title = if title.is_empty() {
            String::new()
        } else {
            format!("<title>{}</title>", super::super::text::escape(title))
        };
        format!(
            "<path class=\"mark{hollow}\" transform=\"translate({x:.1} {y:.1})\" d=\"{}\">{title}</path>\n",
            MARKS[self.mark]
        )
    }

    /// For the legend: what of it is drawn.
    pub(super) fn swatch(&self, with_line: bool, with_mark: bool) -> String {
        let line = if with_line {
            format!("<g class=\"{}\"><polyline points=\"0,6 34,6\" stroke-width=\"1.8\"/></g>", self.line())
        } else {
            String::new()
        };
        let mark = if with_mark { self.mark((17.0, 6.0), "") } else { String::new() };
        format!(
            "<svg class=\"swatch\" viewBox=\"0 0 34 12\" aria-hidden=\"true\"><g class=\"{}\">{line}{mark}</g></svg>",
            self.class()
        )
    }
}

/// The dashes, as CSS.
pub(in crate::compare::report) fn css() -> String {
    let dash = |name: &str, dashes: &str| format!(".{name} polyline {{ stroke-dasharray: {dashes} }}\n");
    let each = DASHES.iter().enumerate().skip(1).map(|(i, dashes)| dash(&format!("d{i}"), dashes));
    each.chain([dash("dp", PEER)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_methods_look_alike_and_a_peer_has_its_methods_colour() {
        let mut looks = Looks::default();
        let given: Vec<Look> = (0..40).map(|i| looks.of(&format!("method {i}"))).collect();
        for (i, look) in given.iter().enumerate() {
            assert!(!given[..i].contains(look), "{i}");
            assert_eq!(*look, looks.of(&format!("method {i}")), "the same again");
        }
        let (ours, theirs) = (looks.of("method 3"), looks.of("method 3 (peft)"));
        assert_eq!((ours.colour, ours.hollow, theirs.hollow), (theirs.colour, false, true));
    }
}
