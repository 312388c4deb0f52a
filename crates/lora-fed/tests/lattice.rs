//! Integers and floats into the ring and back.
#![allow(missing_docs)]

use lora_fed::secagg::{Grid, Lattice, Ring, SecAggError, plain_sum};
use proptest::prelude::*;

#[test]
fn the_largest_grid_just_fits() {
    for ring in [Ring::U32, Ring::U64] {
        for n in [1usize, 2, 3, 7, 10, 32, 255] {
            let bound = Grid::largest_bound(ring, n);
            let grid = Grid::new(ring, n, bound).unwrap();
            for value in [bound, -bound] {
                let one = grid.encode(&[value]).unwrap();
                let sum = plain_sum((0..n).map(|_| one.as_slice()), ring, 1);
                assert_eq!(grid.decode(&sum), [value * n as i64]);
            }
            // One more, and so many would not fit.
            assert!(
                matches!(
                    Grid::new(ring, n, bound + i64::from(n > 1 || ring == Ring::U32)),
                    Err(SecAggError::Grid(_))
                ) || (n == 1 && ring == Ring::U64)
            );
            let most = (1i128 << (ring.bits() - 1)) - 1;
            assert!((i128::from(bound) + 1) * n as i128 > most && i128::from(bound) * n as i128 <= most);
        }
        assert!(Grid::new(ring, 2, 0).is_err() && Grid::new(ring, 2, -1).is_err());
        assert!(Grid::new(ring, 0, 1).is_err());
    }
}

#[test]
fn an_integer_beyond_the_bound_is_refused() {
    let grid = Grid::new(Ring::U32, 3, 100).unwrap();
    assert_eq!(grid.decode(&grid.encode(&[-100, 0, 100]).unwrap()), [-100, 0, 100]);
    for value in [101, -101, i64::MAX, i64::MIN] {
        let refused = SecAggError::OutOfBound { index: 1, value, bound: 100 };
        assert_eq!(grid.encode(&[0, value]), Err(refused));
    }
}

#[test]
fn floats_are_clipped_and_rounded_to_even() {
    let lattice = Lattice::new(Ring::U32, 4, 1.0, 4.0).unwrap();
    let values = [0.0f32, 0.125, 0.375, -0.125, 0.3, 1.0, 7.0, -7.0, f32::MIN_POSITIVE, -0.0];
    assert_eq!(lattice.quantise(&values).unwrap(), [0, 0, 2, 0, 1, 4, 4, -4, 0, 0]);
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(lattice.encode(&[0.0, 0.5, bad]), Err(SecAggError::NonFinite(2)));
    }
    assert!(lattice.encode::<f32>(&[]).unwrap().is_empty() && lattice.decode(&[]).is_empty());
}

#[test]
fn lattices_that_do_not_fit() {
    for (clip, scale) in [(0.0, 1.0), (-1.0, 1.0), (f64::NAN, 1.0), (1.0, f64::INFINITY), (1.0, 0.0)] {
        assert!(
            matches!(Lattice::new(Ring::U64, 2, clip, scale), Err(SecAggError::Grid(_))),
            "{clip} {scale}"
        );
    }
    assert!(Lattice::new(Ring::U32, 10, 1.0, 214_748_364.0).is_ok());
    assert!(Lattice::new(Ring::U32, 10, 1.0, 214_748_365.0).is_err());
    assert!(Lattice::new(Ring::U32, 10, 1.0, 214_748_364.5).is_err());
    assert!(Lattice::new(Ring::U64, 2, 1.0, 2f64.powi(53)).is_ok());
    assert!(Lattice::new(Ring::U64, 2, 1.0, 2f64.powi(54)).is_err());
}

proptest! {
    #[test]
    fn a_sum_of_floats_is_right_to_half_a_step_each(
        values in prop::collection::vec(-2.0f64..2.0, 1..20),
        wide in any::<bool>(),
        clip in 0.01f64..3.0,
    ) {
        let ring = if wide { Ring::U64 } else { Ring::U32 };
        let n = values.len();
        let lattice = Lattice::finest(ring, n, clip).unwrap();
        let encoded: Vec<_> = values.iter().map(|x| lattice.encode(&[*x]).unwrap()).collect();
        let sum = lattice.decode(&plain_sum(encoded.iter().map(Vec::as_slice), ring, 1))[0];
        let true_sum: f64 = values.iter().map(|x| x.clamp(-clip, clip)).sum();
        let step = 1.0 / lattice.scale();
        prop_assert!((sum - true_sum).abs() <= 0.5 * step * n as f64 + 1e-13);
        // Twice as fine would not fit, but for the 53 bits of a float.
        let exact = clip * lattice.scale() * 2.0 > 2f64.powi(53);
        prop_assert!(exact || Lattice::new(ring, n, clip, lattice.scale() * 2.0).is_err());
    }

    #[test]
    fn integers_come_back(
        n in 1usize..40,
        wide in any::<bool>(),
        fractions in prop::collection::vec(-1.0f64..=1.0, 1..8),
    ) {
        let ring = if wide { Ring::U64 } else { Ring::U32 };
        let grid = Grid::new(ring, n, Grid::largest_bound(ring, n)).unwrap();
        // Not as many parties as are allowed for: decoding must not depend on how many came.
        let values: Vec<i64> =
            fractions.iter().take(n).map(|x| ((x * grid.bound() as f64) as i64).clamp(-grid.bound(), grid.bound())).collect();
        let encoded: Vec<_> = values.iter().map(|x| grid.encode(&[*x]).unwrap()).collect();
        let sum = grid.decode(&plain_sum(encoded.iter().map(Vec::as_slice), ring, 1));
        prop_assert_eq!(sum[0], values.iter().sum::<i64>());
    }
}
