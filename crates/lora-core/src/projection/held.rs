//! What [`crate::project`] holds of memory: for plans.

use tch::Kind;

use super::part::before;
use crate::weight::master_kind;

/// A linear layer, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSize {
    /// `(out, in)`.
    pub shape: (i64, i64),
    /// The rank of the adapter beside it; 0: none.
    pub rank: i64,
    /// Whether the adapter scales rows ([`crate::Gain`]).
    pub gain: bool,
    /// Whether it drops inputs in training.
    pub dropout: bool,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Whether its weight is packed: then it is dense for as long as it is multiplied with.
    pub packed: bool,
}

/// Bytes that layers hold that read one input of `tokens` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// From forward to backward, outputs for a gain among it, inputs not.
    pub kept: u64,
    /// Of `kept`: outputs that are the very tensors that the layers return.
    pub returned: u64,
    /// The compute copies of A and B, for as long as they do not change.
    pub copies: u64,
    /// In backward, beside what was kept, what comes in, and the input and its gradient.
    pub backward: u64,
}

impl Held {
    /// Of `layers`, which are multiplied in `kind`; `onto`: what they return is another sum.
    pub fn of(layers: &[LayerSize], tokens: i64, kind: Kind, onto: bool) -> Self {
        let width = kind.elt_size_in_bytes() as i64;
        let wide = master_kind(kind).elt_size_in_bytes() as i64;
        let (mut kept, mut returned, mut copies, mut backward) = (0, 0, 0, 0);
        let rank: i64 = layers.iter().map(|l| l.rank).sum();
        for l in layers {
            let (out, inp) = l.shape;
            copies += l.rank * (out + inp) * width;
            backward += if l.packed { out * inp * width } else { 0 };
            if l.rank == 0 {
                continue;
            }
            let (y, x) = (tokens * out * width, tokens * inp * width);
            kept += if l.dropout { x } else { 0 };
            // dA and dB; a dropped input; dv.
            backward += l.rank * (out + inp) * wide;
            backward += if l.dropout { x } else { 0 };
            backward += if l.gain { y } else { 0 };
            kept += if l.gain { y } else { 0 };
            returned += if l.gain && !before(l.bias, kind) && !onto { y } else { 0 };
        }
        // What comes back through a mask, and with it.
        let masked = layers.iter().find(|l| l.dropout);
        backward += masked.map_or(0, |l| 2 * tokens * l.shape.1 * width);
        // h; its gradient, and both as `gemm` turns them on a CPU, which no allocator of tensors counts.
        kept += tokens * rank * width;
        backward += 3 * tokens * rank * width;
        let [kept, returned, copies, backward] = [kept, returned, copies, backward].map(i64::unsigned_abs);
        Self { kept, returned, copies, backward }
    }
}
