//! What is done in place to what a layer has read.

use lora_core::{Adapter, Error, Init, LORA, Linear, Mode, Recipe};
use tch::{Device, Kind, Tensor};

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// `W' = W + D`, without a normal form.
#[derive(Debug)]
struct Plain(Tensor);

impl Adapter for Plain {
    fn effective(&self, w: &Tensor) -> Tensor {
        w + &self.0
    }

    fn params(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("delta", &self.0)]
    }
}

fn adapters() -> [Box<dyn Adapter>; 2] {
    let layer = Linear::dense(Tensor::randn([6, 6], OPTIONS), None);
    let recipe = Recipe::parse("lora", &[LORA]).unwrap();
    let lora = recipe.adapter(layer.base(), 2, 4.0, 0.0, Init::Kaiming).unwrap();
    [lora, Box::new(Plain(Tensor::zeros([6, 6], OPTIONS).set_requires_grad(true)))]
}

#[test]
fn an_input_changed_before_backward_is_an_error() {
    for adapter in adapters() {
        let mut layer = Linear::dense(Tensor::randn([6, 6], OPTIONS), None);
        layer.attach("a", adapter).unwrap();
        let mut x = Tensor::randn([3, 6], OPTIONS);
        let y = layer.forward(&x, Mode::Train);
        x += &y;
        let error = Error::from(x.sum(Kind::Float).f_backward().unwrap_err());
        assert!(error.to_string().contains("modified by an inplace operation"), "{error}");
        assert!(error.hint_text().is_some());

        // Through another handle, when nothing needs it any more, and before it is read.
        let x = x.detach();
        let _ = x.view(-1).fill_(2.0);
        layer.forward(&x, Mode::Train).sum(Kind::Float).f_backward().unwrap();
        let _ = x.view(-1).fill_(3.0);
        let y = layer.forward(&x, Mode::Train);
        let _ = x.view(-1).narrow(0, 0, 1).fill_(4.0);
        assert!(y.sum(Kind::Float).f_backward().is_err());
    }
}
