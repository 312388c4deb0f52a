//! What is changed in place between the forward pass and the backward pass.

use lora_core::{Init, Input, LORA, Linear, Mode, Recipe, project};
use lora_model::{attention, rms_norm, swiglu};
use tch::{Kind, Tensor};
use tch_ext::cuda::here;

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, here()))
}

/// Whether the gradient of `y` is refused when `x` has been changed in place.
fn refused(x: &Tensor, y: &Tensor) -> bool {
    let _ = x.shallow_clone().g_add_scalar_(3.0);
    match y.sum(Kind::Float).f_backward().map_err(|e| e.to_string()) {
        Ok(()) => false,
        Err(e) if e.contains("modified by an inplace operation") => true,
        Err(e) => panic!("{e}"),
    }
}

#[test]
fn what_backward_needs_and_was_changed_in_place_is_an_error() {
    type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Tensor;
    for kind in [Kind::Float, Kind::BFloat16] {
        let w = random(&[8]).to_kind(kind);
        let operations: [(&str, usize, Operation<'_>); 3] = [
            ("norm", 1, &|t: &[Tensor]| rms_norm(&t[0], &w, 1e-5).tensor()),
            ("swiglu", 2, &|t: &[Tensor]| swiglu(&t[0], &t[1]).tensor()),
            ("attention", 3, &|t: &[Tensor]| attention(&t[0], &t[1], &t[2], None, None)),
        ];
        for (what, count, operation) in operations {
            // The last is the output, which attention alone keeps.
            for changed in 0..=count {
                let inputs =
                    (0..count).map(|_| random(&[1, 2, 5, 8]).to_kind(kind).set_requires_grad(true) * 2.0);
                let inputs: Vec<Tensor> = inputs.collect();
                let y = operation(&inputs);
                let needed = changed < count || what == "attention";
                let changed_one = inputs.get(changed).unwrap_or(&y);
                assert_eq!(refused(changed_one, &y), needed, "{what}, {kind:?}, {changed}");
            }
        }
    }
}

/// Where nothing below wants a gradient, the layer alone reads it again.
#[test]
fn an_input_changed_before_it_is_made_again_is_an_error() {
    type Operation<'a> = &'a dyn Fn(&[Tensor]) -> Input;
    let (w, mut layer) = (random(&[8]), Linear::dense(random(&[4, 8]), None));
    let recipe = Recipe::parse("lora", &[LORA]).unwrap();
    layer.attach("a", recipe.adapter(layer.base(), 2, 4.0, 0.0, Init::Kaiming).unwrap()).unwrap();
    let operations: [(usize, Operation<'_>); 2] =
        [(1, &|t: &[Tensor]| rms_norm(&t[0], &w, 1e-5)), (2, &|t: &[Tensor]| swiglu(&t[0], &t[1]))];
    for (count, operation) in operations {
        for changed in 0..count {
            let inputs = [random(&[5, 8]), random(&[5, 8])];
            let y = project(&[&layer], operation(&inputs), Mode::Train).swap_remove(0);
            assert!(refused(&inputs[changed], &y), "{changed} of {count}");
        }
    }
}
