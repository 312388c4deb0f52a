//! Flower's objects: every message is a tree of them, each named by its SHA-256.
//!
//! ```text
//! object   = type ' ' child,child,... ' ' length-of-body 0x00 body          id = hex(SHA-256(object))
//!
//! Message          protobuf, without its id; its child is the content
//! └ RecordDict     {"arrays": id, "config": id}
//!   ├ ArrayRecord  {"layer.weight": id, ...}
//!   │ └ Array      {"dtype": "float32", "shape": [2, 3], "stype": "numpy.ndarray", "arraychunk_ids": [0, 1]}
//!   │   └ ArrayChunk    up to 5 MiB of a NumPy file
//!   ├ MetricRecord protobuf
//!   └ ConfigRecord protobuf
//! ```
//!
//! A SuperLink checks the hash and the head; ours are byte for byte what Flower's own classes make.

use std::collections::BTreeSet;
use std::io;

use indexmap::IndexMap;
use lora_core::{Error, Result};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, Serializer};
use sha2::{Digest, Sha256};

use super::messages::ObjectTree;
use crate::hex::hex;

/// Bytes of an array in one chunk.
pub(crate) const CHUNK: usize = 5 * 1024 * 1024;

/// How deep a message is: Message, RecordDict, ArrayRecord, Array, ArrayChunk.
const DEPTH: usize = 5;

/// What is refused before anything is allocated for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one object, its head included.
    pub object: usize,
    /// Bytes of all objects of one message.
    pub message: usize,
    /// Objects of one message.
    pub objects: usize,
    /// Records of a message, arrays of a record, values of a record.
    pub items: usize,
    /// Dimensions of an array.
    pub dims: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { object: 64 << 20, message: 1 << 30, objects: 65_536, items: 16_384, dims: 8 }
    }
}

/// Objects by id, children before their parents.
pub(crate) type Objects = IndexMap<String, Vec<u8>>;

/// An object's id.
pub(crate) fn id(object: &[u8]) -> String {
    hex(&Sha256::digest(object))
}

/// An object of this type, body and children; a child that comes twice is named once.
pub(crate) fn object(kind: &str, children: &[String], body: &[u8]) -> Vec<u8> {
    let mut object = format!("{kind} {} {}\0", children.join(","), body.len()).into_bytes();
    object.extend_from_slice(body);
    object
}

/// An object taken apart.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) kind: &'a str,
    pub(crate) children: Vec<&'a str>,
    pub(crate) body: &'a [u8],
}

/// Takes an object apart. Its hash must be its id, its head well formed, its length true.
pub(crate) fn parse<'a>(expected: &str, object: &'a [u8], limits: &Limits) -> Result<Parts<'a>> {
    let bad = |what: String| Error::data(what).at(format!("object {expected}"));
    if object.len() > limits.object {
        return Err(bad(format!("{} bytes, the limit is {}", object.len(), limits.object)));
    }
    if id(object) != expected {
        return Err(bad("its bytes do not have that hash".into()));
    }
    let divider = object.iter().position(|&b| b == 0).ok_or_else(|| bad("has no head".into()))?;
    let (head, body) = (&object[..divider], &object[divider + 1..]);
    let head = std::str::from_utf8(head).map_err(|_| bad("its head is no text".into()))?;
    let mut parts = head.split(' ');
    let (Some(kind), Some(children), Some(length), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad("its head has not three parts".into()));
    };
    if length != body.len().to_string() {
        return Err(bad(format!("its body has {} bytes, its head says {length}", body.len())));
    }
    let children: Vec<&str> = children.split(',').filter(|_| !children.is_empty()).collect();
    let distinct: BTreeSet<&str> = children.iter().copied().collect();
    if children.iter().any(|c| !is_id(c)) || distinct.len() != children.len() {
        return Err(bad("its children are no distinct ids".into()));
    }
    Ok(Parts { kind, children, body })
}

/// 64 small hexadecimal digits, as Flower writes them.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The distinct ids of a tree, children before their parents, the root last; none of it is trusted yet.
pub(crate) fn ids(tree: &ObjectTree, limits: &Limits) -> Result<Vec<String>> {
    let mut found = IndexMap::new();
    walk(tree, 1, limits, &mut found)?;
    Ok(found.into_keys().collect())
}

fn walk(tree: &ObjectTree, depth: usize, limits: &Limits, found: &mut IndexMap<String, ()>) -> Result<()> {
    if depth > DEPTH {
        return Err(Error::data(format!("a message's tree is deeper than {DEPTH}")));
    }
    if !is_id(&tree.object_id) {
        return Err(Error::data("a message's tree names what is no object id"));
    }
    for child in &tree.children {
        walk(child, depth + 1, limits, found)?;
    }
    found.insert(tree.object_id.clone(), ());
    if found.len() > limits.objects {
        return Err(Error::data(format!("a message has more than {} objects", limits.objects)));
    }
    Ok(())
}

/// JSON as Python's `json.dumps` writes it: `, ` and `: `, and nothing but ASCII.
pub(crate) fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Python);
    value.serialize(&mut serializer).map_err(|e| Error::internal(e.to_string()))?;
    Ok(out)
}

struct Python;

impl Formatter for Python {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        let mut units = [0; 2];
        for c in text.chars() {
            if c.is_ascii() && c != '\x7f' {
                out.write_all(&[c as u8])?;
                continue;
            }
            for unit in c.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + io::Write>(&mut self, out: &mut W, c: CharEscape) -> io::Result<()> {
        serde_json::ser::CompactFormatter.write_char_escape(out, c)
    }
}
