//! Numbers as the tables show them.

use crate::compare::results::{Interval, Measure, Shown, Values};

/// What stands where there is nothing.
pub(super) const NOTHING: &str = "–";

/// `1,234.5`, `−0.25`, `3.1e−5`, `NaN`, `∞`.
pub(super) fn number(value: f64, digits: usize, scientific: bool) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "∞" } else { "−∞" }.into();
    }
    if scientific && value != 0.0 {
        return format!("{value:.digits$e}").replace('-', "−");
    }
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let is_zero = text.chars().all(|c| matches!(c, '0' | '.'));
    format!("{}{}{rest}", if value < 0.0 && !is_zero { "−" } else { "" }, thousands(whole))
}

fn thousands(digits: &str) -> String {
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In the measure's own unit and digits, without its unit.
pub(super) fn of(value: f64, shown: &Shown) -> String {
    number(value * shown.times, shown.digits, shown.scientific)
}

/// With its unit: `81.2 %`.
pub(super) fn with_unit(value: f64, shown: &Shown) -> String {
    format!("{} {}", of(value, shown), shown.unit).trim_end().to_owned()
}

/// The spread over the seeds, where there is one. What is the same for every seed has none.
pub(super) fn spread(values: &Values, measure: Measure) -> Option<String> {
    let constant = [Measure::Parameters, Measure::ParameterShare, Measure::AdapterBytes].contains(&measure);
    values.sd.filter(|_| !constant).map(|sd| of(sd, &measure.shown()))
}

/// A difference and its interval: `−1.2 [−2.4, 0.1]`.
pub(super) fn interval(of: &Interval, shown: &Shown) -> String {
    let [mean, low, high] = [of.mean, of.low, of.high].map(|v| self::of(v, shown));
    let sign = if of.mean > 0.0 && mean.chars().any(|c| ('1'..='9').contains(&c)) { "+" } else { "" };
    format!("{sign}{mean} [{low}, {high}]")
}

/// What a share is never above, in percent: rounded up, so that little is not called nothing.
pub(super) fn at_most(share: f64) -> String {
    number((share * 1e4 - 1e-9).ceil() / 100.0, 2, false)
}

/// The unit of a difference: percentages differ by points.
pub(super) fn difference_unit(shown: &Shown) -> &'static str {
    if shown.unit == "%" { "points" } else { shown.unit }
}

/// To `digits` digits that count, and no zeros at the end: `1e−4`, `0.0002`, `32`.
pub(super) fn short(value: f64) -> String {
    if !value.is_finite() {
        return number(value, 0, false);
    }
    if value != 0.0 && !(1e-3..1e6).contains(&value.abs()) {
        return format!("{value:e}").replace('-', "−");
    }
    format!("{value}").replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(1234567.891, 1, false), "1,234,567.9");
        assert_eq!(number(-0.25, 2, false), "−0.25");
        assert_eq!(number(-0.0001, 2, false), "0.00", "no minus before nothing");
        assert_eq!(number(3.14e-5, 1, true), "3.1e−5");
        assert_eq!(number(0.0, 1, true), "0.0");
        assert_eq!(
            [f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(|v| number(v, 1, true)),
            ["NaN", "∞", "−∞"]
        );
        assert_eq!(with_unit(0.8125, &Measure::Accuracy.shown()), "81.2 %");
        assert_eq!([1e-4, 2e-3, 32.0, 0.0, f64::NAN].map(short), ["1e−4", "0.002", "32", "0", "NaN"]);
    }

    #[test]
    fn little_is_not_called_nothing() {
        assert_eq!(
            [0.0, 3e-8, 0.0042, 0.00421, f64::NAN].map(at_most),
            ["0.00", "0.01", "0.42", "0.43", "NaN"]
        );
    }

    #[test]
    fn a_difference_bears_its_sign() {
        let shown = Measure::Accuracy.shown();
        let of = |mean, low, high| interval(&Interval { mean, low, high, seeds: 3 }, &shown);
        assert_eq!(of(-0.012, -0.024, 0.001), "−1.2 [−2.4, 0.1]");
        assert_eq!(of(0.012, -0.001, 0.02), "+1.2 [−0.1, 2.0]");
        assert_eq!(of(0.0, 0.0, 0.0), "0.0 [0.0, 0.0]");
    }
}
