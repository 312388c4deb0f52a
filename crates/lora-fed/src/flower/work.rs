//! One instruction, step by step.

use lora_core::{Error, Result};

use super::deflate::deflate;
use super::fleet::Fleet;
use super::http::{CONTROL, Fault, RUN_OVER};
use super::inbox::{Entry, Inbox};
use super::inflate::{Inflated, inflate};
use super::messages::{
    Error as Reported, Message, Metadata, Node, ObjectTree, PullObjectRequest, PushObjectRequest,
};
use super::node::{App, Event, Incoming, Trouble, now};
use super::objects::{self, Limits, Objects};
use crate::plain::cut;

/// Flower's codes for errors that a node reports.
const APP_FAILED: i64 = 2;
const UNAVAILABLE: i64 = 3;

/// Announcements of one reply in one go.
const ROUNDS: usize = 3;

/// How often the SuperLink may break over one instruction before it is dropped.
const BREAKS: u32 = 20;

pub(crate) struct Worker<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) inbox: &'a mut Inbox,
    pub(crate) node: u64,
    pub(crate) limits: &'a Limits,
    /// How often the SuperLink broke over the instruction at hand.
    pub(crate) breaks: u32,
}

type Worked<T> = std::result::Result<T, Trouble>;

impl Worker<'_> {
    /// Brings what is open to its end, then takes what is new; `false` if there was nothing.
    pub(crate) fn step(&mut self, app: &mut dyn App) -> Worked<bool> {
        if let Some(id) = self.inbox.unfinished()?.into_iter().next() {
            self.advance(&id, app)?;
            return Ok(true);
        }
        let Some((message, tree)) = self.fleet.pull(self.node)? else { return Ok(false) };
        if let Some(id) = announced(&message, &tree, self.node) {
            self.inbox.take(&id, message, tree)?;
        }
        Ok(true)
    }

    fn advance(&mut self, id: &str, app: &mut dyn App) -> Worked<()> {
        let entry = self.inbox.entry(id)?;
        let metadata = entry.metadata();
        let done = if metadata.created_at + metadata.ttl <= now() {
            Err("its time is up".to_owned())
        } else {
            match self.answer(id, &entry, &metadata, app) {
                Ok(()) => Ok(()),
                Err(Stopped::Over(why)) => Err(why),
                Err(Stopped::Broke(why)) if self.breaks + 1 < BREAKS => {
                    self.breaks += 1;
                    return Err(Trouble::Passing(why));
                }
                Err(Stopped::Broke(why)) => Err(why),
                Err(Stopped::Trouble(trouble)) => return Err(trouble),
            }
        };
        self.breaks = 0;
        self.inbox.finish(id)?;
        app.notice(&match done {
            Ok(()) => Event::Answered(id.to_owned()),
            Err(why) => Event::Dropped(id.to_owned(), why),
        });
        Ok(())
    }

    fn answer(
        &mut self,
        id: &str,
        entry: &Entry,
        metadata: &Metadata,
        app: &mut dyn App,
    ) -> std::result::Result<(), Stopped> {
        if entry.reply.is_none() {
            let objects = if entry.received {
                Ok(self.inbox.objects(id)?)
            } else {
                self.fetch(entry, metadata, id, app)?
            };
            self.fleet.confirm(self.node, metadata.run_id, id)?;
            let reply = objects.and_then(|objects| {
                let whole = inflate(id, &objects, self.limits).and_then(|i| incoming(id, i, metadata));
                let (incoming, tasks) = whole.map_err(|e| reported(APP_FAILED, &e))?;
                let content = app.handle(&incoming).map_err(|e| reported(APP_FAILED, &e))?;
                Ok((content, tasks))
            });
            let tasks = reply.as_ref().map_or((None, None), |(_, tasks)| *tasks);
            if let Err(error) = &reply {
                app.notice(&Event::Refused(id.to_owned(), error.reason.clone()));
            }
            let content = reply.as_ref().map(|(content, _)| content).map_err(Clone::clone);
            let parcel = deflate(answering(metadata, id, tasks), content)?;
            self.inbox.reply(id, &parcel)?;
            app.notice(&Event::Replied(id.to_owned()));
        }
        self.push(id, metadata, app)
    }

    /// An instruction's objects; what is wrong with them is for the reply.
    fn fetch(
        &mut self,
        entry: &Entry,
        metadata: &Metadata,
        id: &str,
        app: &mut dyn App,
    ) -> std::result::Result<std::result::Result<Objects, Reported>, Stopped> {
        let tree = entry.tree.clone().unwrap_or_default();
        let wanted = match objects::ids(&tree, self.limits) {
            Ok(ids) => ids,
            Err(e) => return Ok(Err(reported(APP_FAILED, &e))),
        };
        let (mut objects, mut bytes, mut fetched) = (Objects::new(), 0, 0);
        for object in wanted {
            let known = self.inbox.known(&object)?;
            let is_known = known.is_some();
            let content = match known {
                Some(content) => content,
                None => match self.pull(metadata.run_id, &object)? {
                    Ok(content) => content,
                    Err(why) => return Ok(Err(why)),
                },
            };
            bytes += content.len();
            fetched += if is_known { 0 } else { content.len() };
            if bytes > self.limits.message {
                let what = format!("a message of more than {} bytes", self.limits.message);
                return Ok(Err(reported(APP_FAILED, &Error::data(what))));
            }
            if let Err(e) = objects::parse(&object, &content, self.limits) {
                return Ok(Err(reported(APP_FAILED, &e)));
            }
            objects.insert(object, content);
        }
        self.inbox.receive(id, &objects)?;
        app.notice(&Event::Received(id.to_owned(), fetched));
        Ok(Ok(objects))
    }

    /// An object of an instruction, from the SuperLink.
    fn pull(
        &mut self,
        run_id: u64,
        object: &str,
    ) -> std::result::Result<std::result::Result<Vec<u8>, Reported>, Stopped> {
        let node = Some(Node { node_id: self.node });
        let request = PullObjectRequest { node, run_id, object_id: object.to_owned() };
        let answer = match self.fleet.pull_object(&request, self.limits.object + CONTROL) {
            Err(Fault::Malformed(what)) => return Ok(Err(reported(APP_FAILED, &Error::data(what)))),
            answer => answer?,
        };
        if !answer.object_found {
            return Ok(Err(reported(UNAVAILABLE, &Error::data("an object of it is gone"))));
        }
        if !answer.object_available {
            return Err(Trouble::Passing("an instruction is still being uploaded".into()).into());
        }
        Ok(Ok(answer.object_content))
    }

    /// Brings the stored reply to the SuperLink.
    fn push(&mut self, id: &str, metadata: &Metadata, app: &mut dyn App) -> std::result::Result<(), Stopped> {
        for _ in 0..ROUNDS {
            let entry = self.inbox.entry(id)?;
            let (Some(reply), Some(tree)) = (entry.reply, entry.reply_tree) else {
                return Err(Error::internal("a reply is gone").into());
            };
            let (mut wanted, mut session) = self.fleet.push(self.node, reply, tree)?;
            if wanted.is_empty() {
                if entry.session.is_empty() {
                    return Ok(());
                }
                // It has all, or gave the announcement on; then the old session takes what is missing.
                (wanted, session) = (self.inbox.reply_ids(id)?, entry.session.clone());
                for object in wanted {
                    self.upload(id, metadata, &session, object)?;
                }
                return Ok(());
            }
            self.inbox.session(id, &session)?;
            app.notice(&Event::Uploading(id.to_owned(), wanted.len()));
            let mut all = true;
            for object in wanted {
                all &= self.upload(id, metadata, &session, object)?;
                app.notice(&Event::Uploaded(id.to_owned()));
            }
            if all {
                return Ok(());
            }
        }
        Err(Trouble::Passing("the SuperLink does not take a reply's objects".into()).into())
    }

    /// Uploads one object of ours; whatever else is wanted is not given.
    fn upload(
        &self,
        id: &str,
        metadata: &Metadata,
        session: &str,
        object: String,
    ) -> std::result::Result<bool, Stopped> {
        let Some(content) = self.inbox.reply_object(id, &object)? else { return Ok(false) };
        let stored = self.fleet.push_object(&PushObjectRequest {
            node: Some(Node { node_id: self.node }),
            run_id: metadata.run_id,
            object_id: object,
            object_content: content,
            session_id: session.to_owned(),
        })?;
        Ok(stored)
    }
}

/// Why an instruction got no further.
enum Stopped {
    /// Nobody waits for it, or the SuperLink does not want it.
    Over(String),
    /// The SuperLink broke over it.
    Broke(String),
    Trouble(Trouble),
}

impl From<Fault> for Stopped {
    fn from(fault: Fault) -> Self {
        match fault.status() {
            _ if fault.code() == RUN_OVER => Self::Over("the run is over".into()),
            400 | 402..=499 => Self::Over(fault.to_string()),
            500 => Self::Broke(fault.to_string()),
            _ => Self::Trouble(fault.into()),
        }
    }
}

impl From<Trouble> for Stopped {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Trouble(Trouble::Fatal(error))
    }
}

/// The id of an announced instruction, if it is one and for this node; what is not cannot be answered.
fn announced(message: &Message, tree: &ObjectTree, node: u64) -> Option<String> {
    let metadata = message.metadata.as_ref()?;
    let sound = objects::is_id(&metadata.message_id)
        && metadata.message_id == tree.object_id
        && metadata.dst_node_id == node
        && metadata.created_at.is_finite()
        && metadata.ttl.is_finite();
    sound.then(|| metadata.message_id.clone())
}

type Tasks = (Option<u64>, Option<u64>);

/// The instruction for the app; its own metadata must be what was announced.
fn incoming(id: &str, inflated: Inflated, announced: &Metadata) -> Result<(Incoming, Tasks)> {
    let own = inflated.metadata;
    let same = own.run_id == announced.run_id
        && own.src_node_id == announced.src_node_id
        && own.dst_node_id == announced.dst_node_id
        && own.group_id == announced.group_id
        && own.message_type == announced.message_type;
    if !same {
        return Err(Error::data("the message is not the one that was announced"));
    }
    let content = inflated.content.map_err(|e| Error::data(format!("an error {} as instruction", e.code)))?;
    let (id, run, group, kind) = (id.to_owned(), own.run_id, own.group_id, own.message_type);
    Ok((Incoming { id, run, group, kind, content }, (own.src_task_id, own.dst_task_id)))
}

/// A reply's metadata: the way back, alive as long as what it answers.
fn answering(to: &Metadata, id: &str, (src_task, dst_task): Tasks) -> Metadata {
    let created_at = now();
    Metadata {
        run_id: to.run_id,
        message_id: String::new(),
        src_node_id: to.dst_node_id,
        dst_node_id: to.src_node_id,
        reply_to_message_id: id.to_owned(),
        group_id: to.group_id.clone(),
        ttl: to.created_at + to.ttl - created_at,
        message_type: to.message_type.clone(),
        created_at,
        src_task_id: dst_task,
        dst_task_id: src_task,
    }
}

fn reported(code: i64, error: &Error) -> Reported {
    Reported { code, reason: cut(&error.to_string()) }
}
