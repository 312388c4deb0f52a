//! Full fine-tuning of the layers that are chosen: `W' = W + Δ`, where `Δ [out, in]` trains.
//!
//! It fills the update hole, so it goes with every storage and top, and is trained, saved, merged and measured as every
//! adapter is. It is what adapters are measured against: as many parameters as the layers have, and gradients and two
//! moments of each. On a quantised storage the frozen W stays rounded and Δ learns beside it.
//!
//! Rank and alpha mean nothing here. PEFT has no such method and refuses its files (`peft_type` `NOT_IN_PEFT`); merge,
//! and it is a plain model.

use lora_core::{Adapter, BaseWeight, Built, Error, LayerSpec, Part, Result, Variant, master_kind};
use tch::Tensor;

/// Fills the update hole.
pub const FULL: Variant = Variant {
    name: "full",
    about: "the whole weight trains, without a rank: the ceiling",
    paper: "",
    flag: Some("use_full"),
    part: Part::Update(|base, spec| Ok(Box::new(Full::new(base, spec)?))),
};

/// `Δ [out, in]`, an f32 master that starts at zero.
#[derive(Debug)]
pub struct Full {
    delta: Tensor,
}

impl Full {
    /// # Errors
    /// [`Error::unsupported`] for dropout.
    fn new(base: &dyn BaseWeight, spec: &LayerSpec<'_>) -> Result<Self> {
        if spec.dropout > 0.0 {
            let e = Error::unsupported("full fine-tuning has no dropout of its own");
            return Err(e.hint("leave --dropout at 0"));
        }
        if spec.given.is_some() {
            return Err(Error::unsupported("full fine-tuning has no A and B to start with"));
        }
        let (out, inp) = base.shape();
        let options = (master_kind(base.kind()), base.device());
        Ok(Self { delta: Tensor::zeros([out, inp], options).set_requires_grad(true) })
    }
}

impl Adapter for Full {
    fn effective(&self, w: &Tensor) -> Tensor {
        (w.to_kind(self.delta.kind()) + &self.delta).to_kind(w.kind())
    }

    fn params(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("delta", &self.delta)]
    }

    /// W in the master dtype and the sum. A sum's gradient needs neither.
    fn built(&self) -> Option<Built> {
        Some(Built { kept: 0, passing: 2 })
    }
}
