//! The normal distribution where plain formulas round to nothing.
//!
//! `libm` has erf and erfc to about one unit in the last place, but no logarithm of them: erfc(27) is subnormal and
//! erfc(28) zero, while an accountant needs their logarithms. That much is our own.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// The natural logarithm of erfc(x), to about 1e-15 of its value (1e-16 absolute where that is below 1).
pub(super) fn ln_erfc(x: f64) -> f64 {
    if x.abs() < 0.5 {
        (-libm::erf(x)).ln_1p()
    } else if x < 25.0 {
        libm::erfc(x).ln()
    } else {
        ln_erfcx_far(x) - x * x
    }
}

/// The natural logarithm of exp(x^2) erfc(x) from 25 on: Abramowitz and Stegun 7.1.23, whose sixth term is below
/// 1e-16 there.
fn ln_erfcx_far(x: f64) -> f64 {
    let y = 0.5 / (x * x);
    let series = -y * (1.0 - 3.0 * y * (1.0 - 5.0 * y * (1.0 - 7.0 * y * (1.0 - 9.0 * y))));
    series.ln_1p() - (x * PI.sqrt()).ln()
}

/// The natural logarithm of `exp(x^2 / 2)` times the chance that a standard normal variable is above `x`.
pub(super) fn ln_scaled_upper(x: f64) -> f64 {
    let y = x * FRAC_1_SQRT_2;
    (if y < 25.0 { ln_erfc(y) + 0.5 * x * x } else { ln_erfcx_far(y) }) - std::f64::consts::LN_2
}

/// The natural logarithm of the chance that a standard normal variable is below `x`.
pub(super) fn ln_phi(x: f64) -> f64 {
    ln_erfc(-x * FRAC_1_SQRT_2) - std::f64::consts::LN_2
}

/// The chance that a standard normal variable is above `x`.
pub(super) fn upper(x: f64) -> f64 {
    0.5 * libm::erfc(x * FRAC_1_SQRT_2)
}

/// The chance that a standard normal variable lies in `[a, b]`, to about 1e-14 of its value.
///
/// Where the interval is so narrow that a difference of tails would lose digits, it is the density's integral by
/// its Taylor series around the middle.
pub(super) fn mass(a: f64, b: f64) -> f64 {
    if !(a < b) {
        return 0.0;
    }
    let (w, m) = (b - a, 0.5 * (a + b));
    if w * (1.0 + m.abs()) < 0.1 {
        let (x, s) = (m * m, w * w);
        let he2 = x - 1.0;
        let he4 = x * (x - 6.0) + 3.0;
        let he6 = x * (x * (x - 15.0) + 45.0) - 15.0;
        let series = 1.0 + s / 24.0 * (he2 + s / 80.0 * (he4 + s / 168.0 * he6));
        return w * (-0.5 * x).exp() / (2.0 * PI).sqrt() * series;
    }
    // In the tail that is the smaller: no digits are lost by 1 - tiny.
    if a >= 0.0 {
        upper(a) - upper(b)
    } else if b <= 0.0 {
        upper(-b) - upper(-a)
    } else {
        1.0 - upper(-a) - upper(b)
    }
}

/// `ln(exp(a) + exp(b))`.
pub(super) fn ln_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// `ln(exp(x) - 1)` for positive x.
pub(super) fn ln_expm1(x: f64) -> f64 {
    if x > 40.0 { x } else { x.exp_m1().ln() }
}

/// A sum of numbers of which only the logarithms fit into a float.
pub(super) struct LnSum {
    top: f64,
    sum: f64,
}

impl LnSum {
    pub(super) fn new() -> Self {
        Self { top: f64::NEG_INFINITY, sum: 0.0 }
    }

    pub(super) fn add(&mut self, ln: f64) {
        if ln <= self.top {
            self.sum += (ln - self.top).exp();
        } else if ln > f64::NEG_INFINITY {
            self.sum = self.sum * (self.top - ln).exp() + 1.0;
            self.top = ln;
        }
    }

    pub(super) fn ln(&self) -> f64 {
        self.top + self.sum.ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values by mpmath at 60 digits, of the very floats.
    #[test]
    fn logarithms_of_tails() {
        for (x, want) in [
            (-30.0, std::f64::consts::LN_2),
            (-1.0, 0.611_232_317_678_070_5),
            (1e-10, -1.128_379_167_159_174_6e-10),
            (0.3, -0.398_430_051_440_085_27),
            (5.0, -27.200_889_545_537_434),
            (24.9, -623.798_037_565_574_4),
            (25.0, -628.792_039_174_071_7),
            (25.1, -633.806_024_858_735_2),
            (100.0, -10_005.177_585_122_664),
            (1e6, -1_000_000_000_014.388),
        ] {
            let got = ln_erfc(x);
            assert!(
                (got - want).abs() <= 4e-16 * f64::abs(want).max(1e-10),
                "{x}: {got:.17e}, not {want:.17e}"
            );
        }
    }

    #[test]
    fn masses_of_intervals() {
        for (a, b, want) in [
            (9.0, 9.000_001, 1.027_972_730_513_158_8e-24),
            (0.3, 0.300_000_1, 3.813_878_097_506_733_4e-8),
            (-1.0, 2.0, 0.818_594_614_120_363_7),
            (-0.01, 0.02, 0.011_967_670_031_533_585),
            (6.0, 6.5, 9.464_276_391_991_07e-10),
            (11.0, 11.008, 1.622_596_492_777_210_7e-29),
            (2.0, 2.02, 0.001_058_438_180_532_422_2),
            (-30.0, -8.0, 6.220_960_574_271_784e-16),
        ] {
            let got = mass(a, b);
            // The ends of a narrow interval, as floats, are known no better.
            let ends = 4e-16 * f64::abs(b) / (b - a);
            assert!((got / want - 1.0).abs() < 1e-14 + ends, "[{a}, {b}]: {got:e}, not {want:e}");
        }
        assert_eq!(mass(1.0, 1.0), 0.0);
        assert_eq!(mass(f64::NEG_INFINITY, f64::INFINITY), 1.0);
    }

    #[test]
    fn sums_in_logarithms() {
        let mut sum = LnSum::new();
        assert_eq!(sum.ln(), f64::NEG_INFINITY);
        for ln in [-1e4, 700.0, 1e5, 1e5, f64::NEG_INFINITY] {
            sum.add(ln);
        }
        assert_eq!(sum.ln(), 1e5 + std::f64::consts::LN_2);
        assert_eq!(ln_add(1e5, 1e5), sum.ln());
        assert_eq!(ln_add(f64::NEG_INFINITY, f64::NEG_INFINITY), f64::NEG_INFINITY);
    }
}
