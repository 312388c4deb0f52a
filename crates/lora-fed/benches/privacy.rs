//! Accountants and noise: `cargo bench -p lora-fed`.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lora_fed::privacy::{Accountant, Accounting, Lattice, PoissonSampler, Secret, StepInputs, StepKey};

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

criterion_group!(benches, accountants, noise);
criterion_main!(benches);
