//! A run from its first round to its last, whatever reaches the clients.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use lora::fed::engine::{Coordinator, Engine, Federation, Model, Settings, Trains};
use lora::fed::privacy::Release;
use lora::fed::store::Store;
use lora::train::Dataset;
use lora::{Error, Local, OutputFolder, sibling};
use tch::Tensor;

use super::federation::OutArgs;
use super::log::Log;
use crate::commands::say;
use crate::commands::train::is_adapter_file;

/// What the coordinator may see of a round.
pub(super) enum Kind<'a> {
    /// Every reply.
    Plain,
    /// Every reply; clients are drawn in private, of a population, and noise is added. Nobody is told who was.
    Private(&'a mut Release, &'a [String]),
    /// The sum alone.
    Secure(&'a Coordinator),
}

/// A federation with its store and its log.
pub(super) struct Course {
    federation: Federation,
    store: Store,
    state: PathBuf,
    log: Log,
    overwrite: bool,
}

impl Course {
    /// Begins, or goes on with what OUT.state holds. `host` is over the base model that is known by `base`. `private`: nothing is
    /// told of clients.
    pub(super) fn begin(
        settings: Settings,
        start: BTreeMap<String, Tensor>,
        (host, base): (&Local, &str),
        args: &OutArgs,
        private: bool,
    ) -> Result<Self> {
        let (out, overwrite) = (&args.out, args.overwrite);
        // Only to see that it can be written: one that is killed would leave it behind.
        drop(OutputFolder::create(out, overwrite, is_adapter_file)?);
        let (rule, recipe) = (settings.rule, host.recipe().to_string());
        let federation = Federation::new(settings, Model::new(start), host.scale()?)?.over(base);
        // On another storage, too, all shapes and scales are the same.
        let federation = federation.known_by("recipe", recipe.clone());
        let mut federation = federation.known_by("start", args.begins_with()?);
        let state = sibling(out, "state");
        let nothing = || {
            let e = Error::usage("no round of a run is done: there is nothing to be written");
            e.at(state.display()).hint("--end is for a run that was begun: give its own command, and --end")
        };
        if args.end && !state.exists() {
            return Err(nothing().into());
        }
        let mut store = Store::open(&state)?;
        let resumed = federation.resume(&mut store).map_err(|e| e.at(state.display()))?;
        federation.named_in(&store)?;
        if args.end && federation.model.rounds == 0 {
            return Err(nothing().into());
        }
        let log = Log::open(out, &Federation::reports(&store)?, private)?;
        say!("federation  {rule}, {recipe}, over the base model {base}");
        if recipe.contains("dora") && rule.trains().0 == Trains::All {
            say!("            magnitudes are averaged by themselves, which is exact under no rule");
        }
        if resumed && federation.model.rounds > 0 {
            say!("            goes on after round {}", federation.model.rounds);
        }
        Ok(Self { federation, store, state, log, overwrite })
    }

    /// Gives the run a name that parties of secure sums have not met, where an earlier version began it without.
    pub(super) fn name(&mut self) -> Result<()> {
        Ok(self.federation.name_in(&mut self.store)?)
    }

    /// How it goes.
    pub(super) fn settings(&self) -> &Settings {
        self.federation.settings()
    }

    /// Whether there is a round to go.
    pub(super) fn goes_on(&self) -> bool {
        self.federation.model.rounds < self.settings().rounds
    }

    /// How many numbers a client sends.
    pub(super) fn dimension(&self) -> usize {
        self.federation.dimension()
    }

    /// One round.
    pub(super) fn round(&mut self, engine: &mut dyn Engine, kind: Kind<'_>) -> Result<Told> {
        let begin = Instant::now();
        let (federation, store) = (&mut self.federation, &mut self.store);
        let round = match kind {
            Kind::Plain => federation.round_in(store, engine)?,
            Kind::Private(release, population) => {
                federation.private_round_in(store, release, population, engine)?
            }
            Kind::Secure(by) => federation.secure_round_in(store, by, engine)?,
        };
        Ok(Told { round, begin })
    }

    /// Writes a round down, with the loss on held-out rows by the model of `host`.
    pub(super) fn tell(&mut self, told: Told, host: &mut Local, held_out: Option<&Dataset>) -> Result<()> {
        let loss = match held_out {
            Some(rows) => {
                let model = &self.federation.model;
                host.put(&model.adapter, &model.beside)?;
                Some(lora::train::mean_loss(host.model(), rows, 16)?)
            }
            None => None,
        };
        self.log.round(&told.round, self.settings().rounds, loss, told.begin.elapsed().as_secs_f64())
    }

    /// The round that failed is tried with other clients.
    pub(super) fn choose_again(&mut self) -> Result<()> {
        Ok(self.federation.choose_again(&mut self.store)?)
    }

    /// Why no round follows, and how what the rounds before it have learnt comes out all the same.
    pub(super) fn stuck(&self, e: anyhow::Error) -> anyhow::Error {
        let done = self.federation.model.rounds;
        match e.downcast::<Error>() {
            Ok(e) if done > 0 => {
                let first = e.hint_text().map_or_else(String::new, |hint| format!("{hint}; "));
                let way_out = "the same command with --end writes the adapter of the rounds that are done";
                e.hint(format!("{first}{way_out} ({done})")).into()
            }
            Ok(e) => e.into(),
            Err(e) => e,
        }
    }

    /// Writes a client's own adapter to OUT.clients, where there is no common one.
    pub(super) fn write_own(&self, host: &mut Local, client: &str, base: &Path, out: &Path) -> Result<()> {
        let path = sibling(out, "clients").join(client);
        let folder = OutputFolder::create(&path, true, is_adapter_file)?;
        let model = &self.federation.model;
        let adapter = host.own_adapter((client, &self.settings().run), &model.adapter);
        let own = Model { adapter, ..Model::new(BTreeMap::new()) };
        host.save(&own, &base.display().to_string(), folder.path())?;
        folder.commit()?;
        say!("{client}'s adapter written to {}", path.display());
        Ok(())
    }

    /// Writes the adapter; the state is not needed any more.
    pub(super) fn end(self, host: &mut Local, base: &Path, out: &Path) -> Result<()> {
        let folder = OutputFolder::create(out, self.overwrite, is_adapter_file)?;
        host.save(&self.federation.model, &base.display().to_string(), folder.path())?;
        folder.commit()?;
        drop(self.store);
        match std::fs::remove_dir_all(sibling(out, "kept")) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove what clients kept", &sibling(out, "kept"), e).into());
            }
            _ => {}
        }
        forget(&self.state)?;
        say!("adapter written to {}", out.display());
        Ok(())
    }
}

/// Removes a store that is not needed any more.
pub(super) fn forget(store: &Path) -> lora::Result<()> {
    for ending in ["", "-wal", "-shm"] {
        let mut name = store.as_os_str().to_owned();
        name.push(ending);
        match std::fs::remove_file(&name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove the state", Path::new(&name), e));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A round that is done and not yet told of.
pub(super) struct Told {
    round: lora::fed::engine::Round,
    begin: Instant,
}
