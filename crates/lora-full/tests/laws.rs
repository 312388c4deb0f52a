//! The laws of every recipe, on this crate's own; and that it is what it says.

use lora_core::{DENSE, Dense, Init, LORA, Recipe, Variant};
use lora_full::FULL;
use tch::{Device, Kind, Tensor};

const VARIANTS: [Variant; 3] = [DENSE, LORA, FULL];

lora_core::law_tests!(full: "full", &VARIANTS);

/// The gradient is the weight's own, as autograd has it for a weight that trains.
#[test]
fn it_learns_as_the_weight_itself_would() {
    tch::manual_seed(7);
    let w = Tensor::randn([5, 3], (Kind::Float, Device::Cpu));
    let x = Tensor::randn([4, 3], (Kind::Float, Device::Cpu));
    let base = Dense::new(w.copy());
    let recipe = Recipe::parse("full", &VARIANTS).unwrap();
    let adapter = recipe.adapter(&base, 1, 16.0, 0.0, Init::Kaiming).unwrap();
    let trained = w.set_requires_grad(true);
    x.matmul(&trained.tr()).square().sum(Kind::Float).backward();
    x.matmul(&adapter.effective(&trained.detach()).tr()).square().sum(Kind::Float).backward();
    let [(name, delta)] = adapter.params()[..] else { panic!("one parameter") };
    assert_eq!((name, delta.grad()), ("delta", trained.grad()));
    // A rank and an alpha have no meaning here: neither scales the gradient above.
    assert!(recipe.adapter(&base, 1, 16.0, 0.5, Init::Kaiming).is_err());
}
