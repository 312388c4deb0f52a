//! One safetensors file, mapped: a strict reading of its header, and views of its tensors.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Dtype, Metadata};
use lora_core::{Error, Result, is_plausible_header};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use tch::{Device, Kind, Tensor};

use super::{all_finite, finite, numbers_at};

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor: what it is and which bytes of the file are its own.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<i64>,
    start: i64,
    nbytes: i64,
}

impl Entry {
    pub(super) fn nbytes(&self) -> u64 {
        self.nbytes.unsigned_abs()
    }

    /// Its numbers in pieces, so many at a time, for reading without the mapping.
    fn pieces(&self, kind: Kind, count: i64) -> impl Iterator<Item = Self> + '_ {
        let step = count * kind.elt_size_in_bytes() as i64;
        (0..self.nbytes).step_by(step as usize).map(move |begin| {
            let nbytes = step.min(self.nbytes - begin);
            let shape = vec![nbytes / kind.elt_size_in_bytes() as i64];
            Self { dtype: self.dtype, shape, start: self.start + begin, nbytes }
        })
    }
}

/// A way to get a tensor out of its file as it is stored: [`Mapped::view`] or [`Mapped::read`].
pub(super) type Get = fn(&Mapped, &Entry, Kind) -> Result<Tensor>;

/// Numbers that are looked at together.
const PIECE: i64 = 4 << 20;

/// A mapped file.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) path: PathBuf,
    pub(super) tensors: BTreeMap<String, Entry>,
    bytes: Tensor,
    /// None where all was in memory from the start.
    file: Option<File>,
}

impl Mapped {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let io = |e| Error::io("open", path, e);
        let mut file = File::open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let tensors = table(&mut file, len).map_err(|e| e.at(path.display()))?;
        let name = path.to_str().ok_or_else(|| {
            Error::unsupported("the file's name is not UTF-8").at(path.display()).hint("rename it")
        })?;
        // Private: what is written to a view stays in memory.
        let bytes = Tensor::f_from_file(name, false, len as i64, (Kind::Uint8, Device::Cpu))
            .map_err(|e| Error::from(e).at(path.display()))?;
        Ok(Self { path: path.to_owned(), tensors, bytes, file: Some(file) })
    }

    /// The same from bytes that are in memory already; `path` names them in errors.
    pub(super) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let tensors = table(&mut &bytes[..], bytes.len() as u64).map_err(|e| e.at(path.display()))?;
        Ok(Self { path: path.to_owned(), tensors, bytes: Tensor::f_from_slice(bytes)?, file: None })
    }

    /// The tensor as stored, read into memory of its own.
    pub(super) fn read(&self, entry: &Entry, kind: Kind) -> Result<Tensor> {
        let Some(file) = &self.file else {
            let view = self.view(entry, kind)?;
            return Ok(view.f_clone(&view.f_empty_like()?)?);
        };
        let io = |e| Error::io("read", &self.path, e);
        let mut bytes = Tensor::f_empty([entry.nbytes], (Kind::Uint8, Device::Cpu))?;
        if let Some(bytes) = tch_ext::elements_mut::<u8>(&mut bytes) {
            let mut file = file.try_clone().map_err(io)?;
            file.seek(SeekFrom::Start(entry.start.unsigned_abs())).map_err(io)?;
            file.read_exact(bytes).map_err(io)?;
        }
        Ok(bytes.f_view_dtype(kind)?.f_view(&entry.shape[..])?)
    }

    /// The tensor, stored as `stored`, in another type, if all of it is finite there. Little more than the result is in
    /// memory: what is cast is read by pieces, and of the mapping nothing is looked at.
    pub(super) fn cast(&self, entry: &Entry, (stored, kind): (Kind, Kind)) -> Result<Tensor> {
        let out = Tensor::f_empty(&entry.shape, (kind, Device::Cpu))?;
        let (flat, mut at) = (out.f_view([-1])?, 0);
        for piece in entry.pieces(stored, PIECE) {
            let values = finite(self.read(&piece, stored)?, kind)?;
            let n = values.numel() as i64;
            flat.f_narrow(0, at, n)?.f_copy_(&values)?;
            at += n;
        }
        Ok(out)
    }

    /// The tensor's numbers at these places, read one by one: a look through the mapping brings all that lies around them
    /// into memory, to stay.
    pub(super) fn numbers_at(&self, entry: &Entry, kind: Kind, places: &[i64]) -> Result<Vec<f32>> {
        let Some(file) = &self.file else { return numbers_at(&self.view(entry, kind)?, places) };
        let io = |e| Error::io("read", &self.path, e);
        let size = kind.elt_size_in_bytes();
        let mut bytes = Tensor::f_empty([(places.len() * size) as i64], (Kind::Uint8, Device::Cpu))?;
        let mut file = file.try_clone().map_err(io)?;
        let numbers = tch_ext::elements_mut::<u8>(&mut bytes).unwrap_or_default().chunks_exact_mut(size);
        for (number, &place) in numbers.zip(places) {
            let at = place.checked_mul(size as i64).filter(|at| (0..entry.nbytes).contains(at));
            let at = at.ok_or_else(|| Error::usage(format!("there is no number {place}")))?;
            file.seek(SeekFrom::Start((entry.start + at).unsigned_abs())).map_err(io)?;
            file.read_exact(number).map_err(io)?;
        }
        Ok(Vec::try_from(bytes.f_view_dtype(kind)?.f_to_kind(Kind::Float)?)?)
    }

    /// Whether all of the tensor is finite, without the mapping: of a large embedding that is only mapped, no more is
    /// in memory later than the rows that are looked up.
    pub(super) fn is_finite(&self, entry: &Entry, kind: Kind) -> Result<bool> {
        for piece in entry.pieces(kind, PIECE) {
            if !all_finite(&self.read(&piece, kind)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the tensor holds the numbers of another, maybe in another file. The first piece that differs ends the
    /// comparison.
    pub(super) fn equals(&self, entry: &Entry, other: (&Self, &Entry)) -> Result<bool> {
        let (Some(a), Some(b)) = (kind_of(entry.dtype), kind_of(other.1.dtype)) else { return Ok(false) };
        if entry.shape != other.1.shape {
            return Ok(false);
        }
        // Widening is exact.
        let wide = |t: Tensor| if a == b { Ok(t) } else { t.f_to_kind(Kind::Double) };
        for (x, y) in entry.pieces(a, PIECE).zip(other.1.pieces(b, PIECE)) {
            if !wide(self.read(&x, a)?)?.f_equal(&wide(other.0.read(&y, b)?)?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A view of the tensor as stored; a copy only where its bytes are not aligned for its type.
    pub(super) fn view(&self, entry: &Entry, kind: Kind) -> Result<Tensor> {
        if entry.nbytes == 0 {
            return Ok(Tensor::f_zeros(&entry.shape, (kind, Device::Cpu))?);
        }
        let bytes = self.bytes.f_narrow(0, entry.start, entry.nbytes)?;
        let aligned = entry.start % kind.elt_size_in_bytes() as i64 == 0;
        let bytes = if aligned { bytes } else { bytes.f_clone(&bytes.f_empty_like()?)? };
        Ok(bytes.f_view_dtype(kind)?.f_view(&entry.shape[..])?)
    }
}

/// The torch type of a stored one, for those a weight may have.
pub(super) fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F64 => Some(Kind::Double),
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}

/// The same for a part of a packed weight.
pub(super) fn part_kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::U8 => Some(Kind::Uint8),
        other => kind_of(other),
    }
}

fn damaged(what: String) -> Error {
    Error::data(what).hint("the file is cut short or damaged: fetch it again")
}

fn table(file: &mut impl Read, len: u64) -> Result<BTreeMap<String, Entry>> {
    let mut size = [0; 8];
    let read = |e| Error::data("cannot read the header").because(e);
    if len < 8 {
        return Err(damaged(format!("{len} bytes are too few for a safetensors file")));
    }
    file.read_exact(&mut size).map_err(read)?;
    let header = u64::from_le_bytes(size);
    if header > MAX_HEADER || header > len - 8 {
        let what =
            format!("a header of {header} bytes in a file of {len} (at most {MAX_HEADER} are allowed)");
        return Err(damaged(what));
    }
    let mut text = vec![0; header as usize];
    file.read_exact(&mut text).map_err(read)?;
    if text.first() != Some(&b'{') {
        return Err(damaged("the header does not start with `{`".into()));
    }
    if !is_plausible_header(&text) {
        return Err(damaged("the header has more values than its tensors can have".into()));
    }
    let bad = |e: serde_json::Error| damaged(format!("the header is malformed: {e}")).because(e);
    // The safetensors crate lets the last of two equal names win; the format forbids them.
    serde_json::from_slice::<Unique<IgnoredAny>>(&text).map_err(bad)?;
    let meta: Metadata = serde_json::from_slice(&text).map_err(bad)?;

    let start = 8 + header;
    let expected = start + meta.data_len() as u64;
    if expected != len {
        return Err(damaged(format!("the header promises {expected} bytes, the file has {len}")));
    }
    let mut entries = BTreeMap::new();
    for (name, info) in meta.tensors() {
        let shape = info.shape.iter().map(|&d| i64::try_from(d)).collect::<std::result::Result<Vec<_>, _>>();
        let Some(shape) = shape.ok().filter(|s| s.len() <= 8) else {
            return Err(damaged(format!("tensor `{name}` has the impossible shape {:?}", info.shape)));
        };
        let (begin, end) = info.data_offsets;
        let nbytes = (end - begin) as i64;
        entries
            .insert(name, Entry { dtype: info.dtype, shape, start: (start + begin as u64) as i64, nbytes });
    }
    Ok(entries)
}

/// A JSON object that refuses a key given twice.
pub(super) struct Unique<V>(pub(super) BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Keys<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Keys<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    if out.contains_key(&key) {
                        return Err(serde::de::Error::custom(format!("`{key}` appears twice")));
                    }
                    out.insert(key, value);
                }
                Ok(Unique(out))
            }
        }
        deserializer.deserialize_map(Keys(PhantomData))
    }
}
