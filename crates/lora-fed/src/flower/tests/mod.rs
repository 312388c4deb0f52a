//! The wire against flwr 1.41.0's own bytes, and against bytes that nobody sane would send.

mod app;
mod fake;
mod hostile;
mod large;
mod node;
mod objects;
mod superlink;
mod wire;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::messages::Metadata;
use super::objects::Objects;

const RUN: u64 = 0xF123_4567_89AB_CDEF;
const NODE: u64 = 0xE000_0000_0000_0011;

fn bytes(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

/// A message as flwr made it.
#[derive(Deserialize)]
struct Case {
    root: String,
    announced: String,
    tree: String,
    objects: serde_json::Map<String, serde_json::Value>,
}

impl Case {
    fn objects(&self) -> Objects {
        self.objects.iter().map(|(id, text)| (id.clone(), bytes(text.as_str().unwrap()))).collect()
    }
}

fn golden() -> BTreeMap<String, Case> {
    serde_json::from_str(include_str!("../../../tests/data/flower/objects.json")).unwrap()
}

/// What the script gave its messages.
fn metadata() -> Metadata {
    Metadata {
        run_id: RUN,
        src_node_id: 1,
        dst_node_id: NODE,
        group_id: "3".into(),
        ttl: 3600.0,
        message_type: "train".into(),
        created_at: 1_763_890_200.25,
        src_task_id: Some(7),
        ..Metadata::default()
    }
}

fn reply() -> Metadata {
    Metadata {
        src_node_id: NODE,
        dst_node_id: 1,
        reply_to_message_id: "ab".repeat(32),
        src_task_id: None,
        dst_task_id: Some(7),
        ..metadata()
    }
}
