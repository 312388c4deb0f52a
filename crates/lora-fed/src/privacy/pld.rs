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

/// What an epsilon may be above the exact one, as a share of it.
const ACCURACY: f64 = 2e-5;

/// The least epsilon at `delta`, some 0.003 per cent above the exact one (more from some 1e7 steps on).
pub(super) fn epsilon(history: &[Steps], delta: f64) -> f64 {
    let of = |direction| {
        let sum = Sum { history, direction };
        let (tilt, bound) = sum.best_epsilon(delta);
        // A change of epsilon changes delta `tilt` times as much.
        match Composed::new(&sum, tilt, bound, delta, (ACCURACY * tilt * bound).clamp(1e-6, 1e-3)) {
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
        match Composed::new(&sum, tilt, epsilon, bound.max(f64::MIN_POSITIVE), 1e-4) {
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

#[cfg(test)]
mod tests {
    use super::super::exact;
    use super::super::mechanism::Mechanism;
    use super::*;

    fn history(sigma: f64, q: f64, count: u64) -> [Steps; 1] {
        [Steps { mechanism: Mechanism::new(sigma, q).unwrap(), count }]
    }

    /// Composed step by step, without the closed form that an accountant would take.
    #[test]
    fn without_sampling_it_is_the_closed_form() {
        for (sigma, count) in [(0.3, 1), (1.0, 1), (5.0, 100), (30.0, 3), (200.0, 40_000), (1e4, 1)] {
            let mu = (count as f64).sqrt() / sigma;
            for wanted in [0.3, 1e-2, 1e-5, 1e-9, 1e-15] {
                let (ours, exact) =
                    (epsilon(&history(sigma, 1.0, count), wanted), exact::epsilon(mu, wanted));
                assert!(
                    ours >= exact && ours <= exact * (1.0 + 2e-4) + 1e-9,
                    "{sigma} {wanted:e}: {ours} {exact}"
                );
            }
            for at in [0.0, 0.01 * mu, mu, 4.0 * mu, mu * mu] {
                let (ours, exact) = (delta(&history(sigma, 1.0, count), at), exact::delta(mu, at));
                assert!(ours >= exact && ours <= exact * 1.001, "{sigma} at {at}: {ours:e} {exact:e}");
            }
        }
    }

    /// One step in closed form: the hockey stick of `Q` and `P` on either side of the point where they cross.
    #[test]
    fn one_step_is_the_closed_form() {
        use super::super::special::upper;
        for (sigma, q) in [(0.5, 0.01), (1.0, 0.2), (2.0, 0.9), (0.05, 1e-3), (1e3, 0.5)] {
            for at in [0.0, 1e-4 / sigma, 0.1, 1.0, 4.0] {
                let at: f64 = at;
                let cross = |l: f64| 0.5 + sigma * sigma * (l.exp_m1() / q).ln_1p();
                let (x, e) = (cross(at), at.exp());
                let remove = q * upper((x - 1.0) / sigma) - (e - 1.0 + q) * upper(x / sigma);
                let add = if (-at).exp_m1() > -q {
                    let y = cross(-at);
                    upper(-y / sigma) * (1.0 - e * (1.0 - q)) - e * q * upper((1.0 - y) / sigma)
                } else {
                    0.0
                };
                let exact = remove.max(add);
                let ours = delta(&history(sigma, q, 1), at);
                let digits = 1e-14; // of the closed form, which subtracts
                // A window that holds far losses too is coarse for a delta of the size of q.
                let near = if exact > 0.01 * q { 1.01 } else { 1.001 };
                assert!(
                    ours >= exact - digits && ours <= exact * near + digits,
                    "{sigma} {q} {at}: {ours:e} {exact:e}"
                );
            }
        }
    }

    /// Steps of several kinds are one convolution, whatever the order.
    #[test]
    fn kinds_of_steps_compose() {
        let split: Vec<Steps> =
            [(1.0, 0.01, 300), (1.0, 0.01, 700)].iter().flat_map(|&(s, q, n)| history(s, q, n)).collect();
        let (whole, parts) = (epsilon(&history(1.0, 0.01, 1000), 1e-5), epsilon(&split, 1e-5));
        assert!((whole / parts - 1.0).abs() < 1e-9, "{whole} {parts}");
        // Gaussians of several kinds are one Gaussian.
        let mixed: Vec<Steps> =
            [(3.0, 1.0, 5), (7.0, 1.0, 20)].iter().flat_map(|&(s, q, n)| history(s, q, n)).collect();
        let exact = exact::epsilon((5.0f64 / 9.0 + 20.0 / 49.0).sqrt(), 1e-6);
        let ours = epsilon(&mixed, 1e-6);
        assert!(ours >= exact && ours < exact * (1.0 + 1e-4), "{ours} {exact}");
    }
}
