//! Both accountants against published figures, other implementations, and themselves.

use lora_fed::privacy::{
    Accountant, Accounting, Mechanism, PrivacyError, gaussian_delta, gaussian_epsilon, rdp, sigma_for,
    steps_for,
};
use proptest::prelude::*;
use serde::Deserialize;

/// Made by `python xtask/peers/privacy.py`.
#[derive(Deserialize)]
struct Golden {
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    sigma: f64,
    q: f64,
    steps: u64,
    delta: f64,
    rdp: f64,
    pld: f64,
}

fn golden() -> Vec<Row> {
    let golden: Golden = serde_json::from_str(include_str!("data/opacus.json")).unwrap();
    assert!(golden.rows.len() > 60);
    golden.rows
}

fn spent(accounting: Accounting, sigma: f64, q: f64, steps: u64) -> Accountant {
    let mut spent = Accountant::new(accounting);
    spent.steps(sigma, q, steps).unwrap();
    spent
}

fn epsilon(accounting: Accounting, sigma: f64, q: f64, steps: u64, delta: f64) -> f64 {
    spent(accounting, sigma, q, steps).epsilon(delta).unwrap()
}

#[test]
fn renyi_is_opacus() {
    for Row { sigma, q, steps, delta, rdp, .. } in golden() {
        let got = epsilon(Accounting::Rdp, sigma, q, steps, delta);
        assert!((got / rdp - 1.0).abs() < 1e-8, "{sigma} {q} {steps}: {got}, not {rdp}");
    }
    for (sigma, steps, want) in [(1.0, 1, 4.728507), (5.0, 100, 10.725510)] {
        let got = epsilon(Accounting::Rdp, sigma, 1.0, steps, 1e-5);
        assert!((got - want).abs() < 1e-6, "{sigma} {steps}: {got}, not {want}");
    }
}

#[test]
fn renyi_is_the_integral() {
    // 30-digit quadrature of one step's divergence.
    for (q, sigma, order, want) in [
        (0.1, 1.0, 3.2, 0.035695054268),
        (0.01, 0.5, 2.2, 0.0075790548849),
        (0.25, 4.0, 2.7, 0.0054773633936),
        (0.25, 1.0, 3.3, 0.26884840353),
        (0.01, 1.0, 7.8, 0.00084756613856),
        (0.02, 0.8, 3.4, 0.0032617324137),
    ] {
        let got = rdp::divergence(Mechanism::new(sigma, q).unwrap(), order);
        assert!((got / want - 1.0).abs() < 1e-9, "{q} {sigma} {order}: {got}, not {want}");
    }
}

/// The other side is an upper bound too, of which up to a millionth, or 1e-8, is its own.
#[test]
fn losses_are_tight_and_never_below() {
    for Row { sigma, q, steps, delta, pld, .. } in golden() {
        let got = epsilon(Accounting::Pld, sigma, q, steps, delta);
        let near = got >= pld * (1.0 - 1e-6) - 1e-8 && got <= pld * (1.0 + 1.5e-4);
        assert!(near, "{sigma} {q} {steps} {delta}: {got}, not {pld} ({:e})", got / pld - 1.0);
    }
    // dp-accounting says 7.32933 by Rényi divergences, which are bounds only at fractional orders; Opacus 7.329111.
    let [rdp, pld] = [Accounting::Rdp, Accounting::Pld].map(|a| epsilon(a, 1.5, 0.04, 2250, 1e-5));
    assert!((rdp - 7.329_111).abs() < 1e-6 && (pld / 6.768_79 - 1.0).abs() < 1e-4, "{rdp} {pld}");
}

/// At epsilon 0, delta is the distance in total variation: of one step in closed form, of several no more than if each
/// were an independent try.
#[test]
fn delta_at_nothing_is_total_variation() {
    for (sigma, q) in [(0.5, 0.01), (1.0, 0.3), (4.0, 0.9), (2.0, 1e-4), (30.0, 0.02)] {
        let one = q * gaussian_delta(1.0 / sigma, 0.0).unwrap();
        for steps in [1, 2, 50] {
            let spent = spent(Accounting::Pld, sigma, q, steps as u64);
            let most = 1.0 - (1.0 - one).powi(steps);
            let got = spent.delta(0.0).unwrap();
            assert!(got <= most * (1.0 + 1e-9), "{sigma} {q} {steps}: {got:e} above {most:e}");
            assert!(got >= one * (1.0 - 1e-12), "{sigma} {q} {steps}: {got:e} below {one:e}");
            assert_eq!(spent.epsilon((most * (1.0 + 1e-9)).min(1.0 - 1e-12)).unwrap(), 0.0);
            if steps == 1 {
                assert!(spent.epsilon(one * 0.99).unwrap() > 0.0);
            }
        }
    }
}

#[test]
fn without_sampling_losses_are_exact() {
    for (sigma, steps, want) in [(1.0, 1, 4.377178), (5.0, 100, 9.997256)] {
        let spent = spent(Accounting::Pld, sigma, 1.0, steps);
        let got = spent.epsilon(1e-5).unwrap();
        assert!((got - want).abs() < 5e-7, "{got}, not {want}");
        let back = spent.delta(got).unwrap();
        assert!(back <= 1e-5 && back > 1e-5 * (1.0 - 1e-10), "{back:e}");
    }
    // By mpmath at 50 digits.
    for (mu, epsilon, want) in [
        (1.0, 0.0, 0.382_924_922_548_026_2),
        (0.1, 0.5, 6.856_582_455_838_737e-9),
        (2.0, 10.0, 9.940_202_816_118_153e-6),
        (20.0, 300.0, 2.272_774_882_319_489_4e-7),
    ] {
        let got = gaussian_delta(mu, epsilon).unwrap();
        assert!((got / want - 1.0).abs() < 1e-12, "{mu} {epsilon}: {got:e}, not {want:e}");
    }
}

#[test]
fn delta_is_the_inverse_of_epsilon() {
    for (sigma, q, steps) in
        [(0.8, 0.02, 1000), (2.0, 0.1, 50), (1.0, 1.0, 3), (0.6, 0.001, 20_000), (3.0, 0.5, 1)]
    {
        for accounting in [Accounting::Rdp, Accounting::Pld] {
            let spent = spent(accounting, sigma, q, steps);
            for delta in [1e-3, 1e-6, 1e-10, 1e-15] {
                let epsilon = spent.epsilon(delta).unwrap();
                let back = spent.delta(epsilon).unwrap();
                // The two grids differ, and each is a ten-thousandth or so above the truth.
                assert!(
                    (back / delta - 1.0).abs() < 2e-3,
                    "{accounting:?} {sigma} {q} {steps}: {delta:e} {epsilon} {back:e}"
                );
            }
        }
    }
}

#[test]
fn extremes_are_numbers() {
    for accounting in [Accounting::Rdp, Accounting::Pld] {
        let quick = [(0.0, 1.0), (1.0, 1e-12), (1.0, 1e4), (1e-3, 1e-12)];
        let quick = quick.into_iter().flat_map(|(q, sigma)| [0, 1, u64::MAX].map(|steps| (q, sigma, steps)));
        // Some take a second.
        let slow = [(1e-12, 0.01, 1), (1e-12, 1.0, 1), (1e-3, 0.01, 1000), (1e-3, 1e4, 1_000_000)];
        for (q, sigma, steps) in quick.chain(slow) {
            let spent = spent(accounting, sigma, q, steps);
            let [small, large] = [1e-15, 0.999].map(|delta| spent.epsilon(delta).unwrap());
            let at = [0.0, small.min(1e300), 50.0].map(|epsilon| spent.delta(epsilon).unwrap());
            let what = format!("{accounting:?} q {q} sigma {sigma} steps {steps}: {small} {large} {at:?}");
            assert!(small >= large && large >= 0.0, "{what}");
            assert!(
                at.iter().all(|d| (0.0..=1.0).contains(d)) && (at[1] <= 1.01e-15 || small > 1e4 || q < 1e-6),
                "{what}"
            );
            if q == 0.0 || steps == 0 {
                assert_eq!((small, at[0]), (0.0, 0.0), "{what}");
            }
        }
    }
}

#[test]
fn nonsense_is_refused() {
    let named = |result: Result<f64, PrivacyError>, what: &str| match result {
        Err(PrivacyError::Parameter { name, .. }) => assert!(name.contains(what), "{name}"),
        other => panic!("{what}: {other:?}"),
    };
    for q in [-0.1, 1.0 + 1e-15, f64::NAN, f64::INFINITY] {
        named(Mechanism::new(1.0, q).map(|m| m.q()), "sampling rate");
        named(sigma_for(Accounting::Rdp, 1.0, 1e-5, q, 1), "sampling rate");
    }
    for sigma in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        named(Mechanism::new(sigma, 0.5).map(|m| m.q()), "noise multiplier");
    }
    let spent = spent(Accounting::Pld, 1.0, 0.1, 1);
    for delta in [0.0, 1.0, -1e-5, 2.0, f64::NAN] {
        named(spent.epsilon(delta), "delta");
        named(sigma_for(Accounting::Pld, 1.0, delta, 0.1, 1), "delta");
        named(gaussian_epsilon(1.0, delta), "delta");
    }
    for epsilon in [-1.0, f64::NAN, f64::INFINITY] {
        named(spent.delta(epsilon), "epsilon");
        named(gaussian_delta(1.0, epsilon), "epsilon");
    }
    let unreachable = sigma_for(Accounting::Rdp, 0.0, 1e-15, 1.0, u64::MAX);
    assert!(matches!(unreachable, Err(PrivacyError::Unreachable { .. })), "{unreachable:?}");
}

#[test]
fn noise_for_a_budget() {
    for accounting in [Accounting::Rdp, Accounting::Pld] {
        for (target, delta, q, steps) in
            [(1.0, 1e-5, 0.01, 1000), (8.0, 1e-6, 0.1, 200), (0.5, 1e-7, 1.0, 10)]
        {
            let sigma = sigma_for(accounting, target, delta, q, steps).unwrap();
            let at = epsilon(accounting, sigma, q, steps, delta);
            let below = epsilon(accounting, sigma * 0.999, q, steps, delta);
            assert!(at <= target && below > target, "{accounting:?} {target}: {sigma} {at} {below}");
        }
    }
    // Less noise by the tighter accountant.
    let [rdp, pld] = [Accounting::Rdp, Accounting::Pld].map(|a| sigma_for(a, 2.0, 1e-5, 0.01, 1000).unwrap());
    assert!(pld < rdp * 0.97, "{pld} {rdp}");
}

#[test]
fn steps_for_a_budget() {
    for accounting in [Accounting::Rdp, Accounting::Pld] {
        let mut before = Accountant::new(accounting);
        before.steps(1.0, 0.02, 100).unwrap();
        let steps = steps_for(&before, 3.0, 1e-5, 1.2, 0.01, u64::MAX).unwrap();
        let with = |n| {
            let mut all = before.clone();
            all.steps(1.2, 0.01, n).unwrap();
            all.epsilon(1e-5).unwrap()
        };
        assert!(steps > 1000 && with(steps) <= 3.0 && with(steps + 1) > 3.0, "{accounting:?} {steps}");
        assert_eq!(steps_for(&before, 3.0, 1e-5, 1.2, 0.01, 7).unwrap(), 7);
        assert_eq!(steps_for(&before, 0.1, 1e-5, 1.2, 0.01, 7).unwrap(), 0);
        assert_eq!(steps_for(&before, 3.0, 1e-5, 1.2, 0.0, u64::MAX).unwrap(), u64::MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn more_noise_is_more_private_and_losses_beat_renyi(
        sigma in 0.4f64..8.0, rate in 0.0f64..1.0, steps in 1u64..3000, digits in 3i32..12, more in 1.05f64..1.5,
    ) {
        let (q, delta) = (0.5 * 1e-4f64.powf(rate), 10f64.powi(-digits));
        let mut both = Vec::new();
        for accounting in [Accounting::Rdp, Accounting::Pld] {
            let base = epsilon(accounting, sigma, q, steps, delta);
            let changed = [
                epsilon(accounting, sigma * more, q, steps, delta),
                epsilon(accounting, sigma, q / more, steps, delta),
                epsilon(accounting, sigma, q, (steps as f64 / more) as u64, delta),
                epsilon(accounting, sigma, q, steps, delta * more),
            ];
            for (what, less) in ["sigma", "q", "steps", "delta"].iter().zip(changed) {
                // Each is within some 1e-4 of the truth, above it.
                prop_assert!(less <= base * (1.0 + 1e-4), "{accounting:?} {what}: {less} above {base}");
            }
            both.push(base);
        }
        prop_assert!(both[1] <= both[0] * (1.0 + 1e-9), "PLD {} above RDP {}", both[1], both[0]);
        // Drawing does not harm.
        let all = gaussian_epsilon((steps as f64).sqrt() / sigma, delta).unwrap();
        prop_assert!(both[1] <= all);
    }
}
