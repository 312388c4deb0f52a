//! Moments of the privacy loss of one step, from which both accountants start.
//!
//! Let `P = N(0, sigma^2)` and `Q = (1 - q) N(0, sigma^2) + q N(1, sigma^2)`: one coordinate without and with the
//! record, in units of the clipping norm. No other pair of neighbours is told apart better (Mironov, Talwar and Zhang
//! 2019, "Rényi Differential Privacy of the Sampled Gaussian Mechanism", section 3; Zhu, Dong and Wang 2022). With
//!
//! ```text
//! u(x) = q (exp((2x - 1) / 2 sigma^2) - 1),    Q/P = 1 + u,    A(a) = E_P[(1 + u)^a]
//! ```
//!
//! `ln A(a) / (a - 1)` is the Rényi divergence of order a (their equation 4), and `ln A(t + 1)` and `ln A(-t)` are the
//! cumulants at t of the loss when the record is removed and added.
//!
//! The paper sums a series that alternates (section 3.3). Here the integral is taken as it is: since `E_P[u] = 0`,
//! `A(a) - 1` is the mean of `(1 + u)^a - 1 - a u`, whose sign never changes, so nothing cancels however near A is
//! to 1; and the trapezoidal rule converges exponentially on an analytic function (Trefethen and Weideman 2014). The
//! tests hold it against the series, the closed form at integers, and 30-digit quadrature.

use std::f64::consts::PI;

use super::special::{LnSum, ln_add, ln_expm1};

/// `ln A(order)` for any real order; where it would take more than [`MOST_POINTS`], a bound of it.
pub(super) fn ln_moment(q: f64, sigma: f64, order: f64) -> f64 {
    ln_moment_within(q, sigma, order, (f64::NEG_INFINITY, f64::INFINITY))
}

/// Nearly that of the loss where x is within `ends`, which leave out next to nothing: what is far out and rare would
/// otherwise decide the moments of high order.
pub(super) fn ln_moment_within(q: f64, sigma: f64, order: f64, ends: (f64, f64)) -> f64 {
    if q == 0.0 || order == 0.0 || order == 1.0 {
        return 0.0;
    }
    let whole = (0.5 * order * (order - 1.0) / (sigma * sigma)).max(if q < 1.0 { 0.0 } else { f64::MIN });
    if q == 1.0 {
        return whole;
    }
    // Beyond nine and a half deviations of the peaks nothing counts.
    let (low, high) = (lowest_peak(q, sigma, order) - 9.5 * sigma, order.max(1.0) + 9.5 * sigma);
    let (low, high) = (low.max(ends.0), high.min(ends.1));
    let step = spacing(q, sigma, order);
    let points = ((high - low) / step).ceil();
    if !(points <= MOST_POINTS) {
        // 1 + u is at least 1 - q.
        return if order < 0.0 { whole.min(order * (-q).ln_1p()) } else { whole };
    }
    let variance = sigma * sigma;
    let mut sum = LnSum::new();
    for i in 0..=points as u64 {
        let x = low + i as f64 * step;
        sum.add(ln_excess(q, (x - 0.5) / variance, order) - 0.5 * x * x / variance);
    }
    let ln = sum.ln() + (step / sigma).ln() - 0.5 * (2.0 * PI).ln();
    match order > 0.0 && order < 1.0 {
        true => (-ln.exp()).ln_1p(),
        false => ln_add(0.0, ln),
    }
}

const MOST_POINTS: f64 = 2e4;

/// The peaks of an order above 0 lie between 0 and it. Below, there is one, where `x = order p(x)` of a logistic p.
fn lowest_peak(q: f64, sigma: f64, order: f64) -> f64 {
    let (mut low, mut high) = (order.min(0.0), 0.0);
    let odds = ((1.0 - q) / q).ln();
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        let p = 1.0 / (1.0 + (odds - (middle - 0.5) / (sigma * sigma)).exp());
        if middle > order * p { high = middle } else { low = middle }
    }
    low
}

/// The trapezoidal rule's step, for an error of about exp(-40).
///
/// The integrand is analytic but for branch points above and below `x = z0`, at a distance of pi sigma^2; they matter
/// the less, the further z0 is out in the density's tail.
fn spacing(q: f64, sigma: f64, order: f64) -> f64 {
    let variance = sigma * sigma;
    let odds = ((1.0 - q) / q).ln();
    let z0 = variance * odds + 0.5;
    let damped = 0.5 * z0 * z0 / variance - 2.0 * odds.max(0.0);
    // From sigma = 4 on the Gaussian itself is what limits the step.
    let plain = |needed: f64| match sigma < 4.0 {
        true => (0.5 * sigma).min(2.0 * PI * PI * variance / (needed + 0.5 * PI * PI * variance)),
        false => 0.5 * sigma,
    };
    if order < 0.0 {
        // There they are poles of high order, and the bump between them is narrower.
        return if damped > 40.0 - 5.0 * order && z0 > 0.0 {
            plain(0.0)
        } else {
            plain(40.0) / (1.0 - order / (4.0 * variance)).sqrt()
        };
    }
    plain((40.0 - damped).clamp(0.0, 40.0))
}

/// The loss `ln(1 + u)`, that is `ln(1 - q + q exp(t))`, digits and all where it nears 0 and where it is large.
pub(super) fn loss(q: f64, t: f64) -> f64 {
    if q == 1.0 {
        t
    } else if t < 30.0 && (q < 0.5 || t > -0.5) {
        (q * t.exp_m1()).ln_1p()
    } else {
        ln_add((-q).ln_1p(), q.ln() + t)
    }
}

/// The logarithm of `|(1 + u)^a - 1 - a u|`, where `u = q (exp(t) - 1)`.
fn ln_excess(q: f64, t: f64, a: f64) -> f64 {
    if t < 700.0 {
        let u = q * t.exp_m1();
        if (a * u).abs() < 0.3 && u.abs() < 0.3 {
            return binomial_tail(a, u).abs().ln();
        }
        let power = a * loss(q, t);
        if power < 600.0 {
            return (power.exp_m1() - a * u).abs().ln();
        }
        if a <= 0.0 || a >= 1.0 {
            return power + (-(1.0 + a * u) * (-power).exp()).ln_1p();
        }
    }
    // exp(t) or the power is beyond floats: the larger of the two terms, and the other's share of it.
    let power = a * loss(q, t);
    let linear = a.abs().ln() + q.ln() + if t > 40.0 { t } else { ln_expm1(t) };
    if a > 1.0 {
        power + (-(linear - power).min(0.0).exp()).ln_1p()
    } else {
        linear + (if a > 0.0 { -(power - linear).exp() } else { (power - linear).exp() }).ln_1p()
    }
}

/// `(1 + u)^a - 1 - a u` by its series, for small u.
fn binomial_tail(a: f64, u: f64) -> f64 {
    let mut term = 0.5 * a * (a - 1.0) * u * u;
    let mut sum = term;
    for k in 3..60 {
        term *= (a - f64::from(k) + 1.0) / f64::from(k) * u;
        sum += term;
        if term.abs() <= 1e-17 * sum.abs() {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same integral with a step and a reach that leave no doubt.
    fn finely(q: f64, sigma: f64, order: f64) -> f64 {
        let (low, high) = (order.min(0.0) - 11.0 * sigma, order.max(1.0) + 11.0 * sigma);
        let step = spacing(q, sigma, order) / 3.7;
        let variance = sigma * sigma;
        let mut sum = LnSum::new();
        for i in 0..=((high - low) / step) as u64 {
            let x = low + i as f64 * step;
            sum.add(ln_excess(q, (x - 0.5) / variance, order) - 0.5 * x * x / variance);
        }
        let excess = (sum.ln() + (step / sigma).ln() - 0.5 * (2.0 * PI).ln()).exp();
        if order > 0.0 && order < 1.0 { (-excess).ln_1p() } else { excess.ln_1p() }
    }

    #[test]
    fn the_step_is_fine_enough() {
        for q in [1e-6, 0.001, 0.05, 0.4, 0.9, 0.9999] {
            for sigma in [0.15, 0.4, 0.7, 1.0, 2.0, 30.0, 1e3] {
                for order in [-40.0, -3.3, -0.5, 1e-4, 0.5, 1.0001, 1.3, 4.5, 20.2, 90.0] {
                    let (ours, fine) = (ln_moment(q, sigma, order), finely(q, sigma, order));
                    if fine < 600.0 {
                        let error = (ours / fine - 1.0).abs();
                        assert!(error < 1e-9, "q {q}, sigma {sigma}, order {order}: {ours:e} {fine:e}");
                    }
                }
            }
        }
    }

    /// The mean slopes of the cumulants grow, up to the largest loss; of the loss turned round, likewise.
    #[test]
    fn cumulants_are_convex() {
        for (q, sigma) in [(0.01, 0.5), (0.3, 2.0), (1e-4, 1.0), (0.9, 0.8)] {
            let (mut slope, top) = (f64::NEG_INFINITY, -f64::ln_1p(-q));
            for power in -20..60 {
                let t = 10f64.powf(f64::from(power) / 10.0);
                let next = ln_moment(q, sigma, -t) / t;
                assert!(
                    next >= slope - 1e-12 * top && next <= top * (1.0 + 1e-12),
                    "q {q}, sigma {sigma}, t {t}: {slope} {next} {top}"
                );
                slope = next;
            }
            assert!(slope > 0.9 * top, "q {q}, sigma {sigma}: {slope} {top}");
        }
    }

    #[test]
    fn all_records_are_a_gaussian() {
        // Not by the short cut: nearly all.
        for order in [-5.0, 0.5, 1.5, 7.3] {
            let (ours, exact) = (ln_moment(1.0 - 1e-13, 0.8, order), ln_moment(1.0, 0.8, order));
            assert!((ours / exact - 1.0).abs() < 1e-9, "{order}: {ours} {exact}");
        }
    }
}
