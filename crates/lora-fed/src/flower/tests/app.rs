//! A server app against nodes that lie, uploads that stop, and its own death.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as Proto;

use super::super::app::{AppOptions, ServerApp};
use super::super::deflate::Parcel;
use super::super::messages::*;
use super::super::objects::Limits;
use super::super::post::BREAKS;
use super::super::records::{Arrays, Dtype, NdArray, Record, Records};
use super::super::values::{Value, Values};
use super::superlink::{State, answer, answer_with, examples, give, options, refusal, send, superlink};
use crate::aggregate::Rule;
use crate::engine::{Engine, Federation, Letter, Model, Server, Settings};
use crate::hex::hex;
use lora_core::ErrorKind;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

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

/// As a node sends it.
fn letter(bytes: [u8; 8]) -> Records {
    let words = NdArray::new(Dtype::I64, vec![1], bytes.to_vec()).unwrap();
    let length = Values::from([("length".to_owned(), Value::Int(8))]);
    Records::from([
        ("lora.letter".to_owned(), Record::Arrays(Arrays::from([("bytes".to_owned(), words)]))),
        ("lora.letter.length".to_owned(), Record::Config(length)),
    ])
}

/// One that is gone, say: the others answer, and it is named.
#[test]
fn a_node_that_takes_no_message_ends_its_own_part_alone() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    let mut server = Server::new(app, Duration::from_secs(60));
    state.lock().unwrap().gone.push(41);
    let shared = Arc::clone(&state);
    let nodes = std::thread::spawn(move || {
        while shared.lock().unwrap().ids.len() < 2 {
            std::thread::sleep(Duration::from_millis(20));
        }
        let ids = shared.lock().unwrap().ids.clone();
        for (node, id) in [40, 42].into_iter().zip(ids) {
            let reply = answer_with(node, &id, &letter([7; 8]));
            give(&shared, &reply, &reply.objects);
        }
    });
    let ask = |clients: &[&str], bytes: &[u8]| -> Vec<_> {
        let letter = || Letter { bytes: bytes.to_vec(), task: None, noise: None };
        clients.iter().map(|client| ((*client).to_owned(), letter())).collect()
    };
    let replies = server.exchange(ask(&["40", "41", "42"], b"one")).unwrap();
    nodes.join().unwrap();
    let (told, bytes) = (|place: usize| replies[place].1.as_ref().ok(), vec![7u8; 8]);
    assert_eq!((told(0), told(1), told(2)), (Some(&bytes), None, Some(&bytes)));
    let refused = replies[1].1.as_ref().unwrap_err().to_string();
    assert!(replies[1].0 == "41" && refused.contains("no message for node 41"), "{refused}");
    // What is so for all ends it for all.
    state.lock().unwrap().run_over = true;
    let over = server.exchange(ask(&["40", "42"], b"two")).unwrap_err().to_string();
    assert!(over.contains("2007"), "{over}");
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

/// Nodes refuse a task above their limit: it is said here, before anybody works.
#[test]
fn a_task_that_nodes_would_refuse_is_sent_to_nobody() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let limits = Limits { message: 1 << 14, ..Limits::default() };
    let app = ServerApp::acquire(&AppOptions { limits, ..options(&address, dir.path()) }).unwrap();
    let mut server = Server::new(app, Duration::ZERO);
    let mut round = |width: i64| {
        let ones = |size: [i64; 2]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let factors = [("m.lora_A.weight", ones([4, width])), ("m.lora_B.weight", ones([width, 4]))];
        let model = Model::new(factors.map(|(name, tensor)| (name.to_owned(), tensor)).into());
        let mut federation =
            Federation::new(Settings::new("a run", Rule::FedIt, 1), model, |_, _| 1.0).unwrap();
        federation.round_of(vec!["40".to_owned()], &mut server).unwrap_err()
    };
    let e = round(512);
    assert!(e.to_string().contains("nodes take 0.00 GB") && e.hint_text().is_some(), "{e}");
    assert_eq!(e.kind(), ErrorKind::Unsupported, "it is not tried again");
    assert!(state.lock().unwrap().sent.is_empty());
    let e = round(256);
    assert!(e.to_string().contains("good replies"), "{e}");
    assert_eq!(state.lock().unwrap().sent.len(), 1);
}

/// Over an announcement, or over an object of it, on either way.
#[test]
fn a_superlink_that_breaks_once_is_asked_again() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let mut app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    state.lock().unwrap().breaks_at = vec!["push-messages".into(), "push-object".into()];
    let ids = send(&mut app, &[40, 41]);
    assert_eq!(state.lock().unwrap().breaks_at, [""; 0]);
    let replies = [answer(40, &ids[0], 5), answer(41, &ids[1], 6)];
    replies.iter().for_each(|reply| give(&state, reply, &reply.objects));
    state.lock().unwrap().breaks_once = vec![ids[0].clone(), replies[1].tree.object_id.clone()];
    assert_eq!(app.receive(&ids).unwrap(), []);
    let told = app.receive(&ids).unwrap().into_iter().map(|reply| reply.content);
    assert_eq!(told.collect::<Vec<_>>(), [Ok(examples(5)), Ok(examples(6))]);
}

/// An announcement of megabytes, or deeper than messages may be, or over which the SuperLink itself breaks: others' replies come.
#[test]
fn what_one_node_announces_spoils_its_own_reply_alone() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let mut app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    let ids = send(&mut app, &[3, 4, 5, 6, 7]);
    let large = answer(3, &ids[0], 5);
    let tree = ObjectTree { object_id: "a".repeat(65 << 20), children: vec![] };
    give(&state, &Parcel { tree, ..large.clone() }, &large.objects);
    state.lock().unwrap().breaks_over.push(ids[1].clone());
    let deep = answer(5, &ids[2], 5);
    let tree = (0..150).fold(deep.tree.clone(), |tree, _| ObjectTree {
        object_id: tree.object_id.clone(),
        children: vec![tree],
    });
    give(&state, &Parcel { tree, ..deep.clone() }, &deep.objects);
    let sound = answer(6, &ids[3], 6);
    give(&state, &sound, &sound.objects);
    let lost = answer(7, &ids[4], 7);
    give(&state, &lost, &lost.objects);
    state.lock().unwrap().breaks_over.push(lost.tree.object_id.clone());

    // Where it breaks it may be well the next time, but not for ever.
    for _ in 1..BREAKS {
        let replies = app.receive(&ids).unwrap();
        assert_eq!(replies.iter().map(|r| r.node).collect::<Vec<_>>(), [3, 5, 6]);
    }
    let replies = app.receive(&ids).unwrap();
    assert_eq!(replies.iter().map(|r| r.node).collect::<Vec<_>>(), [3, 4, 5, 6, 7]);
    assert_eq!(replies[3].content, Ok(examples(6)));
    for (place, why) in [(0, "more than"), (1, "HTTP 500"), (2, "recursion"), (4, "HTTP 500")] {
        let (code, reason) = refusal(&replies[place]);
        assert!(code == 0 && reason.contains(why) && reason.len() < 400, "{place}: {reason}");
    }
    // What stands in for a reply is no message of the SuperLink's, to be confirmed there.
    app.confirm(&ids).unwrap();
    let state = state.lock().unwrap();
    assert_eq!(state.calls.iter().filter(|call| *call == "confirm-message-received").count(), 2);
    drop(state);
    assert_eq!(app.receive(&ids).unwrap(), []);
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
