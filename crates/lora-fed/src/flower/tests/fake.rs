//! A SuperLink of a few lines, that can be told to fail: what the real one is not asked to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use prost::Message as Proto;

use super::super::deflate::Parcel;
use super::super::messages::*;
use super::super::objects::Objects;
use super::NODE;

/// What a call gets in place of its answer.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    /// The connection is cut before anything is done.
    Cut,
    /// It is cut after all was done.
    CutAfter,
    /// This status, with Flower's code.
    Status(u16, i64),
    /// Bytes that are no message.
    Garbage,
}

#[derive(Default)]
pub(super) struct State {
    /// Instructions not yet pulled.
    pub(super) waiting: Vec<(Message, ObjectTree)>,
    pub(super) objects: Objects,
    /// Every call, in order.
    pub(super) calls: Vec<String>,
    /// Replies as they were announced.
    pub(super) pushed: Vec<PushMessagesRequest>,
    pub(super) uploaded: Objects,
    /// Objects of the reply at hand, and its session.
    wanted: Vec<String>,
    session: usize,
    /// The next call of this method fails so.
    pub(super) faults: Vec<(String, Fault)>,
    pub(super) online: bool,
    /// The announcement was given on: announced again, nothing is wanted.
    pub(super) given_on: bool,
}

pub(super) struct Fake {
    pub(super) address: String,
    pub(super) state: Arc<Mutex<State>>,
}

impl Fake {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                answer(stream, &mut shared.lock().unwrap());
            }
        });
        Self { address, state }
    }

    pub(super) fn instruct(&self, parcel: &Parcel) {
        let mut state = self.state.lock().unwrap();
        state.waiting.push((parcel.message.clone(), parcel.tree.clone()));
        state.objects.extend(parcel.objects.clone());
    }

    pub(super) fn count(&self, method: &str) -> usize {
        self.state.lock().unwrap().calls.iter().filter(|call| *call == method).count()
    }

    pub(super) fn fail(&self, method: &str, fault: Fault) {
        self.state.lock().unwrap().faults.push((method.to_owned(), fault));
    }
}

fn answer(mut stream: TcpStream, state: &mut State) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut line, mut path, mut length) = (String::new(), String::new(), 0);
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if path.is_empty() {
            path = line.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned();
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    if reader.read_exact(&mut body).is_err() || path.is_empty() {
        return;
    }
    state.calls.push(path.clone());
    let fault = state.faults.iter().position(|(method, _)| *method == path).map(|i| state.faults.remove(i).1);
    if matches!(fault, Some(Fault::Cut)) {
        return;
    }
    let (status, body) = match fault {
        Some(Fault::Status(status, code)) => {
            (status, format!("{{\"code\": {code}, \"detail\": \"no\"}}").into_bytes())
        }
        Some(Fault::Garbage) => (200, vec![0xff; 40]),
        _ => (200, state.handle(&path, &body)),
    };
    if matches!(fault, Some(Fault::CutAfter)) {
        return;
    }
    let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

impl State {
    fn handle(&mut self, path: &str, body: &[u8]) -> Vec<u8> {
        match path {
            "register-node" => NodeId { node_id: NODE }.encode_to_vec(),
            "activate-node" => {
                self.online = true;
                NodeId { node_id: NODE }.encode_to_vec()
            }
            "deactivate-node" => {
                self.online = false;
                vec![]
            }
            "send-node-heartbeat" => HeartbeatResponse { success: self.online }.encode_to_vec(),
            "pull-messages" => {
                // Once given, never again: as the real one.
                let next = if self.waiting.is_empty() { None } else { Some(self.waiting.remove(0)) };
                let (messages_list, message_object_trees) = next.into_iter().unzip();
                PullMessagesResponse { messages_list, message_object_trees }.encode_to_vec()
            }
            "pull-object" => {
                let id = PullObjectRequest::decode(body).unwrap().object_id;
                let content = self.objects.get(&id).cloned();
                let object_found = content.is_some();
                let object_content = content.unwrap_or_default();
                PullObjectResponse { object_found, object_available: object_found, object_content }
                    .encode_to_vec()
            }
            "confirm-message-received" => {
                self.objects.clear();
                vec![]
            }
            "push-messages" => {
                let request = PushMessagesRequest::decode(body).unwrap();
                let again = self.pushed.contains(&request);
                self.pushed.push(request.clone());
                if self.given_on && again {
                    return PushMessagesResponse::default().encode_to_vec();
                }
                let mut ids = Vec::new();
                every_id(&request.message_object_trees[0], &mut ids);
                ids.retain(|id| !self.uploaded.contains_key(id));
                self.session += 1;
                self.wanted.clone_from(&ids);
                PushMessagesResponse { objects_to_push: ids, session_id: self.session.to_string() }
                    .encode_to_vec()
            }
            "push-object" => {
                let request = PushObjectRequest::decode(body).unwrap();
                let stored = request.session_id == self.session.to_string()
                    && self.wanted.contains(&request.object_id)
                    && !self.uploaded.contains_key(&request.object_id);
                if stored {
                    self.uploaded.insert(request.object_id, request.object_content);
                }
                PushObjectResponse { stored }.encode_to_vec()
            }
            _ => vec![],
        }
    }
}

fn every_id(tree: &ObjectTree, ids: &mut Vec<String>) {
    tree.children.iter().for_each(|child| every_id(child, ids));
    if !ids.contains(&tree.object_id) {
        ids.push(tree.object_id.clone());
    }
}
