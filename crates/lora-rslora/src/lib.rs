//! rsLoRA, the rank-stabilised scaling: `α / √r` instead of `α / r` (Kalajdzievski 2023, arXiv 2312.03732).
//!
//! With `α / r` the gradients of A and B shrink as the rank grows, so that large ranks learn no more than small
//! ones; with `α / √r` their size does not depend on the rank. One hole of the formula, one line:
//!
//! ```
//! use lora_core::{DENSE, LORA, Recipe};
//! let recipe = Recipe::parse("lora+rslora", &[DENSE, LORA, lora_rslora::RSLORA])?;
//! assert_eq!(recipe.scale(16.0, 64), 2.0);
//! # Ok::<(), lora_core::Error>(())
//! ```

use lora_core::{Part, Variant};

/// Fills the scaling hole. PEFT: `use_rslora`, `tuners/lora/layer.py`.
pub const RSLORA: Variant = Variant {
    name: "rslora",
    about: "scaling alpha/sqrt(r), stable at any rank",
    paper: "Kalajdzievski 2023, arXiv 2312.03732",
    flag: Some("use_rslora"),
    part: Part::Scaling(|alpha, rank| alpha / (rank as f64).sqrt()),
};
