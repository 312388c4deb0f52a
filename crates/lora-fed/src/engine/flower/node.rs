//! A worker behind a SuperNode.

use super::letter::{KIND, of_bytes, to_letter};
use super::{is_ours, of_reply, to_task};
use crate::engine::Worker;
use crate::flower::{App, Event, Incoming, Record, Records, Value};
use lora_core::{Error, Result};

/// Answers a SuperLink's instructions by what a worker makes of them.
pub struct Joined<'a> {
    worker: &'a mut dyn Worker,
    /// The worker's name for the only client that there is here.
    client: String,
    told: &'a mut dyn FnMut(&Event),
}

impl<'a> Joined<'a> {
    /// `told` hears what happens.
    pub fn new(
        worker: &'a mut dyn Worker,
        client: impl Into<String>,
        told: &'a mut dyn FnMut(&Event),
    ) -> Self {
        Self { worker, client: client.into(), told }
    }
}

impl std::fmt::Debug for Joined<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Joined({})", self.client)
    }
}

impl App for Joined<'_> {
    fn handle(&mut self, message: &Incoming) -> Result<Records> {
        let run = format!("flower run {}", message.run);
        if message.kind == KIND {
            let letter = to_letter(&message.content, &run)?;
            return of_bytes(&self.worker.answer(&self.client, &letter)?);
        }
        let task = to_task(&message.content, &run)?;
        match &*message.kind {
            "train" => {
                let mut reply = self.worker.train(&self.client, &task)?;
                // Flower's strategies want the same metrics of all nodes, and others do not send ours.
                if !is_ours(&message.content) {
                    reply.metrics.clear();
                }
                of_reply(&reply)
            }
            "evaluate" => {
                let (loss, examples) = self.worker.evaluate(&self.client, &task)?;
                let examples = Value::Int(i64::try_from(examples).unwrap_or(i64::MAX));
                let metrics =
                    [("num-examples".to_owned(), examples), ("loss".to_owned(), Value::Float(loss))];
                Ok([("metrics".to_owned(), Record::Metrics(metrics.into_iter().collect()))]
                    .into_iter()
                    .collect())
            }
            kind => Err(Error::unsupported(format!("this node does not answer `{kind}`"))),
        }
    }

    fn notice(&mut self, event: &Event) {
        (self.told)(event);
    }
}
