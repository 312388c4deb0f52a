//! What a server app sends, and what comes back.

use std::time::Duration;

use lora_core::{Error, Result};

use super::app::{Refusal, Reply, ServerApp};
use super::deflate::{Content, envelope};
use super::http::{CONTROL, Fault};
use super::inflate::inflate;
use super::messages::{Error as Reported, Message, Metadata};
use super::node::now;
use super::objects::{self, Objects};
use super::outbox::{Arrived, Sent};
use super::records::Records;
use super::runtime::SUPERLINK;
use crate::plain::cut;

/// Announcements of one message in one go.
const ROUNDS: usize = 3;
/// Before it is announced again to a SuperLink that broke over it.
const PAUSE: Duration = Duration::from_millis(500);
/// How often in a row the SuperLink may break over a reply before that is given up.
pub(super) const BREAKS: u32 = 20;
/// The longest text of why a reply could not be fetched.
const REASON: usize = 200;
/// Flower's code for a reply that is not there any more.
const REPLY_UNAVAILABLE: i64 = 4;

impl ServerApp {
    /// Sends an instruction to each node; their ids, in the same order. One that went to the same node with the same
    /// kind, group and content is the same: it is not sent twice, unless its time is up. Nodes that get the same, by reference,
    /// should follow each other: it is made ready once for them.
    ///
    /// # Errors
    /// If the SuperLink does not take one; those before it are sent.
    pub fn send(
        &mut self,
        to: &[(u64, &Records)],
        kind: &str,
        group: &str,
        ttl: Duration,
    ) -> Result<Vec<String>> {
        let mut ready: Option<(&Records, Content)> = None;
        let mut ids = Vec::with_capacity(to.len());
        for &(node, records) in to {
            if ready.as_ref().is_none_or(|(last, _)| !std::ptr::eq(*last, records)) {
                // The last one goes before another is made.
                drop(ready.take());
                ready = Some((records, Content::of(records)?));
            }
            if let Some((_, content)) = &ready {
                ids.push(self.post(node, kind, group, ttl, &[content])??);
            }
        }
        Ok(ids)
    }

    /// The same to one node, of parts that are made ready. In the result is what is wrong with that node's message alone: it
    /// left, say.
    ///
    /// # Errors
    /// What would be so for every node: no network, a run that is over.
    pub(crate) fn post(
        &mut self,
        node: u64,
        kind: &str,
        group: &str,
        ttl: Duration,
        parts: &[&Content],
    ) -> Result<Result<String>> {
        let mut own = Objects::new();
        let content = Content::join(parts, &mut own)?;
        let mut wrap = |created_at: f64, ttl: f64| {
            let metadata = Metadata {
                run_id: self.run,
                src_node_id: SUPERLINK,
                dst_node_id: node,
                group_id: group.to_owned(),
                ttl,
                message_type: kind.to_owned(),
                created_at,
                src_task_id: Some(self.task),
                ..Metadata::default()
            };
            envelope(metadata, Ok(content.clone()), &mut own)
        };
        let before = self.outbox.sent(node, kind, group)?;
        let is_late = before.as_ref().is_some_and(|sent| sent.created + sent.ttl <= now());
        let again = before.map(|sent| (wrap(sent.created, sent.ttl), sent.id));
        let known = again.filter(|((_, tree), id)| tree.object_id == *id);
        if let Some((_, id)) = &known
            && (self.outbox.is_settled(id)? || self.outbox.arrived(id)?.is_some())
        {
            return Ok(Ok(id.clone()));
        }
        // A SuperLink takes none whose time is up: whoever died over it asks anew.
        let (message, tree) = match known.filter(|_| !is_late) {
            Some((same, _)) => same,
            None => {
                let (created, ttl) = (now(), ttl.as_secs_f64());
                let new = wrap(created, ttl);
                let id = new.1.object_id.clone();
                self.outbox.set_sent(node, kind, group, &Sent { id, created, ttl })?;
                new
            }
        };
        let id = tree.object_id.clone();
        let failed = |fault: Fault| -> Result<Result<String>> {
            let is_of_one = fault.is_of_one();
            let e = Error::from(fault);
            if is_of_one { Ok(Err(e.at(format!("node {node}")))) } else { Err(e) }
        };
        // A SuperLink that broke over it may take it the next time.
        let again = |round: usize, fault: &Fault| fault.status() == 500 && round + 1 < ROUNDS;
        for round in 0..ROUNDS {
            let (taken, wanted, session) = match self.runtime.push(message.clone(), tree.clone()) {
                Ok(answer) => answer,
                Err(fault) if again(round, &fault) => {
                    std::thread::sleep(PAUSE);
                    continue;
                }
                Err(fault) => return failed(fault),
            };
            if !taken {
                let e = Error::data(format!("the SuperLink takes no message for node {node}"));
                return Ok(Err(e.hint("is it still registered, and the run not over?")));
            }
            let mut all = true;
            for object in wanted {
                let known = own.get(&object).or_else(|| parts.iter().find_map(|part| part.object(&object)));
                let Some(content) = known.cloned() else {
                    all = false;
                    continue;
                };
                match self.runtime.push_object(self.run, &session, &object, content) {
                    Ok(stored) => all &= stored,
                    Err(fault) if again(round, &fault) => {
                        all = false;
                        std::thread::sleep(PAUSE);
                        break;
                    }
                    Err(fault) => return failed(fault),
                }
            }
            if all {
                return Ok(Ok(id));
            }
        }
        let what = format!("the SuperLink does not take the objects of a message for node {node}");
        Ok(Err(Error::data(what)))
    }

    /// The replies to these messages that are there and not confirmed. Ask again for the others: a call of the SuperLink each.
    ///
    /// # Errors
    /// If the SuperLink or the store fails. What is wrong with one reply is in that reply.
    pub fn receive(&mut self, ids: &[String]) -> Result<Vec<Reply>> {
        for id in ids {
            if self.outbox.is_settled(id)? || self.outbox.arrived(id)?.is_some() {
                continue;
            }
            let arrived = match self.runtime.pull(id) {
                Err(fault) if fault.is_of_one() => {
                    if self.bears(id, &fault) {
                        continue;
                    }
                    broken(id, &fault)
                }
                answer => {
                    let answer = answer?;
                    self.breaks.remove(id);
                    let Some((message, tree)) = answer else { continue };
                    Arrived { message: Some(message), tree: Some(tree) }
                }
            };
            self.outbox.arrive(id, &arrived)?;
        }
        let mut replies = Vec::new();
        for id in ids {
            if let Some(arrived) = self.outbox.arrived(id)?
                && let Some(reply) = self.open(id, &arrived)?
            {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    /// Whether the reply to a message is to be asked for again: a SuperLink that broke over it may give it the next time. What
    /// cannot be read it has given, and forgotten.
    fn bears(&mut self, id: &str, fault: &Fault) -> bool {
        let breaks = self.breaks.entry(id.to_owned()).or_default();
        *breaks = breaks.saturating_add(1);
        fault.status() == 500 && *breaks < BREAKS
    }

    /// A reply, if all of it is there.
    fn open(&mut self, id: &str, arrived: &Arrived) -> Result<Option<Reply>> {
        let message = arrived.message.clone().unwrap_or_default();
        let metadata = message.metadata.unwrap_or_default();
        let to = self.outbox.to(id)?;
        // The SuperLink itself answers for a node that is gone; nobody else may answer for another.
        let by_superlink = metadata.src_node_id == SUPERLINK && message.error.is_some();
        let node = to.filter(|&node| by_superlink || node == metadata.src_node_id);
        let reply = |content| {
            Ok(Some(Reply { id: id.to_owned(), node: node.or(to).unwrap_or(metadata.src_node_id), content }))
        };
        let refuse = |code, reason: String| reply(Err(Refusal { code, reason: cut(&reason) }));
        if node.is_none() {
            return refuse(0, format!("node {} answers for another", metadata.src_node_id));
        }
        if let Some(error) = message.error {
            return refuse(error.code, error.reason);
        }
        let tree = arrived.tree.clone().unwrap_or_default();
        let wanted = match objects::ids(&tree, &self.limits) {
            Ok(ids) if tree.object_id == metadata.message_id => ids,
            Ok(_) => return refuse(0, "the reply's objects are not its own".into()),
            Err(e) => return refuse(0, e.to_string()),
        };
        let (mut objects, mut bytes) = (Objects::new(), 0);
        for object in wanted {
            let answer = match self.runtime.pull_object(self.run, &object, self.limits.object + CONTROL) {
                Err(fault) if fault.is_of_one() && self.bears(id, &fault) => return Ok(None),
                // Larger than an object may be, say, or none.
                Err(fault) if fault.is_of_one() => return refuse(0, fault.to_string()),
                answer => answer?,
            };
            if !answer.object_found {
                return refuse(REPLY_UNAVAILABLE, "the node did not upload its whole reply".into());
            }
            if !answer.object_available {
                return Ok(None);
            }
            bytes += answer.object_content.len();
            if bytes > self.limits.message {
                return refuse(0, format!("a reply of more than {} bytes", self.limits.message));
            }
            if let Err(e) = objects::parse(&object, &answer.object_content, &self.limits) {
                return refuse(0, e.to_string());
            }
            objects.insert(object, answer.object_content);
        }
        self.breaks.remove(id);
        match inflate(&tree.object_id, &objects, &self.limits) {
            // Whose it is, and what it answers, is for the SuperLink to say; the node may not say otherwise.
            Ok(inflated)
                if inflated.metadata.src_node_id != metadata.src_node_id
                    || inflated.metadata.reply_to_message_id != id =>
            {
                refuse(0, "the reply is not the one that was announced".into())
            }
            Ok(inflated) => match inflated.content {
                Ok(content) => reply(Ok(content)),
                Err(e) => refuse(e.code, e.reason),
            },
            Err(e) => refuse(0, e.to_string()),
        }
    }

    /// The replies to these are safe: they are not given again, and the SuperLink may drop them.
    ///
    /// # Errors
    /// If the SuperLink or the store fails.
    pub fn confirm(&mut self, ids: &[String]) -> Result<()> {
        for id in ids {
            if let Some(arrived) = self.outbox.arrived(id)? {
                let reply = arrived.message.and_then(|m| m.metadata).unwrap_or_default().message_id;
                // What stands in for a reply that broke has no id; and what a SuperLink cannot drop holds nothing up.
                if !reply.is_empty() {
                    match self.runtime.confirm(self.run, &reply) {
                        Err(fault) if fault.is_of_one() => {}
                        answer => answer?,
                    }
                }
                self.outbox.settle(id)?;
            }
        }
        Ok(())
    }
}

/// In place of a reply whose announcement broke the call that fetched it: it is not given again.
fn broken(id: &str, fault: &Fault) -> Arrived {
    let metadata =
        Metadata { src_node_id: SUPERLINK, reply_to_message_id: id.to_owned(), ..Metadata::default() };
    // Of many words the last say most: what was found at the end of a long way down a tree.
    let words: Vec<char> = fault.to_string().chars().collect();
    let last: String = words[words.len().saturating_sub(REASON)..].iter().collect();
    let error = Reported { code: 0, reason: format!("its reply cannot be fetched: {last}") };
    Arrived {
        message: Some(Message { metadata: Some(metadata), content: None, error: Some(error) }),
        tree: None,
    }
}
