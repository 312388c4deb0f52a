//! A SuperLink of a few lines, that can be told to fail: what the real one is not asked to do.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
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
    /// Where the node keeps its store, and what came before it was kept.
    pub(super) store: Option<PathBuf>,
    pub(super) broken: Vec<String>,
}

pub(super) struct Fake {
    pub(super) address: String,
    pub(super) state: Arc<Mutex<State>>,
}

impl Fake {
    pub(super) fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let address = listen(move |path, body| shared.lock().unwrap().call(path, body));
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

/// Answers every POST: the last part of its path, its body; the status and the body back, or nothing at all.
pub(super) fn listen(
    mut handle: impl FnMut(&str, &[u8]) -> Option<(u16, Vec<u8>)> + Send + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test's process.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let Some((path, body)) = read(&stream) else { continue };
            if let Some((status, body)) = handle(&path, &body) {
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            }
        }
    });
    address
}

fn read(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let (mut line, mut path, mut length) = (String::new(), None, 0);
    while reader.read_line(&mut line).is_ok_and(|n| n > 2) {
        if path.is_none() {
            path = line.split(' ').nth(1).and_then(|p| p.rsplit('/').next()).map(str::to_owned);
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path?, body))
}

impl State {
    fn call(&mut self, path: &str, body: &[u8]) -> Option<(u16, Vec<u8>)> {
        self.calls.push(path.to_owned());
        let fault = self.faults.iter().position(|(method, _)| *method == path);
        match fault.map(|i| self.faults.remove(i).1) {
            Some(Fault::Cut) => None,
            Some(Fault::CutAfter) => {
                self.handle(path, body);
                None
            }
            Some(Fault::Status(status, code)) => {
                Some((status, format!("{{\"code\": {code}, \"detail\": \"no\"}}").into_bytes()))
            }
            Some(Fault::Garbage) => Some((200, vec![0xff; 40])),
            None => Some((200, self.handle(path, body))),
        }
    }

    /// Is this on the node's disk?
    fn is_kept(&self, bytes: &[u8]) -> bool {
        let Some(store) = &self.store else { return true };
        let wal = format!("{}-wal", store.display());
        let has = |file: &[u8]| file.windows(bytes.len()).any(|w| w == bytes);
        [store.as_path(), wal.as_ref()].iter().any(|path| std::fs::read(path).is_ok_and(|file| has(&file)))
    }

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
                if !self.objects.values().all(|object| self.is_kept(object)) {
                    self.broken.push("confirmed what is not on the disk".into());
                }
                self.objects.clear();
                vec![]
            }
            "push-messages" => {
                let request = PushMessagesRequest::decode(body).unwrap();
                let again = self.pushed.contains(&request);
                self.pushed.push(request.clone());
                if !self.is_kept(request.message_object_trees[0].object_id.as_bytes()) {
                    self.broken.push("pushed what is not on the disk".into());
                }
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

pub(super) fn every_id(tree: &ObjectTree, ids: &mut Vec<String>) {
    tree.children.iter().for_each(|child| every_id(child, ids));
    if !ids.contains(&tree.object_id) {
        ids.push(tree.object_id.clone());
    }
}
