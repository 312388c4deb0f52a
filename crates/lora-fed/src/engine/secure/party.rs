//! A client's side.

use super::{Claims, LIMIT, Quorum, RING, TRIES, WHO, context, lattice, round_id};
use crate::engine::{Letter, Reply, Task, Worker};
use crate::privacy::{Ledger, PrivacyError, Secret, StepInputs, StepKey};
use crate::secagg::wire::{Envelope, Kind};
use crate::secagg::{Client, Directory, Identity, Own, PartyId, Plan, SecAggError, Session};
use lora_core::{Error, ErrorKind, Result};
use std::collections::BTreeMap;
use tch::{Device, Kind as Dtype, Tensor};

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
        let (run, round) = (plan.round.run, task.round);
        match (letter.noise, &mut self.ledger) {
            (None, None) => {
                let learnt = learn(client, task, worker, LIMIT)?;
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
                let share = noise.share(&plan, quorum, &random("noise")?)?;
                // What is large is clipped, and not told of.
                let learnt = match learn(client, task, worker, f64::MAX) {
                    // Failing would tell of the rows, for nothing.
                    Err(e) if is_of_rows(&e) => vec![0.0; plan.len],
                    learnt => learnt?,
                };
                let residues = noise.hide(&plan, &learnt, &share, &random("rounding")?)?;
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

/// Trains; what was learnt, tensor after tensor, if no number is beyond the limit.
fn learn(client: &str, task: &Task, worker: &mut dyn Worker, limit: f64) -> Result<Vec<f64>> {
    let mut learnt = Vec::new();
    // An error travels in plain, and may name rows: which they were is told here alone.
    let failed = |e| Error::data("training failed; why is told to the client alone").because(e);
    let mut reply = worker.train(client, task).map_err(failed)?;
    for (name, before) in task.adapter.iter().filter(|(name, _)| task.sends.holds(name)) {
        let missing = || Error::internal("what was trained lacks a tensor").at(name);
        let now = reply.adapter.remove(name).ok_or_else(missing)?;
        if now.size() != before.size() {
            return Err(Error::internal("what was trained has another shape").at(name));
        }
        let wide = |t: &Tensor| t.detach().to_device(Device::Cpu).to_kind(Dtype::Double).reshape([-1]);
        let moved: Vec<f64> = Vec::try_from(wide(&now) - wide(before))?;
        // Which number it is is not told: an error travels in plain.
        if moved.iter().any(|x| x.is_nan() || x.abs() > limit) {
            let what = format!("a number moved further than a secure sum holds, which is ±{limit}");
            return Err(Error::non_finite(what).at(name).hint("lower the learning rate"));
        }
        learnt.extend(moved);
    }
    Ok(learnt)
}

/// Whether [`learn`] failed for what the rows are: of a number that is not finite, or of something that the worker keeps
/// back (see [`Worker::train`]), if that is no setting and no disk.
fn is_of_rows(e: &Error) -> bool {
    fn cause(e: &Error) -> Option<&Error> {
        std::error::Error::source(e)?.downcast_ref()
    }
    let elsewhere = [ErrorKind::Usage, ErrorKind::Unsupported, ErrorKind::Io];
    let kept_back = |worker: &Error| cause(worker).is_some_and(|why| !elsewhere.contains(&why.kind()));
    let of = |worker: &Error| worker.kind() == ErrorKind::NonFinite || kept_back(worker);
    e.kind() == ErrorKind::NonFinite || cause(e).is_some_and(of)
}

/// What others hear of a ledger that failed: an error travels in plain, and may name its file.
fn of_ledger(e: PrivacyError) -> Error {
    if e.path().is_none() {
        return e.into();
    }
    Error::data("its ledger could not be used; why is told here alone").because(Error::from(e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn where_a_ledger_lies_is_a_cause() {
        let path = || PathBuf::from("bank.privacy.jsonl");
        let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let full = PrivacyError::Disk { action: "write", path: path(), source };
        for e in [full, PrivacyError::Poisoned { path: path() }, PrivacyError::Locked { path: path() }] {
            let e = of_ledger(e);
            let cause = std::error::Error::source(&e).unwrap().to_string();
            assert!(!e.to_string().contains("bank") && cause.contains("bank.privacy.jsonl"), "{e}: {cause}");
        }
        let spent = PrivacyError::Exceeded { step: 3, would: 9.0, budget: 8.0, delta: 1e-5 };
        assert!(of_ledger(spent).to_string().contains("the budget is 8"));
    }
}
