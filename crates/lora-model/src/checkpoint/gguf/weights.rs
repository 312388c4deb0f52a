//! A GGUF file as a checkpoint: Hugging Face names, rows in Hugging Face's order, blocks dequantised.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use lora_core::{Error, ErrorKind, Result};
use tch::{Device, Kind, Tensor};

use super::blocks::BlockType;
use super::{Gguf, TensorInfo, config, names};
use crate::ModelConfig;
use crate::checkpoint::{Checkpoint, finite, no_such_tensor};

/// Values dequantised at a time: bounds the f32 buffer to 16 MB however large the tensor.
const CHUNK: u64 = 1 << 22;
/// Below this, starting threads costs more than it saves.
const PARALLEL: usize = 1 << 18;

#[derive(Debug)]
pub(in crate::checkpoint) struct GgufCheckpoint {
    gguf: Gguf,
    config: ModelConfig,
    /// Hugging Face name to GGUF name.
    names: BTreeMap<String, String>,
}

impl GgufCheckpoint {
    pub(in crate::checkpoint) fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let place = |e: Error| e.at(path.display());
        let config = config::from_metadata(&gguf)?;
        let mut hf = BTreeMap::new();
        let mut unknown = Vec::new();
        let mut unread = Vec::new();
        for (name, info) in gguf.tensors() {
            if matches!(info.block, BlockType::Other(_)) {
                unread.push(format!("`{name}`: {}", info.block));
            }
            match names::hf_name(name) {
                Some(known) => drop(hf.insert(known, name.clone())),
                None if names::is_table(name) => {}
                None => unknown.push(format!("`{name}`")),
            }
        }
        if !unknown.is_empty() {
            let what = format!("{} tensors that are no part of a {} model", unknown.len(), config.model_type);
            return Err(place(Error::faults(ErrorKind::Unsupported, what, few(unknown))));
        }
        if !unread.is_empty() {
            let what =
                format!("{} tensors of types not read (F32, F16, BF16, Q8_0, Q4_0, Q4_1 are)", unread.len());
            return Err(place(Error::faults(ErrorKind::Unsupported, what, few(unread)))
                .hint("use the model's Q8_0 or F16 file, or its original weights"));
        }
        Ok(Self { gguf, config, names: hf })
    }

    fn info(&self, name: &str) -> Option<(&str, &TensorInfo)> {
        let name = self.names.get(name)?;
        Some((name, self.gguf.tensors().get(name)?))
    }
}

/// The first few, so that a message stays readable.
fn few(mut faults: Vec<String>) -> Vec<String> {
    if faults.len() > 8 {
        let more = faults.len() - 8;
        faults.truncate(8);
        faults.push(format!("and {more} more"));
    }
    faults
}

impl Checkpoint for GgufCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn names(&self) -> Vec<String> {
        self.names.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.info(name).map(|(_, t)| t.shape.clone())
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        self.info(name).map(|(_, t)| match t.block {
            BlockType::F16 => Kind::Half,
            BlockType::BF16 => Kind::BFloat16,
            _ => Kind::Float,
        })
    }

    fn load(&self, name: &str, kind: Kind) -> Result<Tensor> {
        let (gguf, info) = self.info(name).ok_or_else(|| no_such_tensor(name, self.gguf.path()))?;
        let place = |e: Error| e.at(format!("{}, tensor `{gguf}`", self.gguf.path().display()));
        // From f32 through `kind` and no other type, so that the cast rounds once.
        let tensor = read(self.gguf.path(), info, kind).map_err(place)?;
        let heads = match self.config.model_type.as_str() {
            "llama" => names::permuted_heads(gguf, self.config.heads, self.config.kv_heads),
            _ => None,
        };
        match heads {
            None => Ok(tensor),
            Some(heads) if info.shape.first().is_some_and(|rows| rows % (2 * heads) == 0) => {
                names::unpermute(&tensor, heads).map_err(place)
            }
            Some(heads) => {
                let what =
                    format!("its shape {:?} does not divide into {heads} heads of even size", info.shape);
                Err(place(Error::data(what)))
            }
        }
    }

    fn source(&self) -> &Path {
        self.gguf.path()
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.gguf.path().to_owned()]
    }

    fn stored_bytes(&self) -> u64 {
        self.names.values().filter_map(|n| self.gguf.tensors().get(n)).map(|t| t.nbytes).sum()
    }

    fn model_name(&self) -> Option<&str> {
        self.gguf.model_name()
    }
}

/// The tensor in `kind`, as the file orders it; only a chunk of it is ever there in f32.
pub(super) fn read(path: &Path, info: &TensorInfo, kind: Kind) -> Result<Tensor> {
    let (values, bytes) =
        info.block.layout().ok_or_else(|| Error::unsupported(format!("type {}", info.block)))?;
    let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    file.seek(SeekFrom::Start(info.offset)).map_err(|e| Error::io("read", path, e))?;
    let blocks = info.nbytes / bytes;
    let out = Tensor::f_empty([(blocks * values) as i64], (kind, Device::Cpu))?;
    let (mut packed, mut floats) = (Vec::new(), Vec::new());
    let mut done = 0;
    while done < blocks {
        let n = (blocks - done).min(CHUNK / values);
        packed.resize((n * bytes) as usize, 0);
        floats.resize((n * values) as usize, 0.0);
        file.read_exact(&mut packed).map_err(|e| Error::io("read", path, e))?;
        dequantize(info.block, (values as usize, bytes as usize), &packed, &mut floats);
        let chunk = finite(Tensor::f_from_slice(&floats)?, kind)?;
        out.f_narrow(0, (done * values) as i64, (n * values) as i64)?.f_copy_(&chunk)?;
        done += n;
    }
    Ok(out.f_view(&info.shape[..])?)
}

/// `layout`: values and bytes per block.
fn dequantize(block: BlockType, layout: (usize, usize), packed: &[u8], out: &mut [f32]) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    if out.len() < PARALLEL || threads == 1 {
        return block.dequantize(packed, out);
    }
    let share = (out.len() / layout.0).div_ceil(threads);
    std::thread::scope(|s| {
        for (packed, out) in packed.chunks(share * layout.1).zip(out.chunks_mut(share * layout.0)) {
            s.spawn(move || block.dequantize(packed, out));
        }
    });
}
