//! A SuperNode: joins a SuperLink, takes its instructions one by one, has the [`App`] answer them.
//!
//! ```text
//!   register? -> activate -> [ pull -> objects -> *received* -> confirm -> App -> *reply* -> push -> *answered* ]
//! ```
//!
//! What stands between stars is on the disk before the next step. So a node that is killed goes on where it was: an
//! instruction without a reply is computed (again), one with a reply gets the same bytes again, none is answered twice.
//!
//! # What the SuperLink does, flwr 1.41.0
//!
//! - It hands out an instruction once: pulling marks it delivered, and it is never given again. A node that is killed
//!   after the SuperLink marked it and before it is on the node's disk has lost it; the server app then waits until the
//!   instruction's time is up. Nothing on this side can close that gap, of one answer's travel.
//! - An instruction's objects stay until it is confirmed, so a node that was killed while it fetched fetches again.
//!   Delivered, unconfirmed and unanswered instructions cost the SuperLink nothing else: no timeout but their own.
//! - A node is online for twice its heartbeat's interval after the last one. If a server app asks for replies after
//!   that, the SuperLink answers for the node that it is gone, and its late reply is dropped. The node that is back in
//!   time must not activate (refused while online, 2004) but go on with its heartbeat; this one does.
//! - A reply that is pushed again is taken as the same if its id is (its SHA-256, time included: hence the same bytes);
//!   another reply to the same instruction is dropped. Either way the answer is a plain "nothing to upload".
//! - A server app that asks takes the reply as soon as it is announced, and its instruction is then deleted; an upload
//!   that was cut cannot be announced again. But its session takes objects for three minutes more: it is remembered.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use lora_core::{Error, Result};
use time::OffsetDateTime;

use super::auth::NodeKey;
use super::fleet::Fleet;
use super::http::Fault;
use super::inbox::Inbox;
use super::objects::Limits;
use super::records::Records;
use super::work::Worker;

/// How long a SuperLink that does not answer is asked to take the node.
const PATIENCE: Duration = Duration::from_secs(15);

/// How a node joins, and where it remembers.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The SuperLink, `host:port`.
    pub address: String,
    /// The CA certificates (PEM) that may vouch for it; none: the public ones.
    pub roots: Option<PathBuf>,
    /// Plaintext; only to this machine.
    pub insecure: bool,
    /// Who the node is.
    pub key: NodeKey,
    /// Make the key known oneself, where the SuperLink has no `--enable-supernode-auth`.
    pub self_register: bool,
    /// Seconds between heartbeats, 10 to 1800; Flower's own nodes say 30.
    pub heartbeat: f64,
    /// How long to wait before asking again when there was nothing to do.
    pub poll: Duration,
    /// The file in which all is kept that must survive the node.
    pub store: PathBuf,
    /// What is refused unread.
    pub limits: Limits,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Incoming {
    /// Its id, of 64 hexadecimal digits: no two instructions have the same.
    pub id: String,
    /// The run that it belongs to.
    pub run: u64,
    /// The group, which strategies use for the round.
    pub group: String,
    /// What is asked: `train`, `evaluate`, `query`, or one of them and a name, as in `query.keys`.
    pub kind: String,
    /// What came with it.
    pub content: Records,
}

/// What happens, for logs and progress views.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The node is online under this id.
    Joined(u64),
    /// An instruction is here and on the disk; so many bytes of it were fetched.
    Received(String, usize),
    /// Its reply is on the disk.
    Replied(String),
    /// Its reply is announced, and so many objects are to be uploaded.
    Uploading(String, usize),
    /// One of them is there.
    Uploaded(String),
    /// The SuperLink has the whole reply.
    Answered(String),
    /// It got an error for a reply, for this reason.
    Refused(String, String),
    /// Nobody waits for its reply any more, for this reason.
    Dropped(String, String),
    /// The SuperLink did not answer, for this reason; it is asked again.
    Offline(String),
}

/// What a node does with an instruction; it need not know Flower.
pub trait App {
    /// Answers. It may be asked for the same instruction again after a crash, but never once a reply was stored.
    ///
    /// # Errors
    /// An error becomes the reply, and tells the server its text; the node lives on.
    fn handle(&mut self, message: &Incoming) -> Result<Records>;

    /// Is told what happens.
    fn notice(&mut self, event: &Event) {
        let _ = event;
    }
}

/// Why the work stopped.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It will pass: again later.
    Passing(String),
    /// The SuperLink does not know the node any more.
    Unknown,
    /// Nothing can be done.
    Fatal(Error),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        match fault.status() {
            401 => Self::Unknown,
            500..=599 => Self::Passing(fault.to_string()),
            _ if fault.is_passing() => Self::Passing(fault.to_string()),
            _ => Self::Fatal(fault.into()),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// Works until `stop`; then says goodbye.
///
/// # Errors
/// If the SuperLink does not take the node (unknown key, untrusted certificate), or the store fails. A SuperLink that
/// is away for a while is waited for, once the node has joined.
pub fn serve(options: &NodeOptions, app: &mut dyn App, stop: &AtomicBool) -> Result<()> {
    if !(10.0..=1800.0).contains(&options.heartbeat) {
        return Err(Error::usage(format!("a heartbeat every {} s", options.heartbeat)).hint("10 to 1800"));
    }
    let fleet =
        Fleet::new(&options.address, options.roots.as_deref(), options.insecure, options.key.clone())?;
    let mut inbox = Inbox::open(&options.store, now())?;
    let identity = format!("{} {}", options.address, options.key.openssh("").trim());
    let mut id = match join(options, &fleet, &mut inbox, &identity, stop) {
        Ok(id) => id,
        Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
        Err(Trouble::Passing(what)) => {
            return Err(Error::data(what).at("SuperLink").hint("is it running, and the address right?"));
        }
        Err(Trouble::Unknown) => return Err(unknown()),
        Err(Trouble::Fatal(e)) => return Err(e),
    };
    loop {
        app.notice(&Event::Joined(id));
        let halt = AtomicBool::new(false);
        let ended = scope(|scope| {
            scope.spawn(|| beat(options, &fleet, id, &halt));
            // Also if the app panics: no heartbeat for a node that does nothing.
            let _quiet = Halt(&halt);
            let (inbox, limits) = (&mut inbox, &options.limits);
            let mut worker = Worker { fleet: &fleet, inbox, node: id, limits, breaks: 0 };
            work(options, &mut worker, app, stop, &halt)
        });
        match ended {
            Ok(()) => break,
            Err(Trouble::Fatal(e)) => {
                leave(options, &fleet, id);
                return Err(e);
            }
            Err(_) => {}
        }
        // It was restarted and forgot us, or we were away too long.
        inbox.set_node(&identity, None)?;
        id = loop {
            match join(options, &fleet, &mut inbox, &identity, stop) {
                Ok(id) => break id,
                Err(_) if stop.load(Ordering::Relaxed) => return Ok(()),
                Err(Trouble::Passing(what)) => app.notice(&Event::Offline(what)),
                Err(Trouble::Unknown) => return Err(unknown()),
                Err(Trouble::Fatal(e)) => return Err(e),
            }
            pause(Duration::from_secs(5), &[stop]);
        };
    }
    leave(options, &fleet, id);
    Ok(())
}

struct Halt<'a>(&'a AtomicBool);

impl Drop for Halt<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Comes online, or is so still; the node's id.
fn join(
    options: &NodeOptions,
    fleet: &Fleet,
    inbox: &mut Inbox,
    identity: &str,
    stop: &AtomicBool,
) -> std::result::Result<u64, Trouble> {
    let known = inbox.node(identity)?;
    if let Some(id) = known.filter(|&id| id != 0) {
        match super::http::patiently(|| fleet.heartbeat(id, options.heartbeat)) {
            Ok(true) => return Ok(id),
            Err(fault) if fault.status() != 401 => return Err(fault.into()),
            _ => {}
        }
    }
    if options.self_register {
        fleet.register()?;
    }
    inbox.set_node(identity, Some(0))?;
    // If an activation's answer was lost, the SuperLink refuses another until that one's time is up.
    let began = Instant::now();
    let longest = Duration::from_secs_f64(2.0 * options.heartbeat + 5.0);
    loop {
        let fault = match fleet.activate(options.heartbeat) {
            Ok(id) => {
                inbox.set_node(identity, Some(id))?;
                return Ok(id);
            }
            Err(fault) => fault,
        };
        let online_still = known == Some(0) && fault.code() == 2004;
        let again = match online_still {
            true => began.elapsed() < longest,
            false => fault.is_passing() && began.elapsed() < PATIENCE,
        };
        if !again || stop.load(Ordering::Relaxed) {
            if !fault.is_passing() {
                inbox.set_node(identity, None)?;
            }
            return Err(fault.into());
        }
        pause(Duration::from_secs(2), &[stop]);
    }
}

/// Heartbeats, until told to halt; halts the work if the SuperLink knows the node no more.
fn beat(options: &NodeOptions, fleet: &Fleet, id: u64, halt: &AtomicBool) {
    // A little before it is due, as Flower's own nodes do.
    let mut wait = 0.8 * options.heartbeat;
    loop {
        pause(Duration::from_secs_f64(wait), &[halt]);
        if halt.load(Ordering::Relaxed) {
            return;
        }
        wait = match fleet.heartbeat(id, options.heartbeat) {
            Ok(true) => 0.8 * options.heartbeat,
            Ok(false) => return halt.store(true, Ordering::Relaxed),
            Err(fault) if fault.status() == 401 => return halt.store(true, Ordering::Relaxed),
            Err(_) => 2.0,
        };
    }
}

fn work(
    options: &NodeOptions,
    worker: &mut Worker<'_>,
    app: &mut dyn App,
    stop: &AtomicBool,
    halt: &AtomicBool,
) -> std::result::Result<(), Trouble> {
    while !stop.load(Ordering::Relaxed) {
        if halt.load(Ordering::Relaxed) {
            return Err(Trouble::Unknown);
        }
        let wait = match worker.step(app) {
            Ok(true) => continue,
            Ok(false) => options.poll,
            Err(Trouble::Passing(what)) => {
                app.notice(&Event::Offline(what));
                options.poll.max(Duration::from_secs(1))
            }
            Err(trouble) => return Err(trouble),
        };
        pause(wait, &[stop, halt]);
    }
    Ok(())
}

/// Says goodbye; if that fails the SuperLink finds out by itself.
fn leave(options: &NodeOptions, fleet: &Fleet, id: u64) {
    let _ = super::http::patiently(|| fleet.deactivate(id));
    if options.self_register {
        let _ = super::http::patiently(|| fleet.unregister(id));
    }
}

fn unknown() -> Error {
    Error::data("the SuperLink does not know this node").hint("is the key registered, and the clock right?")
}

/// Waits, but no longer than until one of `stops` is set.
pub(crate) fn pause(wait: Duration, stops: &[&AtomicBool]) {
    let until = Instant::now() + wait;
    while Instant::now() < until && !stops.iter().any(|stop| stop.load(Ordering::Relaxed)) {
        sleep(Duration::from_millis(50).min(until.saturating_duration_since(Instant::now())));
    }
}

/// Seconds since 1970, as Flower's metadata has them.
pub(crate) fn now() -> f64 {
    OffsetDateTime::now_utc().unix_timestamp_nanos() as f64 / 1e9
}
