//! What an adapter will take of memory, before there is one.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::config::Init;
use crate::recipe::Recipe;
use crate::weight::Dense;

/// What a recipe's adapters are made of, whatever the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    params: Vec<Vec<Side>>,
    /// Whether rows are scaled: backward then needs the layer's output ([`crate::Gain`]).
    pub gain: bool,
    /// What building W' holds, if there is no normal form.
    pub built: Option<Built>,
}

/// What [`crate::Adapter::effective`] holds of memory beside its result: a number of matrices of the weight's size, in the
/// master dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// From forward to backward: what its gradient needs.
    pub kept: i64,
    /// The most at one time beside those, in forward or backward, the gradient of W' among them.
    pub passing: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Rank,
    Out,
    In,
    Fixed(i64),
}

impl Recipe {
    /// What adapters of this recipe are made of: read off one of a toy layer, whose rank and sides are of different
    /// lengths. So it holds for whatever variants bring.
    ///
    /// None for a method that has no normal form and does not say what it holds ([`crate::Adapter::built`]): what it takes is
    /// not counted.
    ///
    /// # Errors
    /// What the variants refuse.
    pub fn footprint(&self) -> Result<Option<Footprint>> {
        const RANK: i64 = 2;
        const OUT: i64 = 3;
        const IN: i64 = 5;
        let w = Tensor::ones([OUT, IN], (Kind::Float, Device::Cpu));
        let base = Dense::new(w.shallow_clone());
        let adapter = self.adapter(&base, RANK, 1.0, 0.0, Init::Kaiming)?;
        let side = |n: &i64| match *n {
            RANK => Side::Rank,
            OUT => Side::Out,
            IN => Side::In,
            n => Side::Fixed(n),
        };
        let params = adapter.params().iter().map(|(_, p)| p.size().iter().map(side).collect()).collect();
        let form = match adapter.factors(&base, &w) {
            Some(factors) => Some((factors.gain.is_some(), None)),
            None => adapter.built().map(|built| (false, Some(built))),
        };
        Ok(form.map(|(gain, built)| Footprint { params, gain, built }))
    }
}

impl Footprint {
    /// Trainable numbers beside a weight of `shape`.
    pub fn params(&self, (out, inp): (i64, i64), rank: i64) -> i64 {
        let length = |side: &Side| match *side {
            Side::Rank => rank,
            Side::Out => out,
            Side::In => inp,
            Side::Fixed(n) => n,
        };
        self.params.iter().map(|sides| sides.iter().map(length).product::<i64>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adapter, BaseWeight, LORA, Part, Variant};

    /// Its definition alone: a number for each row.
    #[derive(Debug)]
    struct Shift(Tensor);

    impl Adapter for Shift {
        fn effective(&self, w: &Tensor) -> Tensor {
            w + &self.0
        }

        fn params(&self) -> Vec<(&'static str, &Tensor)> {
            vec![("shift", &self.0)]
        }
    }

    fn shift(base: &dyn BaseWeight) -> Shift {
        Shift(Tensor::zeros([base.shape().0, 1], (base.kind(), base.device())).set_requires_grad(true))
    }

    #[test]
    fn a_method_that_does_not_say_what_it_holds_is_not_counted() {
        const SHIFT: Variant = Variant {
            name: "shift",
            about: "",
            paper: "",
            flag: Some("use_shift"),
            part: Part::Update(|base, _| Ok(Box::new(shift(base)))),
        };
        let footprint = |spec| Recipe::parse(spec, &[LORA, SHIFT]).unwrap().footprint().unwrap();
        assert_eq!(footprint("shift"), None);
        let low = footprint("lora").unwrap();
        assert_eq!((low.params((7, 11), 4), low.gain, low.built), (4 * (7 + 11), false, None));
    }
}
