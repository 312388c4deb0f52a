//! What a step holds of memory, operation by operation as `Block::forward` and `recompute` run them: for plans.

use lora_core::{Held, LayerSize, master_kind};
use tch::{Device, Kind};

use crate::config::ModelConfig;
use crate::ops::{joins, keys_worked_on, logits_bytes};
use crate::pieces::Piece;

/// A step, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Positions in one pass.
    pub tokens: i64,
    /// Keys that its texts see, in the blocks that attention works on.
    pub keys: i64,
    /// Of them supervised.
    pub supervised: i64,
    /// Layers of which only the input is kept: see [`crate::Model::backward`].
    pub recompute: usize,
}

impl StepSize {
    /// So many tokens, all of them supervised.
    pub fn of(tokens: i64) -> Self {
        Self { tokens, keys: tokens, supervised: tokens, recompute: 0 }
    }

    /// These pieces, so many of whose tokens are supervised.
    pub fn of_pieces(pieces: &[Piece], supervised: i64) -> Self {
        let tokens = pieces.iter().map(|piece| piece.len).sum();
        Self { tokens, keys: keys_worked_on(pieces), supervised, recompute: 0 }
    }

    /// So many texts of `length` tokens, all of them supervised: as [`of_pieces`](Self::of_pieces) has them, without a list.
    pub fn of_texts(count: usize, length: i64) -> Self {
        let count = count as i64;
        let Self { tokens, keys, supervised, .. } = Self::of_pieces(&Piece::texts(&[length]), length);
        Self { tokens: count * tokens, keys: count * keys, supervised: count * supervised, recompute: 0 }
    }

    /// The larger of each.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.max(other.tokens),
            keys: self.keys.max(other.keys),
            supervised: self.supervised.max(other.supervised),
            recompute: self.recompute.max(other.recompute),
        }
    }
}

/// Bytes at the highest point of a step, beside the weights and what trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepMemory {
    /// What is kept for backward.
    pub activations: u64,
    /// Logits, their gradient and what an adapted head holds, or the gradients inside a block, whichever is more.
    pub buffers: u64,
    /// Compute copies of the adapters.
    pub copies: u64,
    /// Whether the highest point is in the loss; if not, it is in backward.
    pub in_loss: bool,
}

/// What a step with `layers` (in the model's order, the head last) takes, computed in `kind` on `device`.
pub fn step_memory(
    config: &ModelConfig,
    layers: &[LayerSize],
    (kind, device): (Kind, Device),
    step: StepSize,
) -> StepMemory {
    let (blocks, head) = layers.split_at(layers.len().saturating_sub(1));
    // Where attention is not in blocks of our own, it holds none of them.
    let keys = if joins(device, kind) { step.keys } else { step.tokens };
    let size = Size { config, tokens: step.tokens, keys, kind, device };
    let blocks: Vec<InBlock> = blocks.as_chunks::<7>().0.iter().map(|seven| size.block(seven)).collect();
    let mut copies = blocks.iter().map(|b| b.copies).sum::<u64>();
    // Below the first adapter there is no gradient: nothing is kept.
    let lowest = blocks.iter().position(|b| b.trains).unwrap_or(blocks.len());
    let again = step.recompute.min(blocks.len());
    let input = size.of(config.hidden_size);
    // The inputs of the blocks that run again, and what goes into the first that is kept.
    let inputs = (again.saturating_sub(lowest) as u64 + 1) * input;
    let kept = blocks[again.max(lowest)..].iter().map(|b| b.kept).sum::<u64>();
    let all = inputs + kept + size.angles();

    let adapted = head.iter().any(|head| head.rank > 0);
    let mut loss = logits_bytes(step.supervised, config.vocab_size, (kind, device), adapted);
    if adapted {
        let own = Held::of(head, step.supervised, kind, false);
        // Its backward begins with the logits' gradient alone.
        let gradient = step.supervised * config.vocab_size * kind.elt_size_in_bytes() as i64;
        loss = own.kept + loss.max(gradient.unsigned_abs() + own.backward);
        copies += own.copies;
    }
    // The states, the supervised ones, and their gradient.
    let states = input + 2 * input * step.supervised.unsigned_abs() / step.tokens.unsigned_abs().max(1);
    let mut best = StepMemory { activations: all, buffers: loss + states, copies, in_loss: true };
    let mut moment = |activations: u64, buffers: u64| {
        if activations + buffers > best.activations + best.buffers {
            best = StepMemory { activations, buffers, copies, in_loss: false };
        }
    };
    if let Some(top) = blocks.last().filter(|_| again < blocks.len()) {
        moment(all, top.backward);
    }
    for (i, block) in blocks.iter().enumerate().take(again).skip(lowest) {
        moment(((i - lowest) as u64 + 1) * input + size.angles() + block.kept, input + block.backward);
    }
    best
}

struct Size<'a> {
    config: &'a ModelConfig,
    tokens: i64,
    keys: i64,
    kind: Kind,
    device: Device,
}

struct InBlock {
    trains: bool,
    kept: u64,
    /// The most that backward holds beside it, what it has given back meanwhile taken off.
    backward: u64,
    copies: u64,
}

impl Size<'_> {
    /// `[tokens, width]` in the compute dtype.
    fn of(&self, width: i64) -> u64 {
        (self.tokens * width).unsigned_abs() * self.kind.elt_size_in_bytes() as u64
    }

    /// `[tokens, width]` in the dtype of sums.
    fn wide(&self, width: i64) -> u64 {
        (self.tokens * width).unsigned_abs() * master_kind(self.kind).elt_size_in_bytes() as u64
    }

    fn angles(&self) -> u64 {
        self.wide(self.config.head_dim)
    }

    fn block(&self, layers: &[LayerSize; 7]) -> InBlock {
        let c = self.config;
        let (h, f) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let held = |layers: &[LayerSize], onto| Held::of(layers, self.tokens, self.kind, onto);
        let [qkv, o] = [held(&layers[..3], false), held(&layers[3..4], true)];
        let [gate_up, down] = [held(&layers[4..6], false), held(&layers[6..], true)];

        // The norm's input is what the block before returned; one number a row beside it.
        let norm = self.wide(1);
        let mut heads = self.of(q + 2 * kv);
        if c.qk_norm {
            heads += self.of(q + kv).saturating_sub(qkv.returned) + self.wide(c.heads + c.kv_heads);
        }
        let mut attention = self.of(q) + self.wide(c.heads);
        // On a GPU wide numbers go text by text, with keys and values for every head, and are put together at the end.
        if self.device != Device::Cpu && !matches!(self.kind, Kind::BFloat16 | Kind::Half) {
            heads += self.of(2 * (q - kv));
            attention += self.of(q);
        }
        let activation = self.of(2 * f).saturating_sub(gate_up.returned);
        let products = [qkv, o, gate_up, down].map(|h| h.kept).iter().sum::<u64>();
        let kept = 2 * norm + heads + attention + activation + 2 * self.of(h) + products;

        // From the top down. `given`: what nobody needs any more.
        let (mut given, mut most) = (0, 0u64);
        let residual = self.of(h);
        let mut moment = |more: u64, done: u64| {
            most = most.max((residual + more).saturating_sub(given));
            given += done;
        };
        moment(self.of(f) + down.backward, down.kept);
        moment(3 * self.of(f), activation);
        moment(self.of(2 * f + h) + gate_up.backward, gate_up.kept);
        moment(2 * self.of(h), norm + self.of(h));
        moment(self.of(q) + o.backward, o.kept);
        let sums = (2 * self.keys * q).unsigned_abs() * master_kind(self.kind).elt_size_in_bytes() as u64;
        moment(self.of(2 * q + 2 * kv) + sums, attention + heads);
        moment(self.of(q + 2 * kv + h) + qkv.backward, qkv.kept);
        InBlock {
            trains: layers.iter().any(|l| l.rank > 0),
            kept,
            backward: most,
            copies: qkv.copies + o.copies + gate_up.copies + down.copies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_one_length_are_as_their_pieces() {
        for count in [0, 1, 2, 7] {
            for length in [0, 1, 63, 64, 65, 1000] {
                let pieces = Piece::texts(&vec![length; count]);
                let listed = StepSize::of_pieces(&pieces, count as i64 * length);
                assert_eq!(StepSize::of_texts(count, length), listed, "{count} x {length}");
            }
        }
    }
}
