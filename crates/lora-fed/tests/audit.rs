//! A membership-inference audit: thousands of runs with and without one record, and whoever sees every release and
//! knows all but that record guesses. What he achieves bounds epsilon from below. It never exceeds what the ledger
//! states; of each of a list of planted bugs it does.
//!
//! Delta is a hundredth here: so few runs tell nothing of rarer events.

mod audits;

use audits::{Bug, Copy, DELTA, Honest, Setting, bound, stated};
use lora_fed::privacy::{Accounting, Budget, Ledger, Unit};

fn set(sigma: f64, q: f64, steps: u64) -> Setting {
    Setting { sigma, q, steps, records: 6, opponent: false }
}

/// Just the canary and one more.
fn pair(sigma: f64, opponent: bool) -> Setting {
    Setting { records: 2, opponent, ..set(sigma, 1.0, 1) }
}

#[test]
fn never_above_what_is_stated() {
    for (setting, share) in [
        (set(0.5, 1.0, 1), 0.5),
        (set(1.0, 1.0, 1), 0.5),
        (set(2.0, 1.0, 10), 0.5),
        (Setting { opponent: true, ..set(1.0, 1.0, 2) }, 0.5),
        (set(0.4, 0.5, 2), 0.3),
        (set(0.7, 0.3, 6), 0.4),
        (set(0.8, 0.1, 10), 0.35),
        (set(0.35, 0.05, 3), 0.2),
    ] {
        let mut honest = Honest::new(setting);
        let found = bound(4000, |present, run| honest.run(present, run));
        let stated = stated(setting);
        assert!(found <= stated, "{setting:?}: {found} above {stated}");
        // The audit is worth something: what it finds is not far below.
        assert!(found >= share * stated, "{setting:?}: only {found} of {stated}");
    }
}

/// What the ledger says is what the audit is held against.
#[test]
fn the_ledger_states_it() {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget { unit: Unit::Example, epsilon: 50.0, delta: DELTA, accounting: Accounting::Pld };
    let setting = set(0.7, 0.3, 6);
    let ledger = Ledger::open(&folder.path().join("ledger"), &budget).unwrap();
    let mut honest = Honest::with(setting, ledger);
    honest.run(true, 0);
    let said = honest.ledger().spent().unwrap();
    assert_eq!((said, honest.ledger().charges()), (stated(setting), 6));
    // Run again, as after a crash: nothing more. From other weights: as much again.
    honest.run(true, 0);
    assert_eq!(honest.ledger().charges(), 6);
    honest.run(true, 1);
    assert_eq!(honest.ledger().charges(), 12);
    assert!(honest.ledger().spent().unwrap() > said * 1.2);
}

/// Each with the very attack and the very numbers with which the right arithmetic passes.
#[test]
fn planted_bugs_are_caught() {
    const RUNS: u64 = 40_000;
    for (bug, setting) in [
        (Bug::NoClip, set(1.0, 1.0, 1)),
        (Bug::HalfSigma, set(1.0, 1.0, 1)),
        (Bug::NoiseOverBatch, set(1.0, 1.0, 1)),
        (Bug::NoNoise, set(1.0, 0.3, 3)),
        (Bug::ClippedBatch, pair(1.0, true)),
        (Bug::ClippedApart, set(1.0, 1.0, 1)),
        (Bug::TrueBatch, pair(1.0, false)),
        (Bug::SameNoise, set(2.0, 1.0, 2)),
        (Bug::FreeRetry, set(1.0, 1.0, 1)),
        (Bug::NotDrawn, set(0.6, 0.1, 4)),
    ] {
        let stated = stated(setting);
        let right = bound(RUNS, |present, run| Copy { bug: None, attack: bug, setting }.run(present, run));
        assert!(right <= stated, "{setting:?}: the right arithmetic shows {right} above {stated}");
        let wrong =
            bound(RUNS, |present, run| Copy { bug: Some(bug), attack: bug, setting }.run(present, run));
        assert!(wrong > stated, "{bug:?}: only {wrong}, not above {stated}");
    }
}
