//! The layout of a GGUF file (version 3): metadata, tensor table, tensors, each aligned.

use std::io::Write;
use std::path::Path;

use lora_core::{Error, Result};
use tch::{Kind, Tensor};

use super::encode::encode;
use crate::checkpoint::finite;
use crate::checkpoint::gguf::blocks::BlockType;

/// What every tensor begins at a multiple of, where the file names nothing else.
const ALIGNMENT: usize = 32;
/// Values encoded at a time: bounds what is in memory beside the tensor itself.
const CHUNK: i64 = 1 << 22;

/// Metadata in its own order, each value as the file has it: a type number, and what belongs to it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Metadata(Vec<(String, Vec<u8>)>);

impl Metadata {
    /// Puts a value in the place of one that is there, or behind all.
    pub(crate) fn put(&mut self, key: impl Into<String>, value: impl Encode) {
        let mut bytes = value.sort().to_le_bytes().to_vec();
        value.write(&mut bytes);
        self.put_raw(key.into(), bytes);
    }

    /// The same for a value that is encoded already, with its type.
    pub(super) fn put_raw(&mut self, key: String, bytes: Vec<u8>) {
        match self.0.iter_mut().find(|(other, _)| *other == key) {
            Some((_, value)) => *value = bytes,
            None => self.0.push((key, bytes)),
        }
    }
}

/// A metadata value: its type's number in the file, and its bytes.
pub(crate) trait Encode {
    fn sort(&self) -> u32;
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! number {
    ($($type:ty: $sort:literal),*) => {$(
        impl Encode for $type {
            fn sort(&self) -> u32 {
                $sort
            }
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

number!(u32: 4, i32: 5, f32: 6);

impl Encode for bool {
    fn sort(&self) -> u32 {
        7
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Encode for &str {
    fn sort(&self) -> u32 {
        8
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.len() as u64).to_le_bytes());
        out.extend_from_slice(self.as_bytes());
    }
}

/// An array: the type of its elements, how many, and each.
impl<T: Encode> Encode for Vec<T> {
    fn sort(&self) -> u32 {
        9
    }
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.first().map_or(8, Encode::sort).to_le_bytes());
        out.extend_from_slice(&(self.len() as u64).to_le_bytes());
        self.iter().for_each(|element| element.write(out));
    }
}

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) name: String,
    /// Outermost first.
    pub(super) shape: Vec<i64>,
    pub(super) block: BlockType,
}

impl Planned {
    fn nbytes(&self) -> u64 {
        let (values, bytes) = self.block.layout().unwrap_or((1, 0));
        self.shape.iter().product::<i64>().unsigned_abs() / values * bytes
    }
}

/// Writes a whole file. `load` gives the tensors, in any float dtype, in the order in which they are planned; one at a
/// time is in memory.
///
/// # Errors
/// What `load` and `to` give; `Internal` for a tensor of another shape than planned; `NonFinite`, naming the tensor,
/// for values that are not finite, or become so in the type of the file.
pub(super) fn write(
    to: &mut impl Write,
    metadata: &Metadata,
    tensors: &[Planned],
    mut load: impl FnMut(usize) -> Result<Tensor>,
) -> Result<()> {
    let io = |e| Error::io("write", Path::new("the GGUF file"), e);
    let mut head = b"GGUF".to_vec();
    head.extend_from_slice(&3u32.to_le_bytes());
    head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    head.extend_from_slice(&(metadata.0.len() as u64).to_le_bytes());
    for (key, value) in &metadata.0 {
        key.as_str().write(&mut head);
        head.extend_from_slice(value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        tensor.name.as_str().write(&mut head);
        head.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|size| head.extend_from_slice(&size.to_le_bytes()));
        head.extend_from_slice(&tensor.block.id().to_le_bytes());
        head.extend_from_slice(&offset.to_le_bytes());
        offset += tensor.nbytes().next_multiple_of(ALIGNMENT as u64);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    to.write_all(&head).map_err(io)?;
    for (i, planned) in tensors.iter().enumerate() {
        let place = |e: Error| e.at(format!("tensor `{}`", planned.name));
        let tensor = load(i)?;
        if tensor.size() != planned.shape {
            let what = format!("its shape is {:?}, {:?} was planned", tensor.size(), planned.shape);
            return Err(place(Error::internal(what)));
        }
        let flat = tensor.f_reshape([-1]).map_err(|e| place(e.into()))?;
        let (mut at, all) = (0, flat.numel() as i64);
        while at < all {
            let n = CHUNK.min(all - at);
            let floats = flat.f_narrow(0, at, n).map_err(|e| place(e.into()))?;
            let floats = finite(floats, Kind::Float).map_err(place)?;
            to.write_all(&encode(&floats, planned.block).map_err(place)?).map_err(io)?;
            at += n;
        }
        let padding = planned.nbytes().next_multiple_of(ALIGNMENT as u64) - planned.nbytes();
        to.write_all(&[0; ALIGNMENT][..padding as usize]).map_err(io)?;
    }
    Ok(())
}
