//! A magnitude of 0 still learns: its gradient is taken from an output that has nothing of it.

use lora_core::{DENSE, Init, LORA, Linear, Mode, Recipe};
use lora_dora::DORA;
use tch::{Device, Kind, Tensor};

#[test]
fn a_gain_of_zero_has_its_gradient() {
    // f64 and f32 divide by the gain, f16 cannot, and neither can what has a bias.
    for (kind, biased, bound) in [
        (Kind::Double, false, 1e-10),
        (Kind::Float, false, 1e-5),
        (Kind::BFloat16, false, 2e-2),
        (Kind::Half, false, 2e-3),
        (Kind::Float, true, 1e-5),
    ] {
        let random = |size: [i64; 2]| Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind);
        let bias = biased.then(|| random([1, 6]).reshape([6]));
        let mut layer = Linear::dense(random([6, 16]), bias);
        let recipe = Recipe::parse("dora", &[DENSE, LORA, DORA]).unwrap();
        layer.attach("mine", recipe.adapter(layer.base(), 2, 4.0, 0.0, Init::Kaiming).unwrap()).unwrap();
        let params = layer.adapter().unwrap().params();
        let (_, m) = params.into_iter().find(|(name, _)| *name == "lora_magnitude_vector").unwrap();
        let gains = [0.0, -1e-6, 1e-12, 0.5, -2.0, 0.0];
        let norms = m.detach().copy();
        tch::no_grad(|| {
            m.shallow_clone().copy_(&(&norms * Tensor::from_slice(&gains).to_kind(norms.kind())))
        });

        let (x, to) = (random([5, 16]), random([5, 6]));
        (layer.forward(&x, Mode::Train) * &to).sum(Kind::Double).backward();
        // dy/dm of row i is x wᵢ / ‖wᵢ‖, whatever m is (B is 0).
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        let w = wide(&layer.base().dense(kind));
        let exact =
            (wide(&x).matmul(&w.tr()) * wide(&to)).sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)
                / wide(&norms);
        let error = ((wide(&m.grad()) - &exact).abs().max() / exact.abs().max()).double_value(&[]);
        assert!(error < bound, "{kind:?}, bias {biased}: {error:e}");
    }
}

#[test]
fn a_row_of_zeros_is_left_alone() {
    let options = (Kind::Float, Device::Cpu);
    let weight = Tensor::randn([4, 8], options);
    let _ = weight.get(2).zero_();
    let mut layer = Linear::dense(weight.shallow_clone(), None);
    let recipe = Recipe::parse("dora", &[DENSE, LORA, DORA]).unwrap();
    layer.attach("mine", recipe.adapter(layer.base(), 2, 4.0, 0.0, Init::Kaiming).unwrap()).unwrap();
    let x = Tensor::randn([3, 8], options);
    layer.forward(&x, Mode::Train).sum(Kind::Float).backward();
    let params = layer.adapter().unwrap().params();
    let (_, m) = params.into_iter().find(|(name, _)| *name == "lora_magnitude_vector").unwrap();
    assert_eq!(m.grad().double_value(&[2]), 0.0);
    assert!(m.grad().isfinite().all().int64_value(&[]) == 1);
    assert!(layer.effective(Kind::Float).equal(&weight), "at the start W' = W in every bit");
}
