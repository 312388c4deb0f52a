//! The values of metrics and configs, and how protobuf writes them.

use indexmap::IndexMap;
use lora_core::{Error, Result};
use prost::{Message as Proto, Oneof};

/// One metric or setting. A metric has only the six numeric kinds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Python's `float`.
    Float(f64),
    /// Python's `int`, up to `2^63 - 1`.
    Int(i64),
    /// Python's `int` above that.
    Unsigned(u64),
    /// Python's `bool`.
    Bool(bool),
    /// Python's `str`.
    Text(String),
    /// Python's `bytes`.
    Bytes(Vec<u8>),
    /// Many of them.
    Floats(Vec<f64>),
    /// Many of them.
    Ints(Vec<i64>),
    /// Many of them.
    Unsigneds(Vec<u64>),
    /// Many of them.
    Bools(Vec<bool>),
    /// Many of them.
    Texts(Vec<String>),
    /// Many of them.
    ByteStrings(Vec<Vec<u8>>),
}

/// Values by name, in the sender's order.
pub type Values = IndexMap<String, Value>;

impl Value {
    /// May a metric be this?
    pub fn is_numeric(&self) -> bool {
        use Value::{Float, Floats, Int, Ints, Unsigned, Unsigneds};
        matches!(self, Float(_) | Int(_) | Unsigned(_) | Floats(_) | Ints(_) | Unsigneds(_))
    }

    /// The number, of one of the three scalar kinds.
    pub fn number(&self) -> Option<f64> {
        match self {
            Self::Float(v) => Some(*v),
            Self::Int(v) => Some(*v as f64),
            Self::Unsigned(v) => Some(*v as f64),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The bytes, if it is some.
    pub fn bytes(&self) -> Option<&[u8]> {
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

/// The body of a `MetricRecord` or `ConfigRecord`.
pub(crate) fn encode(values: &Values) -> Vec<u8> {
    let item =
        |(key, value): (&String, &Value)| ValueItem { key: key.clone(), value: Some(value.clone().into()) };
    ValueRecord { items: values.iter().map(item).collect() }.encode_to_vec()
}

/// Reads such a body; at most `most` values, none twice.
pub(crate) fn decode(body: &[u8], metrics: bool, most: usize) -> Result<Values> {
    // Two bytes of the wire can become a hundred here: counted first.
    if items(body).is_none_or(|(values, _)| values > most) {
        return Err(Error::data(format!("not a record of at most {most} values")));
    }
    let record = ValueRecord::decode(body).map_err(|e| Error::data(format!("not a record: {e}")))?;
    let mut values = Values::with_capacity(record.items.len());
    for ValueItem { key, value } in record.items {
        let value = value.and_then(|v| v.value).ok_or_else(|| Error::data("has no value").at(&key))?;
        let value = Value::from(value);
        if metrics && !value.is_numeric() {
            return Err(Error::data("a metric is a number, or several").at(key));
        }
        if values.insert(key.clone(), value).is_some() {
            return Err(Error::data("comes twice").at(key));
        }
    }
    Ok(values)
}

/// What the lists of such a body may take here: two bytes of the wire become 24 where they are an empty string.
pub(crate) fn lists(body: &[u8]) -> usize {
    items(body).map_or(0, |(_, lists)| lists.saturating_mul(12))
}

/// How many values a record has, if it is one, and the bytes of its lists.
fn items(mut body: &[u8]) -> Option<(usize, usize)> {
    let (mut count, mut lists) = (0, 0);
    while !body.is_empty() {
        let (_, mut item) = field(&mut body)?;
        count += 1;
        while !item.is_empty() {
            let (tag, mut value) = field(&mut item)?;
            while tag == VALUE && !value.is_empty() {
                let (kind, list) = field(&mut value)?;
                lists += if kind >= FIRST_LIST { list.len() } else { 0 };
            }
        }
    }
    Some((count, lists))
}

/// The next field of a message: its number, and what it holds, if that has a length.
fn field<'a>(body: &mut &'a [u8]) -> Option<(u64, &'a [u8])> {
    let varint = |body: &mut &'a [u8]| prost::encoding::decode_varint(body).ok();
    let key = varint(body)?;
    let length = match key & 7 {
        0 => varint(body).map(|_| 0),
        1 => Some(8),
        2 => usize::try_from(varint(body)?).ok(),
        5 => Some(4),
        _ => None,
    }?;
    let (held, rest) = body.split_at_checked(length)?;
    *body = rest;
    Some((key >> 3, if key & 7 == 2 { held } else { &[] }))
}

/// The field of an item that is its value.
const VALUE: u64 = 2;
/// And of a value the first that is a list.
const FIRST_LIST: u64 = 21;
macro_rules! convert {
    ($($ours:ident $one:ident $(in $list:ident)?,)*) => {
        impl From<Value> for RecordValue {
            fn from(value: Value) -> Self {
                Self { value: Some(match value { $(Value::$ours(v) => OneValue::$one(convert!(to v $($list)?)),)* }) }
            }
        }
        impl From<OneValue> for Value {
            fn from(value: OneValue) -> Self {
                match value { $(OneValue::$one(v) => Value::$ours(convert!(from v $($list)?)),)* }
            }
        }
    };
    (to $v:ident) => { $v };
    (to $v:ident $list:ident) => { $list { vals: $v } };
    (from $v:ident) => { $v };
    (from $v:ident $list:ident) => { $v.vals };
}

convert! {
    Float Double,
    Int Sint64,
    Unsigned Uint64,
    Bool Bool,
    Text String,
    Bytes Bytes,
    Floats DoubleList in DoubleList,
    Ints SintList in SintList,
    Unsigneds UintList in UintList,
    Bools BoolList in BoolList,
    Texts StringList in StringList,
    ByteStrings BytesList in BytesList,
}

// Flower's `MetricRecord` and `ConfigRecord` are two messages, but the first is a part of the second.

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct ValueRecord {
    #[prost(message, repeated, tag = "1")]
    pub(crate) items: Vec<ValueItem>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct ValueItem {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) value: Option<RecordValue>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct RecordValue {
    #[prost(oneof = "OneValue", tags = "1, 2, 3, 4, 5, 6, 21, 22, 23, 24, 25, 26")]
    pub(crate) value: Option<OneValue>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum OneValue {
    #[prost(double, tag = "1")]
    Double(f64),
    #[prost(sint64, tag = "2")]
    Sint64(i64),
    #[prost(uint64, tag = "3")]
    Uint64(u64),
    #[prost(bool, tag = "4")]
    Bool(bool),
    #[prost(string, tag = "5")]
    String(String),
    #[prost(bytes = "vec", tag = "6")]
    Bytes(Vec<u8>),
    #[prost(message, tag = "21")]
    DoubleList(DoubleList),
    #[prost(message, tag = "22")]
    SintList(SintList),
    #[prost(message, tag = "23")]
    UintList(UintList),
    #[prost(message, tag = "24")]
    BoolList(BoolList),
    #[prost(message, tag = "25")]
    StringList(StringList),
    #[prost(message, tag = "26")]
    BytesList(BytesList),
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct DoubleList {
    #[prost(double, repeated, tag = "1")]
    pub(crate) vals: Vec<f64>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct SintList {
    #[prost(sint64, repeated, tag = "1")]
    pub(crate) vals: Vec<i64>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct UintList {
    #[prost(uint64, repeated, tag = "1")]
    pub(crate) vals: Vec<u64>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct BoolList {
    #[prost(bool, repeated, tag = "1")]
    pub(crate) vals: Vec<bool>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct StringList {
    #[prost(string, repeated, tag = "1")]
    pub(crate) vals: Vec<String>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct BytesList {
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) vals: Vec<Vec<u8>>,
}
