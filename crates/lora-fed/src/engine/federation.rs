//! The coordinator: one round after another.

use super::model::{A, B, Model, upload};
use super::{Engine, Reply, Settings, Task, Weights, bytes};
use crate::aggregate::{Aggregate, Layer, Rule, ServerOptimiser, Upload};
use lora_core::{Error, ErrorKind, Result, all_finite};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Kind, Tensor};

type Scale = Box<dyn Fn(&str, i64) -> f64 + Send>;

/// A run: its settings, its model, and what its server optimiser remembers.
pub struct Federation {
    settings: Settings,
    /// How a module's `B A` is scaled at a rank.
    pub(super) scale: Scale,
    /// What it has learnt.
    pub model: Model,
    /// How it moves, if not all the way to the mean.
    pub server: Option<ServerOptimiser>,
    /// How often this round's choice of clients was let go.
    pub(super) draw: u64,
}

/// No training makes a larger number, and no product of two overflows f32.
const LARGEST: f64 = 1e12;

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
    /// Why its reply does not count, if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What it says it learnt from.
    pub examples: u64,
    /// What else it says.
    pub metrics: BTreeMap<String, f64>,
    /// Tensors sent to it.
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
        Ok(Self { settings, scale: Box::new(scale), model, server, draw: 0 })
    }

    /// How it goes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// One round. If it fails, the model is as before: the same round can be tried again.
    ///
    /// # Errors
    /// What the engine meets; [`Error::data`] if fewer replies are good than the settings ask for, naming each fault.
    pub fn round(&mut self, engine: &mut dyn Engine) -> Result<Round> {
        let chosen = self.choose(engine.clients()?)?;
        self.round_of(chosen, engine)
    }

    /// The same with these clients.
    ///
    /// # Errors
    /// As [`Federation::round`].
    pub fn round_of(&mut self, chosen: Vec<String>, engine: &mut dyn Engine) -> Result<Round> {
        let number = self.model.rounds + 1;
        let rule = self.rule(number);
        let tasks = chosen.iter().map(|client| self.task(client, rule, number));
        let tasks = tasks.collect::<Result<Vec<_>>>()?;
        let sent: Vec<Task> = tasks.iter().map(Task::share).collect();
        let replies = engine.run(chosen.into_iter().zip(tasks).collect())?;
        let (uploads, clients) = self.screen(rule, &sent, replies);
        if uploads.len() < self.settings.minimum {
            let what =
                format!("round {number} has {} good replies of {}", uploads.len(), self.settings.minimum);
            let why = clients.iter().filter_map(|t| Some(format!("{}: {}", t.client, t.refused.as_ref()?)));
            return Err(Error::faults(ErrorKind::Data, what, why.collect())
                .hint("nothing was changed: the round can be tried again"));
        }
        self.put_together(rule, uploads)?;
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
        let first = adapter.iter().find_map(|(name, a)| Some((name.strip_suffix(A)?, a.size()[0])));
        let (trains, sends) = rule.trains();
        Ok(Task {
            run: self.settings.run.clone(),
            round,
            rounds: self.settings.rounds,
            trains,
            sends,
            scale: first.map(|(module, rank)| (self.scale)(module, rank)),
            adapter,
            beside: self.model.share().beside,
        })
    }

    /// Replies as uploads, and what is to be said of each client.
    pub(super) fn screen(
        &self,
        rule: Rule,
        sent: &[Task],
        replies: Vec<(String, Result<Reply>)>,
    ) -> (Vec<Upload>, Vec<Told>) {
        let (mut uploads, mut told, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (task, (client, reply)) in sent.iter().zip(replies) {
            let beside = task.beside.values().flat_map(|(a, b)| [a, b]);
            let mut this = Told {
                client: client.clone(),
                refused: None,
                examples: 0,
                metrics: BTreeMap::new(),
                bytes_down: bytes(task.adapter.values().chain(beside)),
                bytes_up: 0,
            };
            let twice = || Error::data("it is there twice");
            let unique = seen.insert(client.clone());
            let good =
                reply.and_then(|reply| if unique { Ok(reply) } else { Err(twice()) }).and_then(|reply| {
                    this.bytes_up = bytes(reply.adapter.values());
                    this.examples = reply.examples;
                    this.metrics = reply.metrics.clone();
                    self.accept(&client, rule, task, reply)
                });
            match good {
                Ok(upload) => uploads.push(upload),
                Err(e) => this.refused = Some(e.to_string()),
            }
            told.push(this);
        }
        (uploads, told)
    }

    /// A reply as an upload: what it sent, and of the rest what the task gave.
    fn accept(&self, client: &str, rule: Rule, task: &Task, mut reply: Reply) -> Result<Upload> {
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
        let sent = upload(client, weight, &whole, &self.scale)?;
        let Some(bounds) = self.settings.bounds else { return Ok(sent) };
        let before = upload("", 1.0, &task.adapter, &self.scale)?;
        let (mut kept, mut refused) = bounds.screen(vec![sent], &before);
        match (kept.pop(), refused.pop()) {
            (Some(upload), _) => Ok(upload),
            (None, refusal) => Err(Error::data(refusal.map_or_else(String::new, |r| r.why))),
        }
    }

    /// Puts together what all learnt in the mean: `mean` has the numbers of the tensors that clients send, one tensor after
    /// another.
    pub(super) fn move_by(&mut self, rule: Rule, mean: &[f64]) -> Result<()> {
        let mut next: BTreeMap<String, Tensor> = self.model.share().adapter;
        let mut rest = mean;
        let (_, sends) = rule.trains();
        for (name, before) in self.model.adapter.iter().filter(|(name, _)| sends.holds(name)) {
            let (mine, others) = rest.split_at(before.numel().min(rest.len()));
            let moved = Tensor::from_slice(mine).view(before.size().as_slice()).to_device(before.device());
            let wide = before.to_kind(Kind::Double) + moved;
            next.insert(name.clone(), wide.to_kind(before.kind()));
            rest = others;
        }
        let whole = upload("all", 1.0, &next, &self.scale)?;
        self.put_together(rule, vec![whole])
    }

    /// Does it, or leaves the model and what the server remembers as they were.
    pub(super) fn whole<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let (model, moments) = (self.model.share(), self.server.as_ref().map(ServerOptimiser::share));
        let done = work(self);
        if done.is_err() {
            self.model = model;
            if let (Some(server), Some(moments)) = (&mut self.server, moments) {
                server.moments = moments;
            }
        }
        done
    }

    pub(super) fn put_together(&mut self, rule: Rule, uploads: Vec<Upload>) -> Result<()> {
        self.whole(|federation| federation.move_together(rule, uploads))
    }

    fn move_together(&mut self, rule: Rule, uploads: Vec<Upload>) -> Result<()> {
        let uploads = match self.settings.robust {
            Some(robust) => vec![robust.aggregate(&uploads)?],
            None => uploads,
        };
        // FedSVD makes both factors anew: the server moves before that.
        let before = rule == Rule::FedSvd && self.server.is_some();
        let uploads = if before { vec![self.moved(Rule::Ffa, &uploads)?] } else { uploads };
        let all = rule.aggregate(&uploads)?;
        let mut model = Model { rounds: self.model.rounds + 1, ..self.model.share() };
        for (name, value) in self.means(rule, &all)? {
            let old = &self.model.adapter[&name];
            let value = match &mut self.server {
                Some(server) if !before => server.step(&name, old, &value)?,
                _ => value,
            };
            model.adapter.insert(name, value.to_kind(old.kind()).contiguous());
        }
        if let (Some(server), true) = (&mut self.server, before) {
            for (module, shared) in &all.layers {
                let (a, b) = (format!("{module}{A}"), format!("{module}{B}"));
                if let Some(new) = &shared.a {
                    server.turn(&b, &self.model.adapter[&a], new);
                }
            }
        }
        all.side.iter().try_for_each(|(module, side)| model.lay_beside(module, side))?;
        if rule == Rule::Flora {
            for (module, shared) in all.layers {
                let (Some(a), Some(b)) = (shared.a, shared.b) else { continue };
                model.lay_beside(&module, &Layer { a, b, scale: shared.scale })?;
            }
            model.begin_anew(self.settings.seed);
        }
        self.model = model;
        Ok(())
    }

    /// The model where the server moves to from the means by that rule.
    fn moved(&mut self, rule: Rule, uploads: &[Upload]) -> Result<Upload> {
        let mut next = self.model.share().adapter;
        for (name, mean) in self.means(rule, &rule.aggregate(uploads)?)? {
            if let Some(server) = &mut self.server {
                let value = server.step(&name, &self.model.adapter[&name], &mean)?;
                next.insert(name, value);
            }
        }
        upload("all", 1.0, &next, &self.scale)
    }

    /// What the round says the adapter's tensors should be, by name; what it says nothing of stays.
    fn means(&self, rule: Rule, all: &Aggregate) -> Result<Vec<(String, Tensor)>> {
        let mut means: Vec<_> =
            all.others.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        for (module, sum) in &all.sums {
            // Whoever took part, the model keeps its rank.
            let rank = self.model.adapter.get(&format!("{module}{A}")).map_or(1, |a| a.size()[0]);
            let (b, a) = sum.at_rank(rank.min(sum.s.size()[0]));
            let b = b.constant_pad_nd([0, rank - b.size()[1]]) / (self.scale)(module, rank);
            means.push((format!("{module}{A}"), self.model.grown(module, &a, rank, self.settings.seed)));
            means.push((format!("{module}{B}"), b));
        }
        let anew = matches!(rule, Rule::Flora | Rule::FlexLora);
        for (module, shared) in all.layers.iter().filter(|_| !anew) {
            means.extend(shared.a.as_ref().map(|a| (format!("{module}{A}"), a.shallow_clone())));
            if let Some(b) = &shared.b {
                let rank = b.size().last().copied().unwrap_or(1);
                let factor = shared.scale / (self.scale)(module, rank);
                let b = if factor == 1.0 { b.shallow_clone() } else { b * factor };
                means.push((format!("{module}{B}"), b));
            }
        }
        match means.iter().find(|(_, mean)| !all_finite(mean)) {
            Some((name, _)) => Err(Error::non_finite("the clients' mean is not finite").at(name)),
            None => Ok(means),
        }
    }
}
