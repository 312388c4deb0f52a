//! Axes: from values to places, and where the ticks stand.

use crate::compare::report::numbers::{number, short};
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use std::ops::Range;

/// One axis. A place is what plotters spreads evenly: the value, or its logarithm to base 2.
#[derive(Clone)]
pub(super) struct Axis {
    pub(super) name: String,
    pub(super) log: bool,
    /// The ends, as places.
    pub(super) low: f64,
    pub(super) high: f64,
    /// Place and text.
    pub(super) ticks: Vec<(f64, String)>,
}

/// The greatest value over the least: from here on a logarithm is easier to read.
const WIDE: f64 = 10.0;
/// Curves fall fast, and what matters comes after.
const WIDE_CURVES: f64 = 3.0;

impl Axis {
    /// From the least to the greatest of the values, and a little more; none without values. Logarithmic where
    /// they are far apart.
    pub(super) fn new(name: &str, values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::fitting(name, values, WIDE)
    }

    /// The same for what falls over the steps.
    pub(super) fn falling(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        Self::fitting("", values, WIDE_CURVES)
    }

    fn fitting(name: &str, values: impl IntoIterator<Item = f64>, wide: f64) -> Option<Self> {
        let (low, high) = ends(values)?;
        let log = low > 0.0 && high / low >= wide;
        Some(if log { Self::log(name, low, high) } else { Self::linear(name, low, high) })
    }

    /// Steps of training, from the first.
    pub(super) fn steps(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (low, high) = ends(values)?;
        let mut axis = Self::linear("step", low, high);
        (axis.low, axis.high) = (low, if high > low { high } else { low + 1.0 });
        axis.ticks.retain(|(place, _)| (axis.low..=axis.high).contains(place) && place.fract() == 0.0);
        for (place, text) in &mut axis.ticks {
            *text = number(*place, 0, false);
        }
        // The ends have a number too, where their neighbours leave room.
        let (room, tick) = (0.12 * (high - low), |at| (at, number(at, 0, false)));
        if axis.ticks.first().is_none_or(|(next, _)| next - low > room) {
            axis.ticks.insert(0, tick(low));
        }
        if axis.ticks.last().is_none_or(|(last, _)| high - last > room) {
            axis.ticks.push(tick(high));
        }
        Some(axis)
    }

    /// Ranks, each doubling as far as the next.
    pub(super) fn ranks(ranks: &[u64]) -> Option<Self> {
        let (low, high) = ends(ranks.iter().map(|rank| *rank as f64).filter(|rank| *rank > 0.0))?;
        let mut ticks: Vec<(f64, String)> = Vec::new();
        for rank in ranks.iter().filter(|rank| **rank > 0) {
            let place = (*rank as f64).log2();
            // Closer than this, two numbers would touch.
            if ticks.last().is_none_or(|(last, _)| place - last > (high / low).log2().max(1.0) / 11.0) {
                ticks.push((place, rank.to_string()));
            }
        }
        let name = "rank".into();
        Some(Self { name, log: true, low: low.log2() - 0.4, high: high.log2() + 0.4, ticks })
    }

    fn linear(name: &str, low: f64, high: f64) -> Self {
        let half = if high > low { 0.06 * (high - low) } else { (low.abs() * 0.05).max(1e-9) };
        let (low, high) = (low - half, high + half);
        Self { name: name.into(), log: false, low, high, ticks: ticks(low, high) }
    }

    fn log(name: &str, low: f64, high: f64) -> Self {
        let half = 0.05 * (high / low).log2();
        let (low, high) = (low.log2() - half, high.log2() + half);
        let place = |value: f64| (value.log2(), short(value));
        let decades =
            || (low.exp2().log10().floor() as i32..=high.exp2().log10().ceil() as i32).map(|d| 10f64.powi(d));
        let inside = |(at, _): &(f64, String)| (low..=high).contains(at);
        let of = |parts: &[f64]| -> Vec<_> {
            let values = decades().flat_map(|decade| parts.iter().map(move |part| rounded(part * decade)));
            values.map(place).filter(inside).collect()
        };
        let mut ticks = of(&[1.0, 2.0, 5.0]);
        if ticks.len() < 4 {
            ticks = of(&[1.0, 1.5, 2.0, 3.0, 5.0, 7.0]);
        }
        if ticks.len() > 7 {
            ticks = decades().map(rounded).map(place).filter(inside).collect();
            let each = ticks.len().div_ceil(7);
            ticks = ticks.into_iter().step_by(each).collect();
        }
        Self { name: name.into(), log: true, low, high, ticks }
    }

    /// The place of a value; none for what has none.
    pub(super) fn at(&self, value: f64) -> Option<f64> {
        let place = if self.log { (value > 0.0).then(|| value.log2())? } else { value };
        place.is_finite().then_some(place)
    }

    /// The text of the tick at a place.
    pub(super) fn text(&self, place: f64) -> String {
        let tick = self.ticks.iter().find(|(at, _)| (at - place).abs() < 1e-9 * (1.0 + at.abs()));
        tick.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// As plotters asks for it.
impl Ranged for Axis {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, place: &f64, (start, end): (i32, i32)) -> i32 {
        start + (f64::from(end - start) * (place - self.low) / (self.high - self.low)).round() as i32
    }

    /// The ticks, and no finer ones.
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|(place, _)| *place).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

fn ends(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .filter(|value| value.is_finite())
        .fold(None, |ends, v| Some(ends.map_or((v, v), |(low, high): (f64, f64)| (low.min(v), high.max(v)))))
}

/// 0.30000000000000004 is 0.3.
fn rounded(value: f64) -> f64 {
    format!("{value:.12e}").parse().unwrap_or(value)
}

/// Four to seven round numbers.
fn ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let rough = (high - low) / 6.0;
    let decade = 10f64.powf(rough.log10().floor());
    let steps = [(1.0, 0), (2.0, 0), (2.5, 1), (5.0, 0), (10.0, 0)];
    let (step, more) = steps.into_iter().find(|(m, _)| m * decade >= rough).unwrap_or((10.0, 0));
    let step = step * decade;
    let digits = (more - decade.log10().round() as i32).clamp(0, 9) as usize;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    let place = |n: i64| rounded(n as f64 * step);
    (first..=last).take(20).map(|n| (place(n), number(place(n), digits, false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_and_lie_inside() {
        let axis = Axis::new("x", [61.2, 83.9]).unwrap();
        assert_eq!(texts(&axis), ["60", "65", "70", "75", "80", "85"]);
        let axis = Axis::new("x", [0.30, 0.31]).unwrap();
        assert_eq!(texts(&axis), ["0.300", "0.302", "0.304", "0.306", "0.308", "0.310"]);
        let axis = Axis::new("loss", [0.03, 2.0]).unwrap();
        assert_eq!((texts(&axis), axis.log), (vec!["0.05", "0.1", "0.2", "0.5", "1", "2"], true));
        assert!(axis.ticks.iter().all(|(place, _)| (axis.low..=axis.high).contains(place)));
        assert_eq!(axis.text(0.1f64.log2()), "0.1");
    }

    #[test]
    fn odd_values_make_no_odd_axis() {
        assert!(Axis::new("x", []).is_none());
        assert!(Axis::new("x", [f64::NAN, f64::INFINITY]).is_none());
        for same in [0.0, 5.0, -3.0, 1e-12] {
            let axis = Axis::new("x", [same]).unwrap();
            assert!(axis.low < axis.high && axis.low <= same && same <= axis.high, "{same}");
        }
        let wide = Axis::new("x", [1e-9, 1e9]).unwrap();
        assert!((2..=7).contains(&wide.ticks.len()), "{:?}", texts(&wide));
        assert_eq!(
            (wide.at(0.0), wide.at(-1.0), wide.at(f64::NAN), wide.at(8.0)),
            (None, None, None, Some(3.0))
        );
    }

    #[test]
    fn steps_are_whole_and_so_are_their_numbers() {
        assert_eq!(texts(&Axis::steps([1.0, 2.0, 4.0]).unwrap()), ["1", "2", "3", "4"]);
        assert_eq!(texts(&Axis::steps([1.0, 300.0]).unwrap()), ["1", "100", "200", "300"]);
        assert_eq!(texts(&Axis::steps([1.0]).unwrap()), ["1"]);
    }

    #[test]
    fn ranks_stand_a_doubling_apart_and_never_touch() {
        let axis = Axis::ranks(&[4, 8, 16, 32, 64, 128, 256]).unwrap();
        assert_eq!(texts(&axis), ["4", "8", "16", "32", "64", "128", "256"]);
        assert_eq!(axis.at(16.0), Some(4.0));
        assert_eq!(texts(&Axis::ranks(&[8]).unwrap()), ["8"]);
        let close = Axis::ranks(&(1..=64).collect::<Vec<_>>()).unwrap();
        assert!(close.ticks.len() < 12, "{:?}", texts(&close));
    }
}
