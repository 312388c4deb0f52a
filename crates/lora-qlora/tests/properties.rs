//! What holds of every weight: the error of rounding is within the code's own bound, and a weight's rows do not depend
//! on one another.

use lora_core::BaseWeight;
use lora_core::testkit::noise;
use lora_qlora::{Code, FourBit, Options};
use proptest::prelude::*;
use tch::{Kind, Tensor};

/// Half of the widest gap between neighbours of the book.
fn half_gap(code: Code) -> f64 {
    let mut book = code.book();
    book.sort_by(f32::total_cmp);
    book.windows(2).map(|w| f64::from(w[1] - w[0]) / 2.0).fold(0.0, f64::max)
}

fn dense(w: &Tensor, options: Options) -> Tensor {
    FourBit::new(w, options).unwrap().dense(Kind::Float)
}

/// The largest magnitude of every block, and for each weight that of its block.
fn scales(w: &Tensor, block: usize) -> (Tensor, Tensor) {
    let (n, block) = (w.numel() as i64, block as i64);
    let blocks = w.reshape([-1]).constant_pad_nd([0, (block - n % block) % block]).view([-1, block]);
    let most = blocks.abs().amax([1i64].as_slice(), true);
    (most.reshape([-1]), most.expand_as(&blocks).reshape([-1]).narrow(0, 0, n))
}

fn options() -> impl Strategy<Value = Options> {
    let code = prop::sample::select(vec![Code::Nf4, Code::Fp4]);
    (code, 5u32..13).prop_map(|(code, log)| Options { code, block: 1 << log, nested: false })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_error_is_within_the_codes_bound(
        options in options(), (out, inp) in (1i64..80, 1i64..160), size in -8i32..8, seed in 0i64..1 << 40
    ) {
        // Rows of very different sizes: scales that vary are what is hard to round.
        let rows = noise(&[out, 1], seed ^ 1).exp() * 10f64.powi(size);
        let w = (noise(&[out, inp], seed) * rows).to_kind(Kind::Float);
        let (blocks, each) = scales(&w, options.block);
        let plain = dense(&w, options);
        let error = (&plain - &w).abs().reshape([-1]);
        let bound = &each * (half_gap(options.code) * (1.0 + 1e-5));
        prop_assert_eq!(error.gt_tensor(&bound).sum(Kind::Int64).int64_value(&[]), 0);

        // Rounded scales are off by half of the map's widest gap, and a bin, of the largest distance from their mean.
        let spread = (&blocks - blocks.mean(Kind::Float)).abs().max().double_value(&[]);
        let most = spread * (0.0142 / 2.0 + 2.0 / 65535.0) + each.max().double_value(&[]) * 1e-6;
        let nested = dense(&w, Options { nested: true, ..options });
        let moved = (nested - plain).abs().max().double_value(&[]);
        prop_assert!(moved <= most, "{} > {}", moved, most);
    }

    /// However a weight is cut between rows that end with a block, each part is what it is in the whole.
    #[test]
    fn rows_are_independent(
        options in options(), (out, inp) in (2i64..64, 1i64..64), cut in 0.0f64..1.0, seed in 0i64..1 << 40
    ) {
        let w = noise(&[out, inp * options.block as i64 / 8], seed).to_kind(Kind::Float);
        let whole = dense(&w, options);
        // Eight rows are whole blocks.
        let at = ((cut * out as f64) as i64) / 8 * 8;
        for (first, n) in [(0, at), (at, out - at)] {
            if n > 0 {
                prop_assert_eq!(dense(&w.narrow(0, first, n), options), whole.narrow(0, first, n));
            }
        }
    }
}
