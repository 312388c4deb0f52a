//! The Fleet API: what a node says to a SuperLink.

use std::path::Path;

use prost::Message as Proto;
use time::OffsetDateTime;

use super::auth::NodeKey;
use super::http::{Answer, CONTROL, Client, Fault, patiently};
use super::messages::{
    ActivateNodeRequest, ConfirmMessageReceivedRequest, Empty, HeartbeatResponse, Message, Node, NodeId,
    ObjectTree, PullMessagesRequest, PullMessagesResponse, PullObjectRequest, PullObjectResponse,
    PushMessagesRequest, PushMessagesResponse, PushObjectRequest, PushObjectResponse, RegisterNodeRequest,
    SendNodeHeartbeatRequest,
};

/// The public key is known already: registered earlier.
const KEY_IN_USE: i64 = 23;

/// A SuperLink as one node sees it. All calls but these two are harmless to repeat, and repeated: a pull whose answer
/// is lost loses its message either way, and an object that was stored twice is answered `false` and asked for again.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    client: Client,
    key: NodeKey,
    public: Vec<u8>,
}

impl Fleet {
    pub(crate) fn new(
        address: &str,
        roots: Option<&Path>,
        insecure: bool,
        key: NodeKey,
    ) -> lora_core::Result<Self> {
        let public = key.public_pem()?.into_bytes();
        Ok(Self { client: Client::new(address, roots, insecure)?, key, public })
    }

    fn call<T: Proto + Default>(&self, method: &str, request: &impl Proto, most: usize) -> Answer<T> {
        // Each try is signed anew: the old time may have run out.
        let headers =
            self.key.headers(OffsetDateTime::now_utc()).map_err(|e| Fault::Malformed(e.to_string()))?;
        self.client.call(&format!("/v1/fleet/{method}"), &headers, request, most)
    }

    fn repeat<T: Proto + Default>(&self, method: &str, request: &impl Proto, most: usize) -> Answer<T> {
        patiently(|| self.call(method, request, most))
    }

    /// Makes the key known, for SuperLinks that let nodes do so; twice is once.
    pub(crate) fn register(&self) -> Answer<()> {
        let request = RegisterNodeRequest { public_key: self.public.clone() };
        match self.repeat::<NodeId>("register-node", &request, CONTROL) {
            Err(fault) if fault.code() == KEY_IN_USE => Ok(()),
            answer => answer.map(drop),
        }
    }

    /// Comes online; the node's id.
    pub(crate) fn activate(&self, heartbeat_interval: f64) -> Answer<u64> {
        let request = ActivateNodeRequest { public_key: self.public.clone(), heartbeat_interval };
        // Not repeated: the SuperLink refuses to activate a node that is online.
        self.call::<NodeId>("activate-node", &request, CONTROL).map(|answer| answer.node_id)
    }

    pub(crate) fn deactivate(&self, node_id: u64) -> Answer<()> {
        self.call::<Empty>("deactivate-node", &NodeId { node_id }, CONTROL).map(drop)
    }

    pub(crate) fn unregister(&self, node_id: u64) -> Answer<()> {
        self.call::<Empty>("unregister-node", &NodeId { node_id }, CONTROL).map(drop)
    }

    /// Stays online for twice the interval; also one who was killed and is back before that. `false`: not known.
    pub(crate) fn heartbeat(&self, node_id: u64, heartbeat_interval: f64) -> Answer<bool> {
        let request = SendNodeHeartbeatRequest { node: Some(Node { node_id }), heartbeat_interval };
        self.call::<HeartbeatResponse>("send-node-heartbeat", &request, CONTROL).map(|answer| answer.success)
    }

    /// The next instruction; the SuperLink will not give it again.
    pub(crate) fn pull(&self, node_id: u64) -> Answer<Option<(Message, ObjectTree)>> {
        let request = PullMessagesRequest { node: Some(Node { node_id }) };
        let answer: PullMessagesResponse = self.repeat("pull-messages", &request, CONTROL)?;
        let (mut messages, mut trees) =
            (answer.messages_list.into_iter(), answer.message_object_trees.into_iter());
        match (messages.next(), trees.next(), messages.next()) {
            (None, None, None) => Ok(None),
            (Some(message), Some(tree), None) => Ok(Some((message, tree))),
            _ => Err(Fault::Malformed("messages and trees that do not match".into())),
        }
    }

    /// The SuperLink may now drop the instruction's objects.
    pub(crate) fn confirm(&self, node_id: u64, run_id: u64, message_id: &str) -> Answer<()> {
        let message_object_id = message_id.to_owned();
        let request =
            ConfirmMessageReceivedRequest { node: Some(Node { node_id }), run_id, message_object_id };
        self.repeat::<Empty>("confirm-message-received", &request, CONTROL).map(drop)
    }

    /// Announces a reply; the objects that the SuperLink wants, and the session in which it takes them.
    pub(crate) fn push(
        &self,
        node_id: u64,
        message: Message,
        tree: ObjectTree,
    ) -> Answer<(Vec<String>, String)> {
        let request = PushMessagesRequest {
            node: Some(Node { node_id }),
            messages_list: vec![message],
            message_object_trees: vec![tree],
            // How long the work took is of the rows. The SuperLink wants a number, for its statistics alone.
            clientapp_runtime_list: vec![0.0],
        };
        let answer: PushMessagesResponse = self.repeat("push-messages", &request, CONTROL)?;
        Ok((answer.objects_to_push, answer.session_id))
    }

    pub(crate) fn pull_object(&self, request: &PullObjectRequest, most: usize) -> Answer<PullObjectResponse> {
        self.repeat("pull-object", request, most)
    }

    pub(crate) fn push_object(&self, request: &PushObjectRequest) -> Answer<bool> {
        self.repeat::<PushObjectResponse>("push-object", request, CONTROL).map(|answer| answer.stored)
    }
}
