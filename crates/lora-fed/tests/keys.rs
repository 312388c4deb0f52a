//! A step's randomness: the same for a replay, unrelated for anything else, and what RFC 5869 and RFC 8439 say.

use lora_fed::privacy::{PoissonSampler, Secret, StepInputs, StepKey};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha20Rng;

const INPUTS: StepInputs<'_> =
    StepInputs { run: "golden", step: 7, data: b"d", configuration: b"c", weights: b"w" };

fn secret() -> Secret {
    Secret::from_bytes(std::array::from_fn(|i| i as u8))
}

fn bytes(inputs: &StepInputs<'_>, secret: &Secret, purpose: &str, stream: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    StepKey::new(inputs).randomness(secret, purpose).stream(stream).fill_bytes(&mut bytes);
    bytes
}

/// Made by another implementation of HKDF and ChaCha20, in Python.
#[test]
fn golden_bytes() {
    assert_eq!(
        StepKey::new(&INPUTS).id(&secret()),
        "6e4d7c13d671823ccbce60120646d94e0672dd7ad7a22df021b26d54e5f15079"
    );
    assert_eq!(bytes(&INPUTS, &secret(), "noise", 0), hex("1165f9e4c3a98b2a4468a9c6640974f7"));
    assert_eq!(bytes(&INPUTS, &secret(), "noise", 1), hex("04fed0b8097cc0ff908b4552509dc0b5"));
}

fn hex(text: &str) -> [u8; 16] {
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
}

#[test]
fn everything_counts() {
    let first = bytes(&INPUTS, &secret(), "noise", 0);
    assert_eq!(first, bytes(&INPUTS, &secret(), "noise", 0));
    let mut all = vec![first];
    for inputs in [
        StepInputs { run: "golden2", ..INPUTS },
        StepInputs { step: 8, ..INPUTS },
        StepInputs { data: b"e", ..INPUTS },
        StepInputs { configuration: b"d", ..INPUTS },
        StepInputs { weights: b"x", ..INPUTS },
        // The same bytes, divided otherwise.
        StepInputs { data: b"dc", configuration: b"", ..INPUTS },
        StepInputs { data: b"", configuration: b"dc", ..INPUTS },
    ] {
        assert_ne!(StepKey::new(&inputs).id(&secret()), StepKey::new(&INPUTS).id(&secret()));
        all.push(bytes(&inputs, &secret(), "noise", 0));
    }
    all.push(bytes(&INPUTS, &secret(), "sample", 0));
    all.push(bytes(&INPUTS, &secret(), "noise", 1));
    all.push(bytes(&INPUTS, &Secret::from_bytes([1; 32]), "noise", 0));
    all.push(bytes(&INPUTS, &Secret::generate().unwrap(), "noise", 0));
    all.push(bytes(&INPUTS, &Secret::generate().unwrap(), "noise", 0));
    for (i, a) in all.iter().enumerate() {
        assert!(!all[..i].contains(a), "{i}");
    }
}

/// Nobody checks a guess at the data by a step's name, and no randomness is what a ledger says.
#[test]
fn a_name_is_nothing_without_the_secret() {
    let key = StepKey::new(&INPUTS);
    let name = key.id(&secret());
    assert_eq!(name, key.id(&secret()));
    assert_ne!(name, key.id(&Secret::from_bytes([1; 32])));
    // SHA-256 of the inputs, which it was.
    assert_ne!(name, "976824f7c209d275556de3cbd7f5799692558c2a29375589d7140e7857940719");
    // Nor is it the key of any randomness.
    let mut as_key = [0; 16];
    let seed: Vec<u8> = [hex(&name), hex(&name[32..])].concat();
    ChaCha20Rng::from_seed(seed.try_into().unwrap()).fill_bytes(&mut as_key);
    assert!(["name", "ledger", "noise"].iter().all(|p| bytes(&INPUTS, &secret(), p, 0) != as_key));
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?}", Secret::from_bytes([77; 32])), "Secret(..)");
    assert!(!format!("{:?}", StepKey::new(&INPUTS).randomness(&secret(), "x")).contains(char::is_numeric));
}

#[test]
fn every_record_has_its_own_coin() {
    const RECORDS: usize = 400;
    const STEPS: u64 = 5000;
    let q = 0.1;
    let sampler = PoissonSampler::new(q).unwrap();
    let (mut drawn, mut neighbours, mut again) = (vec![0.0; RECORDS], 0.0, 0.0);
    let (mut sizes, mut squares, mut last) = (0.0, 0.0, vec![false; RECORDS]);
    for step in 0..STEPS {
        let randomness = StepKey::new(&StepInputs { step, ..INPUTS }).randomness(&secret(), "sample");
        let batch = sampler.draw(RECORDS, &randomness);
        assert_eq!(batch, sampler.draw(RECORDS, &randomness));
        let mut hit = vec![false; RECORDS];
        batch.iter().for_each(|&i| hit[i] = true);
        for i in 0..RECORDS {
            drawn[i] += f64::from(u8::from(hit[i]));
            neighbours += f64::from(u8::from(hit[i] && hit[(i + 1) % RECORDS]));
            again += f64::from(u8::from(hit[i] && last[i]));
        }
        last = hit;
        sizes += batch.len() as f64;
        squares += (batch.len() as f64).powi(2);
    }
    let (n, t) = (RECORDS as f64, STEPS as f64);
    let coins = n * t;
    let near = |what: &str, got: f64, mean: f64, variance: f64| {
        let off = (got - mean) / variance.sqrt();
        assert!(off.abs() < 4.5, "{what}: {got}, expected {mean}, {off} deviations off");
    };
    near("drawn in all", sizes, coins * q, coins * q * (1.0 - q));
    // The variance of sizes is n q (1 - q) only if no two records are correlated.
    let variance = squares / t - (sizes / t).powi(2);
    let want = n * q * (1.0 - q);
    near("variance of sizes", variance, want, 2.0 * want * want / t);
    for pairs in [neighbours, again] {
        near("pairs", pairs, coins * q * q, coins * q * q * (1.0 - q * q) * 1.4);
    }
    let chi: f64 = drawn.iter().map(|d| (d - t * q).powi(2) / (t * q * (1.0 - q))).sum();
    near("records", chi, n, 2.0 * n);
}

#[test]
fn rates_are_never_rounded_up() {
    let of = |q: f64| PoissonSampler::new(q).unwrap();
    let grain = 2f64.powi(-64);
    assert_eq!(of(1.99 * grain), of(grain));
    assert_eq!(of(0.99 * grain), of(0.0));
    assert_ne!(of(2.0 * grain), of(grain));
    let randomness = StepKey::new(&INPUTS).randomness(&secret(), "sample");
    assert_eq!(of(1.0).draw(5, &randomness), [0, 1, 2, 3, 4]);
    assert!(of(0.0).draw(1000, &randomness).is_empty());
    assert_eq!(of(1.0 - f64::EPSILON).draw(1000, &randomness).len(), 1000);
    for q in [-1e-300, 1.1, f64::NAN] {
        assert!(PoissonSampler::new(q).is_err());
    }
}
