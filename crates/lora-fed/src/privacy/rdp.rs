//! Rényi differential privacy: quick, within some ten per cent of the truth, never below it.
//!
//! A step's divergence of order `a` adds up over steps (Mironov 2017, "Rényi Differential Privacy", proposition 1), and
//! bounds both directions, adding and removing (Mironov, Talwar and Zhang 2019, theorem 5). The orders and the way to
//! (epsilon, delta) are those of Opacus, whose figures this module gives to nine digits.

use super::mechanism::{Mechanism, Steps};
use super::moments::ln_moment;
use super::special::{LnSum, ln_add, ln_expm1};

/// Opacus' orders: 1.1, 1.2, ... 10.9, 12, 13, ... 63.
pub fn orders() -> impl Iterator<Item = f64> {
    let fractional = (1..100).map(|tenths| 1.0 + f64::from(tenths) / 10.0);
    fractional.chain((12..64).map(f64::from))
}

/// The Rényi divergence, in nats, of one step at an order above 1.
pub fn divergence(mechanism: Mechanism, order: f64) -> f64 {
    let (sigma, q) = (mechanism.sigma(), mechanism.q());
    if q == 0.0 {
        0.0
    } else if q == 1.0 {
        0.5 * order / (sigma * sigma)
    } else if order.fract() == 0.0 && (2.0..=1024.0).contains(&order) {
        closed_form(q, sigma, order as u32) / (order - 1.0)
    } else {
        ln_moment(q, sigma, order) / (order - 1.0)
    }
}

/// `ln A` at an integer order: equation 6 of Mironov, Talwar and Zhang, with `sum C(a, k) (1 - q)^(a - k) q^k = 1`
/// taken from it, so that every term is positive and none is lost beside 1.
fn closed_form(q: f64, sigma: f64, order: u32) -> f64 {
    let (ln_q, ln_rest) = (q.ln(), (-q).ln_1p());
    let mut ln_binomial = 0.0;
    let mut sum = LnSum::new();
    for k in 1..=order {
        ln_binomial += (f64::from(order - k + 1) / f64::from(k)).ln();
        let (k, rest) = (f64::from(k), f64::from(order - k));
        if k > 1.0 {
            sum.add(
                ln_binomial + rest * ln_rest + k * ln_q + ln_expm1(0.5 * k * (k - 1.0) / (sigma * sigma)),
            );
        }
    }
    ln_add(0.0, sum.ln())
}

/// The divergences of a whole history, one for each of [`orders`].
pub fn curve(history: &[Steps]) -> Vec<f64> {
    let total = |order| history.iter().map(|s| s.count as f64 * divergence(s.mechanism, order)).sum();
    orders().map(total).collect()
}

/// The least epsilon at `delta` that the divergences `curve` of [`orders`] prove.
///
/// `epsilon = min_a R(a) + ln((a - 1) / a) - (ln delta + ln a) / (a - 1)`: Canonne, Kamath and Steinke 2020,
/// proposition 12; also Balle et al. 2020, theorem 21.
pub fn epsilon(curve: &[f64], delta: f64) -> f64 {
    if curve.iter().all(|&r| r == 0.0) {
        return 0.0;
    }
    let bound = |(r, a): (&f64, f64)| r + ((a - 1.0) / a).ln() - (delta.ln() + a.ln()) / (a - 1.0);
    curve.iter().zip(orders()).map(bound).fold(f64::INFINITY, f64::min).max(0.0)
}

/// The least delta at `epsilon`: the same bound, turned round.
pub fn delta(curve: &[f64], epsilon: f64) -> f64 {
    if curve.iter().all(|&r| r == 0.0) {
        return 0.0;
    }
    let bound = |(r, a): (&f64, f64)| (a - 1.0) * (r + ((a - 1.0) / a).ln() - epsilon) - a.ln();
    curve.iter().zip(orders()).map(bound).fold(0.0, f64::min).exp()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::special::ln_erfc;

    /// The paper's series for fractional orders, in logarithms with signs, as an oracle.
    fn series(q: f64, sigma: f64, a: f64) -> f64 {
        let variance = sigma * sigma;
        let z0 = variance * (1.0 / q - 1.0).ln() + 0.5;
        let root = std::f64::consts::SQRT_2 * sigma;
        let (mut plus, mut minus) = (LnSum::new(), LnSum::new());
        let (mut ln_binomial, mut positive) = (0.0f64, true);
        for i in 0..20_000 {
            let i = f64::from(i);
            let j = a - i;
            let first =
                j * (1.0 - q).ln() + i * q.ln() + 0.5 * (i * i - i) / variance + ln_erfc((i - z0) / root);
            let second =
                j * q.ln() + i * (1.0 - q).ln() + 0.5 * (j * j - j) / variance + ln_erfc((z0 - j) / root);
            for term in [first, second] {
                (if positive { &mut plus } else { &mut minus }).add(ln_binomial + term - 2f64.ln());
            }
            ln_binomial += (j.abs() / (i + 1.0)).ln();
            positive ^= j < 0.0;
        }
        let (plus, minus) = (plus.ln(), minus.ln());
        plus + (-(minus - plus).exp()).ln_1p()
    }

    #[test]
    fn the_integral_is_the_papers_series() {
        for (q, sigma) in [(0.01, 1.0), (0.1, 0.5), (0.25, 4.0), (0.7, 1.0), (0.004, 1.5), (0.05, 0.3)] {
            for a in [1.1, 1.7, 2.2, 3.2, 7.8, 10.9] {
                let (ours, theirs) = (ln_moment(q, sigma, a), series(q, sigma, a));
                let slack = 1e-8 * theirs + 1e-11; // of the series: it loses digits beside 1, and is cut off
                assert!((ours - theirs).abs() < slack, "q {q}, sigma {sigma}, a {a}: {ours:e} {theirs:e}");
            }
        }
    }

    #[test]
    fn the_integral_is_the_closed_form_at_integers() {
        for q in [1e-9, 1e-5, 0.001, 0.02, 0.3, 0.5, 0.9, 0.999_999] {
            for sigma in [0.02, 0.1, 0.25, 0.6, 1.0, 3.0, 40.0, 1e4] {
                for a in [2u32, 3, 12, 63] {
                    let (ours, exact) = (ln_moment(q, sigma, f64::from(a)), closed_form(q, sigma, a));
                    let error = (ours / exact - 1.0).abs();
                    assert!(error < 2e-12, "q {q}, sigma {sigma}, a {a}: {ours:e} {exact:e} {error:e}");
                }
            }
        }
    }
}
