//! `lora fed simulate`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lora::fed::aggregate::Rule;
use lora::fed::engine::{InProcess, Reply, Settings, Task, Worker};
use lora::fed::privacy::Release;
use lora::model::Keep;
use lora::train::{Dataset, TrainConfig};
use lora::{Error, Local, Promise, sibling};

use super::course::{Course, Kind};
use super::federation::{FederationArgs, OutArgs, method, ranked};
use super::ledgers::LedgerArgs;
use super::log::{left_out_here, told_here};
use super::secure::{Cast, DELTA, noise};
use crate::commands::{bare, say};
use crate::open::ModelArgs;
use crate::privacy::bound_to;
use crate::settings::{MethodArgs, StepArgs};

/// All clients in this process: research, and trying settings before others are asked
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora fed simulate --model SmolLM2.gguf --client bank=bank.jsonl --client clinic=clinic.jsonl \\
      --rule fedsvd --rounds 10 --epochs 1 --out together
  lora fed simulate --model SmolLM2.gguf --data all.jsonl --split 1000 --per-round 10 \\
      --rounds 20 --max-steps 2 --out together

--epochs and --max-steps are a client's in one round. In a round the rate stays the same; --schedule is its course from \
round to round.")]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A client and its training rows; may be repeated
    #[arg(long, value_name = "NAME=JSONL", value_parser = named, required_unless_present = "data")]
    client: Vec<(String, PathBuf)>,
    /// Or: rows to be dealt out to --split clients
    #[arg(long, value_name = "JSONL", requires = "split", conflicts_with = "client")]
    data: Option<PathBuf>,
    /// How many clients share --data, a row in turn
    #[arg(long, value_name = "N", requires = "data")]
    split: Option<usize>,
    /// A client that learns nothing and claims so many examples: a stand-in for tests
    #[arg(long, value_name = "NAME=EXAMPLES", value_parser = ranked, hide = true)]
    idle: Vec<(String, i64)>,
    #[command(flatten)]
    out: OutArgs,

    #[command(flatten)]
    federation: FederationArgs,
    /// FedProx: pull clients towards where the round began
    #[arg(long, value_name = "MU", help_heading = "Federation")]
    proximal: Option<f64>,
    /// Clients at once, each with a model of its own in memory
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Federation")]
    jobs: usize,

    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: StepArgs,
    /// The coordinator sees sums alone, by the protocol that `serve --secure` speaks; with --weights equal
    #[arg(long, help_heading = "Federation", conflicts_with = "drawn")]
    secure: bool,
    /// Rounds of so many clients and more, as `node --parties-at-least` has it
    #[arg(long, value_name = "N", requires = "secure", help_heading = "Federation")]
    parties_at_least: Option<usize>,
    /// Bound what is learnt of any one client with all its rows (delta 1e-5), clipped and noised: by the coordinator, of --drawn
    /// clients a round; or with --secure by the clients, a share each. With --weights equal
    #[arg(long, value_name = "EPSILON", help_heading = "Privacy")]
    client_epsilon: Option<f64>,
    /// The largest norm of what a client sends
    #[arg(long, value_name = "NORM", default_value_t = 1.0, help_heading = "Privacy")]
    client_clip: f64,
    /// Expected clients a round, each drawn by its own coin
    #[arg(long, value_name = "N", help_heading = "Privacy")]
    drawn: Option<usize>,
    #[command(flatten)]
    ledgers: LedgerArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let rows = args.client.iter().map(|(_, path)| path.as_path());
    args.out.apart(&args.model.model, rows.chain(args.data.as_deref()))?;
    let run = format!("{} {}", bare(&args.out.out).display(), args.training.seed);
    let settings = args.federation.settings(run.clone(), args.training.seed)?;
    settings.check()?;
    args.ledgers.check(&args.out, &args.client, args.data.as_deref())?;
    if args.secure {
        settings.check_secure()?;
    } else if args.client_epsilon.is_some() && args.drawn.is_none() {
        let what = "--client-epsilon without --drawn or --secure";
        return Err(Error::usage(what)
            .hint("say how many clients a round are drawn, or who adds noise")
            .into());
    }
    let shares = match args.client_epsilon.filter(|_| args.secure) {
        Some(epsilon) => Some(noise(epsilon, DELTA, args.client_clip, settings.rounds)?),
        None => None,
    };
    let training = TrainConfig { proximal: args.proximal, ..args.training.train_config()? };
    training.check()?;
    let (recipe, config) = method(&args.method, args.out.adapter.as_deref())?;
    if args.jobs == 0 || (args.jobs > 1 && (config.lora_dropout > 0.0 || settings.rule == Rule::FedSa)) {
        let what = format!("--jobs {} with dropout or fedsa, or no jobs at all", args.jobs);
        let hint = "dropout has one source of chance, and fedsa's clients keep things: use --jobs 1";
        return Err(Error::usage(what).hint(hint).into());
    }
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    args.training.text.tell_longest(checkpoint.config().max_positions);
    let read = |path: &Path| args.training.text.read(path, &tokenizer, checkpoint.config().max_positions);
    let data = args.clients(read)?;
    let held_out = args.out.eval.as_deref().map(read).transpose()?;
    let idle: BTreeMap<_, _> = args.idle.iter().map(|(name, n)| (name.clone(), n.unsigned_abs())).collect();
    let names: Vec<String> = data.keys().chain(idle.keys()).cloned().collect();
    settings.check_clients(names.len())?;
    let cast = args.secure.then(|| Cast::new(&names, shares, args.parties_at_least)).transpose()?;
    if let Some(cast) = &cast {
        cast.coordinator().check(&settings)?;
    }

    tch::manual_seed(training.seed as i64);
    let promises = args.ledgers.promises(&args.client, data.keys())?;
    // It is its own coordinator.
    let rounds = Some(settings.rounds);
    let unbound = promises.is_empty() && args.client_epsilon.is_none();
    let bound = if unbound { Vec::new() } else { bound_to(&args.model)? };
    let base = lora::fingerprint(checkpoint.as_ref())?;
    let workers = (0..args.jobs).map(|_| {
        let keep = Keep { storage: recipe.storage(), packed: args.model.packed(), skip: &args.model.skip };
        let model = args.model.load(checkpoint.as_ref(), keep)?;
        let local =
            Local::new(Box::new(model), recipe.clone(), config.clone(), training.clone(), data.clone());
        let local = local.over(base.clone()).promising(promises.clone(), bound.clone())?;
        // The same command again is the same work, whatever each of its runs is called.
        Ok(local.expecting(rounds).doing(run.clone()).keeping(sibling(&args.out.out, "kept"))?)
    });
    let mut workers = workers.collect::<Result<Vec<_>>>()?;
    let start = args.out.start(&mut workers[0])?;
    let private = args.client_epsilon.is_some() && args.drawn.is_some();
    let mut course = Course::begin(settings.clone(), start, (&workers[0], &base), &args.out, private)?;
    // All that shapes what clients learn, but for the rounds, the rows and what a round starts from.
    let promised: Vec<_> = promises.values().map(|p| (p.epsilon, p.delta, p.clip)).collect();
    let how = format!("{recipe} {config:?} {training:?} {promised:?}");
    let how = [&bound[..], how.as_bytes()].concat();
    let mut release = args.release((&settings, course.dimension()), (&names, &data), &how)?;
    while course.goes_on() && !args.out.end {
        let players = workers.iter_mut().map(|local| Player { local, idle: &idle, quiet: private });
        let told = match (&cast, &mut release) {
            (Some(cast), _) => {
                let players = players.map(|player| cast.boxed(player)).collect::<Result<_>>()?;
                course.round(&mut InProcess::new(names.clone(), players), Kind::Secure(cast.coordinator()))
            }
            (None, release) => {
                let players = players.map(|player| Box::new(player) as Box<dyn Worker + '_>).collect();
                let kind = release.as_mut().map_or(Kind::Plain, |r| Kind::Private(r, &names));
                course.round(&mut InProcess::new(names.clone(), players), kind)
            }
        };
        let told = told.map_err(|e| course.stuck(e))?;
        course.tell(told, &mut workers[0], held_out.as_ref())?;
    }
    let own = course.settings().rule == Rule::FedSa;
    for name in data.keys().filter(|_| own) {
        course.write_own(&mut workers[0], name, &args.model.model, &args.out.out)?;
    }
    course.end(&mut workers[0], &args.model.model, &args.out.out)
}

/// A borrowed worker, and clients that learn nothing.
struct Player<'a> {
    local: &'a mut Local,
    idle: &'a BTreeMap<String, u64>,
    /// Says nothing of clients, for who is drawn is not to be told.
    quiet: bool,
}

impl Worker for Player<'_> {
    fn train(&mut self, client: &str, task: &Task) -> lora::Result<Reply> {
        let Some(&examples) = self.idle.get(client) else {
            let reply = self.local.train(client, task);
            let left_out = self.local.left_out();
            if !self.quiet {
                told_here(client, &reply);
                left_out_here(client, left_out);
            }
            return reply;
        };
        let sent = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
        let adapter = sent.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        Ok(Reply { adapter, examples, metrics: BTreeMap::new() })
    }
}

impl Args {
    /// The source of rounds that bound what is learnt of a client. `how`: all that shapes what clients learn from their rows.
    fn release(
        &self,
        (settings, dimension): (&Settings, usize),
        (names, data): (&[String], &BTreeMap<String, Dataset>),
        how: &[u8],
    ) -> Result<Option<Release>> {
        let (Some(epsilon), Some(drawn)) = (self.client_epsilon, self.drawn) else { return Ok(None) };
        // Nobody is asked any more where a run is ended.
        if self.out.end {
            return Ok(None);
        }
        settings.check_private()?;
        let ledger = sibling(&self.out.out, "clients.privacy.jsonl");
        let promise = Promise { epsilon, delta: Some(DELTA), clip: self.client_clip, ledger };
        let terms = promise.terms(names.len(), drawn, settings.rounds)?;
        say!(
            "privacy     epsilon {epsilon} at delta {:.1e} a client: noise {:.3}, {:.2} % of the clients a round; {}",
            terms.delta,
            terms.noise,
            100.0 * terms.rate,
            promise.ledger.display()
        );
        say!(
            "            who is drawn, and what becomes of it, is told nowhere: whose part fails has learnt nothing"
        );
        let rows: Vec<_> = data.values().map(lora::train::fingerprint).collect();
        // By the name that the run was made with: the same command again is the same release.
        let configuration = [how, format!("{settings:?} {rows:?}").as_bytes()].concat();
        Ok(Some(promise.release_of_clients(names, (drawn, terms), dimension, &configuration)?))
    }

    fn clients(&self, read: impl Fn(&Path) -> lora::Result<Dataset>) -> Result<BTreeMap<String, Dataset>> {
        let mut clients = BTreeMap::new();
        for (name, path) in &self.client {
            if clients.insert(name.clone(), read(path)?).is_some() {
                return Err(Error::usage(format!("two clients are called {name}")).into());
            }
        }
        if let (Some(path), Some(count)) = (&self.data, self.split) {
            let whole = read(path)?;
            if count == 0 || count > whole.samples.len() {
                let what = format!("{} rows cannot be dealt out to {count} clients", whole.samples.len());
                return Err(Error::usage(what).into());
            }
            let width = count.to_string().len();
            for i in 0..count {
                let turn = |n: usize| n % count == i;
                let part = Dataset {
                    rows: whole
                        .rows
                        .iter()
                        .enumerate()
                        .filter(|(n, _)| turn(*n))
                        .map(|(_, r)| r.clone())
                        .collect(),
                    samples: whole
                        .samples
                        .iter()
                        .enumerate()
                        .filter(|(n, _)| turn(*n))
                        .map(|(_, s)| s.clone())
                        .collect(),
                    ..whole.clone()
                };
                clients.insert(format!("client-{:0width$}", i + 1), part);
            }
        }
        for (name, _) in &self.federation.rank_of {
            if !clients.contains_key(name) {
                return Err(
                    Error::usage(format!("--rank-of names {name}, and there is no such client")).into()
                );
            }
        }
        Ok(clients)
    }
}

fn named(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        // It becomes a part of files' names.
        Some((name, path)) if is_name(name) && !path.is_empty() => Ok((name.to_owned(), path.into())),
        Some((name, _)) if !is_name(name) => Err(format!("`{name}`: use letters, digits, - and _")),
        _ => Err("expected NAME=JSONL".to_owned()),
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
}
