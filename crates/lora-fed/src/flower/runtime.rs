//! The Runtime API: what a server app says to a SuperLink that runs with `--isolation process`.

use hmac::{Hmac, KeyInit, Mac};
use prost::Message as Proto;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::http::{Answer, CONTROL, Client, Fault, patiently};
use super::messages::{
    AcquireTaskRequest, AcquireTaskResponse, ConfirmMessageReceivedRequest, Empty, GetNodesResponse,
    HeartbeatResponse, Message, Node, NodeInfo, ObjectTree, PullAppMessagesRequest, PullAppMessagesResponse,
    PullObjectRequest, PullObjectResponse, PullTaskInputResponse, PushAppMessagesRequest,
    PushAppMessagesResponse, PushObjectRequest, PushObjectResponse, PushTaskOutputRequest, Task,
};
use super::node::now;
use crate::hex::hex;

/// The SuperLink's own id as a node.
pub(crate) const SUPERLINK: u64 = 1;

const SERVER_APP: &str = "flwr-serverapp";
/// An app's files, and the announcement of a reply.
const LARGE: usize = 64 << 20;

/// A SuperLink as one task sees it.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    client: Client,
    token: Zeroizing<String>,
}

/// Takes a waiting server-app task, if there is one. Never repeated: an answer that is lost has taken a task.
pub(crate) fn acquire(client: &Client, secret: Option<&[u8]>) -> Answer<Option<(Task, Runtime)>> {
    let request = AcquireTaskRequest { supported_task_types: vec![SERVER_APP.into()] };
    let headers = secret.map_or_else(|| Ok(Vec::new()), |secret| signed(secret, &request))?;
    let answer: AcquireTaskResponse = client.call("/v1/runtime/acquire-task", &headers, &request, CONTROL)?;
    match answer.task {
        Some(task) if task.kind == SERVER_APP && !answer.token.is_empty() => {
            Ok(Some((task, Runtime::new(client.clone(), answer.token))))
        }
        Some(task) => Err(Fault::Malformed(format!("a task of type {}", task.kind))),
        None => Ok(None),
    }
}

/// The headers that prove the shared secret of `--superexec-auth-secret-file`.
fn signed(secret: &[u8], request: &impl Proto) -> Answer<Vec<(&'static str, String)>> {
    let broken = || Fault::Malformed("the request cannot be signed".into());
    let mac = |key: &[u8], text: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
        mac.update(text);
        Some(Zeroizing::new(mac.finalize().into_bytes().to_vec()))
    };
    let key = mac(secret, b"superexec-auth-v1").ok_or_else(broken)?;
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(|_| broken())?;
    let (time, nonce) = ((now() as i64).to_string(), hex(&nonce));
    let body = hex(&Sha256::digest(request.encode_to_vec()));
    let text =
        format!("method=/flwr.proto.Runtime/AcquireTask\nts={time}\nnonce={nonce}\nbody_sha256={body}");
    let signature = hex(&mac(&key, text.as_bytes()).ok_or_else(broken)?);
    Ok(vec![
        ("flwr-superexec-ts", time),
        ("flwr-superexec-nonce", nonce),
        ("flwr-superexec-body-sha256", body),
        ("flwr-superexec-signature", signature),
    ])
}

impl Runtime {
    pub(crate) fn new(client: Client, token: String) -> Self {
        Self { client, token: Zeroizing::new(token) }
    }

    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    fn call<T: Proto + Default>(&self, method: &str, request: &impl Proto, most: usize) -> Answer<T> {
        let headers = [("flwr-task-token", self.token.to_string())];
        self.client.call(&format!("/v1/runtime/{method}"), &headers, request, most)
    }

    fn repeat<T: Proto + Default>(&self, method: &str, request: &impl Proto, most: usize) -> Answer<T> {
        patiently(|| self.call(method, request, most))
    }

    /// Starts the task. A second time it is refused (3002).
    pub(crate) fn input(&self) -> Answer<PullTaskInputResponse> {
        self.call("pull-task-input", &Empty {}, LARGE)
    }

    /// The task lives for a minute more; `false`: it was ended.
    pub(crate) fn heartbeat(&self) -> Answer<bool> {
        self.call::<HeartbeatResponse>("send-task-heartbeat", &Empty {}, CONTROL).map(|answer| answer.success)
    }

    pub(crate) fn nodes(&self) -> Answer<Vec<NodeInfo>> {
        self.repeat::<GetNodesResponse>("get-nodes", &Empty {}, CONTROL).map(|answer| answer.nodes)
    }

    /// Announces a message. Was it taken, what objects are wanted, and in which session?
    pub(crate) fn push(&self, message: Message, tree: ObjectTree) -> Answer<(bool, Vec<String>, String)> {
        let request =
            PushAppMessagesRequest { messages_list: vec![message], message_object_trees: vec![tree] };
        let answer: PushAppMessagesResponse = self.repeat("push-messages", &request, CONTROL)?;
        let taken = answer.message_ids.first().is_some_and(|id| !id.is_empty());
        Ok((taken, answer.objects_to_push, answer.session_id))
    }

    /// The reply to this message, if it is there; the SuperLink gives each announcement once. One a call: an announcement that
    /// is too large or too deep spoils the whole answer, and the SuperLink has then forgotten all that was in it.
    pub(crate) fn pull(&self, id: &str) -> Answer<Option<(Message, ObjectTree)>> {
        let request = PullAppMessagesRequest { message_ids: vec![id.to_owned()] };
        let answer: PullAppMessagesResponse = self.repeat("pull-messages", &request, LARGE)?;
        if answer.messages_list.len() != answer.message_object_trees.len() {
            return Err(Fault::Malformed("messages and trees that do not match".into()));
        }
        let mut both = answer.messages_list.into_iter().zip(answer.message_object_trees);
        // What nobody asked for is left lying.
        let answers =
            |message: &Message| message.metadata.as_ref().is_some_and(|m| m.reply_to_message_id == id);
        Ok(both.find(|(message, _)| answers(message)))
    }

    pub(crate) fn pull_object(
        &self,
        run_id: u64,
        object_id: &str,
        most: usize,
    ) -> Answer<PullObjectResponse> {
        let request = PullObjectRequest { node: Some(OURS), run_id, object_id: object_id.to_owned() };
        self.repeat("pull-object", &request, most)
    }

    pub(crate) fn push_object(
        &self,
        run_id: u64,
        session: &str,
        object_id: &str,
        content: Vec<u8>,
    ) -> Answer<bool> {
        let request = PushObjectRequest {
            node: Some(OURS),
            run_id,
            object_id: object_id.to_owned(),
            object_content: content,
            session_id: session.to_owned(),
        };
        self.repeat::<PushObjectResponse>("push-object", &request, CONTROL).map(|answer| answer.stored)
    }

    /// The SuperLink may now drop a reply's objects.
    pub(crate) fn confirm(&self, run_id: u64, message_id: &str) -> Answer<()> {
        let message_object_id = message_id.to_owned();
        let request = ConfirmMessageReceivedRequest { node: Some(OURS), run_id, message_object_id };
        self.repeat::<Empty>("confirm-message-received", &request, CONTROL).map(drop)
    }

    pub(crate) fn finish(&self, ok: bool, details: &str) -> Answer<()> {
        let sub_status = if ok { "completed" } else { "failed" }.to_owned();
        let request = PushTaskOutputRequest { sub_status, details: details.to_owned() };
        self.repeat::<Empty>("push-task-output", &request, CONTROL).map(drop)
    }
}

const OURS: Node = Node { node_id: SUPERLINK };
