//! The coordinator's side.

use super::talk::Talk;
use super::{FEWEST, Quorum, RING, TRIES, context, lattice, round_id, sent};
use crate::engine::name::NAME;
use crate::engine::state::{SECURE, decode, encode, settle};
use crate::engine::{Engine, Federation, Noise, Round, Settings, Weights, bytes_of_task};
use crate::secagg::{Directory, IdentityKey, Own, Plan, Server, Session, Sum};
use crate::store::Store;
use lora_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

const TRY: &str = "try";

/// Who collects: its key, and whom it knows.
#[derive(Debug)]
pub struct Coordinator {
    key: IdentityKey,
    directory: Directory,
    quorum: Quorum,
    noise: Option<Noise>,
}

/// What must be known of a round that was broken off.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Try {
    round: u64,
    tries: u64,
    /// Vectors may have been sent.
    asked: bool,
}

impl Coordinator {
    /// `directory` pins everybody's identity.
    ///
    /// # Errors
    /// [`Error::usage`] if the key is not the coordinator's that the directory has.
    pub fn new(own: Own, directory: Directory) -> Result<Self> {
        if own.party.is_some() || own.key.public() != directory.server {
            return Err(Error::usage("the directory has another key for the coordinator")
                .hint("all parties need one directory, with this key's line in it"));
        }
        let quorum = Quorum::of(&directory);
        Ok(Self { key: own.key, directory, quorum, noise: None })
    }

    /// Has clients add noise to the sums.
    pub fn with(self, noise: Noise) -> Self {
        Self { noise: Some(noise), ..self }
    }

    /// Plans with so many parties and more, if it is said, as parties must be told too: see
    /// [`Parties::at_least`](super::Parties::at_least).
    ///
    /// # Errors
    /// Those of [`Quorum::at_least`].
    pub fn at_least(self, parties: Option<usize>) -> Result<Self> {
        Ok(Self { quorum: self.quorum.at_least(parties)?, ..self })
    }

    /// How many parties a round takes.
    pub fn least(&self) -> usize {
        self.quorum.least()
    }

    /// Whether rounds can go so with the parties of the directory.
    ///
    /// # Errors
    /// Those of [`Settings::check_secure`]; [`Error::usage`] for fewer clients a round than parties take part with.
    pub fn check(&self, settings: &Settings) -> Result<()> {
        settings.check_secure()?;
        settings.per_round.map_or(Ok(()), |asked| self.quorum.allows(asked))
    }
}

impl Settings {
    /// Whether rounds can be sums of what nobody sees.
    ///
    /// # Errors
    /// [`Error::usage`] with everything that speaks against it.
    pub fn check_secure(&self) -> Result<()> {
        let (mut faults, rule) = (Vec::new(), self.rule);
        let mut refuse = |bad: bool, what: String| faults.extend(bad.then_some(what));
        refuse(!rule.is_linear(), format!("{rule} is no sum of what clients send"));
        let equal = self.weights == Weights::Equal;
        refuse(!equal, "clients count the same: a sum has no weights".into());
        refuse(self.robust.is_some(), "a robust rule looks at single replies".into());
        refuse(self.bounds.is_some(), "bounds look at single replies".into());
        let few = self.per_round.is_some_and(|n| n < FEWEST);
        refuse(few, format!("fewer than {FEWEST} clients a round: each could take its own part off the sum"));
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::faults(ErrorKind::Usage, "these settings do not go with secure sums", faults))
    }
}

impl Federation {
    /// As [`Federation::named_in`]; of a run that a version before began in plain, and that has no name of its own, one is
    /// written. Parties take part in no round of a name twice, and remember it when the run is over.
    ///
    /// # Errors
    /// What the store meets; [`Error::data`] if the operating system gives no randomness.
    pub fn name_in(&mut self, store: &mut Store) -> Result<()> {
        if store.get(SECURE, NAME)?.is_none() {
            store.write(|changes| self.write_name(changes))?;
        }
        self.named_in(store)
    }

    /// A round of which the coordinator sees the sum alone; see [`Coordinator`]. What came of it is in `store` before the
    /// engine forgets. A round that breaks after vectors were sent is lost, and is told of as such. The run must have a name
    /// that its parties have not met: [`Federation::name_in`].
    ///
    /// # Errors
    /// Those of [`Coordinator::check`], of the engine and the store; [`Error::data`] if too few parties are there. The
    /// model is then as before: the round can be tried again, here or by another process.
    pub fn secure_round_in(
        &mut self,
        store: &mut Store,
        by: &Coordinator,
        engine: &mut dyn Engine,
    ) -> Result<Round> {
        by.check(self.settings())?;
        let number = self.model.rounds + 1;
        let known = store.get(SECURE, TRY)?.map(|bytes| decode::<Try>(&bytes)).transpose()?;
        let last = known.filter(|last| last.round == number).unwrap_or_default();
        self.whole(|federation| {
            let round = if last.asked {
                let why = Some("it was broken off after vectors were sent".to_owned());
                Round { round: number, clients: Vec::new(), lost: why }
            } else {
                let now = Try { round: number, tries: last.tries + 1, asked: false };
                if now.tries >= TRIES {
                    return Err(Error::data(format!("round {number} was tried {TRIES} times")));
                }
                store.put(SECURE, TRY, &encode(&now)?)?;
                federation.secure_try(store, now, by, engine)?
            };
            // One that is lost counts, and the model stays.
            federation.model.rounds = number;
            federation.commit(store, &round)?;
            Ok(round)
        })
        .inspect(|_| settle(engine))
    }

    fn secure_try(
        &mut self,
        store: &mut Store,
        now: Try,
        by: &Coordinator,
        engine: &mut dyn Engine,
    ) -> Result<Round> {
        let rule = self.rule(now.round);
        let task = self.task("", rule, now.round)?;
        let numbers: usize = sent(&task).map(|(_, t)| t.numel()).sum();
        engine.carries(bytes_of_task(&task).max((numbers * RING.bytes()) as u64))?;
        let id = round_id(&task.run, now.round, now.tries);
        // Tried again, it asks others.
        self.draw = now.tries - 1;
        let chosen = self.choose(engine.clients()?)?;
        let mut talk = Talk::begin(engine, chosen, id.number)?;
        talk.keep(|party| by.directory.parties.contains_key(&party));

        let mut plan = Plan::new(id, talk.parties(), RING, numbers);
        plan.context = context(&task, by.noise, by.quorum)?;
        let count = plan.parties.len();
        plan.threshold = by.quorum.threshold(count).max(self.settings().minimum);
        let few = |talk: Talk<'_>, why: String| {
            let said =
                talk.end(&[]).into_iter().filter_map(|t| Some(format!("{}: {}", t.client, t.refused?)));
            Error::faults(ErrorKind::Data, format!("round {}: {why}", now.round), said.collect())
                .hint(
                    "no vector was sent: the round can be tried again; if parties joined it before, they know more of this run \
                     than its state does, and only a run that begins anew will do",
                )
        };
        let needed = by.least().max(plan.threshold);
        if count < needed {
            return Err(few(talk, format!("{count} parties are there, and {needed} are needed")));
        }
        let session = Session::new(plan.clone(), &by.directory)?;
        let proposal = session.propose(&by.key)?;
        let mut server = Server::open(by.key.clone(), session)?;
        talk.ask_all(&mut server, &proposal)?;
        let keys = match server.close_keys() {
            Ok(keys) => keys,
            Err(e) => return Err(few(talk, e.to_string())),
        };
        talk.ask_all(&mut server, &keys)?;
        let bundles = match server.close_deals() {
            Ok(bundles) => bundles,
            Err(e) => return Err(few(talk, e.to_string())),
        };

        store.put(SECURE, TRY, &encode(&Try { asked: true, ..now })?)?;
        talk.ask(&mut server, bundles, (Some(&task), by.noise))?;
        let sum = finish(&mut talk, &mut server)?;
        let (lost, counted) = match &sum {
            Ok(sum) => (None, sum.survivors.clone()),
            Err(why) => (Some(why.clone()), Vec::new()),
        };
        let clients = talk.end(&counted);
        if let Ok(sum) = sum {
            let n = sum.survivors.len() as f64;
            let values = match by.noise {
                Some(noise) => noise.values(&plan, &sum.vector)?,
                None => lattice(count)?.decode(&sum.vector),
            };
            let mean: Vec<f64> = values.into_iter().map(|x| x / n).collect();
            self.move_by(rule, &mean)?;
        }
        Ok(Round { round: now.round, clients, lost })
    }
}

/// From the masked vectors to their sum; or why there is none.
fn finish(talk: &mut Talk<'_>, server: &mut Server) -> Result<std::result::Result<Sum, String>> {
    let survivors = match server.close_masked() {
        Ok(survivors) => survivors,
        Err(e) => return Ok(Err(e.to_string())),
    };
    talk.ask_all(server, &survivors)?;
    let consents = match server.close_consents() {
        Ok(consents) => consents,
        Err(e) => return Ok(Err(e.to_string())),
    };
    talk.ask_all(server, &consents)?;
    Ok(server.finish().map_err(|e| e.to_string()))
}
