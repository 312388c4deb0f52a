//! What is done in place to a layer's output.

use lora_core::{DENSE, Error, Init, LORA, Linear, Mode, Recipe};
use lora_dora::DORA;
use tch::{Device, Kind, Tensor};

/// The magnitude's gradient of `Σ (layer(x) + residual)`, added in place or not.
fn gradient(layer: &Linear, x: &Tensor, in_place: bool) -> Result<Tensor, Error> {
    let residual = x.ones_like();
    let mut y = layer.forward(x, Mode::Train);
    if in_place {
        y += &residual;
    } else {
        y = &y + &residual;
    }
    let params = layer.adapter().unwrap().params();
    let (_, m) = params.into_iter().find(|(name, _)| *name == "lora_magnitude_vector").unwrap();
    let all = Tensor::f_run_backward(&[y.sum(Kind::Float)], &[m], false, false)?;
    Ok(all[0].shallow_clone())
}

#[test]
fn an_output_changed_in_place_has_the_right_gradient_or_none() {
    let options = (Kind::Float, Device::Cpu);
    // With a bias backward keeps another tensor than the one that it gives.
    for bias in [None, Some(Tensor::randn([16], options))] {
        let biased = bias.is_some();
        let mut layer = Linear::dense(Tensor::randn([16, 16], options), bias);
        let recipe = Recipe::parse("dora", &[DENSE, LORA, DORA]).unwrap();
        layer.attach("mine", recipe.adapter(layer.base(), 4, 8.0, 0.0, Init::Kaiming).unwrap()).unwrap();
        let x = Tensor::randn([5, 16], options);
        let right = gradient(&layer, &x, false).unwrap();
        match gradient(&layer, &x, true) {
            Ok(got) => assert!(biased && got == right, "bias {biased}: {got} for {right}"),
            Err(e) => {
                assert!(!biased && e.to_string().contains("inplace"), "bias {biased}: {e}");
                assert!(e.hint_text().is_some());
            }
        }
    }
}
