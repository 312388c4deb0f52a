//! Rounds of training: who is asked, what for, and what comes of it.
//!
//! A [`Federation`] is the coordinator: it keeps the model that all have in common, makes a [`Task`] of it for each
//! client, has an [`Engine`] carry the tasks out, and puts the replies together by its rule. An engine is a way to reach
//! clients, and knows nothing of rules: [`InProcess`] runs them here. A client is whatever turns a task into a reply, and
//! knows nothing of either.

mod federation;
#[cfg(feature = "flower")]
mod flower;
mod foresee;
mod had;
mod known;
mod model;
mod name;
mod private;
mod process;
mod screen;
#[cfg(feature = "secagg")]
mod secure;
mod settings;
mod state;
mod together;

use lora_core::{Error, Result};
use std::collections::BTreeMap;
use tch::Tensor;

pub use crate::aggregate::Trains;
pub use federation::{Federation, Round, Told};
#[cfg(feature = "flower")]
pub use flower::{Joined, Server};
pub use model::Model;
pub use process::{InProcess, Worker};
#[cfg(feature = "secagg")]
pub use secure::{Claims, Coordinator, FEWEST, Parties, Quorum};
pub use settings::{Settings, Weights};

/// What a client is asked for.
#[derive(Debug)]
pub struct Task {
    /// Which run: two never have one name.
    pub run: String,
    /// Its round, from 1.
    pub round: u64,
    /// Of so many; 0 where the coordinator does not say.
    pub rounds: u64,
    /// What to train.
    pub trains: Trains,
    /// What of it to send back. The rest stays with the client, who starts its next round from it.
    pub sends: Trains,
    /// How each module's `B A` is scaled at its rank, as far as the coordinator says it: a client that scales one otherwise
    /// must refuse.
    pub scales: BTreeMap<String, f64>,
    /// What the frozen base model is known by, if the coordinator says it: a client over another one must refuse.
    pub base: Option<String>,
    /// The adapter to start from, by its names in PEFT's file.
    pub adapter: BTreeMap<String, Tensor>,
    /// What all learnt before and is frozen now, by module: `A [r, in]` and `B [out, r]`, beside the weight with scale 1.
    pub beside: BTreeMap<String, (Tensor, Tensor)>,
}

/// What a client sends back.
#[derive(Debug)]
pub struct Reply {
    /// The tensors that it was to send, by the same names.
    pub adapter: BTreeMap<String, Tensor>,
    /// How many examples it learnt from, if it says so.
    pub examples: u64,
    /// What else it tells, for people to read: losses and the like.
    pub metrics: BTreeMap<String, f64>,
}

/// A message of a protocol between a coordinator and its clients, which the engine carries and does not read.
#[derive(Debug)]
pub struct Letter {
    /// What it says.
    pub bytes: Vec<u8>,
    /// What is to be trained before it is answered.
    pub task: Option<Task>,
    /// What is to be added to what was learnt.
    pub noise: Option<Noise>,
}

/// Noise on a sum of clients' parts, each of which brings a share of it, so that the sum tells little of any one client and
/// nobody need be trusted to add it (Kairouz, Liu and Steinke 2021, arXiv 2102.06387).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Noise {
    /// The largest L2 norm of what a client has learnt, over all that it sends.
    pub clip: f64,
    /// The noise's deviation over it, in the sum.
    pub sigma: f64,
}

/// A way to reach clients.
pub trait Engine {
    /// Those that can be asked now, by the names that the engine knows them by: never by what they say of themselves.
    ///
    /// # Errors
    /// What the engine meets.
    fn clients(&mut self) -> Result<Vec<String>>;

    /// Whether it can carry so many bytes of tensors to a client, or from one. It is asked before anybody works, when a run begins
    /// also of the rounds to come.
    ///
    /// # Errors
    /// [`Error::unsupported`] if it, or who is at its other end, takes no message as large.
    fn carries(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }

    /// Carries the tasks out: a result of each, in their order.
    ///
    /// # Errors
    /// What ends the run; what ends one client's part is in its own result.
    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>>;

    /// Carries letters: the answer to each, in their order. A client that goes down between two letters may have forgotten
    /// the first.
    ///
    /// # Errors
    /// [`Error::unsupported`] by an engine that carries tasks alone; what it meets.
    fn exchange(&mut self, letters: Vec<(String, Letter)>) -> Result<Vec<(String, Result<Vec<u8>>)>> {
        let _ = letters;
        Err(Error::unsupported("this engine carries no letters"))
    }

    /// What came of the last tasks and letters is safe: the engine may forget the replies. Until then, the same tasks give the same
    /// replies, after a crash too.
    ///
    /// # Errors
    /// What the engine meets.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

impl Task {
    /// A SHA-256 of all numbers that the task brings, and of their names.
    ///
    /// # Errors
    /// For tensors that cannot be read.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        state::fingerprint(&self.adapter, &self.beside)
    }

    /// The same from another adapter.
    pub fn starting_from(&self, adapter: BTreeMap<String, Tensor>) -> Self {
        Self { adapter, ..self.share() }
    }

    /// Another handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        let adapter = self.adapter.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        let (run, scales, base) = (self.run.clone(), self.scales.clone(), self.base.clone());
        Self { run, scales, base, adapter, beside: model::share(&self.beside), ..*self }
    }
}

/// Pairs of factors by module, of tensors named `module.A` and `module.B`.
pub(crate) fn beside_of(mut flat: BTreeMap<String, Tensor>) -> Result<BTreeMap<String, (Tensor, Tensor)>> {
    let mut pairs = BTreeMap::new();
    while let Some((name, a)) = flat.pop_first() {
        let module = name.strip_suffix(".A").ok_or_else(|| Error::data("it is no pair's A").at(&name))?;
        let b = flat.remove(&format!("{module}.B"));
        let b = b.ok_or_else(|| Error::data("there is an A, but no B").at(module))?;
        pairs.insert(module.to_owned(), (a, b));
    }
    Ok(pairs)
}

/// Bytes of tensors.
pub(crate) fn bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> u64 {
    tensors.into_iter().map(|t| (t.numel() * t.kind().elt_size_in_bytes()) as u64).sum()
}

/// Bytes of a task's tensors, of which a client may have some already.
pub(crate) fn bytes_of_task(task: &Task) -> u64 {
    bytes(task.adapter.values().chain(task.beside.values().flat_map(|(a, b)| [a, b])))
}
