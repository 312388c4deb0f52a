//! The Gaussian mechanism without sampling, in closed form.

use super::error::{Result, require, require_delta, require_epsilon};
use super::special::{ln_phi, ln_scaled_upper};

/// The exact delta at `epsilon` of Gaussian steps whose composition has `mu^2 = sum 1 / sigma^2`.
///
/// Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy", theorem 8; Dong, Roth and Su
/// 2022, "Gaussian Differential Privacy", corollaries 1 and 2.
pub fn gaussian_delta(mu: f64, epsilon: f64) -> Result<f64> {
    require(mu >= 0.0, "mu", mu, "0 or more")?;
    require_epsilon(epsilon)?;
    Ok(delta(mu, epsilon))
}

/// The least epsilon at `delta` of the same, rounded up by less than 1e-12 of it.
pub fn gaussian_epsilon(mu: f64, delta: f64) -> Result<f64> {
    require(mu >= 0.0, "mu", mu, "0 or more")?;
    require_delta(delta)?;
    Ok(epsilon(mu, delta))
}

pub(super) fn delta(mu: f64, epsilon: f64) -> f64 {
    if mu == 0.0 {
        return 0.0;
    }
    if mu == f64::INFINITY {
        return 1.0;
    }
    // Phi(a) - exp(epsilon) Phi(b); since a^2 - b^2 = -2 epsilon, the quotient of the two is that of the scaled tails,
    // in which nothing large cancels.
    let (a, b) = (0.5 * mu - epsilon / mu, -0.5 * mu - epsilon / mu);
    let quotient = ln_scaled_upper(-b) - ln_scaled_upper(-a);
    (ln_phi(a).exp() * -quotient.min(0.0).exp_m1()).clamp(0.0, 1.0)
}

pub(super) fn epsilon(mu: f64, wanted: f64) -> f64 {
    if delta(mu, 0.0) <= wanted {
        return 0.0;
    }
    // Chernoff's bound, (mu^2 t (t + 1) / 2 - ln delta) / t at its least, lies above.
    let (mut low, mut high) = (0.0, 0.5 * mu * mu + mu * (-2.0 * wanted.ln()).sqrt());
    if !high.is_finite() {
        return f64::INFINITY;
    }
    while high - low > 1e-13 * high {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if delta(mu, middle) <= wanted { high = middle } else { low = middle }
    }
    high * (1.0 + 4.0 * f64::EPSILON)
}
