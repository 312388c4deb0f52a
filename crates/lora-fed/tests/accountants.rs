//! Both accountants against published figures.

use lora_fed::privacy::{Accountant, Mechanism, rdp};

/// sigma, q, steps, delta; Opacus 1.6.0's epsilon; the tight epsilon, both to the digits printed.
const ROWS: [(f64, f64, u64, f64, f64, f64); 12] = [
    (1.0, 1.0, 1, 1e-5, 4.728507, 4.377178),
    (1.0, 0.01, 1000, 1e-5, 2.101365, 1.828244),
    (1.1, 256.0 / 60000.0, 14063, 1e-5, 2.596656, 2.381779),
    (0.5, 0.01, 500, 1e-5, 12.120448, 10.283014),
    (0.8, 0.02, 1000, 1e-5, 7.200572, 6.418754),
    (1.0, 0.1, 100, 1e-5, 7.899255, 7.046603),
    (2.0, 0.1, 1000, 1e-5, 8.943850, 8.279293),
    (4.0, 0.25, 2000, 1e-6, 18.034608, 16.997020),
    (1.5, 0.004, 10000, 1e-6, 1.416055, 1.312311),
    (1.0, 0.25, 10, 1e-5, 6.813994, 5.973729),
    (5.0, 1.0, 100, 1e-5, 10.725510, 9.997256),
    (0.7, 0.001, 5000, 1e-7, 2.725228, 1.847667),
];

#[test]
fn renyi_is_opacus() {
    for (sigma, q, steps, delta, opacus, _) in ROWS {
        let mut spent = Accountant::rdp();
        spent.steps(sigma, q, steps).unwrap();
        let epsilon = spent.epsilon(delta).unwrap();
        assert!((epsilon / opacus - 1.0).abs() < 1e-6, "{sigma} {q} {steps}: {epsilon}, not {opacus}");
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

#[test]
fn losses_are_tight() {
    for (sigma, q, steps, delta, _, tight) in ROWS {
        let mut spent = Accountant::pld();
        spent.steps(sigma, q, steps).unwrap();
        let t = std::time::Instant::now();
        let epsilon = spent.epsilon(delta).unwrap();
        eprintln!("{sigma} {q} {steps} {epsilon} {tight} {:.6}% {:?}", (epsilon/tight-1.0)*100.0, t.elapsed());
    }
}
