//! A GGUF file as a checkpoint: Hugging Face names, rows in Hugging Face's order, blocks dequantised or kept.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::path::{Path, PathBuf};

use lora_core::{BaseWeight, Error, ErrorKind, Result};
use tch::{Device, Kind, Tensor};

use super::blocks::BlockType;
use super::native::Blocks;
use super::{Gguf, TensorInfo, config, names};
use crate::ModelConfig;
use crate::checkpoint::{Checkpoint, finite, no_such_tensor};

/// Values dequantised at a time: bounds the f32 buffer to 16 MB however large the tensor.
const CHUNK: u64 = 1 << 22;

#[derive(Debug)]
pub(in crate::checkpoint) struct GgufCheckpoint {
    gguf: Gguf,
    config: ModelConfig,
    /// Hugging Face name to GGUF name.
    names: BTreeMap<String, String>,
}

impl GgufCheckpoint {
    pub(in crate::checkpoint) fn open(path: &Path) -> Result<Self> {
        Self::of(Gguf::open(path)?)
    }

    /// The model in `gguf`.
    pub(in crate::checkpoint) fn of(gguf: Gguf) -> Result<Self> {
        let place = |e: Error| e.at(gguf.path().display());
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
            let what = format!("{} tensors of types not read ({} are)", unread.len(), BlockType::known());
            return Err(place(Error::faults(ErrorKind::Unsupported, what, few(unread)))
                .hint("use the model's Q8_0, Q4_K_M or F16 file, or its original weights"));
        }
        Ok(Self { gguf, config, names: hf })
    }

    fn info(&self, name: &str) -> Option<(&str, &TensorInfo)> {
        let name = self.names.get(name)?;
        Some((name, self.gguf.tensors().get(name)?))
    }

    /// What `read` gives of a tensor, numbers or bytes, with its rows in Hugging Face's order: a row is a whole number
    /// of blocks.
    fn rows(&self, gguf: &str, info: &TensorInfo, read: impl Fn() -> Result<Tensor>) -> Result<Tensor> {
        let place = |e: Error| e.at(format!("{}, tensor `{gguf}`", self.gguf.path().display()));
        let Some(heads) = names::permuted_heads(gguf, &self.config) else { return read().map_err(place) };
        if info.shape.first().is_none_or(|rows| rows % (2 * heads) != 0) {
            let what = format!("its shape {:?} does not divide into {heads} heads of even size", info.shape);
            return Err(place(Error::data(what)));
        }
        read().and_then(|t| names::unpermute(&t, heads)).map_err(place)
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
        self.rows(gguf, info, || read(&self.gguf, info, kind))
    }

    fn numbers_at(&self, name: &str, places: &[i64]) -> Result<Vec<f32>> {
        let (gguf, info) = self.info(name).ok_or_else(|| no_such_tensor(name, self.gguf.path()))?;
        let rows = info.shape.first().copied().unwrap_or(1);
        let inner = info.shape.iter().skip(1).product::<i64>().max(1);
        // Where each row lies in the file.
        let rows = || Ok(Tensor::f_arange(rows, (Kind::Int64, Device::Cpu))?.f_view([rows, 1])?);
        let order: Vec<i64> = Vec::try_from(self.rows(gguf, info, rows)?.f_view([-1])?)?;
        let (values, bytes) = layout(info)?;
        let io = |e| Error::io("read", self.gguf.path(), e);
        let (mut file, _) = self.gguf.source.open()?;
        let (mut block, mut floats) = (vec![0; bytes as usize], vec![0f32; values as usize]);
        let number = |&place: &i64| {
            let row = usize::try_from(place / inner).ok().and_then(|row| order.get(row));
            let row = row.ok_or_else(|| Error::usage(format!("`{name}` has no number {place}")))?;
            let at = (row * inner + place % inner).unsigned_abs();
            file.seek(SeekFrom::Start(info.offset + at / values * bytes)).map_err(io)?;
            file.read_exact(&mut block).map_err(io)?;
            info.block.dequantize(&block, &mut floats);
            Ok(floats[(at % values) as usize])
        };
        places.iter().map(number).collect()
    }

    fn packed(&self, name: &str, kind: Kind) -> Result<Option<Box<dyn BaseWeight>>> {
        let Some((gguf, info)) = self.info(name) else { return Ok(None) };
        let &[out, inp] = &info.shape[..] else { return Ok(None) };
        if !info.block.is_packed() {
            return Ok(None);
        }
        let bytes = self.rows(gguf, info, || read_packed(&self.gguf, info, kind))?;
        Ok(Some(Box::new(Blocks::new(bytes, info.block, (out, inp), kind))))
    }

    fn packed_bytes(&self, name: &str) -> Option<u64> {
        let (_, info) = self.info(name)?;
        (info.block.is_packed() && info.shape.len() == 2).then_some(info.nbytes)
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

impl Gguf {
    /// Every tensor in f32, in plain memory, from `bytes`, which are the file's.
    pub(in crate::checkpoint) fn dequantize_all(&self, bytes: &[u8]) {
        for info in self.tensors().values() {
            let Some((values, size)) = info.block.layout() else { continue };
            let mut out = vec![0f32; (info.nbytes / size * values) as usize];
            info.block.dequantize(&bytes[info.offset as usize..][..info.nbytes as usize], &mut out);
        }
    }
}

/// The tensor in `kind`, as the file orders it; only a chunk of it is ever there in f32.
pub(super) fn read(gguf: &Gguf, info: &TensorInfo, kind: Kind) -> Result<Tensor> {
    // Of a type that is not known, no size was held against the file's.
    layout(info)?;
    let out = Tensor::f_empty(&info.shape, (kind, Device::Cpu))?;
    let (flat, mut at) = (out.f_view([-1])?, 0);
    chunks(gguf, info, kind, |_, values| {
        let n = values.numel() as i64;
        flat.f_narrow(0, at, n)?.f_copy_(&values)?;
        at += n;
        Ok(())
    })?;
    Ok(out)
}

/// The tensor's bytes `[rows, bytes a row]`, as the file has them, if all it holds is finite in `kind`.
fn read_packed(gguf: &Gguf, info: &TensorInfo, kind: Kind) -> Result<Tensor> {
    let mut out = Tensor::f_empty([info.nbytes as i64], (Kind::Uint8, Device::Cpu))?;
    let mut left = tch_ext::elements_mut::<u8>(&mut out).unwrap_or_default();
    chunks(gguf, info, kind, |bytes, _| {
        let (now, later) = std::mem::take(&mut left).split_at_mut(bytes.len());
        now.copy_from_slice(bytes);
        left = later;
        Ok(())
    })?;
    Ok(out.f_view([info.shape.first().copied().unwrap_or(1), -1])?)
}

/// Values and bytes per block.
fn layout(info: &TensorInfo) -> Result<(u64, u64)> {
    info.block.layout().ok_or_else(|| Error::unsupported(format!("a tensor of type {}", info.block)))
}

/// Calls `each` with a chunk of the tensor after the other: its bytes, and its values in `kind`, all finite. They go
/// from f32 to `kind` through no other type, so that they are rounded once.
fn chunks(
    gguf: &Gguf,
    info: &TensorInfo,
    kind: Kind,
    mut each: impl FnMut(&[u8], Tensor) -> Result<()>,
) -> Result<()> {
    let (values, bytes) = layout(info)?;
    let io = |e| Error::io("read", gguf.path(), e);
    let (mut file, _) = gguf.source.open()?;
    file.seek(SeekFrom::Start(info.offset)).map_err(io)?;
    let mut packed = Vec::new();
    let mut left = info.nbytes / bytes;
    while left > 0 {
        let n = left.min(CHUNK / values);
        packed.resize((n * bytes) as usize, 0);
        file.read_exact(&mut packed).map_err(io)?;
        let mut floats = Tensor::f_empty([(n * values) as i64], (Kind::Float, Device::Cpu))?;
        info.block.dequantize(&packed, tch_ext::elements_mut::<f32>(&mut floats).unwrap_or_default());
        each(&packed, finite(floats, kind)?)?;
        left -= n;
    }
    Ok(())
}
