//! A run on disk: killed at any moment, it goes on with the round that it was in.
//!
//! Two writes a round, each whole or not at all: who was chosen, before anybody is asked; and all that came of it, with the
//! model, before the engine may forget the replies. So a round that is done again asks the same clients for the same, and
//! no reply counts twice.

use super::had::Had;
use super::model::{A, Model};
use super::{Engine, Federation, Round, beside_of};
use crate::privacy::Release;
use crate::store::Store;
use lora_core::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

const SPACE: &str = "federation";
const SETTINGS: &str = "settings";
const CHOSEN: &str = "chosen";
/// With what the server remembers; it may be of gigabytes.
const MODEL: &str = "model";
/// A report each.
const ROUNDS: &str = "rounds";
/// What secure rounds know of the run.
pub(super) const SECURE: &str = "secure";

/// A tensor as bytes.
#[derive(Serialize, Deserialize)]
struct Flat {
    name: String,
    double: bool,
    size: Vec<i64>,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    rounds: u64,
    adapter: Vec<Flat>,
    beside: Vec<Flat>,
    made: u64,
    had: Had,
    /// The server optimiser's first and second moments.
    first: Vec<Flat>,
    second: Vec<Flat>,
}

#[derive(Serialize, Deserialize)]
struct Chosen {
    round: u64,
    /// How often another choice of that round was let go.
    draw: u64,
    /// None: still to be chosen.
    clients: Vec<String>,
}

impl Federation {
    /// Takes up what `store` holds of this run; does it hold anything? An empty one is begun, under a name of its own
    /// ([`Federation::named_in`]).
    ///
    /// # Errors
    /// [`Error::usage`] if it is of a run with other settings, shapes or scales, or [known by](Self::known_by) something else; what
    /// the store meets.
    pub fn resume(&mut self, store: &mut Store) -> Result<bool> {
        // Of the model that a run starts from, before one that is there takes its place.
        let settings = format!("{:?} {:?}", self.settings(), self.form());
        let saved = store.get_long(SPACE, MODEL)?.map(|bytes| decode::<Saved>(&bytes)).transpose()?;
        let known = store.get(SPACE, SETTINGS)?.is_some_and(|bytes| bytes == settings.as_bytes());
        let rounds = saved.as_ref().map_or(0, |saved| saved.rounds);
        let unlike = self.unlike(store, rounds)?;
        match saved {
            Some(saved) if known && unlike.is_none() => {
                self.take(saved)?;
                Ok(true)
            }
            Some(_) if rounds > 0 => Err(unlike.unwrap_or_else(|| {
                let what = format!("there is a run of other settings, {rounds} of whose rounds are done");
                Error::usage(what).hint(
                    "give that run's settings, with its rank, alpha and variant, or keep this one elsewhere; what an \
                     earlier version began is ended with that version",
                )
            })),
            // Of a run that came to nothing, nothing is lost.
            _ => {
                let model = bytes_of(self)?;
                store.write(|changes| {
                    changes.clear(SPACE)?;
                    changes.clear(SECURE)?;
                    changes.put(SPACE, SETTINGS, settings.as_bytes())?;
                    self.write_known(changes)?;
                    self.write_name(changes)?;
                    changes.put_long(SPACE, MODEL, &model)
                })?;
                Ok(false)
            }
        }
    }

    /// Each tensor's name and shape, and for an A how `B A` is scaled, at its rank and at those that clients have of their own:
    /// under another rank, alpha or variant the numbers of a run mean something else.
    fn form(&self) -> Vec<(&String, Vec<i64>, Vec<u64>)> {
        let mut form = Vec::new();
        for (name, tensor) in &self.model.adapter {
            let size = tensor.size();
            let mut scales = Vec::new();
            if let Some(module) = name.strip_suffix(A) {
                let ranks = size.iter().take(1).chain(self.settings.ranks.values());
                scales.extend(ranks.map(|rank| (self.scale)(module, *rank).to_bits()));
            }
            form.push((name, size, scales));
        }
        form
    }

    /// A round that is in the store before anybody is asked and before the engine forgets, and is `told` in between.
    ///
    /// # Errors
    /// Those of [`Federation::round`] and of the store: the round can be tried again, here or by another process.
    pub fn round_in(&mut self, store: &mut Store, engine: &mut dyn Engine) -> Result<Round> {
        let mut chosen = self.chosen(store)?;
        if chosen.clients.is_empty() {
            self.draw = chosen.draw;
            chosen.clients = self.choose(engine.clients()?)?;
            store.put(SPACE, CHOSEN, &encode(&chosen)?)?;
        }
        self.whole(|federation| {
            let round = federation.round_of(chosen.clients, engine)?;
            federation.commit(store, &round)?;
            Ok(round)
        })
        .inspect(|_| settle(engine))
    }

    /// The next round's choice of clients, as far as it was made.
    fn chosen(&self, store: &Store) -> Result<Chosen> {
        let number = self.model.rounds + 1;
        let known = store.get(SPACE, CHOSEN)?.map(|bytes| decode::<Chosen>(&bytes)).transpose()?;
        let fresh = Chosen { round: number, draw: 0, clients: Vec::new() };
        Ok(known.filter(|chosen| chosen.round == number).unwrap_or(fresh))
    }

    /// [`Federation::private_round`], with all that came of it in the store before the engine forgets. Its draws need not be
    /// kept: done again, they are the same. Nor are they told of, here and in the store: in the place of the clients stands, under no
    /// name, what the round takes of each.
    ///
    /// # Errors
    /// Those of [`Federation::private_round`] and of the store.
    pub fn private_round_in(
        &mut self,
        store: &mut Store,
        release: &mut Release,
        population: &[String],
        engine: &mut dyn Engine,
    ) -> Result<Round> {
        self.whole(|federation| {
            let each = federation.each()?;
            let round = federation.private_round(release, population, engine)?;
            let round = Round { clients: vec![each], ..round };
            federation.commit(store, &round)?;
            Ok(round)
        })
        .inspect(|_| settle(engine))
    }

    pub(super) fn commit(&self, store: &mut Store, round: &Round) -> Result<()> {
        let report = serde_json::to_vec(round).map_err(|e| Error::internal(e.to_string()))?;
        let model = bytes_of(self)?;
        store.write(|changes| {
            changes.put_long(SPACE, MODEL, &model)?;
            changes.put(ROUNDS, &format!("{:020}", round.round), &report)
        })
    }

    /// Lets the round's choice of clients go, for another: for a round that cannot be finished with them.
    ///
    /// # Errors
    /// What the store meets.
    pub fn choose_again(&self, store: &mut Store) -> Result<()> {
        let chosen = self.chosen(store)?;
        let next = Chosen { draw: chosen.draw + 1, clients: Vec::new(), ..chosen };
        store.put(SPACE, CHOSEN, &encode(&next)?)
    }

    /// The reports of all rounds that are done, as JSON.
    ///
    /// # Errors
    /// What the store meets.
    pub fn reports(store: &Store) -> Result<Vec<Vec<u8>>> {
        store.keys(ROUNDS)?.iter().filter_map(|key| store.get(ROUNDS, key).transpose()).collect()
    }

    fn saved(&self) -> Result<Saved> {
        let moments = self.server.iter().flat_map(|server| &server.moments);
        let (first, second): (Vec<_>, Vec<_>) = moments.map(|(n, (m, v))| ((n, m), (n, v))).unzip();
        Ok(Saved {
            rounds: self.model.rounds,
            adapter: flat(&self.model.adapter)?,
            beside: flat_pairs(&self.model.beside)?,
            made: self.model.made,
            had: self.had.clone(),
            first: flat(first)?,
            second: flat(second)?,
        })
    }

    fn take(&mut self, saved: Saved) -> Result<()> {
        let tensors = |flat: Vec<Flat>| -> Result<BTreeMap<String, Tensor>> {
            flat.into_iter().map(|f| Ok((f.name.clone(), f.tensor()?))).collect()
        };
        let beside = beside_of(tensors(saved.beside)?)?;
        let (rounds, made) = (saved.rounds, saved.made);
        self.model = Model { rounds, adapter: tensors(saved.adapter)?, beside, made };
        self.had = saved.had;
        let (first, mut second) = (tensors(saved.first)?, tensors(saved.second)?);
        if let Some(server) = &mut self.server {
            let both =
                first.into_iter().filter_map(|(name, m)| Some((name.clone(), (m, second.remove(&name)?))));
            server.moments = both.collect();
        }
        Ok(())
    }
}

/// What came of a round is safe: an engine that cannot forget its replies now does so after the next one.
pub(super) fn settle(engine: &mut dyn Engine) {
    let _ = engine.settle();
}

fn flat<'a>(tensors: impl IntoIterator<Item = (&'a String, &'a Tensor)>) -> Result<Vec<Flat>> {
    tensors.into_iter().map(|(name, tensor)| Flat::of(name.clone(), tensor)).collect()
}

/// As [`beside_of`] reads them.
fn flat_pairs(pairs: &BTreeMap<String, (Tensor, Tensor)>) -> Result<Vec<Flat>> {
    let both = pairs.iter().flat_map(|(module, (a, b))| [(module, "A", a), (module, "B", b)]);
    both.map(|(module, factor, tensor)| Flat::of(format!("{module}.{factor}"), tensor)).collect()
}

/// A SHA-256 of an adapter and of what lies beside.
pub(super) fn fingerprint(
    adapter: &BTreeMap<String, Tensor>,
    beside: &BTreeMap<String, (Tensor, Tensor)>,
) -> Result<[u8; 32]> {
    Ok(Sha256::digest(encode(&(flat(adapter)?, flat_pairs(beside)?))?).into())
}

impl Flat {
    fn of(name: String, tensor: &Tensor) -> Result<Self> {
        let double = tensor.kind() == Kind::Double;
        let kind = if double { Kind::Double } else { Kind::Float };
        let flat = tensor.detach().to_device(tch::Device::Cpu).to_kind(kind).reshape([-1]);
        let mut bytes = vec![0; flat.numel() * kind.elt_size_in_bytes()];
        flat.f_copy_data_u8(&mut bytes, flat.numel())?;
        Ok(Self { name, double, size: tensor.size(), bytes })
    }

    fn tensor(&self) -> Result<Tensor> {
        let kind = if self.double { Kind::Double } else { Kind::Float };
        let wanted = self
            .size
            .iter()
            .try_fold(kind.elt_size_in_bytes(), |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        if wanted != Some(self.bytes.len()) {
            return Err(Error::data("its bytes are not as many as its shape says").at(&self.name));
        }
        Ok(Tensor::f_from_data_size(&self.bytes, &self.size, kind)?)
    }
}

/// The model and what the server remembers, as the store has them.
pub(super) fn bytes_of(federation: &Federation) -> Result<Vec<u8>> {
    encode(&federation.saved()?)
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|e| Error::internal(e.to_string()))
}

pub(super) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|e| Error::data(format!("the store's state cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aggregate::Rule;
    use crate::engine::model::B;
    use crate::engine::{InProcess, Reply, Settings, Task, Worker};
    use tch::Device;

    /// Learns something.
    struct More;

    impl Worker for More {
        fn train(&mut self, _: &str, task: &Task) -> Result<Reply> {
            let adapter = task.adapter.iter().map(|(name, t)| (name.clone(), t + 1.0)).collect();
            Ok(Reply { adapter, examples: 1, metrics: BTreeMap::new() })
        }
    }

    /// SQLite takes no value of a billion bytes; here of a million, and the model has three.
    #[test]
    fn a_model_that_is_longer_than_a_value_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("state")).unwrap();
        store.limit(1 << 20);
        let open = |store: &mut Store| {
            let zeros = |size: [i64; 2]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
            let factors = [(A, zeros([8, 49152])), (B, zeros([49152, 8]))];
            let adapter = factors.map(|(factor, tensor)| (format!("m{factor}"), tensor));
            let settings = Settings::new("a run", Rule::FedIt, 2);
            let mut federation = Federation::new(settings, Model::new(adapter.into()), |_, _| 1.0).unwrap();
            let known = federation.resume(store).unwrap();
            (federation, known)
        };
        let (mut federation, known) = open(&mut store);
        assert!(!known);
        let mut engine = InProcess::new(vec!["a".to_owned()], vec![Box::new(More)]);
        federation.round_in(&mut store, &mut engine).unwrap();
        let (again, known) = open(&mut store);
        assert!(known);
        assert_eq!((again.model.rounds, again.model.adapter), (1, federation.model.adapter));
    }

    /// Tells more than anybody reads.
    struct Talks;

    impl Worker for Talks {
        fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
            let mut reply = More.train(client, task)?;
            let long = "\u{1}".repeat(2 << 20);
            match client {
                "reason" => return Err(Error::data(long)),
                "tensor" => drop(reply.adapter.insert(long, Tensor::from(0.0))),
                "metric" => drop(reply.metrics.insert(long, 1.0)),
                _ => reply.metrics.extend((0..1000i32).map(|n| (format!("{n:063}!"), f64::from(n)))),
            }
            Ok(reply)
        }
    }

    /// Nobody makes a round's report longer than a value by what it says.
    #[test]
    fn what_clients_say_at_length_ends_no_round() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("state")).unwrap();
        store.limit(1 << 20);
        let b = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu));
        let adapter = [(format!("m{A}"), b.tr()), (format!("m{B}"), b)].into();
        let settings = Settings::new("a run", Rule::FedIt, 1);
        let mut federation = Federation::new(settings, Model::new(adapter), |_, _| 1.0).unwrap();
        federation.resume(&mut store).unwrap();
        let clients = ["reason", "tensor", "metric", "many"].map(str::to_owned).to_vec();
        let mut engine = InProcess::new(clients, vec![Box::new(Talks)]);
        let round = federation.round_in(&mut store, &mut engine).unwrap();
        let reports = Federation::reports(&store).unwrap();
        assert!(reports.len() == 1 && reports[0].len() < 1 << 14, "{}", reports[0].len());
        // By their names: many, metric, reason, tensor.
        let told: Vec<_> = round.clients.iter().map(|t| (t.refused.is_some(), t.metrics.len())).collect();
        assert_eq!(told, [(false, 32), (false, 0), (true, 0), (true, 0)]);
        assert!(round.clients.iter().flat_map(|t| &t.refused).all(|why| why.len() == 1000));
    }
}
