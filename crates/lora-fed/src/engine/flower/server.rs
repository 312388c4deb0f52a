//! Nodes behind a SuperLink as an engine.

use super::{of_task, to_reply};
use crate::engine::{Engine, Reply, Task};
use crate::flower::{Records, ServerApp};
use lora_core::{Error, ErrorKind, Result};
use std::time::{Duration, Instant};

/// A running server app. Clients are known by the ids that the SuperLink authenticated.
#[derive(Debug)]
pub struct Server {
    app: ServerApp,
    /// How long a round waits for replies.
    patience: Duration,
    /// Those of the last round, until they are settled.
    ids: Vec<String>,
    /// The last round, and how often it was tried: what is asked again is another question.
    last: (u64, u64),
}

/// Between two questions.
const ASK: Duration = Duration::from_millis(500);
/// How long a SuperLink may be away: a task whose server app is silent for a minute is ended.
const HICCUP: Duration = Duration::from_secs(50);

impl Server {
    /// Waits so long for a round's replies.
    pub fn new(app: ServerApp, patience: Duration) -> Self {
        Self { app, patience, ids: Vec::new(), last: (0, 0) }
    }

    /// The app itself, to end it.
    pub fn into_app(self) -> ServerApp {
        self.app
    }
}

impl Engine for Server {
    fn clients(&mut self) -> Result<Vec<String>> {
        let nodes = patiently(Instant::now() + HICCUP, || self.app.nodes())?;
        Ok(nodes.into_iter().map(|id| id.to_string()).collect())
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        let round = tasks.first().map_or(0, |(_, task)| task.round);
        self.last = if self.last.0 == round { (round, self.last.1 + 1) } else { (round, 1) };
        let group = match self.last {
            (round, 1) => round.to_string(),
            (round, again) => format!("{round}, again {again}"),
        };
        let mut contents: Vec<Records> = Vec::new();
        let mut to = Vec::new();
        for (client, task) in &tasks {
            let node: u64 = client.parse().map_err(|_| Error::usage("it is no node's id").at(client))?;
            let records = of_task(task)?;
            // What is the same for many is uploaded once.
            let place = contents.iter().position(|known| *known == records).unwrap_or_else(|| {
                contents.push(records);
                contents.len() - 1
            });
            to.push((node, place));
        }
        let to: Vec<_> = to.into_iter().map(|(node, place)| (node, &contents[place])).collect();
        let until = Instant::now() + self.patience;
        self.ids = patiently(Instant::now() + HICCUP, || self.app.send(&to, "train", &group, self.patience))?;
        let replies = loop {
            let replies = patiently(Instant::now() + HICCUP, || self.app.receive(&self.ids))?;
            if replies.len() == self.ids.len() || Instant::now() > until {
                break replies;
            }
            std::thread::sleep(ASK);
        };
        let of = |(id, (client, _)): (&String, (String, Task))| {
            let late = || Err(Error::data(format!("no reply within {:.0} s", self.patience.as_secs_f64())));
            let reply = match replies.iter().find(|reply| reply.id == *id).map(|reply| &reply.content) {
                None => late(),
                Some(Ok(records)) => to_reply(records),
                Some(Err(refusal)) => {
                    Err(Error::data(format!("{} (Flower's code {})", refusal.reason, refusal.code)))
                }
            };
            (client, reply)
        };
        Ok(self.ids.iter().zip(tasks).map(of).collect())
    }

    fn settle(&mut self) -> Result<()> {
        let ids = std::mem::take(&mut self.ids);
        patiently(Instant::now() + HICCUP, || self.app.confirm(&ids))
    }
}

/// Calls again what the network failed, until then: each of a server app's calls may be repeated.
fn patiently<T>(until: Instant, mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Io && Instant::now() < until => std::thread::sleep(ASK),
            other => return other,
        }
    }
}
