//! GGUF files (versions 2 and 3, little endian): header, metadata, tensor table.
//!
//! Layout after ggml's specification (`docs/gguf.md` of ggml): magic, version, two counts, metadata pairs,
//! tensor infos, then, aligned, the data.

mod blocks;
mod config;
mod k_quants;
mod legacy;
mod names;
mod native;
mod out;
mod reader;
mod source;
mod weights;

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use lora_core::{Error, Result};

use blocks::BlockType;
pub(crate) use native::SOURCE as CUDA_SOURCE;
pub(crate) use out::Metadata;
pub use out::{GgufKind, GgufOut};
use reader::Reader;
use source::Source;
pub(super) use weights::GgufCheckpoint;

/// A metadata value. Integers and floats are widened; arrays are homogeneous, truth values among them 0 and 1.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U64(u64),
    I64(i64),
    F64(f64),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I64s(Vec<i64>),
    F64s(Vec<f64>),
}

impl Value {
    fn sort(&self) -> &'static str {
        match self {
            Self::U64(_) | Self::I64(_) => "a whole number",
            Self::F64(_) => "a float",
            Self::Bool(_) => "a truth value",
            Self::Str(_) => "a string",
            Self::Strs(_) => "an array of strings",
            Self::I64s(_) => "an array of whole numbers",
            Self::F64s(_) => "an array of floats",
        }
    }
}

/// One entry of the tensor table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TensorInfo {
    /// Outermost first, as torch has it (GGUF has the innermost first).
    shape: Vec<i64>,
    block: BlockType,
    /// From the start of the file.
    offset: u64,
    /// 0 for a type whose size we do not know.
    nbytes: u64,
}

/// An open GGUF file: its metadata and where its tensors lie. No tensor data is read here.
#[derive(Debug)]
pub struct Gguf {
    source: Source,
    meta: BTreeMap<String, Value>,
    /// Where each metadata value lies, with its type's number: in the file's order.
    spans: Vec<(String, Range<u64>)>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Gguf {
    /// Reads header, metadata and tensor table.
    ///
    /// # Errors
    /// `Io` when the file cannot be read; `Data` for anything malformed, naming the byte;
    /// `Unsupported` for version 1 and big-endian files.
    pub fn open(path: &Path) -> Result<Self> {
        Self::of(Source::File(path.to_owned()))
    }

    /// The same from bytes that are in memory already.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        Self::of(Source::Memory(bytes.to_vec()))
    }

    fn of(source: Source) -> Result<Self> {
        let (file, len) = source.open()?;
        let parsed = parse(&mut Reader::new(BufReader::new(file), len), len);
        let Parsed { meta, spans, tensors } = parsed.map_err(|e| e.at(source.path().display()))?;
        Ok(Self { source, meta, spans, tensors })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// All metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.meta
    }

    /// All metadata in the file's order, each value as its bytes there, its type's number first: what was read
    /// from it is widened, and a copy must not be.
    fn raw_metadata(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let io = |e| Error::io("read", self.path(), e);
        let mut file = BufReader::new(self.source.open()?.0);
        let mut all = Vec::new();
        for (key, span) in &self.spans {
            let mut bytes = vec![0; (span.end - span.start) as usize];
            file.seek(SeekFrom::Start(span.start)).map_err(io)?;
            file.read_exact(&mut bytes).map_err(io)?;
            all.push((key.clone(), bytes));
        }
        Ok(all)
    }

    /// One metadata value, if the file has it.
    pub fn meta(&self, key: &str) -> Option<&Value> {
        self.meta.get(key)
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// `general.name`: what the model's maker calls it.
    pub fn model_name(&self) -> Option<&str> {
        self.str("general.name").ok()
    }

    /// A value that must be there, through `pick`. Errors name the key, and the type found and expected.
    fn typed<'a, T>(&'a self, key: &str, want: &str, pick: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        let place = || format!("{}, metadata `{key}`", self.path().display());
        let value = self.meta(key).ok_or_else(|| Error::data("the key is missing").at(place()))?;
        pick(value).ok_or_else(|| Error::data(format!("is {}, should be {want}", value.sort())).at(place()))
    }

    /// A string that must be there.
    pub fn str(&self, key: &str) -> Result<&str> {
        self.typed(key, "a string", |v| match v {
            Value::Str(s) => Some(s.as_str()),
            _ => None,
        })
    }

    /// A whole number, 0 or more, that must be there.
    pub fn u64(&self, key: &str) -> Result<u64> {
        self.typed(key, "a whole number, not negative", |v| match *v {
            Value::U64(n) => Some(n),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        })
    }

    /// A whole number that must be there.
    pub fn i64(&self, key: &str) -> Result<i64> {
        self.typed(key, "a whole number below 2^63", |v| match *v {
            Value::I64(n) => Some(n),
            Value::U64(n) => n.try_into().ok(),
            _ => None,
        })
    }

    /// A number that must be there; whole numbers will do.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.typed(key, "a number", |v| match *v {
            Value::F64(x) => Some(x),
            Value::U64(n) => Some(n as f64),
            Value::I64(n) => Some(n as f64),
            _ => None,
        })
    }

    /// A truth value that must be there.
    pub fn bool(&self, key: &str) -> Result<bool> {
        self.typed(key, "a truth value", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// An array of strings that must be there.
    pub fn strs(&self, key: &str) -> Result<&[String]> {
        self.typed(key, "an array of strings", |v| if let Value::Strs(a) = v { Some(&a[..]) } else { None })
    }

    /// An array of whole numbers that must be there.
    pub fn i64s(&self, key: &str) -> Result<&[i64]> {
        self.typed(
            key,
            "an array of whole numbers",
            |v| if let Value::I64s(a) = v { Some(&a[..]) } else { None },
        )
    }

    /// An array of floats that must be there.
    pub fn f64s(&self, key: &str) -> Result<&[f64]> {
        self.typed(key, "an array of floats", |v| if let Value::F64s(a) = v { Some(&a[..]) } else { None })
    }

    /// `get(key)` where the file has the key: `gguf.opt(Gguf::u64, "llama.vocab_size")?`.
    pub fn opt<'a, T>(&'a self, get: fn(&'a Self, &str) -> Result<T>, key: &str) -> Result<Option<T>> {
        self.meta(key).map(|_| get(self, key)).transpose()
    }
}

struct Parsed {
    meta: BTreeMap<String, Value>,
    spans: Vec<(String, Range<u64>)>,
    tensors: BTreeMap<String, TensorInfo>,
}

fn parse<R: Read>(r: &mut Reader<R>, len: u64) -> Result<Parsed> {
    if r.left() < 4 || r.bytes::<4>()? != *b"GGUF" {
        return Err(Error::data("does not start with `GGUF`").hint("is this a GGUF file?"));
    }
    match r.u32()? {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=3) => {
            return Err(Error::unsupported("a big-endian GGUF file").hint("convert it to little endian"));
        }
        v => return Err(Error::unsupported(format!("GGUF version {v} (2 and 3 are read)"))),
    }
    // The least a tensor info takes is 32 bytes (empty name, one dimension), a pair 13.
    let tensor_count = r.count("tensors", 32)?;
    let pairs = r.count("metadata pairs", 13)?;
    let (mut meta, mut spans) = (BTreeMap::new(), Vec::new());
    for _ in 0..pairs {
        let key = r.string()?;
        let start = r.pos();
        let kind = r.u32()?;
        let value = r.value(kind).map_err(|e| e.at(format!("metadata `{key}`")))?;
        spans.push((key.clone(), start..r.pos()));
        if meta.insert(key.clone(), value).is_some() {
            return Err(Error::data(format!("metadata key `{key}` appears twice")));
        }
    }
    let alignment = match meta.get("general.alignment") {
        None => 32,
        Some(Value::U64(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
        Some(v) => {
            return Err(Error::data(format!("`general.alignment` is {v:?}, not a power of two up to 2^20")));
        }
    };
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let name = r.string()?;
        let info = tensor_info(r, alignment).map_err(|e| e.at(format!("tensor `{name}`")))?;
        if tensors.insert(name.clone(), info).is_some() {
            return Err(Error::data(format!("tensor `{name}` appears twice")));
        }
    }
    place(&mut tensors, r.pos().next_multiple_of(alignment), len)?;
    Ok(Parsed { meta, spans, tensors })
}

fn tensor_info<R: Read>(r: &mut Reader<R>, alignment: u64) -> Result<TensorInfo> {
    let dims = r.u32()?;
    if !(1..=4).contains(&dims) {
        return Err(Error::data(format!("{dims} dimensions (1 to 4 are allowed)")));
    }
    let sizes = (0..dims).map(|_| r.u64()).collect::<Result<Vec<_>>>()?;
    let block = BlockType::from_id(r.u32()?);
    let offset = r.u64()?;
    let row = sizes.first().copied().unwrap_or(0);
    let too_big = || Error::data(format!("shape {sizes:?} is empty or overflows"));
    let count =
        sizes.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|n| (1..=i64::MAX as u64).contains(n));
    let count = count.ok_or_else(too_big)?;
    let nbytes = match block.layout() {
        None => 0,
        Some((values, _)) if row % values != 0 => {
            return Err(Error::data(format!("rows of {row} values, not a multiple of {block}'s {values}")));
        }
        Some((values, bytes)) => (count / values).checked_mul(bytes).ok_or_else(too_big)?,
    };
    if offset % alignment != 0 {
        return Err(Error::data(format!("offset {offset} is not a multiple of the alignment, {alignment}")));
    }
    let shape =
        sizes.iter().rev().map(|&d| i64::try_from(d).map_err(|_| too_big())).collect::<Result<_>>()?;
    Ok(TensorInfo { shape, block, offset, nbytes })
}

/// Turns offsets into positions in the file; every tensor must lie inside it, and none upon another.
fn place(tensors: &mut BTreeMap<String, TensorInfo>, start: u64, len: u64) -> Result<()> {
    let mut spans = Vec::new();
    for (name, t) in tensors.iter_mut() {
        let begin = start.checked_add(t.offset);
        let end = begin.and_then(|b| b.checked_add(t.nbytes));
        let (Some(begin), Some(end)) = (begin, end) else {
            return Err(Error::data(format!("tensor `{name}`: offset {} overflows", t.offset)));
        };
        if end > len {
            let what = format!("tensor `{name}` ends at byte {end}, the file at {len}");
            return Err(Error::data(what).hint("the file is cut short or damaged: fetch it again"));
        }
        t.offset = begin;
        spans.push((begin, end, name));
    }
    spans.sort_unstable();
    match spans.windows(2).find(|w| matches!(w, [a, b] if a.1 > b.0)) {
        Some([a, b]) => Err(Error::data(format!("tensors `{}` and `{}` overlap", a.2, b.2))),
        _ => Ok(()),
    }
}
