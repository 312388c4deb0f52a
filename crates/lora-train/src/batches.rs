//! Samples to tensors, in a seeded order.

use lora_model::IGNORE;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::data::Sample;

/// A padded batch.
#[derive(Debug)]
pub struct Batch {
    /// `[B, T]` i64, padded on the right.
    pub ids: Tensor,
    /// `[B, T]` i64, [`IGNORE`] where nothing is learnt.
    pub labels: Tensor,
    /// Labels that count.
    pub supervised: usize,
    /// Positions that are not padding.
    pub tokens: usize,
    /// Lines of the data file.
    pub lines: Vec<usize>,
}

impl Batch {
    /// Pads `samples` to the longest. What pads does not matter: nothing learnt can see it.
    pub fn new(samples: &[&Sample], device: Device) -> Self {
        let width = samples.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let padded = |pick: fn(&Sample) -> &Vec<i64>, fill: i64| {
            let rows = samples.iter().flat_map(|s| {
                let row = pick(s);
                row.iter().copied().chain(std::iter::repeat_n(fill, width - row.len()))
            });
            let flat: Vec<i64> = rows.collect();
            Tensor::from_slice(&flat).view([samples.len() as i64, width as i64]).to_device(device)
        };
        Self {
            ids: padded(|s| &s.ids, 0),
            labels: padded(|s| &s.labels, IGNORE),
            supervised: samples.iter().flat_map(|s| &s.labels).filter(|&&l| l != IGNORE).count(),
            tokens: samples.iter().map(|s| s.ids.len()).sum(),
            lines: samples.iter().map(|s| s.line).collect(),
        }
    }
}

/// The order of the samples: epoch after epoch, each shuffled by the seed and its own number.
#[derive(Debug)]
pub struct Batches<'a> {
    samples: &'a [Sample],
    size: usize,
    seed: u64,
    epoch: u64,
    queue: Vec<usize>,
}

impl<'a> Batches<'a> {
    /// An endless sequence of batches of `size` (the last of an epoch may be smaller).
    pub fn new(samples: &'a [Sample], size: usize, seed: u64) -> Self {
        Self { samples, size: size.max(1), seed, epoch: 0, queue: Vec::new() }
    }

    /// Batches in an epoch.
    pub fn per_epoch(&self) -> usize {
        self.samples.len().div_ceil(self.size)
    }

    /// The samples of the next batch.
    pub fn next_samples(&mut self) -> Vec<&'a Sample> {
        if self.queue.is_empty() {
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            random.set_stream(self.epoch);
            self.queue = (0..self.samples.len()).collect();
            self.queue.shuffle(&mut random);
            self.queue.reverse();
            self.epoch += 1;
        }
        let keep = self.queue.len().saturating_sub(self.size);
        self.queue.split_off(keep).into_iter().rev().filter_map(|i| self.samples.get(i)).collect()
    }
}
