//! A layer, forward and forward + backward, beside the dense layer.

use criterion::{BenchmarkId, Criterion, Throughput};
use tch::{Device, Kind, Tensor};

use crate::{Init, Linear, Mode, Recipe, Variant};

/// The shape of SmolLM2-135M's largest layers, and a batch of tokens.
const OUT: i64 = 1536;
const IN: i64 = 576;
const TOKENS: i64 = 1024;

/// Benches the recipe on a layer of 1536 x 576 with 1024 tokens at rank 8, in bf16 and f32, beside the bare
/// dense layer; on CUDA if there is one.
pub fn layer_bench(spec: &str, variants: &[Variant]) {
    tch_ext::load_cuda();
    let device = Device::cuda_if_available();
    let recipe = Recipe::parse(spec, variants).expect("the recipe parses");
    let mut criterion = Criterion::default().configure_from_args().sample_size(20);
    for kind in [Kind::BFloat16, Kind::Float] {
        let options = (Kind::Float, device);
        let w = (Tensor::randn([OUT, IN], options) * 0.02).to_kind(kind);
        let dense = Linear::dense(w.shallow_clone(), None);
        let mut adapted = Linear::new(recipe.store(w).expect("a finite weight"), None);
        let adapter = recipe.adapter(adapted.base(), 8, 16.0, 0.0, Init::Kaiming).expect("the rank fits");
        adapted.attach("bench", adapter).expect("the name is free");
        let x = Tensor::randn([TOKENS, IN], options).to_kind(kind).set_requires_grad(true);

        let mut group = criterion.benchmark_group(format!("{spec}/{kind:?}/{device:?}"));
        group.throughput(Throughput::Elements(TOKENS as u64));
        for (name, layer) in [("dense", &dense), ("ours", &adapted)] {
            group.bench_function(BenchmarkId::new("forward", name), |b| {
                b.iter(|| {
                    let _guard = tch::no_grad_guard();
                    let _ = layer.forward(&x, Mode::Eval);
                    wait(device);
                });
            });
            group.bench_function(BenchmarkId::new("forward+backward", name), |b| {
                b.iter(|| {
                    let y = layer.forward(&x, Mode::Train);
                    let mut leaves = vec![&x];
                    leaves.extend(
                        layer.adapter().map(|a| a.params()).unwrap_or_default().into_iter().map(|p| p.1),
                    );
                    Tensor::run_backward(&[y.sum(Kind::Float)], &leaves, false, false);
                    wait(device);
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}
