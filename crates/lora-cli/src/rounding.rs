//! What rounding weights to 4 bits loses.

use std::cell::Cell;
use std::fmt;

use lora::BaseWeight;
use lora::model::{Checkpoint, linear_shapes};
use tch::{Kind, Tensor};

use crate::commands::aside;

/// A note where 4 bits are to round what a file has in about as few already: it costs points and saves nothing.
pub(crate) fn tell_twice(checkpoint: &dyn Checkpoint) {
    if let Some(bits) = bits(checkpoint).filter(|bits| *bits < 5.5) {
        aside(format_args!(
            "note: the file's weights have {bits:.1} bits each already, and rounding them again costs points; `lora train \
             --base-storage native` trains on them as they are (docs/qlora.md)"
        ));
    }
}

/// Bits of a weight inside the blocks, in a file whose packed weights are unpacked where nobody says otherwise.
fn bits(checkpoint: &dyn Checkpoint) -> Option<f64> {
    if checkpoint.prefers_packed() {
        return None;
    }
    let (mut bytes, mut numbers) = (0.0, 0.0);
    let layers = linear_shapes(checkpoint).ok()?;
    // The last one is the output head.
    for (path, (out, inp)) in layers.iter().take(layers.len().saturating_sub(1)) {
        let name = format!("{path}.weight");
        let count = (out * inp) as f64;
        let dense = checkpoint.kind(&name)?.elt_size_in_bytes() as f64 * count;
        bytes += checkpoint.packed_bytes(&name).map_or(dense, |packed| packed as f64);
        numbers += count;
    }
    (numbers > 0.0).then(|| 8.0 * bytes / numbers)
}

/// Sums of squares over all weights seen.
#[derive(Debug, Default)]
pub(crate) struct Rounding {
    weights: Cell<f64>,
    errors: Cell<f64>,
    updates: Cell<f64>,
    count: Cell<u64>,
    bytes: Cell<u64>,
}

impl Rounding {
    /// Adds a weight as it was, as it is kept, and what training had added to it.
    pub(crate) fn add(&self, weight: &Tensor, kept: &dyn BaseWeight, update: Option<&Tensor>) {
        let square = |t: &Tensor| t.to_kind(Kind::Float).norm().double_value(&[]).powi(2);
        let more = |sum: &Cell<f64>, t: &Tensor| sum.set(sum.get() + square(t));
        more(&self.weights, weight);
        more(&self.errors, &(kept.dense(Kind::Float) - weight));
        if let Some(update) = update {
            more(&self.updates, update);
        }
        self.count.set(self.count.get() + weight.numel() as u64);
        self.bytes.set(self.bytes.get() + kept.bytes());
    }

    /// The error's norm over another.
    fn share(&self, of: &Cell<f64>) -> f64 {
        (self.errors.get() / of.get().max(f64::MIN_POSITIVE)).sqrt()
    }

    fn bits(&self) -> f64 {
        8.0 * self.bytes.get() as f64 / self.count.get().max(1) as f64
    }

    /// The same as Display says, as shares.
    pub(crate) fn json(&self) -> serde_json::Value {
        let of_update = (self.updates.get() > 0.0).then(|| self.share(&self.updates));
        serde_json::json!({ "weights": self.count.get(), "bits": self.bits(), "error": self.share(&self.weights),
            "error_of_update": of_update })
    }
}

impl fmt::Display for Rounding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rounded   {} weights to {:.3} bits each: an error of ", self.count.get(), self.bits())?;
        write!(f, "{:.1} % of their norm", 100.0 * self.share(&self.weights))?;
        if self.updates.get() > 0.0 {
            write!(f, ", which is {:.0} % of what training had added", 100.0 * self.share(&self.updates))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::bits;

    /// Of a file in few bits, and of one in 4, 8, 16 and 32; a folder's packed weights are never unpacked unasked.
    #[test]
    fn bits_are_those_of_the_file() {
        let of = |file: &str| {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
            bits(lora::open(&file).unwrap().as_ref())
        };
        let [few, many, folder] = [
            "crates/lora-model/tests/data/k_quants.gguf",
            "crates/lora-model/tests/data/llama.gguf",
            "tests/goldens/smollm/model",
        ]
        .map(of);
        assert!(few.is_some_and(|few| (2.6..5.5).contains(&few)), "{few:?}");
        assert!(many.is_some_and(|many| (5.5..32.0).contains(&many)), "{many:?}");
        assert_eq!(folder, None);
    }
}
