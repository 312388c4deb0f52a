//! How fast a step could be at best: its matrix products, and nothing else, at this machine's own rate.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use lora_model::{Model, Piece};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind, Tensor};
use tch_ext::{Product, Sum, gemm};

/// What a step has to work on.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Tokens of the texts.
    pub tokens: f64,
    /// Positions that are computed: what texts of a pass begin with alike counts once.
    pub positions: f64,
    /// Of them supervised.
    pub supervised: f64,
    /// The squares of the texts' lengths, summed; of a text behind a beginning, what it adds to that one's.
    pub squares: f64,
}

impl Work {
    /// Of these pieces, which are texts of so many tokens.
    pub(crate) fn of(pieces: &[Piece], tokens: usize, supervised: usize) -> Self {
        let positions: i64 = pieces.iter().map(|piece| piece.len).sum();
        let square = |(piece, end): (&Piece, i64)| (piece.len * (2 * end - piece.len)) as f64;
        Self {
            tokens: tokens as f64,
            positions: positions as f64,
            supervised: supervised as f64,
            squares: pieces.iter().zip(Piece::ends(pieces)).map(square).sum(),
        }
    }

    /// A part of it, one of `n`.
    pub(crate) fn over(self, n: f64) -> Self {
        let Self { tokens, positions, supervised, squares } = self;
        Self {
            tokens: tokens / n,
            positions: positions / n,
            supervised: supervised / n,
            squares: squares / n,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.positions += other.positions;
        self.supervised += other.supervised;
        self.squares += other.squares;
    }
}

/// What no step can do without: a product with each frozen weight forward, and one for its input's gradient from the first
/// block that trains on (2 flops each a weight and token, in the head for supervised tokens alone); causal attention's two
/// products forward, and four backward there, each over half of a text's square.
pub fn required_flops(model: &dyn Model, work: &Work) -> f64 {
    let config = model.config();
    let (head, linears) = (model.output_head(), model.linears());
    let block = |name: &str| name.split('.').find_map(|part| part.parse().ok()).unwrap_or(config.layers);
    let trains = linears.iter().filter(|(_, layer)| layer.adapter().is_some());
    // Nothing goes backward below it.
    let first = trains.map(|(name, _)| block(name)).min().unwrap_or(i64::MAX);
    let products = linears.iter().map(|(name, layer)| {
        let (out, inp) = layer.base().shape();
        let tokens = if Some(name.as_str()) == head { work.supervised } else { work.positions };
        let passes = if block(name) < first { 1.0 } else { 2.0 };
        2.0 * passes * (out * inp) as f64 * tokens
    });
    let backward = config.layers.saturating_sub(first).max(0);
    let width = (config.heads * config.head_dim) as f64;
    products.sum::<f64>() + (2 * config.layers + 4 * backward) as f64 * width * work.squares
}

/// Flops a second of the plain products that a step of `tokens` is made of: each weight's shape, forward and
/// backward, as often as the model has it, by libtorch's product or ours, whichever is faster. Takes a second or two.
pub fn matmul_rate(model: &dyn Model, tokens: i64) -> f64 {
    /// Of the head's many outputs, logits of so many rows exist at one time.
    const ROWS: i64 = 256;
    /// So many outputs are as fast, each, as more.
    const OUTPUTS: i64 = 1 << 14;
    const LEAST: usize = 6;
    const LONGEST: Duration = Duration::from_millis(400);
    let mut shapes = BTreeMap::new();
    for (_, layer) in model.linears() {
        *shapes.entry(layer.base().shape()).or_insert(0.0) += 1.0;
    }
    let (kind, device) = (model.kind(), model.device());
    let _guard = tch::no_grad_guard();
    let (mut flops, mut seconds) = (0.0, 0.0);
    for ((out, inp), count) in shapes {
        let rows = if out > 16 * inp { ROWS.min(tokens) } else { tokens };
        let (whole, out) = (out, out.min(OUTPUTS));
        let random = |n, m| Tensor::randn([n, m], (Kind::Float, device)).to_kind(kind);
        let (w, x, dy) = (random(out, inp), random(rows, inp), random(rows, out));
        let (y, dx) = (dy.empty_like(), x.empty_like());
        let (begin, mut best) = (Instant::now(), [f64::INFINITY; 2]);
        for i in 0..16 {
            // Which of the two is a hundred times slower depends on machine and dtype.
            if best[i % 2] > 2.0 * best[1 - i % 2] && best[i % 2].is_finite() {
                continue;
            }
            let start = Instant::now();
            if i % 2 == 0 {
                gemm(&[Sum::new(vec![Product::transposed(&x, &w)], &y)]);
                gemm(&[Sum::new(vec![Product::plain(&dy, &w)], &dx)]);
            } else {
                let _ = (x.linear(&w, None::<Tensor>), dy.matmul(&w));
            }
            if let Device::Cuda(index) = device {
                Cuda::synchronize(index as i64);
            }
            best[i % 2] = best[i % 2].min(start.elapsed().as_secs_f64());
            if i + 1 >= LEAST && begin.elapsed() > LONGEST {
                break;
            }
        }
        let best = best[0].min(best[1]);
        let share = count * (tokens * whole) as f64 / (rows * out) as f64;
        flops += share * 4.0 * (rows * out * inp) as f64;
        seconds += share * best;
    }
    flops / seconds
}
