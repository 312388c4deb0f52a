//! The arguments of private training, and what a promise is bound to.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::{Error, Promise};
use sha2::{Digest, Sha256};

use crate::open::ModelArgs;
use crate::paths;

#[derive(clap::Args)]
pub(crate) struct PrivacyArgs {
    /// Train with differential privacy: of any one row, the adapter gives away at most this (docs/privacy.md)
    #[arg(long, value_name = "EPSILON", help_heading = "Privacy")]
    pub(crate) dp_epsilon: Option<f64>,
    /// The chance that the promise does not hold [default: a tenth of one over the rows]
    #[arg(long, value_name = "DELTA", help_heading = "Privacy", requires = "dp_epsilon")]
    dp_delta: Option<f64>,
    /// The largest norm of one row's gradient
    #[arg(
        long,
        value_name = "NORM",
        default_value_t = 1.0,
        help_heading = "Privacy",
        requires = "dp_epsilon"
    )]
    dp_clip: f64,
}

impl PrivacyArgs {
    /// The promise, if there is one, kept in `ledger`.
    pub(crate) fn promise(&self, ledger: PathBuf) -> Option<Promise> {
        let &Self { dp_epsilon, dp_delta: delta, dp_clip: clip } = self;
        dp_epsilon.map(|epsilon| Promise { epsilon, delta, clip, ledger })
    }
}

/// Where the ledger of a data file lies: beside it, since it belongs to the rows and not to a run. A link is followed: by
/// another name they are the same rows.
pub(crate) fn ledger_of(data: &Path) -> PathBuf {
    let file = if data.is_symlink() { paths::real(data) } else { data.to_owned() };
    lora::sibling(&file, "privacy.jsonl")
}

/// The model's files and how they are kept: the same noise must never be added to the gradients of two models.
/// Its texts are the data's; what else lies in its folder is nothing of it.
pub(crate) fn bound_to(model: &ModelArgs) -> Result<Vec<u8>> {
    let (dtype, storage, skip, device) = (&model.dtype, model.packed(), &model.skip, model.device());
    let kept = format!("{dtype} {storage:?} {skip:?} {device:?}");
    let mut files = lora::open(&model.model)?.files();
    files.sort();
    if model.model.is_dir() {
        files.push(model.model.join("config.json"));
    }
    Ok([hash_of(&files)?, kept.into_bytes()].concat())
}

/// A hash of files and their names.
pub(crate) fn hash_of(files: &[PathBuf]) -> Result<Vec<u8>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    for path in files {
        let io = |e| Error::io("read", path, e);
        let mut file = File::open(path).map_err(io)?;
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => hash.update(&buffer[..n]),
            }
        }
    }
    Ok(hash.finalize().to_vec())
}
