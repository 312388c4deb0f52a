//! Privacy-loss distributions: epsilon and delta to some four digits, never below the truth.
//!
//! The loss `L = ln(Q/P)` of a step is a random variable; losses of steps add, and
//! `delta(epsilon) = E[(1 - exp(epsilon - L))+]` of their sum. Each step's distribution is put on a grid, the grid is
//! composed by FFT, and the larger delta of the two directions, a record added and a record removed, is what counts.
//!
//! Every departure from the truth is an upper bound on delta:
//!
//! - *Grid* ([`step`]): the mass between two grid points is divided between both such that its share of `P` and of `Q`
//!   is kept. The hockey-stick curve then connects the dots of the true one, which is convex: never below it, and off
//!   by the square of the spacing (Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022, "Connect the Dots"; that
//!   domination composes: Zhu, Dong and Wang 2022, theorem 10).
//! - *Tails*: what lies above a step's grid is an infinite loss; what lies below is moved up to its lowest point.
//! - *Window* ([`compose`]): the sum is computed modulo a window. What wraps from below only adds; what lies above is
//!   bounded by Chernoff's inequality and added to delta.
//! - *Rounding*: a bound on the error of the transforms is added to every mass.
//!
//! So that this last bound is small beside a delta of 1e-15 too, the distribution is tilted (Esscher): masses are
//! multiplied by `exp(t L)`, with t from the moments such that the tilted sum has its bulk at the epsilon asked for.

mod compose;
mod step;

use super::mechanism::Steps;
use super::moments::ln_moment;
use compose::Composed;

/// Which way the neighbour differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// The record is there, and not in the neighbour.
    Remove,
    /// It is not there, and is in the neighbour.
    Add,
}

const DIRECTIONS: [Direction; 2] = [Direction::Remove, Direction::Add];

/// The least epsilon at `delta`, some 0.003 per cent above the exact one (more from some 1e7 steps on).
pub(super) fn epsilon(history: &[Steps], delta: f64) -> f64 {
    let of = |direction| {
        let sum = Sum { history, direction };
        let (tilt, bound) = sum.best_epsilon(delta);
        match Composed::new(&sum, tilt, bound, delta) {
            Some(composed) => composed.epsilon(delta).min(bound * (1.0 + 1e-9)),
            None => bound * (1.0 + 1e-9),
        }
    };
    DIRECTIONS.into_iter().map(of).fold(0.0, f64::max)
}

/// The least delta at `epsilon`.
pub(super) fn delta(history: &[Steps], epsilon: f64) -> f64 {
    let of = |direction| {
        let sum = Sum { history, direction };
        if epsilon >= sum.most() {
            return 0.0;
        }
        let (tilt, ln_bound) = sum.best_delta(epsilon);
        let bound = ln_bound.exp() * (1.0 + 1e-9);
        match Composed::new(&sum, tilt, epsilon, bound.max(f64::MIN_POSITIVE)) {
            Some(composed) => composed.delta(epsilon).min(bound),
            None => bound,
        }
    };
    DIRECTIONS.into_iter().map(of).fold(0.0, f64::max).min(1.0)
}

/// The sum of a history's losses in one direction.
#[derive(Debug, Clone, Copy)]
struct Sum<'a> {
    history: &'a [Steps],
    direction: Direction,
}

impl Sum<'_> {
    /// Its cumulant generating function, `ln E[exp(t L)]`.
    fn cumulant(&self, t: f64) -> f64 {
        let order = match self.direction {
            Direction::Remove => t + 1.0,
            Direction::Add => -t,
        };
        let one = |s: &Steps| s.count as f64 * ln_moment(s.mechanism.q(), s.mechanism.sigma(), order);
        self.history.iter().map(one).sum()
    }

    /// The largest value that it can take.
    fn most(&self) -> f64 {
        match self.direction {
            Direction::Remove => f64::INFINITY,
            Direction::Add => self.history.iter().map(|s| s.count as f64 * -(-s.mechanism.q()).ln_1p()).sum(),
        }
    }

    fn count(&self) -> f64 {
        self.history.iter().map(|s| s.count as f64).sum()
    }

    /// The tilt whose Chernoff bound on epsilon, `(K(t) - ln delta) / t`, is least, and that bound.
    fn best_epsilon(&self, delta: f64) -> (f64, f64) {
        least(|t| (self.cumulant(t) - delta.ln()) / t)
    }

    /// The tilt whose Chernoff bound on delta, `exp(K(t) - t epsilon)`, is least, and the bound's logarithm.
    fn best_delta(&self, epsilon: f64) -> (f64, f64) {
        let (tilt, bound) = least(|t| self.cumulant(t) - t * epsilon);
        (tilt, bound.min(0.0))
    }
}

/// Where on `(0, inf)` a function with a single valley is least, roughly, and its value there.
fn least(f: impl Fn(f64) -> f64) -> (f64, f64) {
    // Up from where nothing happens yet, in steps of 4; then by golden section on the logarithm.
    let (mut best, mut value) = (1e-9, f(1e-9));
    let mut x = best;
    while x < 1e12 {
        x *= 4.0;
        let y = f(x);
        if y < value {
            (best, value) = (x, y);
        } else if y > value || !y.is_finite() {
            break;
        }
    }
    let golden = 0.5 * (5f64.sqrt() - 1.0);
    let (mut low, mut high) = ((best / 4.0).ln(), (best * 4.0).ln());
    for _ in 0..24 {
        let (a, b) = (high - golden * (high - low), low + golden * (high - low));
        let (fa, fb) = (f(a.exp()), f(b.exp()));
        for (at, y) in [(a, fa), (b, fb)] {
            if y < value {
                (best, value) = (at.exp(), y);
            }
        }
        if fa < fb { high = b } else { low = a }
    }
    (best, value)
}
