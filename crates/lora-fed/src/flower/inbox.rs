//! What a node remembers: every instruction it took, and its reply, until the SuperLink has the whole reply.

use std::path::Path;

use lora_core::{Error, Result};
use prost::Message as Proto;

use super::deflate::Parcel;
use super::messages::{Message, Metadata, ObjectTree};
use super::objects::Objects;
use crate::store::Store;

/// Instructions that were answered are remembered this long after they expired.
const REMEMBERED: f64 = 24.0 * 3600.0;

/// An instruction and how far it is.
#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Entry {
    #[prost(message, optional, tag = "1")]
    pub(crate) message: Option<Message>,
    #[prost(message, optional, tag = "2")]
    pub(crate) tree: Option<ObjectTree>,
    /// Its objects are here.
    #[prost(bool, tag = "3")]
    pub(crate) received: bool,
    /// The reply, whose objects are here too.
    #[prost(message, optional, tag = "4")]
    pub(crate) reply: Option<Message>,
    #[prost(message, optional, tag = "5")]
    pub(crate) reply_tree: Option<ObjectTree>,
    /// The session in which its objects were being uploaded. (Tag 6 was how long the reply took.)
    #[prost(string, tag = "7")]
    pub(crate) session: String,
}

impl Entry {
    pub(crate) fn metadata(&self) -> Metadata {
        self.message.as_ref().and_then(|m| m.metadata.clone()).unwrap_or_default()
    }
}

/// Spaces of the store.
const OPEN: &str = "instruction";
const ANSWERED: &str = "answered";
const NODES: &str = "node";
/// Large objects of the instruction that was answered last: the next one may hold them again.
const KNOWN: &str = "known";

/// Bytes of an object that is kept for the next instruction.
const LARGE: usize = 1 << 20;

fn objects_of(id: &str) -> String {
    format!("instruction {id}")
}

fn reply_of(id: &str) -> String {
    format!("reply {id}")
}

#[derive(Debug)]
pub(crate) struct Inbox(Store);

impl Inbox {
    /// Opens the store, and forgets what is long past.
    pub(crate) fn open(path: &Path, now: f64) -> Result<Self> {
        let mut store = Store::open(path)?;
        let mut past = Vec::new();
        for id in store.keys(ANSWERED)? {
            let until = store.get(ANSWERED, &id)?.and_then(|v| v.try_into().ok()).map(f64::from_le_bytes);
            if until.is_none_or(|until| until < now) {
                past.push(id);
            }
        }
        store.write(|changes| past.iter().try_for_each(|id| changes.remove(ANSWERED, id)))?;
        Ok(Self(store))
    }

    /// The id that this key had with this SuperLink; 0 where activation began and its answer did not come.
    pub(crate) fn node(&self, identity: &str) -> Result<Option<u64>> {
        let id = self.0.get(NODES, identity)?;
        Ok(id.and_then(|v| v.try_into().ok()).map(u64::from_le_bytes))
    }

    pub(crate) fn set_node(&mut self, identity: &str, id: Option<u64>) -> Result<()> {
        self.0.write(|changes| match id {
            Some(id) => changes.put(NODES, identity, &id.to_le_bytes()),
            None => changes.remove(NODES, identity),
        })
    }

    /// Instructions that are not done, oldest first.
    pub(crate) fn unfinished(&self) -> Result<Vec<String>> {
        self.0.keys(OPEN)
    }

    pub(crate) fn entry(&self, id: &str) -> Result<Entry> {
        let bytes = self.0.get(OPEN, id)?.ok_or_else(|| Error::internal("an instruction is gone"))?;
        Entry::decode(bytes.as_slice()).map_err(|e| Error::data(format!("a stored instruction: {e}")))
    }

    /// Takes an instruction; `false` if it was taken before.
    pub(crate) fn take(&mut self, id: &str, message: Message, tree: ObjectTree) -> Result<bool> {
        if self.0.get(ANSWERED, id)?.is_some() {
            return Ok(false);
        }
        let entry = Entry { message: Some(message), tree: Some(tree), ..Entry::default() };
        let mut new = false;
        self.0.write(|changes| {
            new = changes.put_new(OPEN, id, &entry.encode_to_vec())?;
            Ok(())
        })?;
        Ok(new)
    }

    /// Its objects have come.
    pub(crate) fn receive(&mut self, id: &str, objects: &Objects) -> Result<()> {
        let entry = Entry { received: true, ..self.entry(id)? };
        self.0.write(|changes| {
            for (object, bytes) in objects {
                changes.put(&objects_of(id), object, bytes)?;
            }
            changes.put(OPEN, id, &entry.encode_to_vec())
        })
    }

    /// An object that came with the instruction before.
    pub(crate) fn known(&self, object: &str) -> Result<Option<Vec<u8>>> {
        self.0.get(KNOWN, object)
    }

    pub(crate) fn objects(&self, id: &str) -> Result<Objects> {
        self.load(&objects_of(id))
    }

    /// The reply is there, and its instruction no longer needed.
    pub(crate) fn reply(&mut self, id: &str, parcel: &Parcel) -> Result<()> {
        let (reply, reply_tree) = (Some(parcel.message.clone()), Some(parcel.tree.clone()));
        let entry = Entry { reply, reply_tree, ..self.entry(id)? };
        let (space, known) = (objects_of(id), self.0.keys(KNOWN)?);
        let here = self.0.keys(&space)?;
        let mut new = Vec::new();
        for object in here.iter().filter(|object| !known.contains(object)) {
            new.extend(self.0.get(&space, object)?.filter(|b| b.len() >= LARGE).map(|bytes| (object, bytes)));
        }
        self.0.write(|changes| {
            for object in known.iter().filter(|object| !here.contains(object)) {
                changes.remove(KNOWN, object)?;
            }
            new.iter().try_for_each(|(object, bytes)| changes.put(KNOWN, object, bytes))?;
            changes.clear(&space)?;
            for (object, bytes) in &parcel.objects {
                changes.put(&reply_of(id), object, bytes)?;
            }
            changes.put(OPEN, id, &entry.encode_to_vec())
        })
    }

    /// Where its upload began.
    pub(crate) fn session(&mut self, id: &str, session: &str) -> Result<()> {
        let entry = Entry { session: session.to_owned(), ..self.entry(id)? };
        self.0.put(OPEN, id, &entry.encode_to_vec())
    }

    pub(crate) fn reply_ids(&self, id: &str) -> Result<Vec<String>> {
        self.0.keys(&reply_of(id))
    }

    pub(crate) fn reply_object(&self, id: &str, object: &str) -> Result<Option<Vec<u8>>> {
        self.0.get(&reply_of(id), object)
    }

    /// It is done, and is not done again.
    pub(crate) fn finish(&mut self, id: &str) -> Result<()> {
        let metadata = self.entry(id)?.metadata();
        let until = metadata.created_at + metadata.ttl.min(1e9) + REMEMBERED;
        self.0.write(|changes| {
            changes.clear(&objects_of(id))?;
            changes.clear(&reply_of(id))?;
            changes.remove(OPEN, id)?;
            changes.put(ANSWERED, id, &until.to_le_bytes())
        })
    }

    fn load(&self, space: &str) -> Result<Objects> {
        let mut objects = Objects::new();
        for key in self.0.keys(space)? {
            if let Some(bytes) = self.0.get(space, &key)? {
                objects.insert(key, bytes);
            }
        }
        Ok(objects)
    }
}
