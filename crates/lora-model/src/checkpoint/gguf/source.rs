//! Where a GGUF file's bytes are.

use std::fs::File;
use std::io::{Cursor, Read, Seek};
use std::path::{Path, PathBuf};

use lora_core::{Error, Result};

#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf),
    /// For fuzzing, which has no time for a disk.
    Memory(Vec<u8>),
}

/// What can be read from any place.
pub(super) trait Bytes: Read + Seek {}

impl<T: Read + Seek> Bytes for T {}

impl Source {
    /// The name for messages.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Memory(_) => Path::new("memory"),
        }
    }

    /// The bytes from the first on, and how many there are.
    ///
    /// # Errors
    /// `Io` when the file cannot be opened.
    pub(super) fn open(&self) -> Result<(Box<dyn Bytes + '_>, u64)> {
        match self {
            Self::File(path) => {
                let io = |e| Error::io("open", path, e);
                let file = File::open(path).map_err(io)?;
                let len = file.metadata().map_err(io)?.len();
                Ok((Box::new(file), len))
            }
            Self::Memory(bytes) => Ok((Box::new(Cursor::new(&bytes[..])), bytes.len() as u64)),
        }
    }
}
