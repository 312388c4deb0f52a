//! Samples to tensors, in a seeded order.

use std::cell::OnceCell;

use lora_core::Result;
use lora_model::{Slots, Texts};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::data::Sample;
use crate::limit::Work;

/// Samples, one behind another in one row: nothing is spent on padding.
#[derive(Debug)]
pub struct Batch {
    /// Ids, and labels.
    numbers: [Vec<i64>; 2],
    lengths: Vec<i64>,
    device: Device,
    /// The same `[1, N]` on the device, once asked for.
    sent: [OnceCell<Tensor>; 2],
    /// Labels that count.
    pub supervised: usize,
    /// Positions in all.
    pub tokens: usize,
    /// Lines of the data file.
    pub lines: Vec<usize>,
}

impl Batch {
    /// Puts `samples` together.
    pub fn new(samples: &[&Sample], device: Device) -> Self {
        let row = |pick: fn(&Sample) -> &Vec<i64>| samples.iter().flat_map(|s| pick(s)).copied().collect();
        Self {
            numbers: [row(|s| &s.ids), row(|s| &s.labels)],
            lengths: samples.iter().map(|s| s.ids.len() as i64).collect(),
            device,
            sent: Default::default(),
            supervised: samples.iter().map(|s| s.supervised()).sum(),
            tokens: samples.iter().map(|s| s.ids.len()).sum(),
            lines: samples.iter().map(|s| s.line).collect(),
        }
    }

    /// What there is to do.
    pub fn work(&self) -> Work {
        Work {
            tokens: self.tokens as f64,
            supervised: self.supervised as f64,
            squares: self.lengths.iter().map(|&n| (n * n) as f64).sum(),
        }
    }

    /// What the model reads.
    pub fn texts(&self) -> Texts<'_> {
        Texts::Packed(self.sent(0), &self.lengths)
    }

    /// `[1, N]` i64, [`lora_model::IGNORE`] where nothing is learnt.
    pub fn labels(&self) -> &Tensor {
        self.sent(1)
    }

    /// The longest of its texts.
    pub(crate) fn longest(&self) -> i64 {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Whether there is room for it.
    pub(crate) fn fits(&self, slots: &Slots) -> bool {
        slots.hold(self.tokens, self.lengths.len(), self.supervised)
    }

    /// Puts it into slots that it fits, with this factor of its loss.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn put(&self, slots: &mut Slots, scale: f64) -> Result<()> {
        let [ids, labels] = &self.numbers;
        slots.fill(ids, labels, &self.lengths, scale)
    }

    /// Slots for it, and for others like it that are somewhat larger.
    pub(crate) fn slots(&self) -> Slots {
        let room = |n: usize, step: usize| (n + n / 8 + 1).next_multiple_of(step);
        let sizes = (room(self.tokens, 64), self.lengths.len(), room(self.supervised, 16));
        Slots::new(sizes.0, sizes.1, sizes.2, self.device)
    }

    fn sent(&self, which: usize) -> &Tensor {
        let send = || Tensor::from_slice(&self.numbers[which]).unsqueeze(0).to_device(self.device);
        self.sent[which].get_or_init(send)
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

    /// The batches of the next step, `count` of them, or as many as the epoch still has.
    pub fn next_step(&mut self, count: usize) -> Vec<Vec<&'a Sample>> {
        let mut batches = vec![self.next_samples()];
        while batches.len() < count && !self.queue.is_empty() {
            batches.push(self.next_samples());
        }
        batches
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
