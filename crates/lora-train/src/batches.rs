//! Samples to tensors, in a seeded order.

use std::cell::OnceCell;

use lora_core::Result;
use lora_model::{Piece, Slots, StepSize, Texts};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Tensor};

use crate::data::Sample;
use crate::limit::Work;
use crate::sharing::Tree;

/// Samples, one behind another in one row: nothing is spent on padding. What some of them begin with may stand in front of
/// all, once.
#[derive(Debug)]
pub struct Batch {
    /// Ids, and labels.
    numbers: [Vec<i64>; 2],
    pieces: Vec<Piece>,
    device: Device,
    /// The same `[1, N]` on the device, once asked for.
    sent: [OnceCell<Tensor>; 2],
    /// Labels that count.
    pub supervised: usize,
    /// Tokens of the samples.
    pub tokens: usize,
    /// Lines of the data file.
    pub lines: Vec<usize>,
}

impl Batch {
    /// Puts `samples` together, each by itself.
    pub fn new(samples: &[&Sample], device: Device) -> Self {
        Self::sharing(samples, false, device)
    }

    /// Puts `samples` together; what several begin with and none learns is there once, if it `may` be.
    pub fn sharing(samples: &[&Sample], may: bool, device: Device) -> Self {
        let tree = Tree::of_samples(samples, may);
        let all = |of: fn(&Sample) -> &[i64]| tree.row(|text| of(samples[text]));
        Self {
            numbers: [all(|sample| &sample.ids), all(|sample| &sample.labels)],
            pieces: tree.pieces(),
            device,
            sent: Default::default(),
            supervised: samples.iter().map(|s| s.supervised()).sum(),
            tokens: samples.iter().map(|s| s.ids.len()).sum(),
            lines: samples.iter().map(|s| s.line).collect(),
        }
    }

    /// What there is to do.
    pub fn work(&self) -> Work {
        Work::of(&self.pieces, self.tokens, self.supervised)
    }

    /// What the model reads.
    pub fn texts(&self) -> Texts<'_> {
        Texts::Packed(self.sent(0), &self.pieces)
    }

    /// `[1, N]` i64, [`lora_model::IGNORE`] where nothing is learnt.
    pub fn labels(&self) -> &Tensor {
        self.sent(1)
    }

    /// Positions that are computed: what texts share counts once.
    pub fn positions(&self) -> usize {
        self.numbers[0].len()
    }

    /// The longest of its texts.
    pub(crate) fn longest(&self) -> i64 {
        Piece::ends(&self.pieces).into_iter().max().unwrap_or(0)
    }

    /// Whether each of its texts is by itself.
    pub(crate) fn is_apart(&self) -> bool {
        self.pieces.iter().all(|piece| piece.behind.is_none())
    }

    /// Whether there is room for it.
    pub(crate) fn fits(&self, slots: &Slots) -> bool {
        slots.hold(self.positions(), self.pieces.len(), self.supervised)
    }

    /// Puts it into slots that it fits, with this factor of its loss.
    ///
    /// # Errors
    /// It does not fit.
    pub(crate) fn put(&self, slots: &mut Slots, scale: f64) -> Result<()> {
        let [ids, labels] = &self.numbers;
        slots.fill(ids, labels, &self.pieces, scale)
    }

    /// Slots for it, and for others like it that are somewhat larger.
    pub(crate) fn slots(&self) -> Slots {
        let room = |n: usize, step: usize| (n + n / 8 + 1).next_multiple_of(step);
        let sizes = (room(self.positions(), 64), self.pieces.len(), room(self.supervised, 16));
        Slots::new(sizes.0, sizes.1, sizes.2, self.device)
    }

    fn sent(&self, which: usize) -> &Tensor {
        let send = || Tensor::from_slice(&self.numbers[which]).unsqueeze(0).to_device(self.device);
        self.sent[which].get_or_init(send)
    }
}

/// The size of the pass that [`Batch::sharing`] makes, and its work.
pub(crate) fn size_of(samples: &[&Sample], may: bool) -> (StepSize, Work) {
    let pieces = Tree::of_samples(samples, may).pieces();
    let supervised = samples.iter().map(|s| s.supervised()).sum();
    let tokens = samples.iter().map(|s| s.ids.len()).sum();
    (StepSize::of_pieces(&pieces, supervised as i64), Work::of(&pieces, tokens, supervised))
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
