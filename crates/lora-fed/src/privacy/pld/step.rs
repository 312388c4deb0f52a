//! The loss of one step, on a grid.

use super::super::mechanism::Mechanism;
use super::super::moments::loss;
use super::super::special::{mass, upper};
use super::Direction;

/// Masses at `(low + k) * spacing`, k from 0.
pub(super) struct Step {
    pub(super) low: i64,
    pub(super) masses: Vec<f64>,
    /// The chance of an infinite loss.
    pub(super) infinite: f64,
}

impl Step {
    /// The distribution of a step's loss, rounded so that nothing gets more private.
    ///
    /// `tail` is the chance that may be cut off at the top, and a bound of the one at the bottom; losses below
    /// `floor` are put there. None if the grid would be too large.
    pub(super) fn new(
        m: Mechanism,
        direction: Direction,
        spacing: f64,
        tail: f64,
        floor: f64,
    ) -> Option<Self> {
        let loss = Loss { sigma: m.sigma(), q: m.q() };
        let (begin, end) = ends(m, direction, tail);
        // Chances are those of the upper distribution.
        let (bottom, top, infinite) = match direction {
            Direction::Remove => {
                let beyond =
                    loss.q * upper((end - 1.0) / loss.sigma) + (1.0 - loss.q) * upper(end / loss.sigma);
                (loss.at(begin), loss.at(end), beyond)
            }
            Direction::Add => (-loss.at(end), -loss.at(begin), upper(-begin / loss.sigma)),
        };
        let bottom = bottom.max(floor).min(top);
        let (low, high) = ((bottom / spacing).floor(), (top / spacing).ceil());
        if !(high - low < MOST_POINTS && low.abs().max(high.abs()) < 9e15) {
            return None;
        }
        let count = (high - low) as usize;
        let mut masses = vec![0.0; count + 1];
        let share = -(-spacing).exp_m1();
        let mut x0 = None;
        for k in 0..=count {
            let point = (low + k as f64) * spacing;
            let x1 = loss.x(direction, point);
            let (above, below) = loss.masses(direction, x0, x1);
            x0 = Some(x1);
            // What lies below the grid goes to its lowest point.
            let Some(lower) = k.checked_sub(1) else {
                masses[0] = above * UP;
                continue;
            };
            let previous = (low + lower as f64) * spacing;
            let scale = previous.exp();
            let right = match below * scale {
                // `above` and `below * scale` agree to within `spacing`, and are good to some 1e-14.
                q if q > 0.0 && q.is_finite() => {
                    ((above - q + 1e-13 * (above + q)) / share).clamp(0.0, above)
                }
                _ => above,
            };
            masses[lower] += (above - right) * UP;
            masses[k] += right * UP;
        }
        Some(Self { low: low as i64, masses, infinite: infinite * UP })
    }
}

const MOST_POINTS: f64 = 8e6;

/// More than the rounding of a mass.
const UP: f64 = 1.0 + 3e-14;

/// The x that are kept: above or below them, where the losses are greatest, is no more than `tail`.
pub(super) fn ends(m: Mechanism, direction: Direction, tail: f64) -> (f64, f64) {
    let far = m.sigma() * deviations(0.5 * tail);
    match direction {
        Direction::Remove => (-far, far.max(1.0 + m.sigma() * deviations(0.5 * tail / m.q()))),
        Direction::Add => (-far, far),
    }
}

/// How many deviations out a standard normal variable has less than `tail` beyond it.
fn deviations(tail: f64) -> f64 {
    // exp(-x^2 / 2) / 2 is above the tail.
    (-2.0 * (2.0 * tail).min(0.5).ln()).sqrt()
}

struct Loss {
    sigma: f64,
    q: f64,
}

impl Loss {
    /// `ln(1 - q + q exp((2x - 1) / 2 sigma^2))`.
    fn at(&self, x: f64) -> f64 {
        loss(self.q, (x - 0.5) / (self.sigma * self.sigma))
    }

    /// Where the loss of `direction` is `l`: `at` turned round, infinite beyond its range.
    fn x(&self, direction: Direction, l: f64) -> f64 {
        let l = if direction == Direction::Remove { l } else { -l };
        let t = if l.abs() < 1.0 {
            (l.exp_m1() / self.q).max(-1.0).ln_1p()
        } else {
            l + ((1.0 - (1.0 - self.q) * (-l).exp()).max(0.0) / self.q).ln()
        };
        0.5 + self.sigma * self.sigma * t
    }

    /// The upper and the lower distribution's mass between two points (from the very end if there is no first).
    fn masses(&self, direction: Direction, from: Option<f64>, to: f64) -> (f64, f64) {
        let (a, b) = match direction {
            Direction::Remove => (from.unwrap_or(f64::NEG_INFINITY), to),
            Direction::Add => (to, from.unwrap_or(f64::INFINITY)),
        };
        let without = mass(a / self.sigma, b / self.sigma);
        let with = mass((a - 1.0) / self.sigma, (b - 1.0) / self.sigma);
        let mixed = (1.0 - self.q) * without + self.q * with;
        match direction {
            Direction::Remove => (mixed, without),
            Direction::Add => (without, mixed),
        }
    }
}
