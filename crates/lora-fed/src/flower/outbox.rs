//! What a server app remembers: its task, what it sent to whom, and which replies are there.

use std::path::Path;

use lora_core::{Error, Result};
use prost::Message as Proto;

use super::messages::{Message, ObjectTree};
use crate::store::Store;

/// The task; its token is a secret.
#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Ticket {
    #[prost(string, tag = "1")]
    pub(crate) address: String,
    #[prost(string, tag = "2")]
    pub(crate) token: String,
    #[prost(uint64, tag = "3")]
    pub(crate) run: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) task: u64,
    /// The settings, once the task was started.
    #[prost(bytes = "vec", optional, tag = "5")]
    pub(crate) config: Option<Vec<u8>>,
}

/// A message as it was sent.
#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Sent {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(double, tag = "2")]
    pub(crate) created: f64,
    #[prost(double, tag = "3")]
    pub(crate) ttl: f64,
}

/// A reply that the SuperLink announced; its objects are still there.
#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Arrived {
    #[prost(message, optional, tag = "1")]
    pub(crate) message: Option<Message>,
    #[prost(message, optional, tag = "2")]
    pub(crate) tree: Option<ObjectTree>,
}

const TASK: &str = "task";
const SENT: &str = "sent";
const TO: &str = "to";
const ARRIVED: &str = "arrived";
const SETTLED: &str = "settled";

#[derive(Debug)]
pub(crate) struct Outbox(Store);

impl Outbox {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self(Store::open(path)?))
    }

    pub(crate) fn ticket(&self) -> Result<Option<Ticket>> {
        self.read(TASK, "ticket")
    }

    pub(crate) fn set_ticket(&mut self, ticket: &Ticket) -> Result<()> {
        self.0.put(TASK, "ticket", &ticket.encode_to_vec())
    }

    /// Forgets the task and all that belongs to it.
    pub(crate) fn clear(&mut self) -> Result<()> {
        self.0.write(|changes| {
            [TASK, SENT, TO, ARRIVED, SETTLED].iter().try_for_each(|space| changes.clear(space))
        })
    }

    /// What was sent to `node` of this kind in this group.
    pub(crate) fn sent(&self, node: u64, kind: &str, group: &str) -> Result<Option<Sent>> {
        self.read(SENT, &place(node, kind, group))
    }

    pub(crate) fn set_sent(&mut self, node: u64, kind: &str, group: &str, sent: &Sent) -> Result<()> {
        self.0.write(|changes| {
            changes.put(TO, &sent.id, &node.to_le_bytes())?;
            changes.put(SENT, &place(node, kind, group), &sent.encode_to_vec())
        })
    }

    /// To which node a message went.
    pub(crate) fn to(&self, id: &str) -> Result<Option<u64>> {
        Ok(self.0.get(TO, id)?.and_then(|v| v.try_into().ok()).map(u64::from_le_bytes))
    }

    /// The reply to this message.
    pub(crate) fn arrive(&mut self, id: &str, reply: &Arrived) -> Result<()> {
        self.0.put(ARRIVED, id, &reply.encode_to_vec())
    }

    pub(crate) fn arrived(&self, id: &str) -> Result<Option<Arrived>> {
        self.read(ARRIVED, id)
    }

    pub(crate) fn is_settled(&self, id: &str) -> Result<bool> {
        Ok(self.0.get(SETTLED, id)?.is_some())
    }

    pub(crate) fn settle(&mut self, id: &str) -> Result<()> {
        self.0.write(|changes| {
            changes.remove(ARRIVED, id)?;
            changes.put(SETTLED, id, &[])
        })
    }

    fn read<T: Proto + Default>(&self, space: &str, key: &str) -> Result<Option<T>> {
        let read = |bytes: Vec<u8>| {
            T::decode(bytes.as_slice()).map_err(|e| Error::data(format!("what is stored as `{space}`: {e}")))
        };
        self.0.get(space, key)?.map(read).transpose()
    }
}

fn place(node: u64, kind: &str, group: &str) -> String {
    format!("{node} {kind} {group}")
}
