//! A SuperLink for server apps, that hands out what tests give it, and what they send and answer.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as Proto;

use super::super::app::{AppOptions, Refusal, Reply, ServerApp};
use super::super::deflate::{Parcel, deflate};
use super::super::messages::*;
use super::super::node::now;
use super::super::objects::{Limits, Objects};
use super::super::records::{Record, Records};
use super::super::values::{Value, Values};
use super::RUN;
use super::fake::{every_id, listen};

const ALIVE: &str = "token";

#[derive(Default)]
pub(super) struct State {
    pub(super) calls: Vec<String>,
    /// Messages that the app sent, and their ids.
    pub(super) sent: Vec<Message>,
    pub(super) ids: Vec<String>,
    pub(super) objects: Objects,
    /// Replies to be given, each once.
    pub(super) replies: Vec<(Message, ObjectTree)>,
    pub(super) asked: Vec<Vec<String>>,
    /// Messages and objects over which it breaks when they are asked for.
    pub(super) breaks_over: Vec<String>,
    /// The same, once each.
    pub(super) breaks_once: Vec<String>,
    /// Calls in which it breaks, once each.
    pub(super) breaks_at: Vec<String>,
    /// Nodes for which it takes no message.
    pub(super) gone: Vec<u64>,
    /// It takes none at all.
    pub(super) run_over: bool,
    pub(super) started: usize,
    pub(super) output: Option<PushTaskOutputRequest>,
}

pub(super) type Shared = Arc<Mutex<State>>;

pub(super) fn superlink() -> (String, Shared) {
    let state = Shared::default();
    let shared = Arc::clone(&state);
    (listen(move |path, body| Some(shared.lock().unwrap().call(path, body))), state)
}

impl State {
    fn call(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let asked = match path {
            "pull-messages" => PullAppMessagesRequest::decode(body).unwrap().message_ids,
            "pull-object" => vec![PullObjectRequest::decode(body).unwrap().object_id],
            _ => vec![],
        };
        if path == "push-messages" && self.run_over {
            return (404, b"{\"code\": 2007, \"detail\": \"no\"}".to_vec());
        }
        if let Some(place) = self.breaks_at.iter().position(|call| call == path) {
            self.breaks_at.remove(place);
            return (500, b"{\"detail\": \"Internal server error.\"}".to_vec());
        }
        let once = self.breaks_once.iter().position(|id| asked.contains(id));
        let breaks = once.map(|place| self.breaks_once.remove(place)).is_some();
        if breaks || asked.iter().any(|id| self.breaks_over.contains(id)) {
            return (500, b"{\"detail\": \"Internal server error.\"}".to_vec());
        }
        (200, self.handle(path, body))
    }

    fn handle(&mut self, path: &str, body: &[u8]) -> Vec<u8> {
        self.calls.push(path.to_owned());
        match path {
            "acquire-task" => {
                let task = Task { task_id: 7, kind: "flwr-serverapp".into(), run_id: RUN };
                AcquireTaskResponse { task: Some(task), token: ALIVE.into() }.encode_to_vec()
            }
            "pull-task-input" => {
                self.started += 1;
                PullTaskInputResponse { task_id: 7, ..Default::default() }.encode_to_vec()
            }
            "send-task-heartbeat" => HeartbeatResponse { success: true }.encode_to_vec(),
            "push-messages" => {
                let request = PushAppMessagesRequest::decode(body).unwrap();
                let to = request.messages_list[0].metadata.as_ref().unwrap().dst_node_id;
                if self.gone.contains(&to) {
                    let message_ids = vec![String::new()];
                    return PushAppMessagesResponse { message_ids, ..Default::default() }.encode_to_vec();
                }
                let id = request.message_object_trees[0].object_id.clone();
                let mut ids = Vec::new();
                every_id(&request.message_object_trees[0], &mut ids);
                ids.retain(|id| !self.objects.contains_key(id));
                self.sent.extend(request.messages_list);
                self.ids.push(id.clone());
                let answer = PushAppMessagesResponse {
                    message_ids: vec![id],
                    objects_to_push: ids,
                    session_id: "s".into(),
                };
                answer.encode_to_vec()
            }
            "push-object" => {
                let request = PushObjectRequest::decode(body).unwrap();
                self.objects.insert(request.object_id, request.object_content);
                PushObjectResponse { stored: true }.encode_to_vec()
            }
            "pull-messages" => {
                let asked = PullAppMessagesRequest::decode(body).unwrap().message_ids;
                // What is asked for; and what answers no message comes to whoever asks first.
                let is_given = |(message, _): &(Message, ObjectTree)| {
                    let to = &message.metadata.as_ref().unwrap().reply_to_message_id;
                    asked.contains(to) || !self.ids.contains(to)
                };
                let (given, later): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.replies).into_iter().partition(is_given);
                self.replies = later;
                self.asked.push(asked);
                let (messages_list, message_object_trees) = given.into_iter().unzip();
                PullAppMessagesResponse { messages_list, message_object_trees }.encode_to_vec()
            }
            "pull-object" => {
                let content = self.objects.get(&PullObjectRequest::decode(body).unwrap().object_id).cloned();
                let (object_found, object_content) = (content.is_some(), content.unwrap_or_default());
                let object_available = !object_content.is_empty();
                PullObjectResponse { object_found, object_available, object_content }.encode_to_vec()
            }
            "push-task-output" => {
                self.output = Some(PushTaskOutputRequest::decode(body).unwrap());
                vec![]
            }
            _ => vec![],
        }
    }
}

pub(super) fn options(address: &str, dir: &Path) -> AppOptions {
    AppOptions {
        address: address.to_owned(),
        roots: None,
        insecure: true,
        secret: None,
        wait: Duration::from_secs(1),
        store: dir.join("app"),
        limits: Limits::default(),
    }
}

pub(super) fn examples(n: i64) -> Records {
    let metrics = Values::from([("num-examples".to_owned(), Value::Int(n))]);
    Records::from([("metrics".to_owned(), Record::Metrics(metrics))])
}

/// A node's answer to the message `to`.
pub(super) fn answer(from: u64, to: &str, n: i64) -> Parcel {
    answer_with(from, to, &examples(n))
}

pub(super) fn answer_with(from: u64, to: &str, content: &Records) -> Parcel {
    let metadata = Metadata {
        run_id: RUN,
        src_node_id: from,
        dst_node_id: 1,
        reply_to_message_id: to.to_owned(),
        ttl: 60.0,
        message_type: "train".into(),
        created_at: now(),
        ..Metadata::default()
    };
    deflate(metadata, Ok(content)).unwrap()
}

pub(super) fn give(state: &Shared, parcel: &Parcel, objects: &Objects) {
    let mut state = state.lock().unwrap();
    state.objects.extend(objects.clone());
    state.replies.push((parcel.message.clone(), parcel.tree.clone()));
}

pub(super) fn send(app: &mut ServerApp, nodes: &[u64]) -> Vec<String> {
    let content = examples(1);
    let to: Vec<(u64, &Records)> = nodes.iter().map(|&n| (n, &content)).collect();
    app.send(&to, "train", "1", Duration::from_secs(60)).unwrap()
}

pub(super) fn refusal(reply: &Reply) -> (i64, &str) {
    let Refusal { code, reason } = reply.content.as_ref().unwrap_err();
    (*code, reason.as_str())
}
