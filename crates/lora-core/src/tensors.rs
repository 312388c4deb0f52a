//! One safetensors file of named tensors: small files, read strictly, written the same every time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, TchError, Tensor};
use tch_ext::elements;

use crate::folder::write_file_with;
use crate::pairs::{Pairs, Strict};
use crate::{Error, Result};

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// More than any layer's weight has; libtorch's own limit is 64.
const MAX_DIMS: usize = 8;

/// The dtypes that a file may hold.
const KINDS: &[(Dtype, &str, Kind)] = &[
    (Dtype::F64, "F64", Kind::Double),
    (Dtype::F32, "F32", Kind::Float),
    (Dtype::F16, "F16", Kind::Half),
    (Dtype::BF16, "BF16", Kind::BFloat16),
    (Dtype::I64, "I64", Kind::Int64),
    (Dtype::I32, "I32", Kind::Int),
    (Dtype::I16, "I16", Kind::Int16),
    (Dtype::I8, "I8", Kind::Int8),
    (Dtype::U8, "U8", Kind::Uint8),
    (Dtype::BOOL, "BOOL", Kind::Bool),
];

/// All tensors of a file, on the CPU, in the dtypes they have there.
///
/// # Errors
/// The file is not there; is malformed (a name that comes twice, bytes that belong to no tensor or to two, a
/// shape that does not fit its bytes); holds a dtype outside f64 f32 f16 bf16 i64 i32 i16 i8 u8 bool; or a
/// tensor holds NaN or infinity, and then the error names it.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    parse(&read_bytes(path)?).map_err(|e| e.at(path.display()))
}

/// The file's own remarks, PEFT's `format` (`pt`) among them. Of the file no more than its header is read.
///
/// # Errors
/// As [`read_tensors`], but no tensor's values are looked at.
pub fn read_metadata(path: &Path) -> Result<BTreeMap<String, String>> {
    let (_, size, bytes) = begin(path)?;
    remarks(&bytes, size).map_err(|e| e.at(path.display()))
}

/// Of a file of this size, which begins with these bytes: its header's length, and its header.
fn remarks(bytes: &[u8], size: u64) -> Result<BTreeMap<String, String>> {
    let header = header(bytes)?;
    let remarks = check(header)?;
    let about: Metadata = serde_json::from_slice(header).map_err(not_whole)?;
    if size.checked_sub(bytes.len() as u64) != Some(about.data_len() as u64) {
        return Err(not_whole(SafeTensorError::MetadataIncompleteBuffer));
    }
    Ok(remarks.into_iter().collect())
}

/// An open file, its size, and its bytes up to the end of the header.
fn begin(path: &Path) -> Result<(File, u64, Vec<u8>)> {
    let io = |e| Error::io("read the tensors", path, e);
    let data = |what: String| Error::data(what).at(path.display());
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(|_| data("too short for a safetensors file".to_owned()))?;
    let header = u64::from_le_bytes(start);
    if header > MAX_HEADER || header > size.saturating_sub(8) {
        return Err(data(format!("its header claims {header} bytes: not a safetensors file, or cut off")));
    }
    let mut bytes = start.to_vec();
    bytes.resize(start.len() + header as usize, 0);
    file.read_exact(&mut bytes[start.len()..]).map_err(io)?;
    Ok((file, size, bytes))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let (mut file, size, mut bytes) = begin(path)?;
    let more = usize::try_from(size).ok().map(|size| size.saturating_sub(bytes.len()));
    if more.and_then(|more| bytes.try_reserve_exact(more).ok()).is_none() {
        return Err(Error::data(format!("{size} bytes do not fit in memory")).at(path.display()));
    }
    file.read_to_end(&mut bytes).map_err(|e| Error::io("read the tensors", path, e))?;
    Ok(bytes)
}

/// The header's own remarks; its tensors are passed over.
#[derive(serde::Deserialize)]
struct Remarks {
    #[serde(rename = "__metadata__")]
    metadata: Option<Pairs<String>>,
}

/// The whole file: our checks, then the `safetensors` crate's.
fn open(bytes: &[u8]) -> Result<SafeTensors<'_>> {
    check(header(bytes)?)?;
    SafeTensors::deserialize(bytes).map_err(not_whole)
}

fn not_whole(e: impl Display) -> Error {
    Error::data(format!("not a whole safetensors file: {e}"))
}

/// Of a file that begins with these bytes.
fn header(bytes: &[u8]) -> Result<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| Error::data("too short"))?;
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|_| length <= MAX_HEADER).and_then(|n| rest.get(..n));
    header.ok_or_else(|| Error::data("the header is cut off"))
}

/// Refuses what the `safetensors` crate lets pass and the format forbids. The header's own remarks.
fn check(header: &[u8]) -> Result<Vec<(String, String)>> {
    if header.first() != Some(&b'{') {
        return Err(Error::data("the header does not begin with `{`: not a safetensors file"));
    }
    if !is_plausible_header(header) {
        return Err(Error::data("the header has more values than its tensors can have"));
    }
    let malformed = |e: serde_json::Error| Error::data(format!("the header is malformed: {e}"));
    let metadata = serde_json::from_slice::<Remarks>(header).map_err(malformed)?.metadata;
    for (name, Strict(raw)) in serde_json::from_slice::<Pairs<Strict>>(header).map_err(malformed)?.0 {
        if name == "__metadata__" {
            continue;
        }
        let dims = raw.get("shape").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        if dims.len() > MAX_DIMS || dims.iter().any(|d| d.as_i64().is_none_or(|d| d < 0)) {
            return Err(Error::data("its shape is absurd").at(tensor(&name)));
        }
        let dtype = raw.get("dtype").and_then(Value::as_str).unwrap_or_default();
        if !KINDS.iter().any(|(_, name, _)| *name == dtype) {
            let known = KINDS.iter().map(|(_, name, _)| *name).collect::<Vec<_>>().join(", ");
            return Err(Error::unsupported(format!("its dtype is {dtype:?}"))
                .at(tensor(&name))
                .hint(format!("the dtypes read here are {known}")));
        }
    }
    Ok(metadata.map_or_else(Vec::new, |pairs| pairs.0))
}

/// Whether a safetensors header has no more values than its tensors can have: parsed, each takes some forty times its bytes.
pub fn is_plausible_header(header: &[u8]) -> bool {
    let (mut quoted, mut escaped, mut tensors, mut values) = (false, false, 0_usize, 0_usize);
    for byte in header {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b'{' if !quoted => tensors += 1,
            b',' if !quoted => values += 1,
            _ => {}
        }
    }
    // A tensor has a shape, two offsets, and its dtype; the file's own remarks have what they have.
    values <= tensors * (MAX_DIMS + 4) + 100_000
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    let mut tensors = BTreeMap::new();
    for (name, view) in open(bytes)?.iter() {
        let kind = KINDS.iter().find(|(dtype, ..)| *dtype == view.dtype()).map(|(.., kind)| *kind);
        let kind = kind.ok_or_else(|| Error::unsupported("its dtype is not read here").at(tensor(name)))?;
        let shape: Vec<i64> = view.shape().iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
        if kind == Kind::Bool && view.data().iter().any(|b| *b > 1) {
            return Err(Error::data("a truth value is neither 0 nor 1").at(tensor(name)));
        }
        let value = Tensor::f_from_data_size(view.data(), &shape, kind)
            .map_err(|e| Error::from(e).at(tensor(name)))?;
        if !is_finite(&value)? {
            return Err(Error::non_finite("holds NaN or infinity")
                .at(tensor(name))
                .hint("the training that wrote it had diverged; use an earlier checkpoint"));
        }
        tensors.insert(name.to_owned(), value);
    }
    Ok(tensors)
}

fn is_finite(value: &Tensor) -> Result<bool> {
    if !matches!(value.kind(), Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16) {
        return Ok(true);
    }
    let all = value.f_isfinite()?.f_all()?;
    Ok(all.f_int64_value(&[])? != 0)
}

fn tensor(name: &str) -> String {
    format!("tensor {name:?}")
}

/// Writes a safetensors file whole or not at all, as [`write_tensors_to`].
///
/// # Errors
/// As [`write_tensors_to`]; the file is then what it was.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)], metadata: &[(&str, &str)]) -> Result<()> {
    write_file_with(path, |file| write_tensors_to(file, tensors, metadata).map_err(|e| e.at(path.display())))
}

/// A tensor to be written: what it is, and how to get it when its turn comes.
pub struct Pending<'a> {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Makes it.
    pub make: Box<dyn FnOnce() -> Result<Tensor> + 'a>,
}

impl<'a> Pending<'a> {
    /// One that is there.
    pub fn ready(name: &str, value: &'a Tensor) -> Self {
        let make = Box::new(|| Ok(value.shallow_clone()));
        Self { name: name.to_owned(), kind: value.kind(), shape: value.size(), make }
    }
}

/// Writes a safetensors file, as [`write_pending_to`].
///
/// # Errors
/// As [`write_pending_to`].
pub fn write_tensors_to(
    to: &mut impl Write,
    tensors: &[(String, Tensor)],
    metadata: &[(&str, &str)],
) -> Result<()> {
    write_pending_to(to, tensors.iter().map(|(name, value)| Pending::ready(name, value)).collect(), metadata)
}

/// Writes a safetensors file: metadata `format: pt` (which PEFT wants) and what is given, then the tensors by
/// name, those of wider elements first so that each lies aligned. The same input gives the same bytes. Each tensor is
/// made when it is written, and let go.
///
/// # Errors
/// A name comes twice, a dtype is none that [`read_tensors`] reads, a tensor is not what it was said to be, or `to`
/// cannot be written.
pub fn write_pending_to(
    to: &mut impl Write,
    tensors: Vec<Pending<'_>>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let mut names = BTreeSet::new();
    let mut sorted = Vec::with_capacity(tensors.len());
    for pending in tensors {
        let kind = KINDS.iter().find(|(.., kind)| *kind == pending.kind);
        let (_, dtype, kind) = kind.ok_or_else(|| {
            Error::unsupported(format!("its dtype is {:?}, which a file cannot hold", pending.kind))
                .at(tensor(&pending.name))
        })?;
        if pending.name == "__metadata__" || !names.insert(pending.name.clone()) {
            return Err(Error::usage("a name that comes twice, or that the format keeps for itself")
                .at(tensor(&pending.name)));
        }
        sorted.push((kind.elt_size_in_bytes(), *dtype, pending));
    }
    sorted.sort_by(|a, b| (b.0, &a.2.name).cmp(&(a.0, &b.2.name)));

    let remarks: BTreeMap<&str, &str> =
        [("format", "pt")].into_iter().chain(metadata.iter().copied()).collect();
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!(remarks))]);
    let mut offset = 0;
    for (width, dtype, pending) in &sorted {
        let end = offset + width * pending.shape.iter().product::<i64>().unsigned_abs() as usize;
        let about = json!({ "dtype": dtype, "shape": pending.shape, "data_offsets": [offset, end] });
        header.insert(pending.name.clone(), about);
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');

    let mut put =
        |bytes: &[u8]| to.write_all(bytes).map_err(|e| Error::io("write", Path::new("the tensors"), e));
    put(&(header.len() as u64).to_le_bytes())?;
    put(&header)?;
    for (_, _, Pending { name, kind, shape, make }) in sorted {
        let value = make()?;
        if (value.kind(), value.size()) != (kind, shape) {
            return Err(Error::internal("is not what was promised of it").at(tensor(&name)));
        }
        let bytes = bytes_of(&value).map_err(|e| Error::from(e).at(tensor(&name)))?;
        put(elements(&bytes).unwrap_or_default())?;
    }
    Ok(())
}

/// The tensor's memory, u8.
fn bytes_of(value: &Tensor) -> std::result::Result<Tensor, TchError> {
    let _guard = tch::no_grad_guard();
    value.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?.f_reshape([-1])?.f_view_dtype(Kind::Uint8)
}
