//! Accountants and noise: `cargo bench -p lora-fed`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lora_fed::privacy::{
    Accountant, Accounting, Budget, Lattice, Ledger, Mechanism, PoissonSampler, Release, ReleaseConfig,
    Secret, StepInputs, StepKey, Unit, sigma_for,
};

fn accountants(c: &mut Criterion) {
    let mut group = c.benchmark_group("epsilon");
    group.sample_size(10);
    for (sigma, q, steps) in [(1.0, 0.01, 1000), (0.7, 0.001, 5000), (1.0, 0.001, 1_000_000)] {
        for accounting in [Accounting::Rdp, Accounting::Pld] {
            let mut spent = Accountant::new(accounting);
            spent.steps(sigma, q, steps).expect("a sensible mechanism");
            group.bench_function(format!("{accounting:?}, sigma {sigma}, q {q}, {steps} steps"), |b| {
                b.iter(|| black_box(&spent).epsilon(1e-6));
            });
        }
    }
}

fn noise(c: &mut Criterion) {
    const COUNT: usize = 1 << 20;
    let inputs = StepInputs { run: "bench", step: 1, data: b"", configuration: b"", weights: b"" };
    let randomness = StepKey::new(&inputs).randomness(&Secret::from_bytes([7; 32]), "noise");
    let lattice = Lattice::new(1.0, COUNT, 20).expect("a sensible lattice");
    let gaussian = lattice.noise(1.0).expect("a sensible multiplier");
    let values = vec![0.001f32; COUNT];
    let mut group = c.benchmark_group("vectors");
    group.sample_size(10).throughput(Throughput::Elements(COUNT as u64));
    group.bench_function("noise", |b| {
        let mut to = vec![0; COUNT];
        b.iter(|| gaussian.fill(&randomness, black_box(&mut to)));
    });
    group.bench_function("quantise", |b| {
        let mut random = randomness.stream(1);
        b.iter(|| lattice.quantise(black_box(&values), &mut random));
    });
    group.bench_function("sample", |b| {
        let sampler = PoissonSampler::new(0.01).expect("a rate");
        b.iter(|| sampler.draw(black_box(COUNT), &randomness));
    });
}

/// The adapter of a small model: 2.4 million numbers, 16 records expected.
fn steps(c: &mut Criterion) {
    const DIMENSION: usize = 2_400_000;
    let budget = Budget { unit: Unit::Example, epsilon: 1e6, delta: 1e-5, accounting: Accounting::Rdp };
    let config = ReleaseConfig {
        clip: 1.0,
        mechanism: Mechanism::new(1.0, 1.0).expect("a sensible mechanism"),
        records: 16,
        dimension: DIMENSION,
        divisor: 16.0,
        bits: 20,
        run: "bench".into(),
        data: [0; 32],
        configuration: [0; 32],
    };
    let ledger = Ledger::in_memory(&budget).expect("a sensible budget");
    let mut release = Release::new(config, Secret::from_bytes([7; 32]), ledger).expect("a sensible release");
    let gradient = vec![0.001f32; DIMENSION];
    let mut group = c.benchmark_group("step of 2.4 million numbers");
    group.sample_size(10);
    group.throughput(Throughput::Elements(16 * DIMENSION as u64));
    group.bench_function("draw, add 16 records, release", |b| {
        b.iter(|| {
            let mut step = release.step(0, b"").expect("within the budget");
            (0..16).for_each(|i| drop(step.add(i, black_box(&gradient), 0.1)));
            step.release().expect("whole")
        });
    });
    group.finish();
}

fn searches(c: &mut Criterion) {
    let mut group = c.benchmark_group("sigma for a budget");
    group.sample_size(10);
    for (epsilon, q, steps) in [(2.0, 0.01, 1000), (1.0, 0.001, 100_000), (8.0, 0.001, 100_000)] {
        group.bench_function(format!("epsilon {epsilon}, q {q}, {steps} steps"), |b| {
            b.iter(|| sigma_for(Accounting::Pld, black_box(epsilon), 1e-6, q, steps));
        });
    }
}

criterion_group!(benches, accountants, searches, noise, steps);
criterion_main!(benches);
