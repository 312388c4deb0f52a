//! Compute copies of A and B follow every change of their masters.

use lora_core::{Init, LORA, Linear, Mode, Recipe};
use tch::{Device, Kind, Tensor};

#[test]
fn a_change_in_place_is_seen_by_the_next_pass() {
    let mut layer = Linear::dense(Tensor::zeros([6, 4], (Kind::BFloat16, Device::Cpu)), None);
    let recipe = Recipe::parse("lora", &[LORA]).unwrap();
    layer.attach("a", recipe.adapter(layer.base(), 2, 2.0, 0.0, Init::Kaiming).unwrap()).unwrap();
    let x = Tensor::ones([3, 4], (Kind::BFloat16, Device::Cpu));
    let norm = |layer: &Linear| layer.forward(&x, Mode::Eval).norm().double_value(&[]);
    assert_eq!(norm(&layer), 0.0);
    let param = |layer: &Linear, i: usize| layer.adapter().unwrap().params()[i].1.detach();
    // By libtorch.
    let _ = tch::no_grad(|| param(&layer, 0).fill_(1.0));
    let _ = tch::no_grad(|| param(&layer, 1).fill_(1.0));
    let first = norm(&layer);
    assert!(first > 0.0);
    // By a loop of our own, as the optimiser does it.
    let mut b = param(&layer, 1);
    tch_ext::elements_mut::<f32>(&mut b).unwrap().fill(2.0);
    assert_eq!(norm(&layer), 2.0 * first);
}
