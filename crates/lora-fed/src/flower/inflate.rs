//! A message made out of objects, none of which is trusted.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;

use indexmap::IndexMap;
use lora_core::{Error, Result};
use prost::Message as _;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::messages::{Error as Reported, Message, Metadata};
use super::objects::{self, Limits, Objects, Parts};
use super::records::{Arrays, Dtype, NdArray, Record, Records};
use super::{npy, values};

/// Bytes that describe an array: room for chunks of a terabyte.
const ABOUT: usize = 1 << 20;

/// What came: the metadata as its sender wrote it, and the content or the sender's error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Inflated {
    pub(crate) metadata: Metadata,
    pub(crate) content: std::result::Result<Records, Reported>,
}

/// Reads the message whose object is `root`. Every object is checked against its id, every child against its parent.
pub(crate) fn inflate(root: &str, objects: &Objects, limits: &Limits) -> Result<Inflated> {
    Reader { objects, limits, read: Cell::new(0) }.message(root)
}

struct Reader<'a> {
    objects: &'a Objects,
    limits: &'a Limits,
    /// Bytes read so far. One object may stand in many places: each costs again.
    read: Cell<usize>,
}

impl<'a> Reader<'a> {
    fn open(&self, id: &str, kinds: &[&str]) -> Result<Parts<'a>> {
        let object =
            self.objects.get(id).ok_or_else(|| Error::data("is missing").at(format!("object {id}")))?;
        self.charge(object.len())?;
        let parts = objects::parse(id, object, self.limits)?;
        if !kinds.contains(&parts.kind) {
            let what = format!("is a {}, {} is wanted", shown(parts.kind), kinds.join(" or "));
            return Err(Error::data(what).at(format!("object {id}")));
        }
        if parts.children.len() > self.limits.items {
            let what = format!("{} children, the limit is {}", parts.children.len(), self.limits.items);
            return Err(Error::data(what).at(format!("object {id}")));
        }
        Ok(parts)
    }

    fn charge(&self, bytes: usize) -> Result<()> {
        self.read.set(self.read.get().saturating_add(bytes));
        if self.read.get() > self.limits.message {
            return Err(Error::data(format!("a message of more than {} bytes", self.limits.message)));
        }
        Ok(())
    }

    fn message(&self, id: &str) -> Result<Inflated> {
        let parts = self.open(id, &["Message"])?;
        let message =
            Message::decode(parts.body).map_err(|e| Error::data(e.to_string()).at("the message"))?;
        let metadata = message.metadata.ok_or_else(|| Error::data("the message has no metadata"))?;
        let content = match (message.error, parts.children.as_slice()) {
            (Some(error), []) => Err(error),
            (None, [content]) => Ok(self.records(content)?),
            _ => return Err(Error::data("a message has either content or an error")),
        };
        Ok(Inflated { metadata, content })
    }

    fn records(&self, id: &str) -> Result<Records> {
        let mut records = Records::new();
        for (name, child) in self.names(&self.open(id, &["RecordDict"])?)? {
            let record = self.record(&child).map_err(|e| e.at(&name))?;
            records.insert(name, record);
        }
        Ok(records)
    }

    fn record(&self, id: &str) -> Result<Record> {
        let parts = self.open(id, &["ArrayRecord", "MetricRecord", "ConfigRecord"])?;
        if parts.kind == "ArrayRecord" {
            let mut arrays = Arrays::new();
            for (name, child) in self.names(&parts)? {
                let array = self.array(&child).map_err(|e| e.at(&name))?;
                arrays.insert(name, array);
            }
            return Ok(Record::Arrays(arrays));
        }
        if !parts.children.is_empty() {
            return Err(Error::data(format!("a {} has no children", parts.kind)));
        }
        self.charge(values::lists(parts.body))?;
        let metrics = parts.kind == "MetricRecord";
        let values = values::decode(parts.body, metrics, self.limits.items)?;
        Ok(if metrics { Record::Metrics(values) } else { Record::Config(values) })
    }

    fn array(&self, id: &str) -> Result<NdArray> {
        let parts = self.open(id, &["Array"])?;
        if parts.body.len() > ABOUT {
            return Err(Error::data(format!("{} bytes to describe an array", parts.body.len())));
        }
        let about: About = json(parts.body)?;
        if about.stype != "numpy.ndarray" {
            return Err(Error::unsupported(format!("arrays of type {}", shown(&about.stype))));
        }
        let dtype = Dtype::parse(&about.dtype).filter(|d| d.name() == about.dtype);
        let dtype = dtype.ok_or_else(|| {
            Error::unsupported(format!("numbers of type {}", shown(&about.dtype)))
                .hint("send float32, float64 or int64")
        })?;
        let chunks: Option<Vec<&str>> =
            about.arraychunk_ids.iter().map(|&i| parts.children.get(i).copied()).collect();
        let chunks = chunks.ok_or_else(|| Error::data("names a chunk that it has not"))?;
        if about.arraychunk_ids.iter().collect::<BTreeSet<_>>().len() != parts.children.len() {
            return Err(Error::data("has chunks that it does not use"));
        }
        let chunks: Vec<&[u8]> = chunks.into_iter().map(|chunk| self.chunk(chunk)).collect::<Result<_>>()?;
        let array = npy::read(&chunks.concat(), self.limits.dims)?;
        if array.dtype() != dtype || array.shape() != about.shape {
            return Err(Error::data("the array is not of the dtype and shape announced"));
        }
        Ok(array)
    }

    fn chunk(&self, id: &str) -> Result<&'a [u8]> {
        let parts = self.open(id, &["ArrayChunk"])?;
        if parts.children.is_empty() { Ok(parts.body) } else { Err(Error::data("a chunk has no children")) }
    }

    /// A body of names and ids: together the ids are just the children.
    fn names(&self, parts: &Parts<'_>) -> Result<IndexMap<String, String>> {
        let Names(names) = json(parts.body)?;
        if names.len() > self.limits.items {
            return Err(Error::data(format!("{} names, the limit is {}", names.len(), self.limits.items)));
        }
        let used: BTreeSet<&str> = names.values().map(String::as_str).collect();
        if used != parts.children.iter().copied().collect() {
            return Err(Error::data(format!("a {} does not name just its children", parts.kind)));
        }
        Ok(names)
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|e| Error::data(format!("its body is not as it should be: {e}")))
}

/// A stranger's word, short enough to print.
fn shown(text: &str) -> String {
    text.chars().take(40).collect::<String>().escape_debug().to_string()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    dtype: String,
    shape: Vec<usize>,
    stype: String,
    arraychunk_ids: Vec<usize>,
}

/// A JSON object of strings in which no name comes twice.
struct Names(IndexMap<String, String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("names and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Names, A::Error> {
                let mut names = IndexMap::new();
                while let Some((name, id)) = map.next_entry::<String, String>()? {
                    if names.insert(name, id).is_some() {
                        return Err(A::Error::custom("a name comes twice"));
                    }
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}
