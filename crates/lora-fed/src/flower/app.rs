//! A server app: takes a run's task from a SuperLink, sends instructions, gets replies.
//!
//! For a `flower-superlink --isolation process`, in place of Flower's own `flwr-serverapp`; `flwr run` starts the run
//! as ever. A reply counts only once: [`ServerApp::receive`] gives it until [`ServerApp::confirm`], also after a
//! crash, and a message that was sent is not sent anew. So: receive, put it on the disk, confirm.
//!
//! The SuperLink announces a reply once. If its answer to `receive` is lost on the way, that reply is lost, and the
//! next `receive` says so with Flower's code 3. A task whose server app is away for a minute is ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use lora_core::{Error, Result};

use super::fab;
use super::http::Client;
use super::node::pause;
use super::objects::Limits;
use super::outbox::{Outbox, Ticket};
use super::records::Records;
use super::runtime::{self, Runtime};
use super::values::{self, Values};

/// A task lives for twice as long.
const HEARTBEAT: Duration = Duration::from_secs(24);
/// Between two questions whether a run has started.
const ASK: Duration = Duration::from_secs(1);
/// The task was started before.
const START_FAILED: i64 = 3002;

/// Where the SuperLink is, and where the app remembers.
#[derive(Debug, Clone)]
pub struct AppOptions {
    /// The SuperLink, `host:port`.
    pub address: String,
    /// The CA certificates (PEM) that may vouch for it; none: the public ones.
    pub roots: Option<PathBuf>,
    /// Plaintext; only to this machine.
    pub insecure: bool,
    /// The bytes of the SuperLink's `--superexec-auth-secret-file`. Without one, anybody who reaches the SuperLink can
    /// take its tasks.
    pub secret: Option<Vec<u8>>,
    /// How long to wait for a run.
    pub wait: Duration,
    /// The file in which all is kept that must survive the app.
    pub store: PathBuf,
    /// What is refused unread.
    pub limits: Limits,
}

/// An error in place of a reply: Flower's code and the reason. 2: the node's app failed; 3, 4: it is lost or too late;
/// 5: the node is gone; 0: what came was malformed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Flower's code.
    pub code: i64,
    /// In words, a thousand characters at most; a node's own words, if the code is 2.
    pub reason: String,
}

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The id of the message that it answers.
    pub id: String,
    /// The node that answers, as the SuperLink authenticated it.
    pub node: u64,
    /// What it says.
    pub content: std::result::Result<Records, Refusal>,
}

/// A running task. Dropped, it stays open for a minute: [`ServerApp::acquire`] with the same store goes on.
#[derive(Debug)]
pub struct ServerApp {
    pub(super) runtime: Runtime,
    pub(super) outbox: Outbox,
    pub(super) run: u64,
    pub(super) task: u64,
    config: Values,
    pub(super) limits: Limits,
    /// How often in a row the SuperLink broke over the reply to a message.
    pub(super) breaks: BTreeMap<String, u32>,
    halt: Arc<AtomicBool>,
    beat: Option<JoinHandle<()>>,
}

impl ServerApp {
    /// Goes on with the task in the store, if it still lives; otherwise waits for a run and takes its task.
    ///
    /// # Errors
    /// If no run came in time, or the SuperLink or the store failed. Here and below an error of kind `Io` is one of the
    /// network, which was asked several times: it may pass, and the same call may be made again.
    pub fn acquire(options: &AppOptions) -> Result<Self> {
        let client = Client::new(&options.address, options.roots.as_deref(), options.insecure)?;
        let mut outbox = Outbox::open(&options.store)?;
        let (mut ticket, runtime) = match alive(options, &client, &outbox)? {
            Some(found) => found,
            None => {
                let (ticket, runtime) = take(options, &client)?;
                outbox.clear()?;
                outbox.set_ticket(&ticket)?;
                (ticket, runtime)
            }
        };
        let config = match &ticket.config {
            Some(config) => values::decode(config, false, options.limits.items)?,
            None => {
                let config = start(&runtime)?;
                ticket.config = Some(values::encode(&config));
                outbox.set_ticket(&ticket)?;
                config
            }
        };
        let halt = Arc::new(AtomicBool::new(false));
        let beat = std::thread::spawn({
            let (halt, runtime) = (Arc::clone(&halt), runtime.clone());
            move || {
                while !halt.load(Ordering::Relaxed) {
                    // If it fails, the next call of the app finds out.
                    let well = runtime.heartbeat().is_ok();
                    pause(if well { HEARTBEAT } else { Duration::from_secs(2) }, &[&halt]);
                }
            }
        });
        let (run, task, limits) = (ticket.run, ticket.task, options.limits);
        let breaks = BTreeMap::new();
        Ok(Self { runtime, outbox, run, task, config, limits, breaks, halt, beat: Some(beat) })
    }

    /// The run.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The run's settings: `[tool.flwr.app.config]` of the app, and what `flwr run --run-config` overrode.
    pub fn run_config(&self) -> &Values {
        &self.config
    }

    /// What is refused unread, here and at nodes.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The nodes that are online.
    ///
    /// # Errors
    /// If the SuperLink fails, or ended the task.
    pub fn nodes(&mut self) -> Result<Vec<u64>> {
        Ok(self.runtime.nodes()?.into_iter().map(|node| node.node_id).collect())
    }

    /// The nodes that are online, each with the public key (PEM) under which it is registered.
    ///
    /// # Errors
    /// As [`Self::nodes`].
    pub fn keys(&mut self) -> Result<Vec<(u64, Vec<u8>)>> {
        Ok(self.runtime.nodes()?.into_iter().map(|node| (node.node_id, node.public_key)).collect())
    }

    /// Ends the run, and forgets it.
    ///
    /// # Errors
    /// If the SuperLink or the store fails.
    pub fn finish(mut self, ok: bool, details: &str) -> Result<()> {
        self.runtime.finish(ok, details)?;
        self.outbox.clear()
    }
}

impl Drop for ServerApp {
    fn drop(&mut self) {
        self.halt.store(true, Ordering::Relaxed);
        if let Some(beat) = self.beat.take() {
            let _ = beat.join();
        }
    }
}

/// The task in the store, if the SuperLink still has it.
fn alive(options: &AppOptions, client: &Client, outbox: &Outbox) -> Result<Option<(Ticket, Runtime)>> {
    let Some(ticket) = outbox.ticket()? else { return Ok(None) };
    if ticket.address != options.address {
        return Err(Error::usage(format!("the store is of a run at {}", ticket.address))
            .hint("name another store, or that SuperLink"));
    }
    let runtime = Runtime::new(client.clone(), ticket.token.clone());
    match super::http::patiently(|| runtime.heartbeat()) {
        Ok(true) => Ok(Some((ticket, runtime))),
        Ok(false) => Ok(None),
        Err(fault) if fault.status() == 401 => Ok(None),
        Err(fault) => Err(fault.into()),
    }
}

fn take(options: &AppOptions, client: &Client) -> Result<(Ticket, Runtime)> {
    let until = Instant::now() + options.wait;
    loop {
        match runtime::acquire(client, options.secret.as_deref()) {
            Ok(Some((task, runtime))) => {
                let (address, token) = (options.address.clone(), runtime.token().to_owned());
                let ticket = Ticket { address, token, run: task.run_id, task: task.task_id, config: None };
                return Ok((ticket, runtime));
            }
            Err(fault) if !fault.is_passing() => return Err(fault.into()),
            Err(fault) if Instant::now() > until => return Err(fault.into()),
            _ if Instant::now() > until => {
                return Err(Error::data("no run has started")
                    .at("SuperLink")
                    .hint("start one with `flwr run`"));
            }
            _ => std::thread::sleep(ASK),
        }
    }
}

fn start(runtime: &Runtime) -> Result<Values> {
    let input = runtime.input().map_err(|fault| {
        let started = fault.code() == START_FAILED;
        let error = Error::from(fault);
        if started { error.hint("its server app died as it began: start the run again") } else { error }
    })?;
    let run = input.run.unwrap_or_default();
    let config =
        input.fab.map_or_else(|| Ok(Values::new()), |f| fab::run_config(&f, run.override_config.iter()));
    if let Err(e) = &config {
        // What cannot be read cannot be run, and whoever started it is told.
        let _ = runtime.finish(false, &e.to_string());
    }
    config
}
