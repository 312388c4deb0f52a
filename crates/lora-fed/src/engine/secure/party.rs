//! A client's side.

use super::{Claims, LIMIT, Quorum, RING, TRIES, WHO, context, lattice, round_id, sent};
use crate::engine::{Letter, Reply, Task, Worker};
use crate::privacy::{Ledger, PrivacyError, Secret, StepInputs, StepKey};
use crate::secagg::wire::{Envelope, Kind};
use crate::secagg::{Client, Directory, Identity, Own, PartyId, Plan, SecAggError, Session};
use lora_core::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use tch::{Device, Kind as Dtype, Tensor};

/// Of a plan and a task that do not go together.
const SUSPECT: &str = "no coordinator of ours asks so: ask whoever runs it, by another way";

/// A worker whose clients give their parts to sums alone.
pub struct Parties<W> {
    worker: W,
    directory: Directory,
    quorum: Quorum,
    members: BTreeMap<String, Member>,
}

struct Member {
    id: PartyId,
    own: Own,
    claims: Claims,
    /// What may be learnt of this client with all its rows.
    ledger: Option<Ledger>,
    round: Option<Client>,
}

impl<W: Worker> Parties<W> {
    /// `directory` pins everybody's identity, and says how many must take part: [`Quorum::of`] it.
    pub fn new(worker: W, directory: Directory) -> Self {
        let quorum = Quorum::of(&directory);
        Self { worker, directory, quorum, members: BTreeMap::new() }
    }

    /// Takes part with so many parties and more, if it is said.
    ///
    /// # Errors
    /// Those of [`Quorum::at_least`].
    pub fn at_least(self, parties: Option<usize>) -> Result<Self> {
        Ok(Self { quorum: self.quorum.at_least(parties)?, ..self })
    }

    /// Plays `client` as the party whose key that is.
    ///
    /// # Errors
    /// [`Error::usage`] if the directory has another key for the party, or none.
    pub fn with(mut self, client: impl Into<String>, own: Own, claims: Claims) -> Result<Self> {
        let id = own.party.ok_or_else(|| Error::usage("the coordinator's key is no party's"))?;
        let pinned = self.directory.parties.get(&id).map(Identity::as_bytes);
        if pinned != Some(own.key.public().as_bytes()) {
            let what = format!("the directory has {} key for party {id}", pinned.map_or("no", |_| "another"));
            return Err(Error::usage(what).hint("all parties need one directory, with this key's line in it"));
        }
        self.members.insert(client.into(), Member { id, own, claims, ledger: None, round: None });
        Ok(self)
    }

    /// What sums may tell of `client` with all its rows is bounded by this ledger's budget: it takes part in noised sums
    /// alone.
    ///
    /// # Errors
    /// [`Error::usage`] if there is no such client.
    pub fn promising(mut self, client: &str, ledger: Ledger) -> Result<Self> {
        let nobody = || Error::usage(format!("{client} is no party"));
        self.members.get_mut(client).ok_or_else(nobody)?.ledger = Some(ledger);
        Ok(self)
    }
}

impl<W> std::fmt::Debug for Parties<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let members = self.members.iter().map(|(client, member)| (client, member.id));
        f.debug_map().entries(members).finish()
    }
}

impl<W: Worker> Worker for Parties<W> {
    fn train(&mut self, _: &str, _: &Task) -> Result<Reply> {
        Err(Error::unsupported("this client gives what it learns to secure sums alone")
            .hint("the coordinator must run with --secure"))
    }

    fn evaluate(&mut self, _: &str, _: &Task) -> Result<(f64, u64)> {
        Err(Error::unsupported("this client tells no loss: it gives what it knows to secure sums alone"))
    }

    fn answer(&mut self, client: &str, letter: &Letter) -> Result<Vec<u8>> {
        let Self { worker, directory, quorum, members } = self;
        let member = members.get_mut(client).ok_or_else(|| Error::usage(format!("{client} is no party")))?;
        if letter.bytes.starts_with(WHO) {
            return Ok(member.id.0.to_le_bytes().to_vec());
        }
        let kind = Envelope::parse(&letter.bytes)?.kind;
        if kind == Kind::Plan {
            return member.join(&letter.bytes, directory, *quorum);
        }
        let restarted = || {
            Error::data("this party knows nothing of such a round")
                .hint("if it was restarted, it dropped out")
        };
        let round = member.round.as_mut().ok_or_else(restarted)?;
        Ok(match kind {
            Kind::KeyList => round.deal(&letter.bytes)?,
            Kind::Bundle => {
                let residues = member.vector(client, letter, *quorum, worker)?;
                let round = member.round.as_mut().ok_or_else(restarted)?;
                round.mask(&letter.bytes, &residues)?
            }
            Kind::Survivors => round.consent(&letter.bytes)?,
            Kind::Unmask => {
                let shares = round.reveal(&letter.bytes)?;
                member.round = None;
                shares
            }
            other => return Err(SecAggError::OutOfOrder(other).into()),
        })
    }
}

impl Member {
    fn join(&mut self, message: &[u8], directory: &Directory, quorum: Quorum) -> Result<Vec<u8>> {
        let session = Session::accept(message, directory)?;
        quorum.check(session.plan())?;
        if session.plan().ring != RING {
            return Err(Error::data("a plan for sums of fewer bits than vectors have here"));
        }
        self.round = None;
        let client = Client::join(self.own.key.clone(), self.id, session, &mut self.claims);
        let mut client = client.map_err(|e| self.claims.whole(e))?;
        let keys = client.advertise()?;
        self.round = Some(client);
        Ok(keys)
    }

    fn plan(&self) -> Result<Plan> {
        let round = self.round.as_ref().ok_or_else(|| Error::internal("no round"))?;
        Ok(round.session().plan().clone())
    }

    /// Trains, if the task is what the plan says it is, and writes down that what was learnt leaves.
    fn vector(
        &mut self,
        client: &str,
        letter: &Letter,
        quorum: Quorum,
        worker: &mut dyn Worker,
    ) -> Result<Vec<u64>> {
        let task = letter.task.as_ref().ok_or_else(|| Error::data("a bundle without a task"))?;
        let plan = self.plan()?;
        let (context, tries) = (context(task, letter.noise, quorum)?, plan.round.number % TRIES);
        if plan.context != context || plan.round != round_id(&task.run, task.round, tries) {
            return Err(Error::data("the task is not the one that the plan names").hint(
                "somebody gives parties different models, or directories: tell them by another way; \
                       or the coordinator's version is another",
            ));
        }
        // Rules that are sums lay nothing down, and what a client has beside its weights no sum shows.
        if let Some(module) = task.beside.keys().next() {
            let what = "the task lays something beside a weight, which no rule does that is a sum";
            return Err(Error::data(what).at(module));
        }
        fits(task, &plan)?;
        let (run, round) = (plan.round.run, task.round);
        self.claims.unsent(run, round)?;
        match (letter.noise, &mut self.ledger) {
            (None, None) => {
                let learnt = moved(worker.train(client, task).map_err(failed)?, task, LIMIT)?;
                self.claims.send(run, round)?;
                Ok(lattice(plan.parties.len())?.encode(&learnt)?)
            }
            (Some(noise), Some(ledger)) => {
                // Each vector has noise of its own, so each is a charge of its own.
                let this = Secret::generate()?;
                let inputs = StepInputs {
                    run: &task.run,
                    step: round,
                    data: &[],
                    configuration: &context,
                    weights: this.as_bytes(),
                };
                let (key, mechanism) = (StepKey::new(&inputs), noise.mechanism()?);
                ledger.allow(&key, mechanism).map_err(of_ledger)?;
                let random = |purpose| Ok::<_, Error>(key.randomness(&Secret::generate()?, purpose));
                let (share, rounding) = (noise.share(&plan, quorum, &random("noise")?)?, random("rounding")?);
                let hide = |learnt: &[f64]| noise.hide(&plan, learnt, &share, &rounding);
                let hidden = match worker.train(client, task) {
                    // What is large is clipped, and not told of.
                    Ok(reply) => moved(reply, task, f64::MAX).and_then(|learnt| hide(&learnt)),
                    Err(e) if is_of_rows(&e) => Err(e),
                    Err(e) => return Err(failed(e)),
                };
                // Failing would tell of the rows, for nothing: from here on a disk alone can.
                let residues = hidden.or_else(|_| hide(&vec![0.0; plan.len]))?;
                self.claims.send(run, round)?;
                ledger.charge(&key, mechanism).map_err(of_ledger)?;
                Ok(residues)
            }
            (None, Some(_)) => Err(Error::unsupported("this client takes part in noised sums alone")
                .hint("the coordinator must run with --client-epsilon")),
            (Some(_), None) => Err(Error::unsupported("this client has no budget for noised sums")
                .hint("start its node with --client-epsilon")),
        }
    }
}

/// Whether the plan is for the numbers that the task has a client send, and all of these train. Else a step fails behind training
/// that went well, and not behind training that did not, in whose place there are zeros: whoever plans so would learn which,
/// uncharged, as often as it likes. Nor is a vector made that is longer than the task.
fn fits(task: &Task, plan: &Plan) -> Result<()> {
    if let Some((name, _)) = sent(task).find(|(name, _)| !task.trains.holds(name)) {
        return Err(Error::data("the task has this sent, and does not train it").at(name).hint(SUSPECT));
    }
    let numbers: usize = sent(task).map(|(_, t)| t.numel()).sum();
    if plan.len == numbers {
        return Ok(());
    }
    let what = format!("a plan for {} numbers, where the task has {numbers} sent", plan.len);
    Err(Error::data(what).hint(SUSPECT))
}

/// What was learnt, tensor after tensor, if no number is beyond the limit.
fn moved(mut reply: Reply, task: &Task, limit: f64) -> Result<Vec<f64>> {
    let mut learnt = Vec::new();
    for (name, before) in sent(task) {
        let missing = || Error::internal("what was trained lacks a tensor").at(name);
        let now = reply.adapter.remove(name).ok_or_else(missing)?;
        if now.size() != before.size() {
            return Err(Error::internal("what was trained has another shape").at(name));
        }
        let moved: Vec<f64> = Vec::try_from(wide(&now)?.f_sub(&wide(before)?)?)?;
        // Which number it is is not told: an error travels in plain.
        if moved.iter().any(|x| x.is_nan() || x.abs() > limit) {
            let what = format!("a number moved further than a secure sum holds, which is ±{limit}");
            return Err(Error::non_finite(what).at(name).hint("lower the learning rate"));
        }
        learnt.extend(moved);
    }
    Ok(learnt)
}

/// A tensor's numbers in a row, here and in f64. A panic would tell as much as an error.
fn wide(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Dtype::Double)?.f_reshape([-1])?)
}

/// What others hear of a worker that failed: an error travels in plain, and may name rows. Which they were is told here alone.
fn failed(e: Error) -> Error {
    Error::data("training failed; why is told to the client alone").because(e)
}

/// Whether a worker failed for what the rows are, as far as can be told: of a number that is not finite, of libtorch, or of
/// something that it keeps back (see [`Worker::train`]), if that is no disk.
fn is_of_rows(e: &Error) -> bool {
    let kept_back = std::error::Error::source(e).and_then(|why| why.downcast_ref::<Error>());
    matches!(e.kind(), ErrorKind::NonFinite | ErrorKind::Internal)
        || kept_back.is_some_and(|why| why.kind() != ErrorKind::Io)
}

/// What others hear of a ledger that failed: an error travels in plain, and may name its file.
fn of_ledger(e: PrivacyError) -> Error {
    if e.path().is_none() {
        return e.into();
    }
    Error::data("its ledger could not be used; why is told here alone").because(Error::from(e))
}

#[cfg(test)]
mod tests;
