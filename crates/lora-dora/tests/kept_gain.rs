//! A gain is made once for all uses, until something that it depends on changes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lora_core::{DENSE, Dense, Init, LORA, Linear, Mode, Recipe};
use lora_dora::DORA;
use tch::{Device, Kind, Tensor};

#[test]
fn it_changes_with_each_parameter_and_with_the_dtype() {
    let options = (Kind::Float, Device::Cpu);
    let mut layer = Linear::dense(Tensor::randn([24, 16], options), None);
    let recipe = Recipe::parse("dora", &[DENSE, LORA, DORA]).unwrap();
    layer.attach("mine", recipe.adapter(layer.base(), 4, 8.0, 0.0, Init::Kaiming).unwrap()).unwrap();
    let x = Tensor::randn([5, 16], options);
    let check = |what: &str| {
        // `effective` is the definition, and keeps nothing.
        for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3e-2), (Kind::Float, 1e-5)] {
            let y = tch::no_grad(|| layer.forward(&x.to_kind(kind), Mode::Eval)).to_kind(Kind::Float);
            let want = x.matmul(&layer.effective(Kind::Float).detach().tr());
            let error = ((y - &want).norm() / want.norm()).double_value(&[]);
            assert!(error < bound, "{what}, {kind:?}: {error:e}");
        }
    };
    check("at the start");
    for (name, parameter) in layer.adapter().unwrap().params() {
        tch::no_grad(|| {
            let moved = parameter.detach() + parameter.randn_like() * 0.5;
            parameter.shallow_clone().copy_(&moved);
        });
        check(name);
        // The arena's way: through a view of the same memory.
        tch::no_grad(|| {
            let _ = parameter.view(-1).narrow(0, 0, 4).g_mul_scalar_(3.0);
        });
        check(name);
    }
}

#[test]
fn it_is_not_another_weights() {
    let options = (Kind::Float, Device::Cpu);
    let weight = |size: f64| Box::new(Dense::new(Tensor::randn([24, 16], options) * size));
    let mut layer = Linear::new(weight(1.0), None);
    let recipe = Recipe::parse("dora", &[DENSE, LORA, DORA]).unwrap();
    layer.attach("mine", recipe.adapter(layer.base(), 4, 8.0, 0.0, Init::Kaiming).unwrap()).unwrap();
    let x = Tensor::randn([5, 16], options);
    let forward = |layer: &Linear| tch::no_grad(|| layer.forward(&x, Mode::Eval));
    drop(forward(&layer));
    let error = layer.replace_base(weight(3.0)).unwrap_err();
    assert!(error.to_string().contains("`mine`"), "{error}");
    assert!(error.hint_text().is_some());

    let adapter = layer.detach("mine").unwrap().unwrap();
    layer.replace_base(weight(3.0)).unwrap();
    layer.attach("mine", adapter).unwrap();
    let want = x.matmul(&layer.effective(Kind::Float).tr());
    let error = ((forward(&layer) - &want).norm() / want.norm()).double_value(&[]);
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn a_panic_while_it_is_made_leaves_the_thread_its_gradients() {
    let zeros = |width: i64| Tensor::zeros([24, width], (Kind::Float, Device::Cpu));
    let (layer, narrow) = (Linear::dense(zeros(16), None), zeros(3));
    let recipe = Recipe::parse("dora", &[DENSE, LORA, DORA]).unwrap();
    let adapter = recipe.adapter(layer.base(), 4, 8.0, 0.0, Init::Kaiming).unwrap();
    let factors = || adapter.factors(layer.base(), &narrow).is_some();
    assert!(catch_unwind(AssertUnwindSafe(factors)).is_err());
    assert!(tch_ext::grad_enabled());
}
