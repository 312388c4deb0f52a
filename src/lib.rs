//! LoRA, rsLoRA, DoRA and QLoRA over libtorch, in one formula:
//!
//! ```text
//! W' = top( storage(W) + scaling(alpha, r) * update ),     y = x W'ᵀ + b
//! ```
//!
//! This crate is the facade: it re-exports the others, and holds [`VARIANTS`], the one registry. A service that
//! needs a single method can depend on that method's crate and on `lora-core` alone.
//!
//! ```
//! let recipe = lora::Recipe::parse("qlora+dora+rslora", lora::VARIANTS)?;
//! assert_eq!(recipe.scale(16.0, 64), 2.0); // alpha / sqrt(r)
//! # Ok::<(), lora::Error>(())
//! ```

pub use lora_core as core;
pub use lora_core::*;
pub use lora_dora as dora;
pub use lora_fed as fed;
pub use lora_full as full;
pub use lora_model as model;
pub use lora_qlora as qlora;
pub use lora_rslora as rslora;
pub use lora_train as train;
pub use tch_ext;

mod fingerprint;
mod local;
mod promise;

pub use fingerprint::fingerprint;
pub use local::Local;
pub use promise::{Promise, Terms};

/// Every variant this build knows: what `--variant` and adapter files can ask for. A new method is one more line.
pub const VARIANTS: &[Variant] =
    &[DENSE, LORA, lora_rslora::RSLORA, lora_dora::DORA, lora_qlora::QLORA, lora_full::FULL];

/// Opens a model folder or GGUF file, whose weights may be packed as any of [`VARIANTS`] packs them.
///
/// # Errors
/// Those of [`model::open_with`].
pub fn open(path: &std::path::Path) -> Result<Box<dyn model::Checkpoint>> {
    let packing = |v: &Variant| if let Part::Storage(_, packing) = v.part { packing } else { None };
    model::open_with(path, &VARIANTS.iter().filter_map(packing).collect::<Vec<_>>())
}

/// A recipe out of [`VARIANTS`].
///
/// # Errors
/// Those of [`Recipe::parse`].
pub fn recipe(spec: &str) -> Result<Recipe> {
    Recipe::parse(spec, VARIANTS)
}
