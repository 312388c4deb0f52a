//! The discrete Gaussian against its exact mass function, and the lattice it is added on.

use lora_fed::privacy::{
    DiscreteGaussian, Lattice, PrivacyError, Randomness, Secret, StepInputs, StepKey, add_integers,
};
use proptest::prelude::*;

fn randomness(step: u64) -> Randomness {
    let inputs = StepInputs { run: "noise", step, data: b"", configuration: b"", weights: b"" };
    StepKey::new(&inputs).randomness(&Secret::from_bytes([42; 32]), "noise")
}

fn draws(noise: DiscreteGaussian, step: u64, count: usize) -> Vec<i64> {
    let mut values = vec![0; count];
    noise.fill(&randomness(step), &mut values);
    values
}

/// Masses at -reach..=reach, by the definition.
fn masses(variance: f64, reach: i64) -> Vec<f64> {
    let weights: Vec<f64> =
        (-reach..=reach).map(|k| (-(k as f64).powi(2) / (2.0 * variance)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

/// Chi-square and moments against the masses.
fn check(noise: DiscreteGaussian, variance: f64, step: u64) {
    const COUNT: usize = 400_000;
    let values = draws(noise, step, COUNT);
    let (n, sigma) = (COUNT as f64, variance.sqrt());
    let reach = (12.0 * sigma).ceil() as i64 + 3;
    let masses = masses(variance, reach);
    // Bins of a twelfth of a deviation, or single integers; those expected to hold few are one.
    let width = ((sigma / 12.0) as i64).max(1);
    let bins = (2 * reach + 1) / width + 1;
    let bin = |k: i64| ((k + reach) / width) as usize;
    let (mut expected, mut seen) = (vec![0.0; bins as usize], vec![0.0; bins as usize]);
    masses.iter().enumerate().for_each(|(i, p)| expected[bin(i as i64 - reach)] += n * p);
    values.iter().for_each(|&v| seen[bin(v)] += 1.0);
    let (mut chi, mut freedom, mut rare) = (0.0, -1.0, (0.0, 0.0));
    for (e, s) in expected.iter().zip(&seen) {
        if *e < 20.0 {
            rare = (rare.0 + e, rare.1 + s);
        } else {
            chi += (s - e).powi(2) / e;
            freedom += 1.0;
        }
    }
    if rare.0 > 5.0 {
        chi += f64::powi(rare.1 - rare.0, 2) / rare.0;
        freedom += 1.0;
    }
    // Wilson and Hilferty: the cube root of chi-square is nearly normal.
    let ninth = 2.0 / (9.0 * freedom);
    let off = (f64::cbrt(chi / freedom) - (1.0 - ninth)) / f64::sqrt(ninth);
    assert!(off < 4.5, "sigma {sigma}: chi-square {chi} of {freedom}, {off} deviations off");

    let moment = |power: i32| values.iter().map(|&v| (v as f64).powi(power)).sum::<f64>() / n;
    let exact = |power: i32| {
        masses.iter().enumerate().map(|(i, p)| p * ((i as i64 - reach) as f64).powi(power)).sum::<f64>()
    };
    for power in 1..=4 {
        let error = ((exact(2 * power) - exact(power).powi(2)) / n).sqrt();
        let off = (moment(power) - exact(power)) / error;
        assert!(off.abs() < 4.5, "sigma {sigma}: moment {power} is {off} deviations off");
    }
}

#[test]
fn draws_have_the_exact_masses() {
    for (step, (over, under)) in
        [(1, 4), (1, 1), (9, 4), (2, 1), (25, 1), (1000, 7), (65_536, 1)].into_iter().enumerate()
    {
        check(DiscreteGaussian::of_variance(over, under).unwrap(), over as f64 / under as f64, step as u64);
    }
    for sigma in [100, 1024, 10_000] {
        check(DiscreteGaussian::new(sigma).unwrap(), (sigma * sigma) as f64, sigma);
    }
    // Numbers too large for 64 bits.
    check(DiscreteGaussian::of_variance(1_000_003 * 999_983, 1_000_003).unwrap(), 999_983.0, 99);
}

#[test]
fn large_deviations() {
    const COUNT: usize = 3_000_000;
    let sigma = 1u64 << 20;
    let values = draws(DiscreteGaussian::new(sigma).unwrap(), 5, COUNT);
    for deviations in [1.0, 2.0, 3.0, 4.0] {
        let seen =
            values.iter().filter(|v| v.unsigned_abs() as f64 > deviations * sigma as f64).count() as f64;
        let want = COUNT as f64 * libm::erfc(deviations / 2f64.sqrt());
        let off = (seen - want) / want.sqrt();
        assert!(off.abs() < 4.5, "beyond {deviations}: {seen}, expected {want}");
    }
    // The last bit too.
    let odd = values.iter().filter(|v| *v & 1 == 1).count() as f64;
    assert!((odd - COUNT as f64 / 2.0).abs() < 4.5 * (COUNT as f64).sqrt() / 2.0, "{odd}");
}

#[test]
fn other_keys_are_independent() {
    let noise = DiscreteGaussian::new(1000).unwrap();
    const COUNT: usize = 1 << 18;
    let (a, b) = (draws(noise, 1, COUNT), draws(noise, 2, COUNT));
    let correlation = |x: &[i64], y: &[i64]| {
        let sum: f64 = x.iter().zip(y).map(|(&x, &y)| x as f64 * y as f64).sum();
        sum / (1e6 * x.len() as f64) * (x.len() as f64).sqrt()
    };
    assert!(correlation(&a, &b).abs() < 4.5);
    // Nor are the parts of a vector alike, which have a generator each.
    let (first, second) = a.split_at(COUNT / 2);
    assert!(correlation(first, second).abs() < 4.5);
    assert_ne!(first, second);
    assert_eq!(a, draws(noise, 1, COUNT));
    assert_eq!(a[..100_000], draws(noise, 1, 100_000)[..], "a shorter vector is a longer one's beginning");
}

#[test]
fn golden_draws() {
    let first = |noise: DiscreteGaussian| draws(noise, 3, 6);
    assert_eq!(first(DiscreteGaussian::new(1 << 20).unwrap()), GOLDEN_LARGE);
    assert_eq!(first(DiscreteGaussian::of_variance(9, 4).unwrap()), GOLDEN_SMALL);
}

const GOLDEN_LARGE: [i64; 6] = [1844161, -353596, 341088, -12361, 200764, 1303910];
const GOLDEN_SMALL: [i64; 6] = [1, 0, 0, 0, 2, 0];

#[test]
fn nonsense_is_refused() {
    assert!(DiscreteGaussian::new(0).is_err());
    assert!(DiscreteGaussian::new(1 << 31).is_err());
    assert!(DiscreteGaussian::new(u64::MAX).is_err());
    for (over, under) in [(0, 1), (1, 0), (u64::MAX, 1), (u64::MAX, u64::MAX - 1), (1, u64::MAX)] {
        let noise = DiscreteGaussian::of_variance(over, under);
        assert!(noise.is_err(), "{over}/{under}: {noise:?}");
    }
    for (clip, bits) in [(0.0, 20), (-1.0, 20), (f64::NAN, 20), (f64::INFINITY, 20), (1.0, 7), (1.0, 31)] {
        assert!(Lattice::new(clip, 10, bits).is_err(), "{clip} {bits}");
    }
    let lattice = Lattice::new(1.0, 2, 10).unwrap();
    assert!(lattice.noise(0.5).is_err() && lattice.noise(f64::NAN).is_err() && lattice.noise(1e9).is_err());
    let mut random = randomness(0).stream(0);
    let bad = lattice.quantise(&[1.0, f64::NAN], &mut random);
    assert!(matches!(bad, Err(PrivacyError::NonFinite { index: 1 })), "{bad:?}");
    assert!(lattice.quantise(&[f32::NEG_INFINITY, 0.0], &mut random).is_err());
    assert!(lattice.quantise(&[1.0], &mut random).is_err());
    assert!(lattice.dequantise(&[1], 0.0).is_err() && lattice.dequantise(&[1], f64::NAN).is_err());
    assert!(add_integers(&mut [1, 2], &[1]).is_err());
}

#[test]
fn rounding_has_no_bias_and_clipping_keeps_the_direction() {
    let lattice = Lattice::new(2.0, 3, 8).unwrap();
    let values = [0.30123f32, -1.0077, 0.0001];
    let mut sums = [0.0; 3];
    let mut random = randomness(1).stream(0);
    const COUNT: usize = 200_000;
    for _ in 0..COUNT {
        let rounded = lattice.quantise(&values, &mut random).unwrap();
        let back = lattice.dequantise(&rounded, 1.0).unwrap();
        for ((sum, back), value) in sums.iter_mut().zip(back).zip(values) {
            assert!((back - f64::from(value)).abs() < lattice.unit());
            *sum += back;
        }
    }
    for (sum, value) in sums.iter().zip(values) {
        let error = sum / COUNT as f64 - f64::from(value);
        assert!(error.abs() < 2.5 * lattice.unit() / (COUNT as f64).sqrt(), "{error:e}");
    }
    // Ten times the norm: a tenth of the vector.
    let lattice = Lattice::new(0.5, 2, 20).unwrap();
    let back = lattice.dequantise(&lattice.quantise(&[3.0, -4.0], &mut random).unwrap(), 1.0).unwrap();
    assert!((back[0] - 0.3).abs() < 2e-6 && (back[1] + 0.4).abs() < 2e-6, "{back:?}");
}

#[test]
fn noise_is_at_least_what_is_accounted_for() {
    for (dimension, bits, sigma) in [(1, 10, 1.0), (5_000_000, 20, 0.7), (100, 8, 13.37), (1 << 40, 20, 1.1)]
    {
        let lattice = Lattice::new(3.0, dimension, bits).unwrap();
        let least = (sigma * lattice.norm()).powi(2);
        let more = ((sigma * lattice.norm()).ceil() + 1.0).powi(2);
        let got = lattice.noise(sigma).unwrap();
        let all: Vec<u64> = (least.sqrt() as u64..=more.sqrt() as u64).collect();
        let at = all.iter().find(|&&s| DiscreteGaussian::new(s).unwrap() == got).copied().unwrap();
        assert!((at * at) as f64 >= least, "{dimension} {bits} {sigma}: {at} {}", least.sqrt());
    }
}

proptest! {
    /// Whatever is given, the norm is bounded in integers.
    #[test]
    fn no_vector_is_longer_than_the_lattices_norm(
        values in prop::collection::vec(prop_oneof![-1.0f64..1.0, Just(0.5), Just(1e300), -1e-300f64..1e-300], 1..200),
        clip in 1e-3f64..1e3, bits in 8u32..24, step in 0u64..1000,
    ) {
        let lattice = Lattice::new(clip, values.len(), bits).unwrap();
        let rounded = lattice.quantise(&values, &mut randomness(step).stream(0)).unwrap();
        let norm = rounded.iter().map(|&k| (k as f64).powi(2)).sum::<f64>().sqrt();
        prop_assert!(norm <= lattice.norm() * (1.0 + 1e-12));
        prop_assert!(lattice.norm() < 2f64.powi(bits as i32) * 1.05 + 20.0);
    }
}

/// Long vectors at the very clipping norm, which random rounding makes longer.
#[test]
fn rounded_norms_of_long_vectors() {
    const DIMENSION: usize = 1 << 16;
    for bits in [8, 12, 20] {
        let lattice = Lattice::new(1.0, DIMENSION, bits).unwrap();
        let values = vec![1.0f32; DIMENSION];
        let mut random = randomness(2).stream(0);
        let rounded = lattice.quantise(&values, &mut random).unwrap();
        let norm = rounded.iter().map(|&k| (k as f64).powi(2)).sum::<f64>().sqrt();
        assert!(norm <= lattice.norm(), "{bits}: {norm} {}", lattice.norm());
        // Not by falling back: the sum is still without bias.
        let sum = rounded.iter().sum::<i64>() as f64 / 2f64.powi(bits as i32) / (DIMENSION as f64).sqrt();
        assert!((sum - 1.0).abs() < 3.0 * 2f64.powi(-(bits as i32)), "{bits}: {sum}");
    }
}

/// On a lattice of a deviation of 1024, a sampled step's delta is the continuous one's to a millionth.
#[test]
fn the_lattice_is_as_private_as_the_line() {
    let sigma = 1024i64;
    let upper = |x: f64| 0.5 * libm::erfc(x / 2f64.sqrt());
    for (shift, q) in [(1024, 0.01), (1024, 1.0), (64, 0.3), (2048, 0.001)] {
        let multiplier = sigma as f64 / shift as f64;
        let mass = |k: i64, mean: i64| {
            let z = (k - mean) as f64 / sigma as f64;
            (-0.5 * z * z).exp() / (sigma as f64 * (2.0 * std::f64::consts::PI).sqrt())
        };
        for epsilon in [0.05, 0.5, 2.0] {
            let e = f64::exp(epsilon);
            let lattice: f64 = (-12 * sigma..12 * sigma + shift)
                .map(|k| {
                    let without = mass(k, 0);
                    ((1.0 - q) * without + q * mass(k, shift) - e * without).max(0.0)
                })
                .sum();
            let x = (0.5 + multiplier.powi(2) * ((e - 1.0) / q).ln_1p()) / multiplier;
            let line = q * upper(x - 1.0 / multiplier) - (e - 1.0 + q) * upper(x);
            let off = lattice / line - 1.0;
            assert!(off.abs() < 1e-5 || line < 1e-13, "{shift} {q} {epsilon}: {lattice:e} {line:e} {off:e}");
        }
    }
}
