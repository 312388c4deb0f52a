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
    /// None for a method that adds no factors to a weight: what it takes is not counted.
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
        let gain = adapter.factors(&base, &w).map(|factors| factors.gain.is_some());
        Ok(gain.map(|gain| Footprint { params, gain }))
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
