//! A batch whose sizes stay and whose numbers change.

use lora_core::{Error, Result};
use tch::{Device, Kind, Tensor};
use tch_ext::Bounds;

use crate::ops::IGNORE;
use crate::pieces::{Piece, Pieces};

/// Room on a device for packed texts, what of them is learnt, and a factor of the loss: filled anew for each batch, so
/// that what a device is told of one batch serves the next ([`tch_ext::cuda::Graph`]). What a batch leaves free is one
/// more text, of which nothing is learnt.
#[derive(Debug)]
pub struct Slots {
    /// Ids and positions `[tokens]`, rows that count and their labels `[supervised]`, where texts begin `[texts + 2]`: one
    /// behind another, i64.
    numbers: Tensor,
    scale: Tensor,
    tokens: usize,
    texts: usize,
    supervised: usize,
    /// Of the texts that are in it, the free rest among them.
    lengths: Vec<i64>,
}

impl Slots {
    /// For up to so many texts with fewer than `tokens` tokens, `supervised` of them learnt at most.
    pub fn new(tokens: usize, texts: usize, supervised: usize, device: Device) -> Self {
        let len = 2 * tokens + 2 * supervised + texts + 2;
        Self {
            numbers: Tensor::zeros([len as i64], (Kind::Int64, device)),
            scale: Tensor::zeros([], (Kind::Double, device)),
            tokens,
            texts,
            supervised,
            lengths: Vec::new(),
        }
    }

    /// Tokens that it has room for, the free rest among them.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Whether a batch of that size fits.
    pub fn hold(&self, tokens: usize, texts: usize, supervised: usize) -> bool {
        // One token is free, for the rows that do not count.
        tokens < self.tokens && texts <= self.texts && supervised <= self.supervised
    }

    /// Puts these texts in, their `ids` and `labels` ([`IGNORE`]: not learnt) one behind another.
    ///
    /// # Errors
    /// [`Error::usage`] if they do not fit, or in themselves, or if one goes on from another.
    pub fn fill(&mut self, ids: &[i64], labels: &[i64], texts: &[Piece], scale: f64) -> Result<()> {
        let lengths: Vec<i64> = texts.iter().map(|text| text.len).collect();
        let learnt: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] != IGNORE).collect();
        let sum: i64 = lengths.iter().sum();
        let apart = texts.iter().all(|text| text.behind.is_none());
        let whole = apart && labels.len() == ids.len() && sum == ids.len() as i64;
        if !whole || !self.hold(ids.len(), lengths.len(), learnt.len()) {
            return Err(Error::usage("these texts do not fit the slots"));
        }
        let padded = |of: &mut dyn Iterator<Item = i64>, len: usize, with: i64| -> Vec<i64> {
            of.chain(std::iter::repeat(with)).take(len).collect()
        };
        let (n, free) = (self.tokens as i64, self.tokens - ids.len());
        let starts = lengths.iter().scan(0, |next, len| Some(std::mem::replace(next, *next + len)));
        let numbers = [
            padded(&mut ids.iter().copied(), self.tokens, 0),
            padded(&mut lengths.iter().flat_map(|&len| 0..len), self.tokens, 0),
            padded(&mut learnt.iter().map(|&i| i as i64), self.supervised, n - 1),
            padded(&mut learnt.iter().map(|&i| labels[i]), self.supervised, IGNORE),
            padded(&mut starts.clone(), self.texts + 1, sum),
            vec![n],
        ];
        self.numbers.copy_(&Tensor::from_slice(&numbers.concat()));
        let _ = self.scale.fill_(scale);
        self.lengths = [&lengths[..], &[free as i64]].concat();
        Ok(())
    }

    /// `[1, tokens]`.
    pub(crate) fn ids(&self) -> Tensor {
        self.part(0, self.tokens).unsqueeze(0)
    }

    /// f32 `[tokens]`.
    pub(crate) fn positions(&self) -> Tensor {
        self.part(self.tokens, self.tokens).to_kind(Kind::Float)
    }

    /// The rows that count, and their labels.
    pub(crate) fn learnt(&self) -> (Tensor, Tensor) {
        let start = 2 * self.tokens;
        (self.part(start, self.supervised), self.part(start + self.supervised, self.supervised))
    }

    /// On a CUDA device it is the device that knows them.
    pub(crate) fn pieces(&self) -> Result<Pieces> {
        if self.numbers.device() == Device::Cpu {
            return Pieces::of(&Piece::texts(&self.lengths));
        }
        let bounds = self.part(2 * (self.tokens + self.supervised), self.texts + 2);
        Ok(Pieces::held(Bounds::held(bounds.to_kind(Kind::Int), self.tokens as i64)))
    }

    /// f64, a scalar.
    pub(crate) fn scale(&self) -> &Tensor {
        &self.scale
    }

    fn part(&self, start: usize, len: usize) -> Tensor {
        self.numbers.narrow(0, start as i64, len as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_device_reads_is_where_it_looks() {
        let mut slots = Slots::new(8, 3, 4, Device::Cpu);
        for _ in 0..2 {
            let labels = [IGNORE, 11, IGNORE, IGNORE, 14];
            slots.fill(&[5, 6, 7, 8, 9], &labels, &Piece::texts(&[2, 3]), 0.5).unwrap();
            let numbers = |t: &Tensor| Vec::<i64>::try_from(t.to_kind(Kind::Int64).reshape(-1)).unwrap();
            assert_eq!(numbers(&slots.ids()), [5, 6, 7, 8, 9, 0, 0, 0]);
            assert_eq!(numbers(&slots.positions()), [0, 1, 0, 1, 2, 0, 0, 0]);
            let (rows, targets) = slots.learnt();
            assert_eq!(numbers(&rows), [1, 4, 7, 7]);
            assert_eq!(numbers(&targets), [11, 14, IGNORE, IGNORE]);
            // Two texts, none, and the free rest.
            assert_eq!(numbers(&slots.part(24, 5)), [0, 2, 5, 5, 8]);
            assert_eq!(slots.scale().double_value(&[]), 0.5);
            // What is there may be anything.
            slots
                .fill(&[1; 7], &[1, 1, 1, 1, IGNORE, IGNORE, IGNORE], &Piece::texts(&[3, 2, 2]), 1.0)
                .unwrap();
        }
    }
}
