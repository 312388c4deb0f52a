//! Rounds that bound what is learnt of any one client (DP-FedAvg; McMahan et al. 2018, arXiv 1710.06963).
//!
//! The record is a client with all its rows. Each is drawn by its own coin, what it learnt is clipped over all tensors that it
//! sends together, and the sum is noised as integers and divided by the expected number of clients, never by how many
//! answered. A client that is drawn and gives no good reply counts as one that learnt nothing. The coordinator sees single
//! replies, and who was drawn: the bound is about whoever sees the model, the other clients among them. It holds as long as nobody
//! else is told of either.

use super::{Engine, Federation, Round, Settings, Task, Told, Weights, bytes, bytes_of_task};
use crate::aggregate::{Rule, Upload};
use crate::privacy::Release;
use lora_core::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

impl Settings {
    /// Whether rounds can bound what is learnt of a client.
    ///
    /// # Errors
    /// [`Error::usage`] with everything that speaks against it.
    pub fn check_private(&self) -> Result<()> {
        let (mut faults, rule) = (Vec::new(), self.rule);
        let mut refuse = |bad: bool, what: String| faults.extend(bad.then_some(what));
        refuse(
            !rule.is_linear(),
            format!("{rule} is no sum of what clients send, so one clip does not bound it"),
        );
        // Whose changed were drawn.
        refuse(rule == Rule::FedSa, format!("{rule} leaves each client factors that nothing is added to"));
        let equal = self.weights == Weights::Equal;
        refuse(!equal, "clients count the same: a number of rows is theirs to keep".into());
        refuse(self.robust.is_some(), "a robust rule looks at single replies".into());
        refuse(self.per_round.is_some(), "clients are drawn by coins, not so many a round".into());
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::faults(
            ErrorKind::Usage,
            "these settings bound nothing that is learnt of a client",
            faults,
        ))
    }
}

impl Federation {
    /// How many numbers a client sends in a round, at most: the dimension of its [`Release`].
    pub fn dimension(&self) -> usize {
        let sent = |round| {
            let (_, sends) = self.rule(round).trains();
            let sent = self.model.adapter.iter().filter(|(name, _)| sends.holds(name));
            sent.map(|(_, tensor)| tensor.numel()).sum::<usize>()
        };
        // RoLoRA sends B and A in turns.
        sent(1).max(sent(2))
    }

    /// A round whose clients are drawn from `population` by `release`, whose records they are, in this order. Whom it names, and
    /// what these said, is for the coordinator alone: [`Federation::private_round_in`] tells nobody.
    ///
    /// # Errors
    /// Those of [`Settings::check_private`], of the engine and of the ledger: a spent budget among them. The model is then
    /// as before; tried again, the round draws the same clients and the same noise.
    pub fn private_round(
        &mut self,
        release: &mut Release,
        population: &[String],
        engine: &mut dyn Engine,
    ) -> Result<Round> {
        self.settings().check_private()?;
        if release.config().records != population.len() {
            let what = format!("{} records for {} clients", release.config().records, population.len());
            return Err(Error::usage(what));
        }
        let number = self.model.rounds + 1;
        let rule = self.rule(number);
        let width = release.config().dimension;
        let mut step = release.step(number, &self.fingerprint()?)?;
        let drawn: Vec<(usize, String)> =
            step.drawn().iter().filter_map(|&i| Some((i, population.get(i)?.clone()))).collect();
        let tasks =
            drawn.iter().map(|(_, client)| self.task(client, rule, number)).collect::<Result<Vec<_>>>()?;
        tasks.iter().try_for_each(|task| engine.carries(bytes_of_task(task)))?;
        let sent: Vec<Task> = tasks.iter().map(Task::share).collect();
        let names = drawn.iter().map(|(_, client)| client.clone());
        let replies = engine.run(names.zip(tasks).collect())?;
        let (uploads, clients) = self.screen(rule, &sent, replies);
        let (_, sends) = rule.trains();
        let trained: Vec<(&String, &Tensor)> =
            self.model.adapter.iter().filter(|(name, _)| sends.holds(name)).collect();
        for (record, client) in &drawn {
            let upload = uploads.iter().find(|upload| upload.client == *client);
            let learnt = trained.iter().map(|(name, before)| {
                let now = upload.and_then(|upload| tensor_of(upload, name));
                now.map_or_else(|| before.zeros_like(), |now| now - *before).reshape([-1])
            });
            let learnt =
                Tensor::cat(&learnt.collect::<Vec<_>>(), 0).to_device(Device::Cpu).to_kind(Kind::Float);
            let mut numbers: Vec<f32> = Vec::try_from(learnt)?;
            numbers.resize(width.max(numbers.len()), 0.0);
            step.add(*record, &numbers, 1.0)?;
        }
        let mean: Vec<f64> = step.release()?.into_iter().map(f64::from).collect();
        self.move_by(rule, &mean)?;
        Ok(Round { round: number, clients, lost: None })
    }

    /// What the next round takes of each client, whoever is drawn.
    pub(super) fn each(&self) -> Result<Told> {
        let number = self.model.rounds + 1;
        let task = self.task("", self.rule(number), number)?;
        let sent = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
        Ok(Told {
            client: String::new(),
            refused: None,
            examples: 0,
            metrics: BTreeMap::new(),
            bytes_down: bytes_of_task(&task),
            bytes_up: bytes(sent.map(|(_, tensor)| tensor)),
        })
    }

    /// All that a round starts from.
    fn fingerprint(&self) -> Result<Vec<u8>> {
        let mut hash = Sha256::new();
        hash.update(super::state::bytes_of(self)?);
        Ok(hash.finalize().to_vec())
    }
}

/// The tensor of that name in PEFT's file.
fn tensor_of(upload: &Upload, name: &str) -> Option<Tensor> {
    use super::model::{A, B};
    let of = |suffix: &str| upload.layers.get(name.strip_suffix(suffix)?);
    let found = of(A).map(|layer| &layer.a).or(of(B).map(|layer| &layer.b)).or(upload.others.get(name));
    found.map(Tensor::shallow_clone)
}
