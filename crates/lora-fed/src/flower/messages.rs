//! The protobuf messages of flwr 1.41.0 that are used, field for field; the names are Flower's.
//!
//! Written by hand, so that no compiler of `.proto` files is needed. A field that is not read is left out:
//! protobuf skips what it does not know.

use std::collections::BTreeMap;

use prost::{Message as Proto, Oneof};

// What travels.

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Metadata {
    #[prost(uint64, tag = "1")]
    pub(crate) run_id: u64,
    #[prost(string, tag = "2")]
    pub(crate) message_id: String,
    #[prost(uint64, tag = "3")]
    pub(crate) src_node_id: u64,
    #[prost(uint64, tag = "4")]
    pub(crate) dst_node_id: u64,
    #[prost(string, tag = "5")]
    pub(crate) reply_to_message_id: String,
    #[prost(string, tag = "6")]
    pub(crate) group_id: String,
    #[prost(double, tag = "7")]
    pub(crate) ttl: f64,
    #[prost(string, tag = "8")]
    pub(crate) message_type: String,
    #[prost(double, tag = "9")]
    pub(crate) created_at: f64,
    #[prost(uint64, optional, tag = "10")]
    pub(crate) src_task_id: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    pub(crate) dst_task_id: Option<u64>,
}

/// Its content travels as objects; here it must be present, though empty.
#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Message {
    #[prost(message, optional, tag = "1")]
    pub(crate) metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    pub(crate) content: Option<Empty>,
    #[prost(message, optional, tag = "3")]
    pub(crate) error: Option<Error>,
}

#[derive(Clone, Copy, PartialEq, Proto)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Error {
    #[prost(sint64, tag = "1")]
    pub(crate) code: i64,
    #[prost(string, tag = "2")]
    pub(crate) reason: String,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct ObjectTree {
    #[prost(string, tag = "1")]
    pub(crate) object_id: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) children: Vec<ObjectTree>,
}

// Both APIs: objects, and that a message was received.

#[derive(Clone, Copy, PartialEq, Proto)]
pub(crate) struct Node {
    #[prost(uint64, tag = "1")]
    pub(crate) node_id: u64,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PushObjectRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(uint64, tag = "2")]
    pub(crate) run_id: u64,
    #[prost(string, tag = "3")]
    pub(crate) object_id: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) object_content: Vec<u8>,
    #[prost(string, tag = "5")]
    pub(crate) session_id: String,
}

#[derive(Clone, Copy, PartialEq, Proto)]
pub(crate) struct PushObjectResponse {
    #[prost(bool, tag = "1")]
    pub(crate) stored: bool,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullObjectRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(uint64, tag = "2")]
    pub(crate) run_id: u64,
    #[prost(string, tag = "3")]
    pub(crate) object_id: String,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullObjectResponse {
    #[prost(bool, tag = "1")]
    pub(crate) object_found: bool,
    #[prost(bool, tag = "2")]
    pub(crate) object_available: bool,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) object_content: Vec<u8>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct ConfirmMessageReceivedRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(uint64, tag = "2")]
    pub(crate) run_id: u64,
    #[prost(string, tag = "3")]
    pub(crate) message_object_id: String,
}

// Fleet API: what a node says.

/// `RegisterNodeFleetRequest`.
#[derive(Clone, PartialEq, Proto)]
pub(crate) struct RegisterNodeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) public_key: Vec<u8>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct ActivateNodeRequest {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) public_key: Vec<u8>,
    #[prost(double, tag = "2")]
    pub(crate) heartbeat_interval: f64,
}

/// Of the two, and all that is said on deactivating and unregistering.
#[derive(Clone, Copy, PartialEq, Proto)]
pub(crate) struct NodeId {
    #[prost(uint64, tag = "1")]
    pub(crate) node_id: u64,
}

#[derive(Clone, Copy, PartialEq, Proto)]
pub(crate) struct SendNodeHeartbeatRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(double, tag = "2")]
    pub(crate) heartbeat_interval: f64,
}

/// Of a node's heartbeat and of a task's.
#[derive(Clone, Copy, PartialEq, Proto)]
pub(crate) struct HeartbeatResponse {
    #[prost(bool, tag = "1")]
    pub(crate) success: bool,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullMessagesRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullMessagesResponse {
    #[prost(message, repeated, tag = "2")]
    pub(crate) messages_list: Vec<Message>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) message_object_trees: Vec<ObjectTree>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PushMessagesRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) node: Option<Node>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) messages_list: Vec<Message>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) message_object_trees: Vec<ObjectTree>,
    #[prost(double, repeated, tag = "4")]
    pub(crate) clientapp_runtime_list: Vec<f64>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PushMessagesResponse {
    #[prost(string, repeated, tag = "3")]
    pub(crate) objects_to_push: Vec<String>,
    #[prost(string, tag = "4")]
    pub(crate) session_id: String,
}

// Runtime API: what a server app says.

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct AcquireTaskRequest {
    #[prost(string, repeated, tag = "1")]
    pub(crate) supported_task_types: Vec<String>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct AcquireTaskResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) task: Option<Task>,
    #[prost(string, tag = "2")]
    pub(crate) token: String,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Task {
    #[prost(uint64, tag = "1")]
    pub(crate) task_id: u64,
    #[prost(string, tag = "2")]
    pub(crate) kind: String,
    #[prost(uint64, tag = "3")]
    pub(crate) run_id: u64,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullTaskInputResponse {
    #[prost(message, optional, tag = "2")]
    pub(crate) run: Option<Run>,
    #[prost(message, optional, tag = "3")]
    pub(crate) fab: Option<Fab>,
    #[prost(uint64, tag = "5")]
    pub(crate) task_id: u64,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Run {
    #[prost(uint64, tag = "1")]
    pub(crate) run_id: u64,
    #[prost(btree_map = "string, message", tag = "4")]
    pub(crate) override_config: BTreeMap<String, Scalar>,
    #[prost(string, tag = "5")]
    pub(crate) fab_hash: String,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Fab {
    #[prost(string, tag = "1")]
    pub(crate) hash_str: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) content: Vec<u8>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct Scalar {
    #[prost(oneof = "OneScalar", tags = "1, 6, 8, 13, 14, 15")]
    pub(crate) scalar: Option<OneScalar>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum OneScalar {
    #[prost(double, tag = "1")]
    Double(f64),
    #[prost(uint64, tag = "6")]
    Uint64(u64),
    #[prost(sint64, tag = "8")]
    Sint64(i64),
    #[prost(bool, tag = "13")]
    Bool(bool),
    #[prost(string, tag = "14")]
    String(String),
    #[prost(bytes = "vec", tag = "15")]
    Bytes(Vec<u8>),
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PushTaskOutputRequest {
    #[prost(string, tag = "2")]
    pub(crate) sub_status: String,
    #[prost(string, tag = "3")]
    pub(crate) details: String,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct GetNodesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) nodes: Vec<NodeInfo>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct NodeInfo {
    #[prost(uint64, tag = "1")]
    pub(crate) node_id: u64,
    #[prost(bytes = "vec", tag = "11")]
    pub(crate) public_key: Vec<u8>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PushAppMessagesRequest {
    #[prost(message, repeated, tag = "2")]
    pub(crate) messages_list: Vec<Message>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) message_object_trees: Vec<ObjectTree>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PushAppMessagesResponse {
    #[prost(string, repeated, tag = "1")]
    pub(crate) message_ids: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) objects_to_push: Vec<String>,
    #[prost(string, tag = "3")]
    pub(crate) session_id: String,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullAppMessagesRequest {
    #[prost(string, repeated, tag = "2")]
    pub(crate) message_ids: Vec<String>,
}

#[derive(Clone, PartialEq, Proto)]
pub(crate) struct PullAppMessagesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) messages_list: Vec<Message>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) message_object_trees: Vec<ObjectTree>,
}
