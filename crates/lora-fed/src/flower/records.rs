//! What a message carries, in plain Rust.

use indexmap::IndexMap;
use lora_core::{Error, Result};

use super::values::{Value, Values};

/// A message's content: records by name, in the sender's order (Flower's `RecordDict`).
pub type Records = IndexMap<String, Record>;

/// Arrays by name, in the sender's order (Flower's `ArrayRecord`).
pub type Arrays = IndexMap<String, NdArray>;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// `ArrayRecord`: weights, updates.
    Arrays(Arrays),
    /// `MetricRecord`: numbers only, `num-examples` among them.
    Metrics(Values),
    /// `ConfigRecord`: settings, and bytes of one's own.
    Config(Values),
}

/// What an array's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// NumPy's `float32`.
    F32,
    /// NumPy's `float64`.
    F64,
    /// NumPy's `int64`.
    I64,
}

impl Dtype {
    const ALL: [(Self, &'static str, &'static str); 3] =
        [(Self::F32, "float32", "<f4"), (Self::F64, "float64", "<f8"), (Self::I64, "int64", "<i8")];

    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    /// NumPy's name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|d| d.0 == self).map_or("", |d| d.1)
    }

    /// NumPy's name in a file's header: little-endian.
    pub(crate) fn descr(self) -> &'static str {
        Self::ALL.iter().find(|d| d.0 == self).map_or("", |d| d.2)
    }

    /// By either name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|d| d.1 == name || d.2 == name).map(|d| d.0)
    }
}

/// An array: its numbers little-endian, the last dimension fastest.
#[derive(Debug, Clone, PartialEq)]
pub struct NdArray {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl NdArray {
    /// # Errors
    /// If the bytes are not as many as the shape says.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Vec<u8>) -> Result<Self> {
        let wanted = shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
        if wanted != Some(bytes.len()) {
            let what = format!("{} bytes cannot be {} of shape {shape:?}", bytes.len(), dtype.name());
            return Err(Error::data(what));
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// Of f32.
    pub fn of_f32(shape: Vec<usize>, numbers: &[f32]) -> Result<Self> {
        Self::new(Dtype::F32, shape, numbers.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// What its numbers are.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Its dimensions; none for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its numbers, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Its numbers as f64.
    pub fn to_f64(&self) -> Vec<f64> {
        let wide = |b: &[u8]| b.try_into().unwrap_or_default();
        match self.dtype {
            Dtype::F32 => {
                let one = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap_or_default()));
                self.bytes.chunks_exact(4).map(one).collect()
            }
            Dtype::F64 => self.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(wide(b))).collect(),
            Dtype::I64 => self.bytes.chunks_exact(8).map(|b| i64::from_le_bytes(wide(b)) as f64).collect(),
        }
    }
}

/// The only array record of `records`; Flower's strategies send and want exactly one.
///
/// # Errors
/// If there is none, or several.
pub fn only_arrays(records: &Records) -> Result<&Arrays> {
    let mut found = records.values().filter_map(|r| if let Record::Arrays(a) = r { Some(a) } else { None });
    match (found.next(), found.next()) {
        (Some(arrays), None) => Ok(arrays),
        (None, _) => Err(Error::data("the message has no array record")),
        _ => Err(Error::data("the message has several array records")),
    }
}

/// A metric of any of `records`.
pub fn metric(records: &Records, name: &str) -> Option<f64> {
    let of = |r: &Record| if let Record::Metrics(m) = r { m.get(name).and_then(Value::number) } else { None };
    records.values().find_map(of)
}
