//! Numbers as Python writes them.

/// A number as Python's `repr` has it: the shortest digits that are this number, of two such the even ones; an
/// exponent of at least two digits below 1e-4 and from 1e16 on.
pub fn python_repr(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() { "nan".to_owned() } else { x.to_string() };
    }
    let decimals = |text: &str| text.split(['.', 'e']).nth(1).map_or(0, str::len);
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        let shortest = format!("{x:?}");
        return format!("{x:.*}", decimals(&shortest));
    }
    let shortest = format!("{x:e}");
    let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let even = format!("{x:.*e}", if digits.contains('.') { decimals(digits) } else { 0 });
    let digits = even.split('e').next().unwrap_or(digits);
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_written_as_python_writes_them() {
        for (x, text) in [
            (2.56182861328125, "2.56182861328125"),
            (234.499_786_376_953_12, "234.49978637695312"),
            (1.0, "1.0"),
            (0.0, "0.0"),
            (1e-5, "1e-05"),
            (0.00012345, "0.00012345"),
            (1.5e-7, "1.5e-07"),
            (2.5e16, "2.5e+16"),
            (1e300, "1e+300"),
            (-1e23, "-1e+23"),
            (1e16, "1e+16"),
            (f64::NAN, "nan"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(super::python_repr(x), text);
        }
    }
}
