//! A server app against nodes that lie, uploads that stop, and its own death.

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
use crate::engine::Server;
use crate::engine::{Engine, Letter};
use crate::hex::hex;
use sha2::{Digest, Sha256};

const ALIVE: &str = "token";

#[derive(Default)]
struct State {
    calls: Vec<String>,
    /// Messages that the app sent, and their ids.
    sent: Vec<Message>,
    ids: Vec<String>,
    objects: Objects,
    /// Replies to be given, each once.
    replies: Vec<(Message, ObjectTree)>,
    asked: Vec<Vec<String>>,
    started: usize,
    output: Option<PushTaskOutputRequest>,
}

type Shared = Arc<Mutex<State>>;

fn superlink() -> (String, Shared) {
    let state = Shared::default();
    let shared = Arc::clone(&state);
    (listen(move |path, body| Some((200, shared.lock().unwrap().handle(path, body)))), state)
}

impl State {
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
                self.asked.push(asked);
                let (messages_list, message_object_trees) = self.replies.drain(..).unzip();
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

fn options(address: &str, dir: &Path) -> AppOptions {
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

fn examples(n: i64) -> Records {
    let metrics = Values::from([("num-examples".to_owned(), Value::Int(n))]);
    Records::from([("metrics".to_owned(), Record::Metrics(metrics))])
}

/// A node's answer to the message `to`.
fn answer(from: u64, to: &str, n: i64) -> Parcel {
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
    deflate(metadata, Ok(&examples(n))).unwrap()
}

fn give(state: &Shared, parcel: &Parcel, objects: &Objects) {
    let mut state = state.lock().unwrap();
    state.objects.extend(objects.clone());
    state.replies.push((parcel.message.clone(), parcel.tree.clone()));
}

fn send(app: &mut ServerApp, nodes: &[u64]) -> Vec<String> {
    let content = examples(1);
    let to: Vec<(u64, &Records)> = nodes.iter().map(|&n| (n, &content)).collect();
    app.send(&to, "train", "1", Duration::from_secs(60)).unwrap()
}

fn refusal(reply: &Reply) -> (i64, &str) {
    let Refusal { code, reason } = reply.content.as_ref().unwrap_err();
    (*code, reason.as_str())
}

#[test]
fn a_reply_is_given_until_it_is_confirmed_and_nothing_is_sent_twice() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let options = options(&address, dir.path());
    let mut app = ServerApp::acquire(&options).unwrap();
    let ids = send(&mut app, &[40, 41]);
    assert_eq!(app.receive(&ids).unwrap(), []);
    let reply = answer(40, &ids[0], 5);
    give(&state, &reply, &reply.objects);
    assert_eq!(app.receive(&ids).unwrap()[0].content, Ok(examples(5)));

    // Killed, and back: the same task, the same messages, the reply again.
    drop(app);
    let mut app = ServerApp::acquire(&options).unwrap();
    assert_eq!(send(&mut app, &[40, 41]), ids);
    let again = app.receive(&ids).unwrap();
    assert_eq!((again.len(), again[0].node, &again[0].id), (1, 40, &ids[0]));
    app.confirm(&ids[..1]).unwrap();
    assert_eq!(app.receive(&ids).unwrap(), []);
    drop(app);
    let mut app = ServerApp::acquire(&options).unwrap();
    assert_eq!(send(&mut app, &[40, 41]), ids);
    assert_eq!(app.receive(&ids).unwrap(), [], "a confirmed reply was given again");
    let other = examples(2);
    let new = app.send(&[(40, &other)], "train", "1", Duration::from_secs(60)).unwrap();
    assert_ne!(new[0], ids[0], "other content is another message");
    app.finish(true, "").unwrap();

    let state = state.lock().unwrap();
    assert_eq!(state.started, 1, "the task was started again");
    // Node 40's reply was there: its message went out once. The other's again and again, byte for byte.
    let to = |node| {
        state.sent.iter().filter(|m| m.metadata.as_ref().unwrap().dst_node_id == node).collect::<Vec<_>>()
    };
    assert_eq!(to(40).len(), 2);
    assert!(to(41).len() == 3 && to(41).iter().all(|m| **m == *to(41)[0]));
    assert_eq!(state.asked.last().unwrap(), &ids[1..], "the SuperLink was asked for what is there");
    let output = PushTaskOutputRequest { sub_status: "completed".into(), details: String::new() };
    assert_eq!(state.output, Some(output));
}

/// A SuperLink refuses what is late. A coordinator that died over a round asks anew, unless the reply is here already.
#[test]
fn what_is_late_is_asked_anew() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let options = options(&address, dir.path());
    let content = examples(1);
    let to = [(40, &content), (41, &content)];
    let short = Duration::from_millis(200);
    let mut app = ServerApp::acquire(&options).unwrap();
    let ids = app.send(&to, "train", "1", short).unwrap();
    let reply = answer(40, &ids[0], 5);
    give(&state, &reply, &reply.objects);
    assert_eq!(app.receive(&ids).unwrap().len(), 1);
    drop(app);
    std::thread::sleep(short);
    let mut app = ServerApp::acquire(&options).unwrap();
    let anew = app.send(&to, "train", "1", Duration::from_secs(60)).unwrap();
    assert_eq!((anew[0] == ids[0], anew[1] == ids[1]), (true, false));
    // And what is asked anew is one message from then on.
    assert_eq!(app.send(&to, "train", "1", Duration::from_secs(60)).unwrap(), anew);
}

#[test]
fn nobody_answers_for_another() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let mut app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    let ids = send(&mut app, &[40, 41, 42, 43, 44]);
    // Announced as another node's.
    let wrong = answer(41, &ids[0], 5);
    give(&state, &wrong, &wrong.objects);
    // Announced as its own, but its own words say otherwise.
    let mut words = answer(40, &ids[1], 5);
    words.message.metadata.as_mut().unwrap().src_node_id = 41;
    give(&state, &words, &words.objects);
    // Its own words answer another message.
    let mut other = answer(42, &ids[0], 5);
    other.message.metadata.as_mut().unwrap().reply_to_message_id = ids[2].clone();
    give(&state, &other, &other.objects);
    // The SuperLink says that the node is gone; and a message that nobody sent is answered.
    let metadata = Metadata { src_node_id: 1, reply_to_message_id: ids[3].clone(), ..Metadata::default() };
    let error = Error { code: 5, reason: "gone".into() };
    let gone = Message { metadata: Some(metadata), content: None, error: Some(error) };
    state.lock().unwrap().replies.push((gone, ObjectTree::default()));
    let stray = answer(44, &"ab".repeat(32), 5);
    give(&state, &stray, &stray.objects);

    let replies = app.receive(&ids).unwrap();
    assert_eq!(replies.iter().map(|r| r.node).collect::<Vec<_>>(), [40, 41, 42, 43]);
    assert_eq!(refusal(&replies[0]), (0, "node 41 answers for another"));
    assert_eq!(refusal(&replies[1]), (0, "the reply is not the one that was announced"));
    assert_eq!(refusal(&replies[2]), (0, "the reply is not the one that was announced"));
    assert_eq!(refusal(&replies[3]), (5, "gone"));
}

#[test]
fn a_reply_waits_for_its_objects() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let mut app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    let ids = send(&mut app, &[40, 41, 42]);
    let slow = answer(40, &ids[0], 5);
    give(&state, &slow, &slow.objects.keys().map(|id| (id.clone(), vec![])).collect());
    let whole = answer(41, &ids[1], 6);
    give(&state, &whole, &whole.objects);
    let spoilt = answer(42, &ids[2], 7);
    let mut bytes = spoilt.objects.clone();
    bytes[0].push(1);
    give(&state, &spoilt, &bytes);
    let replies = app.receive(&ids).unwrap();
    assert_eq!(replies.iter().map(|r| r.node).collect::<Vec<_>>(), [41, 42], "the slow one holds nobody up");
    assert!(refusal(&replies[1]).1.contains("hash"));
    app.confirm(&ids[1..]).unwrap();
    state.lock().unwrap().objects.extend(slow.objects.clone());
    assert_eq!(app.receive(&ids).unwrap()[0].content, Ok(examples(5)));
    // Or its session runs out.
    state.lock().unwrap().objects.shift_remove(&slow.tree.object_id);
    assert_eq!(refusal(&app.receive(&ids).unwrap()[0]).0, 4);
}

/// A round asks for the slow, not again for what is there.
#[test]
fn a_round_fetches_each_reply_once() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    let mut server = Server::new(app, Duration::from_secs(60));
    let shared = Arc::clone(&state);
    let nodes = std::thread::spawn(move || {
        let until = |ready: fn(&State) -> bool| {
            while !ready(&shared.lock().unwrap()) {
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        until(|state| state.ids.len() == 2);
        let ids = shared.lock().unwrap().ids.clone();
        let (quick, slow) = (answer(40, &ids[0], 5), answer(41, &ids[1], 6));
        give(&shared, &quick, &quick.objects);
        until(|state| state.asked.len() > 3);
        give(&shared, &slow, &slow.objects);
        quick.objects.len() + slow.objects.len()
    });
    let letter = || Letter { bytes: vec![1], task: None, noise: None };
    let replies = server.exchange(vec![("40".into(), letter()), ("41".into(), letter())]).unwrap();
    assert_eq!(replies.len(), 2);
    let objects = nodes.join().unwrap();
    let state = state.lock().unwrap();
    assert_eq!(state.calls.iter().filter(|call| *call == "pull-object").count(), objects);
    assert_eq!(state.asked.last(), Some(&state.ids[1..].to_vec()));
}

/// One node's reply that is too large is that node's fault.
#[test]
fn a_huge_object_holds_nobody_up() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let limits = Limits { object: 1 << 10, ..Limits::default() };
    let mut app = ServerApp::acquire(&AppOptions { limits, ..options(&address, dir.path()) }).unwrap();
    let ids = send(&mut app, &[40, 41]);
    let huge = answer(40, &ids[0], 5);
    give(&state, &huge, &huge.objects.keys().map(|id| (id.clone(), vec![1; 9 << 20])).collect());
    let whole = answer(41, &ids[1], 6);
    give(&state, &whole, &whole.objects);
    let replies = app.receive(&ids).unwrap();
    assert_eq!(replies.iter().map(|r| r.node).collect::<Vec<_>>(), [40, 41]);
    assert!(replies[0].content.is_err());
    assert_eq!(replies[1].content, Ok(examples(6)));
}

#[test]
fn the_shared_secret_is_proven() {
    let heads = Arc::new(Mutex::new(Vec::<u8>::new()));
    let kept = Arc::clone(&heads);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        use std::io::Read;
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = [0; 2000];
        let n = stream.read(&mut bytes).unwrap();
        kept.lock().unwrap().extend_from_slice(&bytes[..n]);
    });
    let dir = tempfile::tempdir().unwrap();
    let secret = b"0123456789abcdef".to_vec();
    let options = AppOptions { secret: Some(secret), wait: Duration::ZERO, ..options(&address, dir.path()) };
    assert!(ServerApp::acquire(&options).is_err());
    let text = String::from_utf8_lossy(&heads.lock().unwrap()).to_lowercase();
    let header = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{name}: "))).unwrap_or_default();
        line.trim().to_owned()
    };
    let request = AcquireTaskRequest { supported_task_types: vec!["flwr-serverapp".into()] };
    assert_eq!(header("flwr-superexec-body-sha256"), hex(&Sha256::digest(request.encode_to_vec())));
    assert_eq!((header("flwr-superexec-nonce").len(), header("flwr-superexec-signature").len()), (32, 64));
    assert!(!text.contains("0123456789abcdef"), "the secret itself was sent");
}
