//! The sums of products beside libtorch's own product: `cargo bench -p tch-ext`.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tch::{Device, Kind, Tensor};
use tch_ext::{Product, Sum, gemm};

/// Tokens, outputs and inputs of SmolLM2-135M's layers and head.
const SHAPES: [(i64, i64, i64); 4] =
    [(1024, 1536, 576), (1024, 576, 1536), (256, 49152, 576), (1, 1536, 576)];

fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    group.sample_size(20);
    for kind in [Kind::BFloat16, Kind::Float] {
        for (m, n, k) in SHAPES {
            let random =
                |rows, columns| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(kind);
            let (x, w, dy, mut out) = (random(m, k), random(n, k), random(m, n), random(m, n));
            let mut dx = random(m, k);
            group.throughput(Throughput::Elements((2 * m * n * k) as u64));
            let name = format!("{kind:?} {m}x{n}x{k}");
            group.bench_function(BenchmarkId::new(format!("forward {name}"), "ours"), |b| {
                b.iter(|| gemm(&[Sum::new(vec![Product::transposed(black_box(&x), &w)], &out)]));
            });
            group.bench_function(BenchmarkId::new(format!("forward {name}"), "libtorch"), |b| {
                b.iter(|| out = black_box(&x).linear(&w, None::<Tensor>));
            });
            group.bench_function(BenchmarkId::new(format!("backward {name}"), "ours"), |b| {
                b.iter(|| gemm(&[Sum::new(vec![Product::plain(black_box(&dy), &w)], &dx)]));
            });
            group.bench_function(BenchmarkId::new(format!("backward {name}"), "libtorch"), |b| {
                b.iter(|| dx = black_box(&dy).matmul(&w));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
