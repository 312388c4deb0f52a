//! A step of private learning: what is drawn, clipped, added and charged, and what is refused.

use lora_fed::privacy::{
    Accounting, Budget, Ledger, Mechanism, PrivacyError, Release, ReleaseConfig, Secret, Unit,
};
use proptest::prelude::*;

const DIMENSION: usize = 40;

fn config(sigma: f64, q: f64) -> ReleaseConfig {
    ReleaseConfig {
        clip: 2.0,
        mechanism: Mechanism::new(sigma, q).unwrap(),
        records: 12,
        dimension: DIMENSION,
        divisor: 4.0,
        bits: 20,
        run: "test".into(),
        data: [1; 32],
        configuration: [2; 32],
    }
}

fn budget(epsilon: f64) -> Budget {
    Budget { unit: Unit::Example, epsilon, delta: 1e-5, accounting: Accounting::Rdp }
}

fn with(config: ReleaseConfig) -> Release {
    let ledger = Ledger::in_memory(&budget(1e6)).unwrap();
    Release::new(config, Secret::from_bytes([5; 32]), ledger).unwrap()
}

fn gradient(record: usize) -> Vec<f32> {
    (0..DIMENSION).map(|i| ((i * 31 + record * 17) as f32).sin() * 0.1 * record as f32).collect()
}

/// Adds what `gradient` says, and gives the mean.
fn run(release: &mut Release, step: u64, weights: &[u8], gradient: impl Fn(usize) -> Vec<f32>) -> Vec<f32> {
    let mut step = release.step(step, weights).unwrap();
    for record in step.drawn().to_vec() {
        step.add(record, &gradient(record), 1.0).unwrap();
    }
    step.release().unwrap()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn length(values: &[f32]) -> f64 {
    norm(values.iter().map(|&x| f64::from(x)))
}

#[test]
fn without_protection_it_is_the_clipped_mean() {
    for clip in [1e30, 2.0] {
        let config = ReleaseConfig { clip, ..config(1.0, 1.0) };
        let mut release = Release::unprotected(config, Secret::from_bytes([0; 32])).unwrap();
        let mean = run(&mut release, 0, b"", gradient);
        for (i, got) in mean.iter().enumerate() {
            let all = (0..12).map(gradient);
            let want: f64 =
                all.map(|g| f64::from(g[i]) * (clip / length(&g).max(1e-9)).min(1.0)).sum::<f64>() / 4.0;
            assert!((f64::from(*got) - want).abs() <= 1e-7 * want.abs(), "{i}: {got}, not {want}");
        }
        assert_eq!(release.ledger().spent().unwrap(), f64::INFINITY);
    }
}

/// The noised mean is that of the clipped records, with noise of sigma times the clip over the divisor.
#[test]
fn the_mean_and_its_noise() {
    const STEPS: u64 = 4000;
    let (sigma, q) = (0.8, 0.25);
    let mut release = with(config(sigma, q));
    let mut bare = Release::unprotected(config(sigma, q), Secret::from_bytes([5; 32])).unwrap();
    let (mut squares, mut sum, mut cross) = (0.0, [0.0; DIMENSION], 0.0);
    for step in 0..STEPS {
        // The same secret draws the same records.
        let (noised, plain) = (run(&mut release, step, b"", gradient), run(&mut bare, step, b"", gradient));
        for i in 0..DIMENSION {
            let noise = f64::from(noised[i]) - f64::from(plain[i]);
            squares += noise * noise;
            sum[i] += f64::from(noised[i]);
            cross += noise * f64::from(plain[i]) / length(&plain).max(1.0);
        }
    }
    let n = STEPS as f64;
    let deviation = (squares / n / DIMENSION as f64).sqrt();
    let want = sigma * 2.0 / 4.0;
    assert!(
        (deviation / want - 1.0).abs() < 4.5 / (2.0 * n * DIMENSION as f64).sqrt(),
        "{deviation}, not {want}"
    );
    assert!((cross / n).abs() < 4.5 * want / n.sqrt(), "{cross}");
    // In the mean, every record with its rate: over n steps, noise and sampling average out.
    for (i, got) in sum.iter().enumerate() {
        let parts: Vec<f64> = (0..12)
            .map(gradient)
            .map(|g| f64::from(g[i]) * (2.0 / length(&g).max(1e-9)).min(1.0) / 4.0)
            .collect();
        let mean = q * parts.iter().sum::<f64>();
        let error =
            (want * want + q * (1.0 - q) * parts.iter().map(|p| p * p).sum::<f64>()).sqrt() / n.sqrt();
        assert!((got / n - mean).abs() < 4.5 * error, "{i}: {}, not {mean}", got / n);
    }
}

#[test]
fn a_replay_is_the_same_and_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let open = || {
        let ledger = Ledger::open(&path, &budget(50.0)).unwrap();
        Release::new(config(1.0, 0.5), Secret::from_bytes([5; 32]), ledger).unwrap()
    };
    let mut release = open();
    let first = run(&mut release, 3, b"w", gradient);
    let spent = release.ledger().spent().unwrap();
    // Drawn and dropped, as in a crash before the charge: nothing happened.
    drop(release.step(4, b"w").unwrap());
    drop(release);
    // After a crash; records may come in any order.
    let mut release = open();
    let mut step = release.step(3, b"w").unwrap();
    for record in step.drawn().iter().rev().copied().collect::<Vec<_>>() {
        step.add(record, &gradient(record), 1.0).unwrap();
    }
    assert_eq!(step.release().unwrap(), first);
    assert_eq!((release.ledger().charges(), release.ledger().spent().unwrap()), (1, spent));
    // Of other weights it is another release.
    assert_ne!(run(&mut release, 3, b"x", gradient), first);
    assert_eq!(release.ledger().charges(), 2);
    assert!(release.ledger().spent().unwrap() > spent);
}

/// A run that is stuck there has a way out: without its secret the step is another release, and paid for.
#[test]
fn a_replay_that_differs_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let open = |secret| {
        let ledger = Ledger::open(&path, &budget(50.0)).unwrap();
        Release::new(config(1.0, 1.0), Secret::from_bytes([secret; 32]), ledger).unwrap()
    };
    let first = run(&mut open(5), 3, b"w", gradient);
    let moved = |record| {
        let mut gradient = gradient(record);
        gradient[7] *= 1.001;
        gradient
    };
    let mut release = open(5);
    let mut step = release.step(3, b"w").unwrap();
    for record in step.drawn().to_vec() {
        step.add(record, &moved(record), 1.0).unwrap();
    }
    let refused = step.release();
    assert!(matches!(refused, Err(PrivacyError::OtherRelease { step: 3 })), "{refused:?}");
    assert!(refused.unwrap_err().hint().is_some_and(|hint| hint.contains("LEDGER.secret")));
    drop(release);
    let mut release = open(6);
    let other = run(&mut release, 3, b"w", moved);
    assert_eq!(release.ledger().charges(), 2);
    // Of noise of its own: what differs is more than what moved.
    let apart = norm(first.iter().zip(&other).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    assert!(apart > 1.0, "{apart}");
}

/// The same noise on data with and without a record: their difference is that record's share, and no more than the
/// clip of it.
#[test]
fn one_record_is_worth_a_clipping_norm_at_most() {
    let lattice = lora_fed::privacy::Lattice::new(2.0, DIMENSION, 20).unwrap();
    for scale in [0.01f32, 1.0, 1e9, 1e30] {
        let share = |mine: f32| {
            let of = |record| if record == 5 { vec![mine; DIMENSION] } else { gradient(record) };
            run(&mut with(config(1.0, 1.0)), 0, b"", of)
        };
        let (with, without) = (share(scale), share(0.0));
        let difference = norm(with.iter().zip(&without).map(|(&a, &b)| f64::from(a) - f64::from(b))) * 4.0;
        assert!(difference <= lattice.norm() * lattice.unit() * (1.0 + 1e-6), "{scale}: {difference}");
        let want = f64::from(scale) * (DIMENSION as f64).sqrt();
        assert!((difference / want.min(2.0) - 1.0).abs() < 1e-4, "{scale}: {difference}");
    }
}

/// All that shapes a release is in its key, whether or not the caller hashed it.
#[test]
fn noise_belongs_to_the_configuration() {
    let noise = |config: ReleaseConfig, step, weights: &[u8]| -> Vec<f32> {
        let unit = config.clip / config.divisor;
        let mut release = with(config);
        let mut step = release.step(step, weights).unwrap();
        for record in step.drawn().to_vec() {
            step.add(record, &[0.0; DIMENSION], 1.0).unwrap();
        }
        step.release().unwrap().iter().map(|x| (f64::from(*x) / unit * 1e4).round() as f32).collect()
    };
    let base = config(1.0, 1.0);
    let mechanism = |sigma, q| Mechanism::new(sigma, q).unwrap();
    let all = [
        noise(base.clone(), 0, b""),
        noise(base.clone(), 1, b""),
        noise(base.clone(), 0, b"w"),
        noise(ReleaseConfig { clip: 4.0, ..base.clone() }, 0, b""),
        noise(ReleaseConfig { divisor: 8.0, ..base.clone() }, 0, b""),
        noise(ReleaseConfig { records: 13, ..base.clone() }, 0, b""),
        noise(ReleaseConfig { mechanism: mechanism(1.0, 0.999), ..base.clone() }, 0, b""),
        noise(ReleaseConfig { mechanism: mechanism(1.0 + 1e-9, 1.0), ..base.clone() }, 0, b""),
        noise(ReleaseConfig { run: "other".into(), ..base.clone() }, 0, b""),
        noise(ReleaseConfig { data: [9; 32], ..base.clone() }, 0, b""),
        noise(ReleaseConfig { configuration: [9; 32], ..base.clone() }, 0, b""),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(!all[..i].contains(a), "{i}");
    }
    assert_eq!(all[0], noise(base, 0, b""));
}

#[test]
fn what_does_not_belong_is_refused() {
    let mut release = with(config(1.0, 0.5));
    let mut step = release.step(0, b"").unwrap();
    let drawn = step.drawn().to_vec();
    assert!((2..12).contains(&drawn.len()), "{drawn:?}");
    let other = (0..12).find(|i| !drawn.contains(i)).unwrap();
    let record = |e| match e {
        Err(PrivacyError::Record { record, what }) => (record, what),
        other => panic!("{other:?}"),
    };
    assert_eq!(record(step.add(other, &gradient(1), 1.0)), (other, "was not drawn in this step"));
    assert_eq!(record(step.add(12, &gradient(1), 1.0)), (12, "was not drawn in this step"));
    // Nothing of these was added.
    let mut bad = gradient(1);
    bad[9] = f32::NAN;
    assert!(matches!(step.add(drawn[0], &bad, 1.0), Err(PrivacyError::NonFinite { index: 9 })));
    bad[9] = f32::INFINITY;
    assert!(matches!(step.add(drawn[0], &bad, 1.0), Err(PrivacyError::NonFinite { index: 9 })));
    assert!(matches!(
        step.add(drawn[0], &bad[1..], 1.0),
        Err(PrivacyError::Length { got: 39, want: 40, .. })
    ));
    for scale in [f64::NAN, f64::INFINITY, -1.0] {
        assert!(matches!(step.add(drawn[0], &gradient(1), scale), Err(PrivacyError::Parameter { .. })));
    }
    let norm = step.add(drawn[0], &gradient(drawn[0]), 0.5).unwrap();
    assert!((norm - 0.5 * length(&gradient(drawn[0]))).abs() < 1e-12);
    assert_eq!(
        record(step.add(drawn[0], &gradient(drawn[0]), 0.5)),
        (drawn[0], "was added to this step already")
    );
    assert_eq!(record(step.release().map(|_| 0.0)), (drawn[1], "was drawn, and not added"));
    assert_eq!(release.ledger().charges(), 0);

    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let config = ReleaseConfig { divisor: bad, ..config(1.0, 0.5) };
        assert!(Release::unprotected(config, Secret::from_bytes([0; 32])).is_err());
    }
    let ledger = Ledger::in_memory(&budget(1.0)).unwrap();
    let little = Release::new(config(1e-4, 0.5), Secret::from_bytes([0; 32]), ledger);
    assert!(matches!(little, Err(PrivacyError::Parameter { .. })));
}

#[test]
fn it_stops_before_data_is_touched() {
    let ledger = Ledger::in_memory(&budget(3.0)).unwrap();
    let mut release = Release::new(config(2.0, 0.5), Secret::from_bytes([5; 32]), ledger).unwrap();
    let fit = release.ledger().remaining(release.config().mechanism, 1000).unwrap();
    assert!((1..1000).contains(&fit));
    for step in 0..fit {
        run(&mut release, step, b"", gradient);
    }
    let refused = release.step(fit, b"").map(|_| ());
    assert!(matches!(refused, Err(PrivacyError::Exceeded { .. })), "{refused:?}");
    assert_eq!(release.ledger().charges() as u64, fit);
    assert!(release.ledger().spent().unwrap() <= 3.0);
    // A replay is still to be had.
    run(&mut release, fit - 1, b"", gradient);
}

/// A batch may be empty: it is released like any other.
#[test]
fn nobody_drawn() {
    let mut release = with(config(1.0, 1e-6));
    let step = release.step(0, b"").unwrap();
    assert!(step.drawn().is_empty());
    let noise = step.release().unwrap();
    assert!((length(&noise) / (0.5 * (DIMENSION as f64).sqrt()) - 1.0).abs() < 0.5);
    assert_eq!(release.ledger().charges(), 1);
}

proptest! {
    /// Whatever its size and scale, a record's share is bounded, and its norm is told.
    #[test]
    fn shares_are_bounded(values in prop::collection::vec(-1f32..1.0, DIMENSION), power in -45i32..38, scale in -20i32..20) {
        let values: Vec<f32> = values.into_iter().map(|v| v * 10f32.powi(power)).collect();
        let scale = 10f64.powi(scale);
        let shares = [true, false].map(|there| {
            let mut release = with(ReleaseConfig { records: 1, bits: 24, ..config(1.0, 1.0) });
            let mut step = release.step(0, b"").unwrap();
            let told = step.add(0, if there { &values } else { &[0.0; DIMENSION] }, scale).unwrap();
            (step.release().unwrap(), told)
        });
        let want = length(&values) * scale;
        prop_assert!((shares[0].1 - want).abs() <= 1e-12 * want);
        let difference = norm(shares[0].0.iter().zip(&shares[1].0).map(|(&a, &b)| f64::from(a) - f64::from(b))) * 4.0;
        prop_assert!(difference <= 2.0 * (1.0 + 1e-6), "{}", difference);
        prop_assert!((difference - want.min(2.0)).abs() < 2e-5, "{} {}", difference, want);
    }
}
