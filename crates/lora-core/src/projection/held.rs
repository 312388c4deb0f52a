//! What [`crate::project`] holds of memory: for plans.

use tch::Kind;

use super::part::before;
use crate::footprint::Built;
use crate::weight::master_kind;

/// A linear layer, as far as memory goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSize {
    /// `(out, in)`.
    pub shape: (i64, i64),
    /// The rank that its adapter was given; 0: it has none.
    pub rank: i64,
    /// Whether the adapter scales rows ([`crate::Gain`]).
    pub gain: bool,
    /// What building W' holds, if the adapter has no normal form: it has no factors of that rank then.
    pub built: Option<Built>,
    /// Whether it drops inputs in training.
    pub dropout: bool,
    /// Whether the layer has a bias.
    pub bias: bool,
    /// Whether its weight is packed: then it is dense for as long as it is multiplied with.
    pub packed: bool,
    /// The rank of what lies beside the weight ([`crate::beside()`]), to be multiplied with by itself; 0: nothing does.
    pub beside: i64,
}

/// Bytes that layers hold that read one input of `tokens` rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// From forward to backward, outputs for a gain among it, the input only where a W' is built.
    pub kept: u64,
    /// Of `kept`: outputs that are the very tensors that the layers return.
    pub returned: u64,
    /// The compute copies of A and B, for as long as they do not change.
    pub copies: u64,
    /// In backward, beside what was kept, what comes in, and the input's gradient.
    pub backward: u64,
}

impl Held {
    /// Of `layers`, which are multiplied in `kind`; `onto`: what they return is another sum.
    pub fn of(layers: &[LayerSize], tokens: i64, kind: Kind, onto: bool) -> Self {
        if layers.iter().any(|l| l.built.is_some()) {
            return Self::one_by_one(layers, tokens, kind);
        }
        let (width, wide) = widths(kind);
        let (mut kept, mut returned, mut copies) = (0, 0, 0);
        // The input, made again.
        let mut backward = input(layers, tokens, kind);
        let rank: i64 = layers.iter().map(|l| l.rank).sum();
        for l in layers {
            let (out, inp) = l.shape;
            copies += l.rank * (out + inp) * width;
            backward += if l.packed { out * inp * width } else { 0 };
            backward += l.side(kind) + tokens * l.beside * width;
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

    /// Where a W' is built every layer is a function of its own, in backward the last one first, and all keep the one input.
    fn one_by_one(layers: &[LayerSize], tokens: i64, kind: Kind) -> Self {
        let (width, wide) = widths(kind);
        let x = input(layers, tokens, kind);
        // `given`: what nobody needs any more.
        let (mut kept, mut backward, mut given) = (x, 0, 0);
        for (done, l) in layers.iter().rev().enumerate() {
            let (numbers, y) = (l.shape.0 * l.shape.1, tokens * l.shape.0 * width);
            let dense = if l.packed { numbers * width } else { 0 };
            let (mine, more) = match l.built {
                Some(built) => {
                    // What lies beside the weight is added to it, and taken out of W' again.
                    let passing = built.passing + if l.beside > 0 { 2 } else { 0 };
                    // They pass before there are gradients, or when the output's or the input is gone; while both are there,
                    // the gradient of W' is.
                    let making = dense + passing * numbers * wide - x.min(y);
                    let keeps = numbers * width + built.kept * numbers * wide + l.side(kind);
                    (keeps, making.max(numbers * width))
                }
                None => (0, dense + l.side(kind)),
            };
            // The input's gradient so far, and what this layer adds to it.
            let second = if done > 0 { x } else { 0 };
            backward = backward.max(more + tokens * l.beside * width + second - given);
            kept += mine;
            given += mine + y;
        }
        let [kept, backward] = [kept, backward].map(i64::unsigned_abs);
        Self { kept, backward, ..Self::default() }
    }
}

impl LayerSize {
    /// The copies that are multiplied with of what lies beside the weight.
    fn side(&self, kind: Kind) -> i64 {
        let (width, wide) = widths(kind);
        if width == wide { 0 } else { self.beside * (self.shape.0 + self.shape.1) * width }
    }
}

/// Bytes of a number, as it is computed with and in the master dtype.
fn widths(kind: Kind) -> (i64, i64) {
    (kind.elt_size_in_bytes() as i64, master_kind(kind).elt_size_in_bytes() as i64)
}

/// Of the input that `layers` read.
fn input(layers: &[LayerSize], tokens: i64, kind: Kind) -> i64 {
    layers.first().map_or(0, |l| tokens * l.shape.1 * widths(kind).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: LayerSize = LayerSize {
        shape: (3, 5),
        rank: 0,
        gain: false,
        built: None,
        dropout: false,
        bias: false,
        packed: false,
        beside: 0,
    };

    /// Ten tokens through layers of 3 x 5: an input of 50 numbers, outputs of 30, weights of 15. What is kept, and what
    /// backward holds.
    #[test]
    fn bytes_counted_by_hand() {
        let built = |kept, passing| LayerSize { rank: 2, built: Some(Built { kept, passing }), ..PLAIN };
        let (whole, laid) = (built(0, 2), LayerSize { beside: 7, ..PLAIN });
        let packed = LayerSize { packed: true, ..whole };
        let (half, single) = (Kind::BFloat16, Kind::Float);
        for (what, layers, kind, kept, backward) in [
            // The input made again, and nothing else.
            ("frozen", vec![PLAIN], half, 0, 100),
            // Input and W'; two wide matrices, before there is an output, or the gradient of W'.
            ("built", vec![whole], half, 100 + 30, 120 - 60),
            ("built of wide numbers", vec![whole], single, 200 + 60, 60),
            ("built of more", vec![built(1, 8)], half, 100 + 30 + 60, 480 - 60),
            ("built and packed", vec![packed], half, 100 + 30, 30 + 120 - 60),
            // The last is the first in backward. A second gradient of the input, where output and W' of the first are gone.
            ("built behind a frozen one", vec![PLAIN, whole], half, 100 + 30, 60),
            ("built before a frozen one", vec![whole, PLAIN], half, 100 + 30, 60 + 100 - 60),
            // Copies of both factors, and seven numbers a token.
            ("beside", vec![laid], half, 0, 100 + 112 + 140),
            ("beside in wide numbers", vec![laid], single, 0, 200 + 280),
            ("beside and built", vec![LayerSize { beside: 7, ..whole }], half, 130 + 112, 240 - 60 + 140),
        ] {
            let held = Held::of(&layers, 10, kind, false);
            assert_eq!((held.kept, held.backward), (kept, backward), "{what}");
            assert_eq!((held.returned, held.copies), (0, 0), "{what}");
        }
    }
}
