//! What an adapter will take of memory, before there is one.

use tch::{Device, Kind, Tensor};

use crate::config::Init;
use crate::recipe::Recipe;
use crate::weight::Dense;
use crate::{Error, Result};

/// What a recipe's adapters are made of, whatever the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    params: Vec<Vec<Side>>,
    /// Whether rows are scaled: backward then needs the layer's output ([`crate::Gain`]).
    pub gain: bool,
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
    /// # Errors
    /// What the variants refuse.
    pub fn footprint(&self) -> Result<Footprint> {
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
        let factors = adapter.factors(&base, &w);
        let none = || {
            let hint = "memory is planned for methods that add factors to a weight; `full` adds a whole one: 16 bytes a number";
            Error::unsupported(format!("`{self}` has no normal form")).hint(hint)
        };
        let factors = factors.ok_or_else(none)?;
        Ok(Footprint { params, gain: factors.gain.is_some() })
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
