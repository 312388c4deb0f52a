//! The fused operations, forward and forward + backward, at SmolLM2-135M's sizes and 1024 tokens:
//! `cargo bench -p lora-model`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lora_core::{Linear, Mode};
use lora_model::{attention, cross_entropy, rms_norm, swiglu};
use tch::{Device, Kind, Tensor};

const TOKENS: i64 = 1024;

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

fn bench(c: &mut Criterion, name: &str, kind: Kind, inputs: &[Tensor], f: &dyn Fn(&[Tensor]) -> Tensor) {
    let mut group = c.benchmark_group(format!("{name}/{kind:?}"));
    group.sample_size(20).throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function(BenchmarkId::from_parameter("forward"), |b| b.iter(|| tch::no_grad(|| f(inputs))));
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
    let refs: Vec<&Tensor> = leaves.iter().collect();
    group.bench_function(BenchmarkId::from_parameter("forward+backward"), |b| {
        b.iter(|| Tensor::run_backward(&[f(&leaves).sum(Kind::Float)], &refs, false, false));
    });
    group.finish();
}

fn ops(c: &mut Criterion) {
    tch_ext::memory::manage();
    for kind in [Kind::BFloat16, Kind::Float] {
        let w = random(&[576], kind);
        let x = [random(&[TOKENS, 576], kind)];
        bench(c, "rms_norm", kind, &x, &|t| rms_norm(&t[0], &w, 1e-5).tensor());
        let pair = [random(&[TOKENS, 1536], kind), random(&[TOKENS, 1536], kind)];
        bench(c, "swiglu", kind, &pair, &|t| swiglu(&t[0], &t[1]).tensor());
        for (batch, t) in [(4, 256), (1, 1024)] {
            let qkv = [9, 3, 3].map(|heads| random(&[batch, heads, t, 64], kind));
            bench(c, &format!("attention {batch}x{t}"), kind, &qkv, &|t| {
                attention(&t[0], &t[1], &t[2], None, None)
            });
        }
        let head = Linear::dense(random(&[49152, 576], kind) * 0.02, None);
        let labels = Tensor::randint(49152, [TOKENS], (Kind::Int64, Device::Cpu));
        bench(c, "cross_entropy", kind, &x, &|t| cross_entropy(&t[0], &labels, &head, Mode::Train).0);
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
