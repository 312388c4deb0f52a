//! Nodes behind a SuperLink as an engine.

use super::letter::{self, of_letter, to_bytes};
use super::{of_task, to_reply};
use crate::engine::{Engine, Letter, Reply, Task};
use crate::flower::{Content, Records, ServerApp};
use lora_core::{Error, ErrorKind, Result};
use std::time::{Duration, Instant};
use tch::Tensor;

/// A running server app. Clients are known by the ids that the SuperLink authenticated.
#[derive(Debug)]
pub struct Server {
    app: ServerApp,
    /// How long a round waits for replies.
    patience: Duration,
    /// What was sent since replies were last settled.
    ids: Vec<String>,
    /// The last round, and how often it was tried: what is asked again is another question.
    last: (u64, u64),
}

/// What a client is asked.
struct Question {
    client: String,
    task: Option<Task>,
    /// What stands beside the task, for this client alone: little.
    own: Records,
}

/// Between two questions.
const ASK: Duration = Duration::from_millis(500);
/// The same where the question itself takes long.
const SELDOM: Duration = Duration::from_secs(15);
/// How long a letter is waited for that asks for no training; a node that is not there is known to Flower in a minute.
const POST: Duration = Duration::from_secs(180);
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

    fn carries(&self, bytes: u64) -> Result<()> {
        let most = self.app.limits().message as u64;
        // Names, shapes and settings come on top.
        if bytes <= most - most / 64 {
            return Ok(());
        }
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let what = format!(
            "a task, or its answer, has {:.2} GB, and nodes take {:.2} GB, with what they have already",
            gigabytes(bytes),
            gigabytes(most)
        );
        Err(Error::unsupported(what).hint(
            "take a rule that lays nothing beside the weights (fedex and flora lay down more each round), fewer targets or a \
             lower rank",
        ))
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        let round = tasks.first().map_or(0, |(_, task)| task.round);
        self.last = if self.last.0 == round { (round, self.last.1 + 1) } else { (round, 1) };
        let group = match self.last {
            (round, 1) => round.to_string(),
            (round, again) => format!("{round}, again {again}"),
        };
        let question = |(client, task)| Question { client, task: Some(task), own: Records::new() };
        let asked = tasks.into_iter().map(question).collect();
        let replies = self.ask(asked, "train", &group, self.patience)?;
        let read = |(client, reply): (String, Result<Records>)| {
            (client, reply.and_then(|records| to_reply(&records)))
        };
        Ok(replies.into_iter().map(read).collect())
    }

    fn exchange(&mut self, letters: Vec<(String, Letter)>) -> Result<Vec<(String, Result<Vec<u8>>)>> {
        let trains = letters.iter().any(|(_, letter)| letter.task.is_some());
        let patience = if trains { self.patience } else { self.patience.min(POST) };
        let question = |(client, letter): (String, Letter)| {
            let own = of_letter(&letter)?;
            Ok(Question { client, task: letter.task, own })
        };
        let asked = letters.into_iter().map(question).collect::<Result<Vec<_>>>()?;
        let replies = self.ask(asked, letter::KIND, "letters", patience)?;
        let read = |(client, reply): (String, Result<Records>)| {
            (client, reply.and_then(|records| to_bytes(&records)))
        };
        Ok(replies.into_iter().map(read).collect())
    }

    fn settle(&mut self) -> Result<()> {
        patiently(Instant::now() + HICCUP, || self.app.confirm(&self.ids))?;
        self.ids.clear();
        Ok(())
    }
}

impl Server {
    /// Asks each client, and waits for what they answer.
    fn ask(
        &mut self,
        asked: Vec<Question>,
        kind: &str,
        group: &str,
        patience: Duration,
    ) -> Result<Vec<(String, Result<Records>)>> {
        let node = |asked: &Question| {
            asked.client.parse::<u64>().map_err(|_| Error::usage("it is no node's id").at(&asked.client))
        };
        let nodes = asked.iter().map(node).collect::<Result<Vec<_>>>()?;
        let until = Instant::now() + patience;
        let (mut clients, mut ids) = (Vec::new(), Vec::new());
        // The last client's task as it travels, which is a copy of all its numbers: there is one at a time, and none while
        // replies are waited for.
        let mut ready: Option<(Task, Content)> = None;
        for (node, Question { client, task, own }) in nodes.into_iter().zip(asked) {
            let has_task = task.is_some();
            if let Some(task) = task
                && ready.as_ref().is_none_or(|(last, _)| !are_one(last, &task))
            {
                drop(ready.take());
                let content = Content::of(&of_task(&task)?)?;
                ready = Some((task, content));
            }
            let own = Content::of(&own)?;
            let shared = ready.iter().filter(|_| has_task).map(|(_, content)| content);
            let parts: Vec<&Content> = shared.chain([&own]).collect();
            let post = || self.app.post(node, kind, group, patience, &parts);
            let id = patiently(Instant::now() + HICCUP, post)?;
            self.ids.extend(id.as_ref().ok().cloned());
            ids.push(id);
            clients.push(client);
        }
        drop(ready);
        let mut replies = Vec::new();
        // A node that takes no message ends its own part, and not the others'.
        let mut missing: Vec<String> = ids.iter().flatten().cloned().collect();
        loop {
            let began = Instant::now();
            let new = patiently(Instant::now() + HICCUP, || self.app.receive(&missing))?;
            // A question is a call for each that is missing: of very many they are put less often.
            let wait = if new.is_empty() { (began.elapsed() * 3).clamp(ASK, SELDOM) } else { ASK };
            missing.retain(|id| new.iter().all(|reply| reply.id != *id));
            replies.extend(new);
            if missing.is_empty() || Instant::now() > until {
                break;
            }
            std::thread::sleep(wait);
        }
        let mut of = |id: String| match replies.iter().position(|reply| reply.id == id) {
            None => Err(Error::data(format!("no reply within {:.0} s", patience.as_secs_f64()))),
            Some(place) => replies.swap_remove(place).content.map_err(|refusal| {
                Error::data(format!("{} (Flower's code {})", refusal.reason, refusal.code))
            }),
        };
        Ok(clients.into_iter().zip(ids).map(|(client, id)| (client, id.and_then(&mut of))).collect())
    }
}

/// Whether both are one task, by their very tensors, whose numbers need not be looked at.
fn are_one(a: &Task, b: &Task) -> bool {
    fn tensors(task: &Task) -> impl Iterator<Item = &Tensor> {
        task.adapter.values().chain(task.beside.values().flat_map(|(a, b)| [a, b]))
    }
    let is_one = |(a, b): (&Tensor, &Tensor)| a.data_ptr() == b.data_ptr() && a.stride() == b.stride();
    // Names, shapes, and all else that a task says.
    tensors(a).zip(tensors(b)).all(is_one) && format!("{a:?}") == format!("{b:?}")
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
