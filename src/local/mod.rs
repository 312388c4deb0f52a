//! A client's part of a round: the model here, the data here, a task from elsewhere.

mod kept;
mod work;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use lora_core::{
    AdapterConfig, BaseWeight, Error, Param, Recipe, Result, attach, attach_from, beside, detach, params,
    targets_by_name,
};
use lora_fed::aggregate::Stack;
use lora_fed::engine::Model as Common;
use lora_model::Model;
use lora_train::{Dataset, Schedule, TrainConfig, check_rows, no_dropout};
use tch::Tensor;

use crate::{Promise, VARIANTS};
use kept::Kept;

const ADAPTER: &str = "federated";
const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";

/// Trains tasks on a model that it has to itself, for one client or, in a simulation, for many.
pub struct Local {
    model: Box<dyn Model>,
    recipe: Recipe,
    config: AdapterConfig,
    training: TrainConfig,
    data: BTreeMap<String, Dataset>,
    /// The model's own weights, where something lies beside them, and what that is.
    own: BTreeMap<String, Box<dyn BaseWeight>>,
    laid: BTreeMap<String, (Tensor, Tensor)>,
    /// What clients keep for themselves.
    kept: Kept,
    /// What the base model is known by, if that is said.
    base: Option<String>,
    /// Rounds to plan noise and rates for, whatever a task says.
    rounds: Option<u64>,
    /// What noise is bound to in the place of a run's name.
    work: Option<String>,
    /// What is promised to the rows of a client; none: nothing is.
    promises: BTreeMap<String, Promise>,
    /// Whatever else shapes a gradient.
    configuration: Vec<u8>,
    /// Rows for those who ask how good a model is here.
    held_out: Option<Dataset>,
    /// How the learning rate goes from round to round; within one it stays.
    schedule: Schedule,
    /// Texts that counted as zeros.
    left_out: LeftOut,
}

/// How many, and what the first of them failed of.
type LeftOut = (usize, Option<String>);

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Local({}, {:?})", self.recipe, self.data.keys())
    }
}

impl Local {
    /// Of clients' data by their names. `training` is one round's; its schedule is that of the rounds, its seed is
    /// mixed with the round's number.
    pub fn new(
        model: Box<dyn Model>,
        recipe: Recipe,
        config: AdapterConfig,
        training: TrainConfig,
        data: BTreeMap<String, Dataset>,
    ) -> Self {
        let schedule = training.schedule;
        let training = TrainConfig { schedule: Schedule::Constant, warmup: 0.0, ..training };
        let (own, laid, kept, base, promises, configuration) = Default::default();
        let (held_out, rounds, work, left_out) = Default::default();
        Self {
            model,
            recipe,
            config,
            training,
            data,
            own,
            laid,
            kept,
            base,
            rounds,
            work,
            promises,
            configuration,
            held_out,
            schedule,
            left_out,
        }
    }

    /// The same whose base model is known by that ([`crate::fingerprint`]): a task over another one is refused.
    #[must_use]
    pub fn over(self, base: String) -> Self {
        Self { base: Some(base), ..self }
    }

    /// The same with a promise to the rows of each client named: its steps are private ones, it sends nothing else that it
    /// computed from them, and judges no model. It lasts for the rounds of [`Local::expecting`]. `configuration`: whatever
    /// else shapes a gradient, the base model above all.
    ///
    /// # Errors
    /// [`Error::usage`] for dropout: see [`lora_train::train_privately`]; those of [`check_rows`], which nobody else is to
    /// hear.
    pub fn promising(self, promises: BTreeMap<String, Promise>, configuration: Vec<u8>) -> Result<Self> {
        if !promises.is_empty() && self.config.lora_dropout > 0.0 {
            return Err(no_dropout("lora_dropout"));
        }
        let mut rows = promises.keys().filter_map(|client| self.data.get(client));
        rows.try_for_each(|rows| check_rows(self.model.as_ref(), rows))?;
        Ok(Self { promises, configuration, ..self })
    }

    /// The same with rows that it judges models by.
    #[must_use]
    pub fn judging(self, held_out: Dataset) -> Self {
        Self { held_out: Some(held_out), ..self }
    }

    /// How many texts of private steps counted as zeros since this was last asked, and what the first of them failed of: the
    /// want of a finite gradient, say. That is of the rows: for whoever holds them alone.
    pub fn left_out(&mut self) -> LeftOut {
        std::mem::take(&mut self.left_out)
    }

    /// The model, with the adapter of the last task on it.
    pub fn model(&self) -> &dyn Model {
        self.model.as_ref()
    }

    /// What it trains.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// A fresh adapter by its names in PEFT's file, for the federation to begin with. Random numbers come from
    /// libtorch's generator.
    ///
    /// # Errors
    /// Those of [`attach`].
    pub fn start(&mut self) -> Result<BTreeMap<String, Tensor>> {
        self.bare()?;
        attach(self.model.as_mut(), ADAPTER, &self.recipe, &self.config)?;
        Ok(self.numbers())
    }

    /// The adapter of a folder by its names in PEFT's file, for the federation to begin with. The folder's configuration is
    /// this one's.
    ///
    /// # Errors
    /// Those of [`lora_core::load`].
    pub fn start_from(&mut self, folder: &Path) -> Result<BTreeMap<String, Tensor>> {
        self.bare()?;
        lora_core::load(self.model.as_mut(), ADAPTER, folder, VARIANTS)?;
        Ok(self.numbers())
    }

    fn numbers(&self) -> BTreeMap<String, Tensor> {
        let all = params(self.model.as_ref(), ADAPTER);
        all.into_iter().map(|p| (p.key(), p.tensor.detach().copy())).collect()
    }

    /// The same that plans noise and rates for so many rounds, whatever a task says. Where something is promised, a task that
    /// says another number is refused: whoever chose it would choose the noise.
    #[must_use]
    pub fn expecting(self, rounds: Option<u64>) -> Self {
        Self { rounds, ..self }
    }

    /// The same that binds noise to this name, whatever a task calls its run: for who is its own coordinator, whose next run, if it
    /// does the same work, is then no other release, and free.
    #[must_use]
    pub fn doing(self, work: String) -> Self {
        Self { work: Some(work), ..self }
    }

    /// The same that keeps in `folder` what clients keep for themselves, for its owner alone to read, and finds it there again.
    ///
    /// # Errors
    /// Those of the files.
    pub fn keeping(self, folder: PathBuf) -> Result<Self> {
        let kept = Kept::open(folder, self.data.keys())?;
        Ok(Self { kept, ..self })
    }

    /// The adapter that a client goes on with in a run: the common one, and what the client keeps for itself.
    pub fn own_adapter(
        &self,
        (client, run): (&str, &str),
        common: &BTreeMap<String, Tensor>,
    ) -> BTreeMap<String, Tensor> {
        with(common, self.kept.of(client, run, None))
    }

    /// Puts an adapter of any rank, and what lies beside the weights, on the model.
    ///
    /// # Errors
    /// [`Error::data`] for tensors that are missing, unknown, or of another shape.
    pub fn put(
        &mut self,
        adapter: &BTreeMap<String, Tensor>,
        laid: &BTreeMap<String, (Tensor, Tensor)>,
    ) -> Result<Vec<Param>> {
        self.bare()?;
        self.lay(laid)?;
        // Ranks are the given ones, whatever the configuration says.
        let given = adapter.iter().filter_map(|(name, a)| {
            let module = name.strip_suffix(A)?;
            let b = adapter.get(&format!("{module}{B}"))?;
            Some((path(module).to_owned(), (a.shallow_clone(), b.shallow_clone())))
        });
        attach_from(self.model.as_mut(), ADAPTER, &self.recipe, &self.config, &given.collect())?;
        let all = params(self.model.as_ref(), ADAPTER);
        let mut known = 0;
        let _guard = tch::no_grad_guard();
        for p in &all {
            let key = p.key();
            let given =
                adapter.get(&key).ok_or_else(|| Error::data("the task has no such tensor").at(&key))?;
            if given.size() != p.tensor.size() {
                let what = format!("{:?} in the task, {:?} by this model", given.size(), p.tensor.size());
                return Err(Error::data(what)
                    .at(&key)
                    .hint("do all train one base model with one configuration?"));
            }
            p.tensor.shallow_clone().copy_(given);
            known += 1;
        }
        match known == adapter.len() {
            true => Ok(all),
            false => Err(Error::data("the task has tensors of modules that are not here")
                .hint("do all train one base model with one configuration?")),
        }
    }

    /// The model of a federation as one adapter folder of PEFT's: what lies beside the weights becomes further rows and
    /// columns of A and B.
    ///
    /// # Errors
    /// Those of [`Local::put`] and of [`lora_core::save`].
    pub fn save(&mut self, model: &Common, base_model: &str, dir: &Path) -> Result<()> {
        let mut config = targets_by_name(self.model.as_ref(), &self.config)?;
        config.base_model = Some(base_model.to_owned());
        if model.beside.is_empty() {
            self.put(&model.adapter, &BTreeMap::new())?;
            return lora_core::save(self.model.as_ref(), ADAPTER, &self.recipe, &config, VARIANTS, dir);
        }
        let scale = self.scale()?;
        let mut whole = with(&model.adapter, None);
        for (module, (side_a, side_b)) in &model.beside {
            let names = [A, B].map(|factor| format!("{module}{factor}"));
            let [Some(a), Some(b)] = [&names[0], &names[1]].map(|name| model.adapter.get(name)) else {
                continue;
            };
            let own = scale(module, a.size()[0]);
            let (mut all_b, mut all_a) =
                (Tensor::cat(&[&(b * own), side_b], 1), Tensor::cat(&[a, side_a], 0));
            // More rows than the weight has on its shorter side add nothing, and PEFT takes none.
            let most = a.size()[1].min(b.size()[0]);
            if all_a.size()[0] > most {
                let sum = Stack::new(&[(own, b, a), (1.0, side_b, side_a)])?.decompose()?;
                let (b, a) = sum.at_rank(most);
                (all_b, all_a) = (b.to_kind(all_b.kind()), a.to_kind(all_a.kind()));
            }
            let both = all_a.size()[0];
            whole.insert(names[0].clone(), all_a);
            whole.insert(names[1].clone(), all_b);
            // The alpha whose scale at that rank is 1.
            let alpha = 1.0 / self.recipe.scale(1.0, both);
            put_first(&mut config.rank_pattern, path(module), both);
            put_first(&mut config.alpha_pattern, path(module), alpha);
        }
        let before = std::mem::replace(&mut self.config, config.clone());
        let result = self.put(&whole, &BTreeMap::new()).and_then(|_| {
            lora_core::save(self.model.as_ref(), ADAPTER, &self.recipe, &config, VARIANTS, dir)
        });
        self.config = before;
        result
    }

    /// How a module's update is scaled at a rank, by an alpha of its own where the configuration has one: what a federation
    /// must know. Modules are named as in PEFT's file.
    ///
    /// # Errors
    /// Those of [`AdapterConfig::select`].
    pub fn scale(&self) -> Result<impl Fn(&str, i64) -> f64 + Send + use<>> {
        let linears = self.model.linears();
        let shapes: Vec<_> = linears.iter().map(|(name, l)| (name.clone(), l.base().shape())).collect();
        let chosen = self.config.select(&shapes, self.model.output_head())?;
        let alphas: BTreeMap<String, f64> = chosen.into_iter().map(|s| (s.name, s.alpha)).collect();
        let (recipe, usual) = (self.recipe.clone(), self.config.lora_alpha);
        Ok(move |module: &str, rank: i64| {
            recipe.scale(alphas.get(path(module)).copied().unwrap_or(usual), rank)
        })
    }

    fn bare(&mut self) -> Result<()> {
        detach(self.model.as_mut(), ADAPTER)
    }

    fn lay(&mut self, laid: &BTreeMap<String, (Tensor, Tensor)>) -> Result<()> {
        let same = |(a, b): &(Tensor, Tensor), (c, d): &(Tensor, Tensor)| a == c && b == d;
        let unchanged = self.laid.len() == laid.len()
            && self.laid.iter().zip(laid).all(|((m, p), (n, q))| m == n && same(p, q));
        if unchanged {
            return Ok(());
        }
        let unknown =
            laid.keys().find(|name| !self.model.linears().iter().any(|(n, _)| path(name) == n.as_str()));
        if let Some(name) = unknown {
            return Err(Error::data("something lies beside a module that is not here").at(name));
        }
        let done = self.replace(laid);
        match done {
            Ok(()) => {
                let share = |(a, b): &(Tensor, Tensor)| (a.shallow_clone(), b.shallow_clone());
                self.laid = laid.iter().map(|(module, pair)| (module.clone(), share(pair))).collect();
            }
            // Half of it must not stay: to a task that lays nothing down nothing would seem to be there.
            Err(_) => self.own_weights(),
        }
        done
    }

    /// Each layer with its own weight and what is to lie beside it; some of them, if one is refused.
    fn replace(&mut self, laid: &BTreeMap<String, (Tensor, Tensor)>) -> Result<()> {
        for (name, layer) in self.model.linears_mut() {
            let mine = laid.iter().find(|(module, _)| path(module) == name);
            if mine.is_none() && !self.own.contains_key(&name) {
                continue;
            }
            let own = self.own.entry(name.clone()).or_insert_with(|| layer.base().share());
            let base = match mine {
                Some((_, (a, b))) => beside(own.share(), a, b).map_err(|e| e.at(&name))?,
                None => own.share(),
            };
            layer.replace_base(base)?;
        }
        Ok(())
    }

    /// Every layer with its own weight, and nothing beside it.
    fn own_weights(&mut self) {
        self.laid.clear();
        for (name, layer) in self.model.linears_mut() {
            if let Some(own) = self.own.get(&name) {
                // Of its own shape, and all layers are bare: it is not refused.
                let _ = layer.replace_base(own.share());
            }
        }
    }
}

/// A common adapter, with what a client has instead.
fn with(
    common: &BTreeMap<String, Tensor>,
    own: Option<&BTreeMap<String, Tensor>>,
) -> BTreeMap<String, Tensor> {
    let both = common.iter().chain(own.into_iter().flatten());
    both.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// The first key that fits wins, and a key comes once.
fn put_first<T>(pattern: &mut Vec<(String, T)>, key: &str, value: T) {
    pattern.retain(|(other, _)| other != key);
    pattern.insert(0, (key.to_owned(), value));
}

/// A module's path without what PEFT puts before it.
fn path(module: &str) -> &str {
    module.strip_prefix("base_model.model.").unwrap_or(module)
}
