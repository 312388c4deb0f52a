//! What a run will take of memory, from configurations alone.
//!
//! Every number is counted: the storage says what a weight takes, the recipe what its adapters are made of, and each
//! operation what it keeps for backward. What is there at one moment is added up for every moment at which memory can
//! be highest. Nothing of it is fitted to measurements, which are there to prove it.

mod fit;

use std::collections::BTreeMap;

use lora_core::{AdapterConfig, Error, LayerSize, Recipe, Result, master_kind};
use lora_model::{
    Checkpoint, EMBEDDING, Keep, ModelConfig, StepMemory, StepSize, has_bias, linear_shapes, step_memory,
    vectors_bytes,
};
use serde::Serialize;
use tch::{Device, Kind};

use crate::limit::Work;
pub use fit::{Fit, Load, Setting};

/// Bytes that a run takes at its highest point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The program itself, its libraries, tokenizer and data.
    pub program: u64,
    /// The frozen weights as they are kept.
    pub weights: u64,
    /// Trainable parameters, their gradients, and the copies that are computed with.
    pub adapters: u64,
    /// The optimiser's moments.
    pub optimiser: u64,
    /// What the forward pass keeps for backward.
    pub activations: u64,
    /// Logits and their gradient, or what backward holds inside a block, whichever is more.
    pub buffers: u64,
    /// Whether the highest point is in the loss; if not, it is in backward.
    pub in_loss: bool,
    /// The highest point while the model is loaded.
    pub loading: u64,
}

impl Plan {
    /// The highest point.
    pub fn total(&self) -> u64 {
        let Self { program, weights, adapters, optimiser, activations, buffers, .. } = *self;
        (program + weights + adapters + optimiser + activations + buffers).max(self.loading)
    }

    /// Whether that is safe within `limit` bytes: a thirtieth stays free for what is not counted, the buffers of
    /// threads and pages that are only partly used.
    pub fn fits(&self, limit: u64) -> bool {
        self.total() + self.total() / 30 <= limit
    }
}

/// A model, how it is kept, and the adapter beside it: all of a run but the size of its steps.
#[derive(Debug, Clone)]
pub struct Planner {
    config: ModelConfig,
    kind: Kind,
    device: Device,
    program: u64,
    layers: Vec<LayerSize>,
    params: u64,
    weights: u64,
    loading: u64,
    /// Bytes of an embedding row, if only those that are looked up come into memory; of all rows otherwise counted in
    /// `weights`.
    looked_up: Option<u64>,
}

impl Planner {
    /// For a run in `kind` on `device`; `program`: bytes that are in its memory already.
    ///
    /// # Errors
    /// A checkpoint that does not fit its configuration; modules that are not there; what the recipe refuses.
    pub fn new(
        checkpoint: &dyn Checkpoint,
        (keep, kind, device): (Keep<'_>, Kind, Device),
        (recipe, adapter): (&Recipe, &AdapterConfig),
        program: u64,
    ) -> Result<Self> {
        let config = checkpoint.config().clone();
        let shapes = linear_shapes(checkpoint)?;
        let head = shapes.last().map(|(name, _)| name.clone());
        let chosen = adapter.select(&shapes, head.as_deref())?;
        let ranks: BTreeMap<&str, i64> = chosen.iter().map(|s| (s.name.as_str(), s.r)).collect();
        let footprint = recipe.footprint()?.ok_or_else(|| {
            let e = Error::unsupported(format!("the memory of `{recipe}` is not planned"));
            e.hint("train without --auto; in Rust `Adapter::built` says what a method without a normal form holds")
        })?;
        let row = config.hidden_size.unsigned_abs() * kind.elt_size_in_bytes() as u64;
        let mapped = device == Device::Cpu && checkpoint.maps(EMBEDDING, kind) && !config.tie_word_embeddings;
        let looked_up = mapped.then_some(row);
        let table = config.vocab_size.unsigned_abs() * row;
        let mut weights = vectors_bytes(&config, kind) + if looked_up.is_some() { 0 } else { table };
        let (mut params, mut loading, mut layers) = (0, 0, Vec::new());
        for (path, shape) in &shapes {
            let kept = keep.plan(checkpoint, path, *shape, kind);
            let is_table = config.tie_word_embeddings && Some(path) == head.as_ref();
            weights += if is_table { 0 } else { kept.bytes };
            loading = kept.loading.max(loading);
            let rank = ranks.get(path.as_str()).copied().unwrap_or(0);
            params += if rank > 0 { footprint.params(*shape, rank).unsigned_abs() } else { 0 };
            let gain = rank > 0 && footprint.gain;
            let built = footprint.built.filter(|_| rank > 0);
            let (dropout, bias) = (rank > 0 && adapter.lora_dropout > 0.0, has_bias(&config, path));
            let (shape, packed) = (*shape, kept.packed);
            layers.push(LayerSize { shape, rank, gain, built, dropout, bias, packed, beside: 0 });
        }
        Ok(Self { config, kind, device, program, layers, params, weights, loading, looked_up })
    }

    /// The same for a federation's client whose task lays factors of `rank` beside each weight that it trains beside. They,
    /// and the weights of its own that it goes back to, stay.
    #[must_use]
    pub fn beside(mut self, rank: i64) -> Self {
        let number = master_kind(self.kind).elt_size_in_bytes() as u64;
        for layer in self.layers.iter_mut().filter(|layer| rank > 0 && layer.rank > 0) {
            let (out, inp) = layer.shape;
            self.weights += number * (rank * (out + inp)).unsigned_abs();
            // A dense weight in the master dtype is added to: nothing is multiplied with by itself.
            if !layer.packed && self.kind == master_kind(self.kind) {
                self.weights += number * (out * inp).unsigned_abs();
            } else {
                layer.beside = rank;
            }
        }
        self
    }

    /// What steps of that size take.
    pub fn plan(&self, step: StepSize) -> Plan {
        let StepMemory { activations, buffers, copies, in_loss } =
            step_memory(&self.config, &self.layers, (self.kind, self.device), step);
        let number = master_kind(self.kind).elt_size_in_bytes() as u64;
        // Each looked-up row lies on a page of its own.
        let rows = step.tokens.min(self.config.vocab_size).unsigned_abs();
        let weights = self.weights + self.looked_up.map_or(0, |row| row.max(4096) * rows);
        Plan {
            program: self.program,
            weights,
            adapters: 2 * number * self.params + copies,
            optimiser: 2 * number * self.params,
            activations,
            buffers,
            in_loss,
            loading: self.program + weights + self.loading,
        }
    }

    /// Layers of which the input alone can be kept.
    pub fn blocks(&self) -> usize {
        self.config.layers.max(0) as usize
    }

    /// How long a step takes, in products of two numbers: what no step can do without, what runs again, the gradient of
    /// each W' that is built, and for each pass over the weights what it costs to bring them before the processor. Good for
    /// comparing, no more.
    pub fn effort(&self, work: Work, passes: f64, recompute: usize) -> f64 {
        /// Measured, in products a number: to unpack one, and to lay out a dense one.
        const UNPACK: f64 = 100.0;
        const LAY_OUT: f64 = 10.0;
        let (blocks, head) = self.layers.split_at(self.layers.len().saturating_sub(1));
        let numbers = |l: &LayerSize| (l.shape.0 * l.shape.1) as f64;
        let share = recompute.min(self.blocks()) as f64 / self.blocks().max(1) as f64;
        let width = (self.config.layers * self.config.heads * self.config.head_dim) as f64;
        let (mut products, mut moved) = (0.0, 0.0);
        for l in blocks {
            let gradient = if l.built.is_some() { 2.0 } else { 0.0 };
            products += (4.0 + 2.0 * share + gradient) * numbers(l) * work.positions;
            moved += (2.0 + share) * numbers(l) * if l.packed { UNPACK } else { LAY_OUT };
        }
        products += head.iter().map(|l| 4.0 * numbers(l) * work.supervised).sum::<f64>();
        products + (6.0 + 2.0 * share) * width * work.squares + passes * moved
    }
}
