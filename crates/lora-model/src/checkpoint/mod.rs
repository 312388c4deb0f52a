//! Model weights by their Hugging Face names, from a folder of safetensors or from a GGUF file.

pub mod fuzz;
mod gguf;
mod hf;
mod keep;
mod packed;
mod safetensors;

use std::fmt::Debug;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use lora_core::{BaseWeight, Error, Packing, Result};
use tch::{Kind, Tensor};

use crate::ModelConfig;
pub(crate) use gguf::{CUDA_SOURCE, Metadata};
pub use gguf::{Gguf, GgufKind, GgufOut, Value as GgufValue};
pub use keep::{Keep, Kept};
pub(crate) use keep::{check_skip, stays_dense};

/// Weights by their Hugging Face name.
pub trait Checkpoint: Debug + Send {
    /// What the model is.
    fn config(&self) -> &ModelConfig;
    /// Every tensor's name, sorted.
    fn names(&self) -> Vec<String>;
    /// The tensor's shape, if there is such a tensor.
    fn shape(&self, name: &str) -> Option<Vec<i64>>;
    /// The type it is stored in; for packed weights, the one that they were made from (GGUF: `Float`); `None` for a
    /// type that `load` refuses.
    fn kind(&self, name: &str) -> Option<Kind>;
    /// The tensor on the CPU, in `kind`. It may be a private view of the mapped file: writing to it changes no
    /// file, but the file must not be changed or cut short by others while the tensor lives.
    ///
    /// # Errors
    /// `Data` for a name that is not there, `Unsupported` for a stored type we do not read, `NonFinite` for weights
    /// that are (or become, in `kind`) infinite or NaN. All name tensor and file.
    fn load(&self, name: &str, kind: Kind) -> Result<Tensor>;
    /// The same in memory of its own, that is free again with the tensor: for what is read once and packed.
    ///
    /// # Errors
    /// Those of [`Checkpoint::load`].
    fn read(&self, name: &str, kind: Kind) -> Result<Tensor> {
        self.load(name, kind)
    }
    /// The tensor's numbers at these places, counted through its rows, in f32: for what looks at a few of many. Whether they are
    /// finite is not asked, and little more of the file is read, where its format allows that.
    ///
    /// # Errors
    /// Those of [`Checkpoint::load`]; a place that there is not.
    fn numbers_at(&self, name: &str, places: &[i64]) -> Result<Vec<f32>> {
        numbers_at(&self.load(name, self.kind(name).unwrap_or(Kind::Float))?, places)
    }
    /// A packed weight as the file keeps it, on the CPU, to be computed in `kind`; `None` for a tensor that is not
    /// packed.
    ///
    /// # Errors
    /// What is wrong with its parts.
    fn packed(&self, name: &str, kind: Kind) -> Result<Option<Box<dyn BaseWeight>>> {
        let _ = (name, kind);
        Ok(None)
    }
    /// Bytes of that packed weight; `None` for a tensor that is not packed.
    fn packed_bytes(&self, name: &str) -> Option<u64> {
        let _ = name;
        None
    }
    /// Whether `load` maps the tensor: of what is never used, nothing comes into memory.
    fn maps(&self, name: &str, kind: Kind) -> bool {
        let _ = (name, kind);
        false
    }
    /// Whether packed weights are to be kept as they are where nobody says otherwise.
    fn prefers_packed(&self) -> bool {
        false
    }
    /// What was opened.
    fn source(&self) -> &Path;
    /// The files with weights.
    fn files(&self) -> Vec<PathBuf>;
    /// Bytes of weights as stored.
    fn stored_bytes(&self) -> u64;
    /// What the maker calls the model, where the checkpoint says so (GGUF's `general.name`).
    fn model_name(&self) -> Option<&str> {
        None
    }
}

/// Opens a folder with `config.json` and safetensors, or a GGUF file. Reads no weights yet, but for an output head that
/// is to be the embedding: whether it is.
///
/// # Errors
/// `Io` if nothing is there; `Data` or `Unsupported`, with a hint, if it is neither, or is malformed.
pub fn open(path: &Path) -> Result<Box<dyn Checkpoint>> {
    open_with(path, &[])
}

/// The same, where weights in safetensors may be packed in one of these ways.
///
/// # Errors
/// Those of [`open`], and what is wrong with packed weights.
pub fn open_with(path: &Path, packings: &[&'static dyn Packing]) -> Result<Box<dyn Checkpoint>> {
    let found = std::fs::metadata(path).map_err(|e| {
        let e = Error::io("open the model", path, e);
        match repository(path) {
            Some((name, model)) => e.hint(format!(
                "check the path; a repository of Hugging Face's is downloaded first, into a folder that is then the \
                 model: `hf download {name} --local-dir {model}`"
            )),
            None => e,
        }
    })?;
    if found.is_dir() {
        return Ok(Box::new(hf::HfCheckpoint::open(path, packings)?));
    }
    let mut magic = [0; 4];
    let read = File::open(path).and_then(|mut f| f.read_exact(&mut magic));
    let named_so = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if named_so || (read.is_ok() && magic == *b"GGUF") {
        return Ok(Box::new(gguf::GgufCheckpoint::open(path)?));
    }
    Err(Error::data("is neither a model folder nor a GGUF file")
        .at(path.display())
        .hint("give the folder that holds config.json and the .safetensors files, or a .gguf file"))
}

/// A path that looks like the name of a repository, `OWNER/MODEL`, and the model's.
fn repository(path: &Path) -> Option<(&str, &str)> {
    let name = path.to_str()?;
    let (owner, model) = name.split_once('/')?;
    let plain = |part: &str| {
        let mut characters = part.chars();
        characters.next().is_some_and(|c| c.is_ascii_alphanumeric())
            && characters.all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let named = plain(owner) && plain(model) && !model.ends_with(".gguf");
    (named && !Path::new(owner).exists()).then_some((name, model))
}

fn numbers_at(tensor: &Tensor, places: &[i64]) -> Result<Vec<f32>> {
    let chosen = tensor.f_reshape([-1])?.f_index_select(0, &Tensor::f_from_slice(places)?)?;
    Ok(Vec::try_from(chosen.f_to_kind(Kind::Float)?)?)
}

/// `tensor` in `kind`, if all of it is finite there.
fn finite(tensor: Tensor, kind: Kind) -> Result<Tensor> {
    let cast = tensor.f_to_kind(kind)?;
    if all_finite(&cast)? {
        return Ok(cast);
    }
    if all_finite(&tensor)? {
        let what = format!("holds values too large for {kind:?}");
        return Err(Error::non_finite(what).hint("load the model as bf16 or f32"));
    }
    Err(Error::non_finite("holds infinite or NaN weights")
        .hint("the file is damaged, or its training had diverged: use another copy"))
}

/// One pass without a temporary: a NaN anywhere makes both extremes NaN.
fn all_finite(tensor: &Tensor) -> Result<bool> {
    if tensor.numel() == 0 {
        return Ok(true);
    }
    let (low, high) = tensor.f_aminmax(None, false)?;
    let (low, high) = (f64::try_from(&low)?, f64::try_from(&high)?);
    Ok(low.is_finite() && high.is_finite())
}

fn no_such_tensor(name: &str, source: &Path) -> Error {
    Error::data(format!("there is no tensor `{name}`"))
        .at(source.display())
        .hint("the checkpoint is incomplete, or its config describes another model")
}
