//! Which replies count.

use super::federation::{Federation, Told};
use super::model::upload;
use super::state::fingerprint;
use super::{Reply, Task, Weights, bytes};
use crate::aggregate::{Robust, Rule, Upload};
use crate::plain::reason;
use lora_core::{Error, ErrorKind, Result, all_finite};
use std::collections::{BTreeMap, BTreeSet};

/// No training makes a larger number, and no product of two overflows f32.
const LARGEST: f64 = 1e12;
/// Metrics of a reply that are kept, and characters of their names: what is told of a round is one value of the store.
const METRICS: usize = 32;
const NAME: usize = 64;

impl Federation {
    /// Whether so many good replies will do for the settings and for a robust rule.
    ///
    /// # Errors
    /// [`Error::data`] that says whose reply does not count, and why.
    pub(super) fn are_enough(&self, round: u64, good: usize, clients: &[Told]) -> Result<()> {
        let minimum = self.settings.minimum;
        let robust = self.settings.robust.filter(|robust| robust.needs() > minimum);
        let needed = robust.map_or(minimum, Robust::needs);
        if good >= needed {
            return Ok(());
        }
        let by = robust.map_or_else(|| "it takes".to_owned(), |robust| format!("{robust} takes"));
        let what = format!("round {round} has {good} good replies of {}, and {by} {needed}", clients.len());
        let why = clients.iter().filter_map(|t| Some(format!("{}: {}", t.client, t.refused.as_ref()?)));
        Err(Error::faults(ErrorKind::Data, what, why.collect()).hint(
            "nothing was changed: the round can be tried again; see to the clients that are named, or ask more than it takes",
        ))
    }

    /// Replies as uploads, and what is to be said of each client. The uploads come in an order of what they hold: a sum's last
    /// bits hang on the order of its terms, and what comes of a round should not hang on what clients are called.
    pub(super) fn screen(
        &self,
        rule: Rule,
        sent: &[Task],
        replies: Vec<(String, Result<Reply>)>,
    ) -> (Vec<Upload>, Vec<Told>) {
        let (mut uploads, mut told, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (task, (client, reply)) in sent.iter().zip(replies) {
            let mut this = Told {
                client: client.clone(),
                refused: None,
                examples: 0,
                metrics: BTreeMap::new(),
                bytes_down: bytes(task.adapter.values()) + self.had.comes(&client, &self.model),
                bytes_up: 0,
            };
            let twice = || Error::data("it is there twice");
            let unique = seen.insert(client.clone());
            let good =
                reply.and_then(|reply| if unique { Ok(reply) } else { Err(twice()) }).and_then(|reply| {
                    this.bytes_up = bytes(reply.adapter.values());
                    this.examples = reply.examples;
                    let known = reply.metrics.iter().filter(|(name, _)| name.chars().nth(NAME).is_none());
                    this.metrics = known.take(METRICS).map(|(name, x)| (name.clone(), *x)).collect();
                    self.accept(&client, rule, task, reply)
                });
            match good {
                Ok(held_and_upload) => uploads.push(held_and_upload),
                // It may quote the client: its reason, a name of its own.
                Err(e) => this.refused = Some(reason(&e.to_string())),
            }
            told.push(this);
        }
        uploads.sort_by_key(|(held, upload)| (*held, upload.weight.to_bits()));
        (uploads.into_iter().map(|(_, upload)| upload).collect(), told)
    }

    /// A reply as an upload, behind a hash of what it holds: what it sent, and of the rest what the task gave.
    fn accept(&self, client: &str, rule: Rule, task: &Task, mut reply: Reply) -> Result<([u8; 32], Upload)> {
        let (_, sends) = rule.trains();
        let mut whole = BTreeMap::new();
        for (name, before) in &task.adapter {
            let now = if sends.holds(name) {
                let missing = || Error::data("it is missing").at(name);
                let now = reply.adapter.remove(name).ok_or_else(missing)?;
                if now.size() != before.size() || !now.is_floating_point() {
                    let (size, want) = (now.size(), before.size());
                    return Err(Error::data(format!("{:?} {size:?}, not {want:?}", now.kind())).at(name));
                }
                // As it will be kept: what is finite in f64 need not be so here.
                let now = now.detach().to_kind(before.kind());
                if !all_finite(&now) {
                    return Err(Error::non_finite("numbers that are not finite").at(name));
                }
                let largest = now.abs().max().double_value(&[]);
                if largest > LARGEST {
                    let what = format!("a number of {largest:e}, where {LARGEST:e} is the most");
                    return Err(Error::non_finite(what).at(name));
                }
                now
            } else {
                before.shallow_clone()
            };
            whole.insert(name.clone(), now);
        }
        if let Some(name) = reply.adapter.keys().next() {
            return Err(Error::data("nobody asked for it").at(name));
        }
        let weight = match self.settings.weights {
            Weights::Equal => 1.0,
            Weights::Examples { most } if reply.examples > 0 => reply.examples.min(most) as f64,
            Weights::Examples { .. } => return Err(Error::data("it learnt from no examples")),
        };
        let (held, sent) =
            (fingerprint(&whole, &BTreeMap::new())?, upload(client, weight, &whole, &self.scale)?);
        let Some(bounds) = self.settings.bounds else { return Ok((held, sent)) };
        let before = upload("", 1.0, &task.adapter, &self.scale)?;
        let (mut kept, mut refused) = bounds.screen(vec![sent], &before);
        match (kept.pop(), refused.pop()) {
            (Some(upload), _) => Ok((held, upload)),
            (None, refusal) => Err(Error::data(refusal.map_or_else(String::new, |r| r.why))),
        }
    }
}
