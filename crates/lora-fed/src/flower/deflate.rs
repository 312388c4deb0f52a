//! A message made into objects.

use lora_core::Result;
use prost::Message as _;
use serde_json::json;

use super::messages::{Empty, Error, Message, Metadata, ObjectTree};
use super::objects::{self, CHUNK, Objects};
use super::records::{Arrays, NdArray, Record, Records};
use super::{npy, values};

/// A message ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Parcel {
    /// What is announced: no content, but its place.
    pub(crate) message: Message,
    pub(crate) tree: ObjectTree,
    /// Every object of the tree, children before their parents.
    pub(crate) objects: Objects,
}

/// Records made ready to be sent: the content of a message, or a part of it that stands in many.
#[derive(Debug)]
pub(crate) struct Content {
    names: Vec<String>,
    trees: Vec<ObjectTree>,
    objects: Objects,
    #[cfg(test)]
    _held: held::Held,
}

impl Content {
    /// Makes them ready: a copy of all their numbers.
    pub(crate) fn of(records: &Records) -> Result<Self> {
        let mut objects = Objects::new();
        let trees = records.values().map(|record| record_tree(record, &mut objects));
        let trees = trees.collect::<Result<_>>()?;
        let names = records.keys().cloned().collect();
        #[cfg(test)]
        let _held = held::Held::of(&objects);
        Ok(Self {
            names,
            trees,
            objects,
            #[cfg(test)]
            _held,
        })
    }

    /// One of its objects.
    pub(crate) fn object(&self, id: &str) -> Option<&Vec<u8>> {
        self.objects.get(id)
    }

    /// Parts as one content, whose own object goes to `objects`.
    pub(crate) fn join(parts: &[&Self], objects: &mut Objects) -> Result<ObjectTree> {
        let trees: Vec<ObjectTree> = parts.iter().flat_map(|part| part.trees.iter().cloned()).collect();
        let body = objects::to_json(&names(parts.iter().flat_map(|part| &part.names), &trees))?;
        Ok(put("RecordDict", trees, &body, objects))
    }
}

/// Makes `content`, or an error, a message; its id is found here.
pub(crate) fn deflate(metadata: Metadata, content: std::result::Result<&Records, Error>) -> Result<Parcel> {
    let mut objects = Objects::new();
    let content = content.map(|records| records_tree(records, &mut objects));
    let content = content.map_or_else(|error| Ok(Err(error)), |tree| tree.map(Ok))?;
    let (message, tree) = envelope(metadata, content, &mut objects);
    Ok(Parcel { message, tree, objects })
}

/// A message around content that is among `objects` already.
pub(crate) fn envelope(
    mut metadata: Metadata,
    content: std::result::Result<ObjectTree, Error>,
    objects: &mut Objects,
) -> (Message, ObjectTree) {
    metadata.message_id.clear();
    let (error, children) = match content {
        Ok(tree) => (None, vec![tree]),
        Err(error) => (Some(error), Vec::new()),
    };
    let bare = Message { metadata: Some(metadata.clone()), content: None, error };
    let tree = put("Message", children, &bare.encode_to_vec(), objects);
    metadata.message_id.clone_from(&tree.object_id);
    let content = if bare.error.is_none() { Some(Empty {}) } else { None };
    (Message { metadata: Some(metadata), content, ..bare }, tree)
}

/// The objects of `records`.
fn records_tree(records: &Records, objects: &mut Objects) -> Result<ObjectTree> {
    let trees: Vec<ObjectTree> =
        records.values().map(|record| record_tree(record, objects)).collect::<Result<_>>()?;
    let body = objects::to_json(&names(records.keys(), &trees))?;
    Ok(put("RecordDict", trees, &body, objects))
}

fn record_tree(record: &Record, objects: &mut Objects) -> Result<ObjectTree> {
    Ok(match record {
        Record::Arrays(arrays) => arrays_tree(arrays, objects)?,
        Record::Metrics(metrics) => put("MetricRecord", Vec::new(), &values::encode(metrics), objects),
        Record::Config(config) => put("ConfigRecord", Vec::new(), &values::encode(config), objects),
    })
}

fn arrays_tree(arrays: &Arrays, objects: &mut Objects) -> Result<ObjectTree> {
    let trees: Vec<ObjectTree> =
        arrays.values().map(|array| array_tree(array, objects)).collect::<Result<_>>()?;
    let body = objects::to_json(&names(arrays.keys(), &trees))?;
    Ok(put("ArrayRecord", trees, &body, objects))
}

fn array_tree(array: &NdArray, objects: &mut Objects) -> Result<ObjectTree> {
    let file = npy::write(array);
    let mut chunks = Vec::<ObjectTree>::new();
    let mut order = Vec::new();
    for bytes in file.chunks(CHUNK) {
        let chunk = put("ArrayChunk", Vec::new(), bytes, objects);
        let place = chunks.iter().position(|c| *c == chunk).unwrap_or(chunks.len());
        if place == chunks.len() {
            chunks.push(chunk);
        }
        order.push(place);
    }
    let body = objects::to_json(&json!({
        "dtype": array.dtype().name(), "shape": array.shape(), "stype": "numpy.ndarray", "arraychunk_ids": order,
    }))?;
    Ok(put("Array", chunks, &body, objects))
}

/// Which object each name means.
fn names<'a>(
    keys: impl Iterator<Item = &'a String>,
    trees: &[ObjectTree],
) -> serde_json::Map<String, serde_json::Value> {
    keys.cloned().zip(trees.iter().map(|tree| tree.object_id.clone().into())).collect()
}

/// Files an object; equal children are one.
fn put(kind: &str, children: Vec<ObjectTree>, body: &[u8], objects: &mut Objects) -> ObjectTree {
    let mut distinct = Vec::<ObjectTree>::with_capacity(children.len());
    let mut seen = std::collections::BTreeSet::new();
    for child in children {
        if seen.insert(child.object_id.clone()) {
            distinct.push(child);
        }
    }
    let ids: Vec<String> = distinct.iter().map(|c| c.object_id.clone()).collect();
    let object = objects::object(kind, &ids, body);
    let object_id = objects::id(&object);
    objects.insert(object_id.clone(), object);
    ObjectTree { object_id, children: distinct }
}

/// Bytes of the contents of a test's thread.
#[cfg(test)]
pub(super) mod held {
    use std::cell::Cell;

    use super::Objects;

    thread_local! {
        static NOW: Cell<usize> = const { Cell::new(0) };
        static MOST: Cell<usize> = const { Cell::new(0) };
        static MADE: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts while it lives.
    #[derive(Debug)]
    pub(super) struct Held(usize);

    impl Held {
        pub(super) fn of(objects: &Objects) -> Self {
            let bytes: usize = objects.values().map(Vec::len).sum();
            NOW.set(NOW.get() + bytes);
            MOST.set(MOST.get().max(NOW.get()));
            MADE.set(MADE.get() + bytes);
            Self(bytes)
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            NOW.set(NOW.get() - self.0);
        }
    }

    /// How many there were at most at a time, and how many were made, since it was asked last.
    pub(in crate::flower) fn take() -> (usize, usize) {
        (MOST.replace(NOW.get()), MADE.replace(0))
    }
}
