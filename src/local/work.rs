//! A task done on a client's rows.

use std::collections::BTreeMap;

use lora_core::{Error, ErrorKind, Param, Result};
use lora_fed::engine::{Reply, Task, Worker};
use lora_fed::privacy::{PrivacyError, Release};
use lora_train::{Dataset, Event, TrainConfig, mean_loss, train, train_privately};
use tch::Tensor;

use super::{A, LeftOut, Local, with};
use crate::Promise;

impl Worker for Local {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        self.agrees(task)?;
        let own = self.kept.of(client, &task.run, Some(task.round)).into_iter().flatten();
        // Of another shape it is left where it is: a task that is refused for it would tell that a round before went well.
        let fits = |name: &String, t: &Tensor| task.adapter.get(name).is_some_and(|of| of.size() == t.size());
        let own = own.filter(|(name, t)| !task.sends.holds(name) && fits(name, t));
        let own = own.map(|(name, t)| (name.clone(), t.shallow_clone()));
        // What runs, and so what noise is bound to: the client's own factors in the place of those that came.
        let task = &task.starting_from(with(&task.adapter, Some(&own.collect())));
        let rounds = self.planned(client, task)?;
        let all = self.put(&task.adapter, &task.beside)?;
        let (trained, frozen): (Vec<_>, Vec<_>) = all.into_iter().partition(|p| task.trains.holds(&p.key()));
        for p in &frozen {
            let _ = p.tensor.set_requires_grad(false);
        }
        let data = self.data.get(client).ok_or_else(|| Error::usage("there is no data").at(client))?;
        let rate = self.schedule.factor(task.round.saturating_sub(1), 0, rounds.max(task.round));
        let training = TrainConfig {
            learning_rate: self.training.learning_rate * rate,
            seed: self.training.seed.wrapping_add(task.round.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ..self.training.clone()
        };
        let copied = |all: &[Param]| -> Vec<(String, Tensor)> {
            all.iter().map(|p| (p.key(), p.tensor.shallow_clone())).collect()
        };
        let learnt = copied(&trained);
        let (metrics, (count, why)) = match self.promises.get(client) {
            None => {
                let done = train(self.model.as_ref(), trained, data, None, &training, &mut |_| Ok(()));
                let outcome = done.map_err(failed)?;
                // How long it took is of the rows, and nobody's business.
                let tell = [("loss", outcome.last_loss), ("first_loss", outcome.first_loss)];
                (tell.map(|(name, value)| (name.to_owned(), value)).into(), (0, None))
            }
            Some(promise) => self.privately(promise, (client, data), task, trained, (rounds, &training))?,
        };
        let examples = data.samples.len() as u64;
        self.left_out.0 += count;
        self.left_out.1 = self.left_out.1.take().or(why);
        let learnt = learnt.into_iter().map(|(name, t)| (name, t.detach().copy()));
        let (sent, kept): (BTreeMap<_, _>, BTreeMap<_, _>) =
            learnt.partition(|(name, _)| task.sends.holds(name));
        if !kept.is_empty() {
            // Whatever it is of, it may name the file.
            let lost =
                |e| Error::data("what it keeps could not be written; why is told here alone").because(e);
            self.kept.put(client, &task.run, task.round, kept).map_err(lost)?;
        }
        Ok(Reply { adapter: sent, examples, metrics })
    }

    fn evaluate(&mut self, client: &str, task: &Task) -> Result<(f64, u64)> {
        // A loss has no noise; before anything that could tell of the rows.
        if self.promises.contains_key(client) {
            return Err(Error::unsupported("with a promise to its rows it judges no models"));
        }
        self.agrees(task)?;
        let adapter = self.own_adapter((client, &task.run), &task.adapter);
        self.put(&adapter, &task.beside)?;
        let rows = self.held_out.as_ref().ok_or_else(|| Error::unsupported("no rows are held out here"))?;
        let loss = mean_loss(self.model.as_ref(), rows, self.training.batch_size).map_err(failed)?;
        Ok((loss, rows.samples.len() as u64))
    }
}

impl Local {
    /// Whether the coordinator's model is this client's: the same base, as far as both are known, and every module's update scaled alike.
    fn agrees(&self, task: &Task) -> Result<()> {
        if let (Some(theirs), Some(own)) = (&task.base, &self.base)
            && theirs != own
        {
            let what =
                format!("the task is over the base model {theirs}, and here is {own}, of other weights");
            return Err(Error::data(what).hint(
                "take the coordinator's --model, the very file or one with the same numbers; how they are kept in memory \
                 (--variant qlora, --dtype, --base-storage) may differ",
            ));
        }
        let scale = self.scale()?;
        for (module, theirs) in &task.scales {
            let rank = task.adapter.get(&format!("{module}{A}")).and_then(|a| a.size().first().copied());
            let rank =
                rank.ok_or_else(|| Error::data("the task scales it, and has no A of it").at(module))?;
            let own = scale(module, rank);
            if !((theirs - own).abs() <= 1e-9 * own.abs()) {
                let what = format!("the task's updates are scaled by {theirs}, here by {own}");
                return Err(Error::data(what)
                    .at(module)
                    .hint("use the coordinator's --variant, --alpha and --alpha-pattern"));
            }
        }
        Ok(())
    }

    /// The rounds that noise and rates are planned for. With a promise they are the client's own affair: by few a coordinator
    /// would have all of the budget spent at once.
    fn planned(&self, client: &str, task: &Task) -> Result<u64> {
        if !self.promises.contains_key(client) {
            return Ok(self.rounds.unwrap_or(task.rounds));
        }
        let Some(own) = self.rounds else {
            let what = "a promise to rows, and nobody here said for how many rounds";
            return Err(Error::usage(what).hint("say how many it is to last for: --rounds"));
        };
        // Flower's own strategies do not say.
        if task.rounds != 0 && task.rounds != own {
            let what = format!("a task of {} rounds, and the noise here is for {own}", task.rounds);
            return Err(Error::usage(what).hint("coordinator and node are to be given the same --rounds"));
        }
        Ok(own)
    }

    /// Opens what keeps each promise, and lets go of it: whoever holds the rows sees before any task comes that a ledger cannot
    /// be written, or is another promise's. It asks for the rounds of [`Local::expecting`].
    ///
    /// # Errors
    /// Those of [`Promise::terms`] and [`Promise::release`].
    pub fn check_promises(&self) -> Result<()> {
        for (client, promise) in &self.promises {
            let (Some(data), Some(rounds)) = (self.data.get(client), self.rounds) else { continue };
            drop(opened(promise, data, (rounds, &self.training), (1, "", &[]))?);
        }
        Ok(())
    }

    /// Private steps on a client's rows, and what may be told of them; and which texts counted as zeros, which may not. `task` is
    /// what runs, and not only what was sent.
    fn privately(
        &self,
        promise: &Promise,
        (client, data): (&str, &Dataset),
        task: &Task,
        trained: Vec<Param>,
        (rounds, training): (u64, &TrainConfig),
    ) -> Result<(BTreeMap<String, f64>, LeftOut)> {
        let dimension = trained.iter().map(|p| p.tensor.numel()).sum();
        let run = format!("{}, {client}, round {}", self.work.as_ref().unwrap_or(&task.run), task.round);
        // What trains is bound by every step; what does not shapes its gradients as much.
        let (kind, trains) = (self.model.kind(), task.trains.name());
        let settings = format!("{} {:?} {training:?} {kind:?} {trains}", self.recipe, self.config);
        let configuration = [&self.configuration[..], settings.as_bytes(), &task.fingerprint()?].concat();
        let mut release =
            opened(promise, data, (rounds, training), (dimension, &run, &configuration)).map_err(failed)?;
        let model = self.model.as_ref();
        let mut left_out: LeftOut = (0, None);
        let mut each = |event: &Event| {
            if let Event::Step(step) = event {
                left_out.0 += step.left_out;
                left_out.1 = left_out.1.take().or_else(|| step.left_out_for.clone());
            }
            Ok(())
        };
        let done = train_privately(model, trained, data, None, training, &mut release, &mut each);
        done.map_err(failed)?;
        Ok((BTreeMap::from([("epsilon".to_owned(), release.ledger().spent()?)]), left_out))
    }
}

/// The source of a promise's private steps, that many rounds of them; see [`Promise::release`].
fn opened(
    promise: &Promise,
    data: &Dataset,
    (rounds, training): (u64, &TrainConfig),
    (dimension, run, configuration): (usize, &str, &[u8]),
) -> Result<Release> {
    let batch = training.batch_size * training.accumulate.max(1);
    let steps = training.steps(data.samples.len()).saturating_mul(rounds);
    let terms = promise.terms(data.samples.len(), batch, steps)?;
    promise.release(data, (batch, terms), dimension, run, configuration)
}

/// What others hear of work on rows that failed: it may name them, and a file. The cause stays here.
fn failed(e: Error) -> Error {
    let cause = std::error::Error::source(&e).and_then(|cause| cause.downcast_ref::<PrivacyError>());
    let of_file = cause.is_some_and(|cause| cause.path().is_some());
    let what = match e.kind() {
        _ if of_file => "its ledger could not be used; why is told here alone",
        // Settings; a budget that is spent: nothing of the rows is in that.
        ErrorKind::Usage => return e,
        ErrorKind::Io => "a file of its own could not be used; why is told here alone",
        _ => "work on its rows failed; why is told here alone",
    };
    Error::data(what).because(e)
}
