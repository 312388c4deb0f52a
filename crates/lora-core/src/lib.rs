//! The formula, and all that its variants share.
//!
//! ```text
//! W' = top( storage(W) + scaling(alpha, r) * update ),     y = x W'ᵀ + b
//! ```
//!
//! | hole | trait or type | default |
//! |---|---|---|
//! | storage | [`BaseWeight`] | [`Dense`] |
//! | update | [`Adapter`] | [`LowRank`] |
//! | scaling | `fn(alpha, r)` | `alpha / r` |
//! | top | [`Adapter`] around one | nothing |
//!
//! A [`Variant`] fills one hole, a [`Recipe`] combines variants, a [`Linear`] is a frozen weight with adapters
//! beside it, and [`Linears`] is a model seen as its linear layers. On disk an adapter is PEFT's folder
//! ([`AdapterConfig`], [`load`], [`save`]).

mod adapter;
mod beside;
mod config;
mod error;
mod factors;
mod folder;
mod footprint;
mod linear;
mod linears;
mod low_rank;
mod pairs;
mod projection;
mod python;
mod recipe;
mod start;
mod storage;
mod targets;
mod tensors;
#[cfg(feature = "testkit")]
pub mod testkit;
mod weight;

pub use adapter::{Adapter, Mode};
pub use beside::beside;
pub use config::{AdapterConfig, CONFIG_FILE, Init};
pub use error::{Error, ErrorKind, Result};
pub use factors::{Copies, Factors, Gain};
pub use folder::{OutputFile, OutputFolder, sibling, write_file, write_file_with};
pub use footprint::{Built, Footprint};
pub use linear::Linear;
pub use linears::{
    Linears, Param, WEIGHTS_FILE, activate, attach, attach_from, detach, load, merge, params, save,
    targets_by_name, unmerge, weights_file,
};
pub use low_rank::LowRank;
pub use projection::{Held, Input, LayerSize, each_text, project, project_onto};
pub use python::python_repr;
pub use recipe::{DENSE, LORA, LayerSpec, NewStorage, Part, Recipe, Scaling, Top, Update, Variant};
pub use start::{Start, Started};
pub use storage::{AsIs, Packing, Parts, Storage};
pub use targets::{Selection, Targets, compact_names};
pub use tensors::{
    Pending, is_plausible_header, read_metadata, read_tensors, write_pending_to, write_tensors,
    write_tensors_to,
};
pub use weight::{BaseWeight, Dense, all_finite, master_kind, row_norms_sq};

/// The kernels of this crate, to be compiled for devices that are not here.
pub const CUDA_SOURCES: [&tch_ext::cuda::Source; 2] = [projection::CUDA_SOURCE, low_rank::CUDA_SOURCE];
