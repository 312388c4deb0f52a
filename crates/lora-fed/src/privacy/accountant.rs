//! One face for both accountants, and the two questions asked before a run: how much noise, how many steps.

use super::error::{PrivacyError, Result, require_delta, require_epsilon};
use super::mechanism::{Mechanism, Steps};
use super::{exact, pld, rdp};

/// How spending is added up. Both are upper bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accounting {
    /// By Rényi divergences, with Opacus' orders: what most papers print.
    Rdp,
    /// By privacy-loss distributions: exact to four digits, so less noise for the same promise. (Where another bound
    /// is lower still, in corners such as a delta near 1, that one.)
    Pld,
}

/// Adds up what a sequence of steps gives away, whose noise and rates were settled before the first was seen. (Of
/// steps that are alike, when to stop need not be; nor the noise of steps that draw nothing. A [`Ledger`](super::Ledger) takes no
/// others.)
///
/// ```
/// use lora_fed::privacy::Accountant;
/// let mut spent = Accountant::pld();
/// spent.steps(1.0, 0.01, 1000)?;
/// assert!((spent.epsilon(1e-5)? - 1.828).abs() < 0.001);
/// # Ok::<(), lora_fed::privacy::PrivacyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Accountant {
    accounting: Accounting,
    history: Vec<Steps>,
}

impl Accountant {
    /// One with nothing spent.
    pub fn new(accounting: Accounting) -> Self {
        Self { accounting, history: Vec::new() }
    }

    /// One that adds Rényi divergences.
    pub fn rdp() -> Self {
        Self::new(Accounting::Rdp)
    }

    /// One that composes privacy-loss distributions.
    pub fn pld() -> Self {
        Self::new(Accounting::Pld)
    }

    /// Adds one step: noise of `sigma` clipping norms, records drawn with rate `q` (1: all of them).
    pub fn step(&mut self, sigma: f64, q: f64) -> Result<()> {
        self.steps(sigma, q, 1)
    }

    /// Adds `count` equal steps.
    pub fn steps(&mut self, sigma: f64, q: f64, count: u64) -> Result<()> {
        self.add(Mechanism::new(sigma, q)?, count);
        Ok(())
    }

    /// Adds `count` steps of a mechanism. The order of steps does not matter, so equal ones are kept as one entry.
    pub fn add(&mut self, mechanism: Mechanism, count: u64) {
        match self.history.iter_mut().find(|s| s.mechanism == mechanism) {
            Some(steps) => steps.count = steps.count.saturating_add(count),
            None => self.history.push(Steps { mechanism, count }),
        }
    }

    /// What was added, equal steps together.
    pub fn history(&self) -> &[Steps] {
        &self.history
    }

    /// How it adds up.
    pub fn accounting(&self) -> Accounting {
        self.accounting
    }

    /// The least epsilon, in nats, that is proved at `delta`; infinite if none is.
    pub fn epsilon(&self, delta: f64) -> Result<f64> {
        require_delta(delta)?;
        let history = self.spending();
        if history.is_empty() {
            return Ok(0.0);
        }
        let (renyi, mu) = (rdp::curve(&history), unsampled(&history));
        let by_renyi = rdp::epsilon(&renyi, delta);
        Ok(match self.accounting {
            Accounting::Rdp => by_renyi,
            Accounting::Pld if mu.exact => exact::epsilon(mu.mu, delta),
            Accounting::Pld if total_variation(&history) <= delta => 0.0,
            Accounting::Pld => {
                let grid = if mu.huge { f64::INFINITY } else { pld::epsilon(&history, delta) };
                grid.min(exact::epsilon(mu.mu, delta)).min(by_renyi)
            }
        })
    }

    /// The least delta that is proved at `epsilon`.
    pub fn delta(&self, epsilon: f64) -> Result<f64> {
        require_epsilon(epsilon)?;
        let history = self.spending();
        if history.is_empty() {
            return Ok(0.0);
        }
        let (renyi, mu) = (rdp::curve(&history), unsampled(&history));
        let by_renyi = rdp::delta(&renyi, epsilon);
        Ok(match self.accounting {
            Accounting::Rdp => by_renyi,
            Accounting::Pld if mu.exact => exact::delta(mu.mu, epsilon),
            Accounting::Pld => {
                let grid = if mu.huge { 1.0 } else { pld::delta(&history, epsilon) };
                grid.min(exact::delta(mu.mu, epsilon)).min(by_renyi).min(total_variation(&history))
            }
        })
    }

    /// The steps that spend anything.
    fn spending(&self) -> Vec<Steps> {
        self.history.iter().filter(|s| s.count > 0 && s.mechanism.q() > 0.0).copied().collect()
    }
}

/// The history as if every record took part in every step: drawing never makes it worse, so this bounds whatever no
/// grid can hold.
struct Unsampled {
    mu: f64,
    /// Nothing is drawn, so it is more than a bound.
    exact: bool,
    /// There is so little noise (an epsilon of thousands a step) that a grid is not worth its while.
    huge: bool,
}

fn unsampled(history: &[Steps]) -> Unsampled {
    let square: f64 = history.iter().map(|s| s.count as f64 / s.mechanism.sigma().powi(2)).sum();
    Unsampled {
        mu: square.sqrt(),
        exact: history.iter().all(|s| s.mechanism.q() == 1.0),
        huge: history.iter().any(|s| s.mechanism.sigma() < 0.01),
    }
}

/// A bound of delta at epsilon 0: a step's two outcomes can be drawn such that they differ with a chance of
/// `q (2 Phi(1 / 2 sigma) - 1)` only, and those of all steps such that all agree with the product of the chances.
fn total_variation(history: &[Steps]) -> f64 {
    let one = |m: &Mechanism| m.q() * libm::erf(0.5 * std::f64::consts::FRAC_1_SQRT_2 / m.sigma());
    let ln_same: f64 = history.iter().map(|s| s.count as f64 * (-one(&s.mechanism)).ln_1p()).sum();
    (-ln_same.exp_m1() * (1.0 + 1e-12)).min(1.0)
}

/// The noise multipliers that [`sigma_for`] considers.
const LEAST_SIGMA: f64 = 0.01;
const LARGEST_SIGMA: f64 = 1e9;
/// How near to the least one it comes.
pub(super) const SIGMA_WITHIN: f64 = 1e-4;

/// The least noise multiplier, to a ten-thousandth, with which `steps` steps of rate `q` stay within `epsilon` at
/// `delta`; what is returned was itself accounted for and never exceeds them.
pub fn sigma_for(accounting: Accounting, epsilon: f64, delta: f64, q: f64, steps: u64) -> Result<f64> {
    require_epsilon(epsilon)?;
    require_delta(delta)?;
    let at = |sigma: f64| {
        let mut accountant = Accountant::new(accounting);
        accountant.steps(sigma, q, steps)?;
        Ok::<_, PrivacyError>((sigma, accountant.epsilon(delta)?))
    };
    // The quick accountant's answer is not far above the tight one's.
    let start = match accounting {
        Accounting::Rdp => 1.0,
        Accounting::Pld => sigma_for(Accounting::Rdp, epsilon, delta, q, steps).unwrap_or(1.0),
    };
    // Past the answer, epsilon being about a power of sigma, but for where it is 0 or infinite.
    let past = |(sigma, is): (f64, f64), aside: f64| {
        let stride = if is == 0.0 { 0.25 } else { (is / epsilon).powf(0.6).clamp(0.25, 4.0) };
        (sigma * stride * aside).clamp(LEAST_SIGMA, LARGEST_SIGMA)
    };
    // A multiplier that is too little and one that is enough, each with its epsilon.
    let first = at(start)?;
    let (mut little, mut enough) = (first, first);
    while little.1 <= epsilon {
        if little.0 <= LEAST_SIGMA {
            return Ok(little.0);
        }
        enough = little;
        little = at(past(enough, 0.98))?;
    }
    while enough.1 > epsilon {
        if enough.0 >= LARGEST_SIGMA {
            return Err(PrivacyError::Unreachable { largest: enough.0, steps, epsilon, delta });
        }
        little = enough;
        enough = at(past(little, 1.02))?;
    }
    // By secants of the logarithms through the last two, aimed a little to the side that is further off.
    let (mut before, mut last) = (little, enough);
    while enough.0 > little.0 * (1.0 + SIGMA_WITHIN) {
        let slope = (last.1 / before.1).ln() / (last.0 / before.0).ln();
        let aside = if last.1 <= epsilon { 1.0 - 4e-5 } else { 1.0 + 4e-5 };
        let guess = last.0 * (epsilon / last.1).powf(1.0 / slope) * aside;
        let inside = guess > little.0 && guess < enough.0;
        (before, last) = (last, at(if inside { guess } else { (little.0 * enough.0).sqrt() })?);
        if last.1 <= epsilon { enough = last } else { little = last }
    }
    Ok(enough.0)
}

/// How many steps of `sigma` and `q` fit behind what `spent` holds already, `most` at most.
pub fn steps_for(spent: &Accountant, epsilon: f64, delta: f64, sigma: f64, q: f64, most: u64) -> Result<u64> {
    require_epsilon(epsilon)?;
    let mechanism = Mechanism::new(sigma, q)?;
    let fits = |count: u64| {
        let mut accountant = spent.clone();
        accountant.add(mechanism, count);
        Ok::<_, PrivacyError>(accountant.epsilon(delta)? <= epsilon)
    };
    if !fits(0)? {
        return Ok(0);
    }
    let (mut good, mut bad) = (0, 1);
    while bad <= most && fits(bad)? {
        (good, bad) = (bad, bad.saturating_mul(2));
        if good == u64::MAX {
            return Ok(most);
        }
    }
    bad = bad.min(most.saturating_add(1));
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle)? { good = middle } else { bad = middle }
    }
    Ok(good)
}
