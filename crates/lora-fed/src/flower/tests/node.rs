//! A node that is killed at every step, and a SuperLink that fails at every call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lora_core::{Error, Result};

use super::super::auth::NodeKey;
use super::super::deflate::deflate;
use super::super::inflate::inflate;
use super::super::messages::Metadata;
use super::super::node::{App, Event, Incoming, NodeOptions, now, serve};
use super::super::objects::Limits;
use super::super::records::{Arrays, NdArray, Record, Records, only_arrays};
use super::fake::{Fake, Fault};
use super::{NODE, metadata};

/// Doubles; remembers how often; dies (by a panic, which ends its `serve`) at the event that is named.
struct Doubler<'a> {
    computed: usize,
    die: Option<&'static str>,
    fail: bool,
    stop: &'a AtomicBool,
    events: Vec<String>,
}

impl Doubler<'_> {
    fn die_at(&mut self, place: &str) {
        if self.die == Some(place) {
            panic!("killed at {place}");
        }
    }
}

impl App for Doubler<'_> {
    fn handle(&mut self, message: &Incoming) -> Result<Records> {
        self.computed += 1;
        self.die_at("computing");
        if self.fail {
            return Err(Error::data("my disk is full"));
        }
        let mut arrays = Arrays::new();
        for (name, array) in only_arrays(&message.content)? {
            let numbers: Vec<f32> = array.to_f64().iter().map(|&x| 2.0 * x as f32).collect();
            arrays.insert(name.clone(), NdArray::of_f32(array.shape().to_vec(), &numbers)?);
        }
        Ok(Records::from([("arrays".to_owned(), Record::Arrays(arrays))]))
    }

    fn notice(&mut self, event: &Event) {
        let text = format!("{event:?}");
        let name = text.split('(').next().unwrap_or_default().to_owned();
        if matches!(event, Event::Answered(_) | Event::Dropped(..)) {
            self.stop.store(true, Ordering::Relaxed);
        }
        self.events.push(text);
        self.die_at(&name);
    }
}

fn options(fake: &Fake, store: &Path, key: &NodeKey) -> NodeOptions {
    NodeOptions {
        address: fake.address.clone(),
        roots: None,
        insecure: true,
        key: key.clone(),
        self_register: true,
        heartbeat: 30.0,
        poll: Duration::from_millis(10),
        store: store.to_owned(),
        limits: Limits::default(),
    }
}

fn instruction() -> super::super::deflate::Parcel {
    let arrays = Arrays::from([("w".to_owned(), NdArray::of_f32(vec![2], &[1.5, -4.0]).unwrap())]);
    let records = Records::from([("arrays".to_owned(), Record::Arrays(arrays))]);
    deflate(Metadata { created_at: now(), ..metadata() }, Ok(&records)).unwrap()
}

struct Tried {
    computed: usize,
    events: Vec<String>,
    result: Option<Result<()>>,
}

/// Runs a node until it is done, or dies.
fn run(options: &NodeOptions, die: Option<&'static str>, fail: bool) -> Tried {
    let stop = AtomicBool::new(false);
    let mut app = Doubler { computed: 0, die, fail, stop: &stop, events: vec![] };
    let result = catch_unwind(AssertUnwindSafe(|| serve(options, &mut app, &stop))).ok();
    Tried { computed: app.computed, events: app.events, result }
}

/// The reply that the SuperLink has got, whole.
fn replied(fake: &Fake) -> std::result::Result<Vec<f64>, (i64, String)> {
    let state = fake.state.lock().unwrap();
    let push = state.pushed.last().unwrap();
    let announced = push.messages_list[0].metadata.clone().unwrap();
    assert_eq!(announced.src_node_id, NODE);
    let read = inflate(&announced.message_id, &state.uploaded, &Limits::default()).unwrap();
    assert_eq!(read.metadata, Metadata { message_id: String::new(), ..announced });
    assert!(read.metadata.created_at + read.metadata.ttl - metadata().ttl <= now() + 0.1);
    match read.content {
        Ok(records) => Ok(only_arrays(&records).unwrap()["w"].to_f64()),
        Err(e) => Err((e.code, e.reason)),
    }
}

#[test]
fn an_undisturbed_round_takes_these_steps() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
    let instruction = instruction();
    fake.instruct(&instruction);
    fake.state.lock().unwrap().store = Some(dir.path().join("s"));
    let tried = run(&options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap()), None, false);
    tried.result.unwrap().unwrap();
    assert_eq!(replied(&fake).unwrap(), [3.0, -8.0]);
    assert!(fake.state.lock().unwrap().broken.is_empty(), "{:?}", fake.state.lock().unwrap().broken);
    let calls = fake.state.lock().unwrap().calls.join(" ");
    let (pulls, pushes) = ("pull-object ".repeat(5), "push-object ".repeat(5));
    assert_eq!(
        calls,
        format!(
            "register-node activate-node pull-messages {pulls}confirm-message-received push-messages \
             {pushes}deactivate-node unregister-node"
        )
    );
    let state = fake.state.lock().unwrap();
    let reply = state.pushed[0].messages_list[0].metadata.clone().unwrap();
    assert_eq!(reply.reply_to_message_id, instruction.tree.object_id);
    assert_eq!((reply.dst_node_id, reply.dst_task_id, reply.src_task_id), (1, Some(7), None));
    // How long the work took is not told.
    assert_eq!(state.pushed[0].clientapp_runtime_list, [0.0]);
}

#[test]
fn killed_at_any_step_it_goes_on_and_answers_once() {
    for (place, computed) in [
        ("Received", 1),
        ("computing", 2),
        ("Replied", 1),
        ("Uploading", 1),
        ("Uploaded", 1),
        ("Answered", 1),
    ] {
        for given_on in [false, true] {
            let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
            let options = options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap());
            fake.state.lock().unwrap().given_on = given_on;
            fake.instruct(&instruction());
            let first = run(&options, Some(place), false);
            assert!(first.result.is_none(), "{place}: it did not die");
            let mut second = run_for(&options, place == "Answered");
            second.result.take().unwrap().unwrap();
            assert_eq!(first.computed + second.computed, computed, "{place}: computed otherwise");
            assert_eq!(replied(&fake).unwrap(), [3.0, -8.0], "{place}");
            assert_eq!(fake.count("pull-object"), 5, "{place}: what was on the disk was fetched again");
            assert_eq!(fake.count("activate-node"), 1, "{place}: it was online still");
            let state = fake.state.lock().unwrap();
            assert!(state.pushed.iter().all(|push| push == &state.pushed[0]), "{place}: another reply");
        }
    }
}

/// A second life: until done, or for a moment where nothing is left to do.
fn run_for(options: &NodeOptions, idle: bool) -> Tried {
    if !idle {
        return run(options, None, false);
    }
    let stop = AtomicBool::new(false);
    let mut app = Doubler { computed: 0, die: None, fail: false, stop: &stop, events: vec![] };
    let result = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
        });
        serve(options, &mut app, &stop)
    });
    Tried { computed: app.computed, events: app.events, result: Some(result) }
}

#[test]
fn an_error_of_the_app_is_the_reply_and_the_node_lives() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
    fake.instruct(&instruction());
    let tried = run(&options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap()), None, true);
    tried.result.unwrap().unwrap();
    assert_eq!(replied(&fake).unwrap_err(), (2, "my disk is full".to_owned()));
}

#[test]
fn bad_instructions_are_refused_and_the_node_lives() {
    type Spoil = fn(&Fake);
    let cases: [(&str, &str, Spoil); 4] = [
        ("a changed byte", "hash", |fake| {
            let mut state = fake.state.lock().unwrap();
            state.objects[0][40] ^= 1;
        }),
        ("an object gone", "gone", |fake| {
            fake.state.lock().unwrap().objects.shift_remove_index(2);
        }),
        ("a tree with another child", "gone", |fake| {
            let mut state = fake.state.lock().unwrap();
            state.waiting[0].1.children[0].object_id = "ab".repeat(32);
        }),
        ("another run announced", "announced", |fake| {
            let mut state = fake.state.lock().unwrap();
            state.waiting[0].0.metadata.as_mut().unwrap().run_id += 1;
        }),
    ];
    for (what, why, spoil) in cases {
        let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
        fake.instruct(&instruction());
        spoil(&fake);
        let tried = run(&options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap()), None, false);
        tried.result.unwrap().unwrap();
        assert_eq!(tried.computed, 0, "{what}: computed");
        let (code, reason) = replied(&fake).unwrap_err();
        assert!((2..=3).contains(&code) && reason.contains(why), "{what}: {code} {reason}");
    }
    // What is for another node, or too late, is not answered at all.
    let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
    let options = options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap());
    fake.instruct(&instruction());
    fake.state.lock().unwrap().waiting[0].0.metadata.as_mut().unwrap().dst_node_id += 1;
    fake.instruct(
        &deflate(Metadata { created_at: now() - 4000.0, ..metadata() }, Ok(&Records::new())).unwrap(),
    );
    let tried = run(&options, None, false);
    assert!(tried.events.iter().any(|e| e.contains("its time is up")), "{:?}", tried.events);
    assert_eq!(fake.count("push-messages"), 0);
}

#[test]
fn lost_answers_are_asked_for_again() {
    for method in ["pull-object", "confirm-message-received", "push-messages", "push-object"] {
        for fault in [Fault::Cut, Fault::CutAfter, Fault::Status(503, 0), Fault::Status(500, 0)] {
            let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
            fake.instruct(&instruction());
            fake.fail(method, fault);
            let tried =
                run(&options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap()), None, false);
            tried.result.unwrap().unwrap();
            assert_eq!(tried.computed, 1, "{method}");
            assert_eq!(replied(&fake).unwrap(), [3.0, -8.0], "{method}");
        }
    }
}

#[test]
fn what_the_superlink_does_not_want_is_dropped() {
    for (method, fault, why) in [
        ("push-messages", Fault::Status(412, 2007), "the run is over"),
        ("confirm-message-received", Fault::Status(412, 2007), "the run is over"),
        ("push-object", Fault::Status(413, 0), "HTTP 413"),
    ] {
        let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
        fake.instruct(&instruction());
        fake.fail(method, fault);
        let tried = run(&options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap()), None, false);
        tried.result.unwrap().unwrap();
        let said = tried.events.last().unwrap();
        assert!(said.starts_with("Dropped") && said.contains(why), "{method}: {said}");
    }
}

#[test]
fn a_node_that_is_not_taken_says_why() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
    let options = options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap());
    for (method, fault, why) in [
        ("register-node", Fault::Status(412, 2001), "HTTP 412, 2001"),
        ("activate-node", Fault::Status(412, 2004), "HTTP 412, 2004"),
        ("activate-node", Fault::Status(401, 0), "does not know this node"),
        ("activate-node", Fault::Garbage, "no Flower answer"),
    ] {
        fake.fail(method, fault);
        let e = run(&options, None, false).result.unwrap().unwrap_err();
        assert!(e.to_string().contains(why) && e.hint_text().is_some(), "{method}: {e}");
    }
    let heartbeat = NodeOptions { heartbeat: 5.0, ..options.clone() };
    assert!(run(&heartbeat, None, false).result.unwrap().unwrap_err().to_string().contains("heartbeat"));
    // Known before (its key is in use), and forgotten since: registers and activates.
    fake.fail("register-node", Fault::Status(412, 23));
    fake.instruct(&instruction());
    run(&options, None, false).result.unwrap().unwrap();
    assert_eq!(replied(&fake).unwrap(), [3.0, -8.0]);
}

/// The real one does so when a server app sends the same message again.
#[test]
fn an_instruction_that_comes_twice_is_answered_once() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().unwrap());
    let options = options(&fake, &dir.path().join("s"), &NodeKey::generate().unwrap());
    let (first, last) =
        (instruction(), deflate(Metadata { created_at: now(), ..metadata() }, Ok(&Records::new())));
    fake.instruct(&first);
    let tried = run(&options, None, false);
    assert_eq!(tried.computed, 1);
    fake.instruct(&first);
    fake.instruct(&last.unwrap());
    let tried = run(&options, None, false);
    let answered = tried.events.iter().filter(|e| e.starts_with("Answered")).count();
    assert_eq!((tried.computed, answered), (1, 1), "{:?}", tried.events);
    let state = fake.state.lock().unwrap();
    let to = |i: usize| state.pushed[i].messages_list[0].metadata.clone().unwrap().reply_to_message_id;
    assert!(state.pushed.len() == 2 && to(0) == first.tree.object_id && to(1) != first.tree.object_id);
}

/// What lies beside the weights is named by every instruction, and stays what it was: it is fetched once.
#[test]
fn large_objects_of_the_instruction_before_are_not_fetched_again() {
    let (fake, key, dir) = (Fake::start(), NodeKey::generate().unwrap(), tempfile::tempdir().unwrap());
    let options = options(&fake, &dir.path().join("node"), &key);
    let of = |number: f32| NdArray::of_f32(vec![300_000], &vec![number; 300_000]).unwrap();
    let mut fetched = 0;
    // Which large arrays, and how many objects are fetched: message, dictionary and record, two of `w`, one of each large array
    // and another where its numbers are new.
    for (w, large, new) in [(1.0, &[3.0][..], 7), (2.0, &[3.0, 4.0], 8), (5.0, &[4.0], 6), (6.0, &[3.0], 7)] {
        let mut arrays = Arrays::from([("w".to_owned(), NdArray::of_f32(vec![1], &[w]).unwrap())]);
        arrays.extend(large.iter().map(|number| (format!("large {number}"), of(*number))));
        let records = Records::from([("arrays".to_owned(), Record::Arrays(arrays))]);
        fake.instruct(&deflate(Metadata { created_at: now(), ..metadata() }, Ok(&records)).unwrap());
        let tried = run(&options, None, false);
        assert!(tried.events.iter().any(|event| event.contains("Answered")), "{:?}", tried.events);
        assert_eq!(replied(&fake).unwrap(), [2.0 * f64::from(w)]);
        assert_eq!(fake.count("pull-object") - fetched, new, "{large:?}");
        fetched += new;
    }
}
