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

use rustfft::FftPlanner;

use super::mechanism::Steps;
use super::moments::ln_moment_within;
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

/// What a delta may be above the exact one because rare losses are taken for infinite.
const RARE: f64 = 1e-6;

/// The least epsilon at `delta`, some 0.003 per cent above the exact one (0.01 at most where tried; more from some 1e7
/// steps on); infinite if no sensible grid would do.
pub(super) fn epsilon(history: &[Steps], delta: f64) -> f64 {
    let mut planner = FftPlanner::new();
    let of = |direction| epsilon_of(history, direction, delta, &mut planner);
    DIRECTIONS.into_iter().map(of).fold(0.0, f64::max)
}

fn epsilon_of(history: &[Steps], direction: Direction, delta: f64, planner: &mut FftPlanner<f64>) -> f64 {
    let sum = Sum::new(history, direction, RARE * delta);
    let (mut tilt, about) = least(|t| (sum.cumulant(t) - delta.ln()) / t);
    let mut found = f64::INFINITY;
    // Where Chernoff's bound on delta is off by more than exp(14), so is the tilt: what is found is right, but the
    // truth lies at the window's end or below it.
    for _ in 0..8 {
        // A change of epsilon changes delta `tilt` times as much.
        let allowed = (ACCURACY * tilt * about).clamp(1e-6, 1e-3);
        let Some(composed) = Composed::new(&sum, tilt, about, allowed, planner) else { break };
        let (epsilon, inside) = composed.epsilon(delta);
        found = found.min(epsilon);
        if (inside && tilt * (about - epsilon) < 14.0) || epsilon == 0.0 {
            break;
        }
        tilt /= 8.0;
    }
    found
}

/// The least delta at `epsilon`; 1 if no sensible grid would do.
pub(super) fn delta(history: &[Steps], epsilon: f64) -> f64 {
    let mut planner = FftPlanner::new();
    let of = |direction| delta_of(history, direction, epsilon, &mut planner);
    DIRECTIONS.into_iter().map(of).fold(0.0, f64::max)
}

fn delta_of(history: &[Steps], direction: Direction, epsilon: f64, planner: &mut FftPlanner<f64>) -> f64 {
    let whole = Sum::new(history, direction, 0.0);
    if epsilon >= whole.most() {
        return 0.0;
    }
    let chernoff = |sum: Sum<'_>| least(|t| sum.cumulant(t) - t * epsilon);
    let mut found = chernoff(whole).1.exp().min(1.0) * (1.0 + 1e-9);
    // What is rare depends on the answer, and the first bound may be far above it.
    for _ in 0..8 {
        let sum = Sum::new(history, direction, RARE * found);
        let (tilt, ln_bound) = chernoff(sum);
        let next = match ln_bound > (1e-3 * RARE * found).ln() {
            true => Composed::new(&sum, tilt, epsilon, 1e-4, planner).map_or(found, |c| c.delta(epsilon)),
            // No finite loss is left up there: what was called rare is all there is.
            false => RARE * found * 2.0,
        };
        let near = next > 0.05 * found;
        found = found.min(next);
        if near {
            break;
        }
    }
    found
}

/// The sum of a history's losses in one direction.
#[derive(Debug, Clone, Copy)]
struct Sum<'a> {
    history: &'a [Steps],
    direction: Direction,
    /// The chance that a step's loss is taken for infinite.
    tail: f64,
}

impl<'a> Sum<'a> {
    /// `rare` is the chance that any step's loss is taken for infinite.
    fn new(history: &'a [Steps], direction: Direction, rare: f64) -> Self {
        let count: f64 = history.iter().map(|s| s.count as f64).sum();
        Self { history, direction, tail: (rare / count).max(1e-300) }
    }

    /// The cumulant generating function, `ln E[exp(t L)]`, without the losses that are taken for infinite.
    fn cumulant(&self, t: f64) -> f64 {
        self.history.iter().map(|s| s.count as f64 * self.cumulant_of(s, t)).sum()
    }

    /// That of one step.
    fn cumulant_of(&self, s: &Steps, t: f64) -> f64 {
        let (q, sigma) = (s.mechanism.q(), s.mechanism.sigma());
        let order = match self.direction {
            Direction::Remove => t + 1.0,
            Direction::Add => -t,
        };
        ln_moment_within(q, sigma, order, step::ends(s.mechanism, self.direction, self.tail))
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
}

/// Where on `(0, inf)` a function with a single valley is least, roughly, and its value there. Where it only falls,
/// ever less, that is where it is nearly as low as it gets.
fn least(f: impl Fn(f64) -> f64) -> (f64, f64) {
    // Up from where nothing happens yet, in steps of 4; then by golden section on the logarithm.
    let (mut best, mut value) = (1e-9, f(1e-9));
    let mut x = best;
    while x < 1e12 {
        x *= 4.0;
        let y = f(x);
        let flat = y.is_nan() || y > value || (value > 0.0 && y > value * (1.0 - 1e-4) && y < value);
        if y < value {
            (best, value) = (x, y);
        }
        if flat || value < -800.0 {
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
                let digits = 1e-14; // of the closed form, which subtracts
                // A window that holds far losses too is coarse for a delta of the size of q.
                let near = if remove.max(add) > 0.01 * q { 1.01 } else { 1.001 };
                for (direction, exact) in [(Direction::Remove, remove), (Direction::Add, add)] {
                    let ours = delta_of(&history(sigma, q, 1), direction, at, &mut FftPlanner::new());
                    assert!(
                        ours >= exact - digits && ours <= exact * near + digits,
                        "{sigma} {q} {at} {direction:?}: {ours:e} {exact:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn it_is_below_renyi() {
        use super::super::rdp;
        for sigma in [0.5, 2.0] {
            for q in [0.001, 0.03, 0.4] {
                for count in [1, 3000] {
                    for wanted in [1e-3, 1e-11] {
                        let history = history(sigma, q, count);
                        let (ours, renyi) =
                            (epsilon(&history, wanted), rdp::epsilon(&rdp::curve(&history), wanted));
                        assert!(ours < renyi, "{sigma} {q} {count} {wanted:e}: {ours} {renyi}");
                        let at = 0.7 * ours;
                        let (ours, renyi) = (delta(&history, at), rdp::delta(&rdp::curve(&history), at));
                        assert!(
                            ours < renyi && (ours > wanted || at == 0.0),
                            "{sigma} {q} {count} at {at}: {ours:e} {renyi:e}"
                        );
                    }
                }
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
