//! The coordinator: one round after another.

use super::had::Had;
use super::model::{A, Model};
use super::{Engine, Settings, Task, bytes_of_task};
use crate::aggregate::{Rule, ServerOptimiser};
use lora_core::{Error, Result};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::BTreeMap;

type Scale = Box<dyn Fn(&str, i64) -> f64 + Send>;

/// A run: its settings, its model, and what its server optimiser remembers.
pub struct Federation {
    pub(super) settings: Settings,
    /// How a module's `B A` is scaled at a rank.
    pub(super) scale: Scale,
    /// What it has learnt.
    pub model: Model,
    /// How it moves, if not all the way to the mean.
    pub server: Option<ServerOptimiser>,
    /// How often this round's choice of clients was let go.
    pub(super) draw: u64,
    pub(super) had: Had,
    /// What it is known by beside its settings, by what that is.
    pub(super) known: BTreeMap<&'static str, String>,
}

/// What came of a round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Round {
    /// From 1.
    pub round: u64,
    /// Those that were asked, in their order.
    pub clients: Vec<Told>,
    /// Why nothing was learnt, if so: the round counts, and the model is as before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// What came of a client's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// Who.
    pub client: String,
    /// Why its reply does not count, if it does not: as text that can be shown ([`crate::plain`]), of a thousand characters at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What it says it learnt from.
    pub examples: u64,
    /// What else it says, as far as it is brief: 32 numbers, with names of 64 characters.
    pub metrics: BTreeMap<String, f64>,
    /// Tensors sent to it. Of what lies beside that is what it lacks: the rest came to it in the rounds before.
    pub bytes_down: u64,
    /// And by it.
    pub bytes_up: u64,
}

impl std::fmt::Debug for Federation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Federation({:?}, {} rounds)", self.settings, self.model.rounds)
    }
}

impl Federation {
    /// Goes on from `model`. `scale` says how a module's update is scaled at a rank.
    ///
    /// # Errors
    /// Those of [`Settings::check`].
    pub fn new(
        settings: Settings,
        model: Model,
        scale: impl Fn(&str, i64) -> f64 + Send + 'static,
    ) -> Result<Self> {
        settings.check()?;
        let rank = model
            .adapter
            .iter()
            .filter(|(name, _)| name.ends_with(A))
            .filter_map(|(_, a)| a.size().first().copied());
        let (least, most) = (rank.min(), settings.ranks.values().max());
        if let (Rule::FlexLora, Some(least), Some(most)) = (settings.rule, least, most)
            && *most > least
        {
            let what = format!("flexlora's model has rank {least}, and a client {most}");
            return Err(
                Error::usage(what).hint("the model's rank is the largest: clients get it cut to theirs")
            );
        }
        let server = settings.server.map(ServerOptimiser::new);
        let (scale, had, known) = (Box::new(scale), Had::default(), BTreeMap::new());
        Ok(Self { settings, scale, model, server, draw: 0, had, known })
    }

    /// How it goes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// One round. If it fails, the model is as before: the same round can be tried again.
    ///
    /// # Errors
    /// What the engine meets; [`Error::data`] if fewer replies are good than the settings or a robust rule take, naming each fault;
    /// [`Error::unsupported`] for a run that would outgrow the engine, before its first round, and for a task that does.
    pub fn round(&mut self, engine: &mut dyn Engine) -> Result<Round> {
        let chosen = self.choose(engine.clients()?)?;
        self.round_of(chosen, engine)
    }

    /// The same with these clients.
    ///
    /// # Errors
    /// As [`Federation::round`].
    pub fn round_of(&mut self, chosen: Vec<String>, engine: &mut dyn Engine) -> Result<Round> {
        // Before anybody works for nothing.
        self.settings.robust.map_or(Ok(()), |robust| robust.takes(chosen.len()))?;
        let number = self.model.rounds + 1;
        let rule = self.rule(number);
        let tasks = chosen.iter().map(|client| self.task(client, rule, number));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        tasks.iter().try_for_each(|task| engine.carries(bytes_of_task(task)))?;
        let largest = tasks.iter().map(bytes_of_task).max().unwrap_or(0);
        self.foresee(&chosen, largest, engine)?;
        let sent: Vec<Task> = tasks.iter().map(Task::share).collect();
        let replies = engine.run(chosen.into_iter().zip(tasks).collect())?;
        let (uploads, clients) = self.screen(rule, &sent, replies);
        self.are_enough(number, uploads.len(), &clients)?;
        self.whole(|federation| {
            for told in clients.iter().filter(|told| told.refused.is_none()) {
                federation.had.has(&told.client, &federation.model);
            }
            federation.move_together(rule, uploads)
        })?;
        Ok(Round { round: number, clients, lost: None })
    }

    pub(super) fn rule(&self, round: u64) -> Rule {
        match self.settings.rule {
            Rule::RoLora { .. } => Rule::RoLora { round },
            rule => rule,
        }
    }

    /// The next round's clients, by a keyed choice: the same however the engine lists them.
    ///
    /// # Errors
    /// [`Error::usage`] if there are too few.
    pub fn choose(&self, mut clients: Vec<String>) -> Result<Vec<String>> {
        clients.sort();
        clients.dedup();
        let wanted = self.settings.per_round.unwrap_or(clients.len());
        if clients.len() < wanted.max(self.settings.minimum) {
            let what = format!("{} clients are there, and a round asks {wanted}", clients.len());
            return Err(Error::usage(what).hint("wait for more of them, or ask fewer"));
        }
        if wanted < clients.len() {
            let mut random = ChaCha8Rng::seed_from_u64(self.settings.seed);
            random.set_stream(self.draw << 32 | (self.model.rounds + 1));
            clients.shuffle(&mut random);
            clients.truncate(wanted);
            clients.sort();
        }
        Ok(clients)
    }

    pub(super) fn task(&self, client: &str, rule: Rule, round: u64) -> Result<Task> {
        let adapter = match self.settings.ranks.get(client) {
            Some(rank) => self.model.at_rank(*rank, &self.scale, self.settings.seed)?,
            None => self.model.share().adapter,
        };
        let ranks = adapter.iter().filter_map(|(name, a)| Some((name.strip_suffix(A)?, *a.size().first()?)));
        let scales = ranks.map(|(module, rank)| (module.to_owned(), (self.scale)(module, rank))).collect();
        let (trains, sends) = rule.trains();
        Ok(Task {
            run: self.settings.run.clone(),
            round,
            rounds: self.settings.rounds,
            trains,
            sends,
            scales,
            base: self.base(),
            adapter,
            beside: self.model.share().beside,
        })
    }
}
