//! The fused operations beside their definitions by libtorch, forward and forward + backward, at SmolLM2-135M's sizes
//! and 1024 tokens: `cargo bench -p lora-model`; against the ratios that were kept: `cargo xtask bench --ops`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lora_core::{Linear, Mode};
use lora_model::{attention, cross_entropy, rms_norm, swiglu};
use tch::{Device, Kind, Reduction, Tensor};

const TOKENS: i64 = 1024;

fn random(size: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;

fn bench(
    c: &mut Criterion,
    name: &str,
    kind: Kind,
    inputs: &[Tensor],
    ours: Operation<'_>,
    libtorch: Operation<'_>,
) {
    let mut group = c.benchmark_group(format!("{name}/{kind:?}"));
    group.sample_size(20).throughput(Throughput::Elements(TOKENS as u64));
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.detach().set_requires_grad(true)).collect();
    let refs: Vec<&Tensor> = leaves.iter().collect();
    for (whose, f) in [("ours", ours), ("libtorch", libtorch)] {
        group.bench_function(BenchmarkId::new("forward", whose), |b| b.iter(|| tch::no_grad(|| f(inputs))));
        group.bench_function(BenchmarkId::new("forward+backward", whose), |b| {
            b.iter(|| Tensor::run_backward(&[f(&leaves).sum(Kind::Float)], &refs, false, false));
        });
    }
    group.finish();
}

fn ops(c: &mut Criterion) {
    tch_ext::memory::manage();
    for kind in [Kind::BFloat16, Kind::Float] {
        let w = random(&[576], kind);
        let x = [random(&[TOKENS, 576], kind)];
        bench(c, "rms_norm", kind, &x, &|t| rms_norm(&t[0], &w, 1e-5).tensor(), &|t| {
            let x = t[0].to_kind(Kind::Float);
            let inverse = (x.square().mean_dim(Some([-1i64].as_slice()), true, None) + 1e-5).rsqrt();
            (x * inverse).to_kind(kind) * &w
        });
        let pair = [random(&[TOKENS, 1536], kind), random(&[TOKENS, 1536], kind)];
        bench(c, "swiglu", kind, &pair, &|t| swiglu(&t[0], &t[1]).tensor(), &|t| t[0].silu() * &t[1]);
        for (batch, t) in [(4, 256), (1, 1024)] {
            let qkv = [9, 3, 3].map(|heads| random(&[batch, heads, t, 64], kind));
            let ours = |t: &[Tensor]| attention(&t[0], &t[1], &t[2], None, None);
            bench(c, &format!("attention {batch}x{t}"), kind, &qkv, &ours, &|t| {
                let mask = None::<Tensor>;
                Tensor::scaled_dot_product_attention(&t[0], &t[1], &t[2], mask, 0.0, true, None, true)
            });
        }
        let weight = random(&[49152, 576], kind) * 0.02;
        let head = Linear::dense(weight.shallow_clone(), None);
        let labels = Tensor::randint(49152, [TOKENS], (Kind::Int64, Device::Cpu));
        bench(c, "cross_entropy", kind, &x, &|t| cross_entropy(&t[0], &labels, &head, Mode::Train).0, &|t| {
            let logits = t[0].linear(&weight, None::<Tensor>).to_kind(Kind::Float);
            logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, -100, 0.0)
        });
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
