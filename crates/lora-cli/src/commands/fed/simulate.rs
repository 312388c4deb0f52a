//! `lora fed simulate`

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::Result;
use lora::fed::aggregate::{Bounds, Robust, Rule, ServerRule};
use lora::fed::engine::{Federation, InProcess, Model, Round, Settings, Weights, Worker};
use lora::model::Keep;
use lora::train::{Dataset, TrainConfig};
use lora::{Error, Local, OutputFolder, Promise, Recipe, VARIANTS};

use crate::commands::say;
use crate::commands::train::is_adapter_file;
use crate::open::ModelArgs;
use crate::privacy::{PrivacyArgs, hash_of};
use crate::settings::{MethodArgs, TrainingArgs};

/// All clients in this process: research, and trying settings before others are asked
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lora fed simulate --model SmolLM2.gguf --client bank=bank.jsonl --client clinic=clinic.jsonl \\
      --rule fedsvd --rounds 10 --epochs 1 --out together
  lora fed simulate --model SmolLM2.gguf --data all.jsonl --split 1000 --per-round 10 --rounds 20 \\
      --max-steps 2 --out together")]
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
    /// Held-out rows, for the loss after each round
    #[arg(long, value_name = "JSONL")]
    eval: Option<PathBuf>,
    /// The adapter folder to write (PEFT's format); rounds go to OUT.rounds.jsonl
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace an adapter folder that is there
    #[arg(long)]
    overwrite: bool,

    /// fedit, ffa, rolora, fedex, flora, flexlora, fedsvd or fedsa (docs/federated.md)
    #[arg(long, default_value = "fedex", help_heading = "Federation")]
    rule: String,
    /// Rounds; --epochs and --max-steps are a client's in one round, --schedule is over the rounds
    #[arg(long, default_value_t = 10, help_heading = "Federation")]
    rounds: u64,
    /// Clients a round, chosen at random [default: all]
    #[arg(long, value_name = "N", help_heading = "Federation")]
    per_round: Option<usize>,
    /// Good replies that a round needs
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Federation")]
    minimum: usize,
    /// What a client counts for: equal, examples, or examples:MOST
    #[arg(long, default_value = "examples", help_heading = "Federation")]
    weights: String,
    /// A client's own rank (flora, flexlora); may be repeated
    #[arg(long, value_name = "NAME=RANK", value_parser = ranked, help_heading = "Federation")]
    rank_of: Vec<(String, i64)>,
    /// Instead of the mean: median, trimmed:SHARE or krum:LIARS
    #[arg(long, help_heading = "Federation")]
    robust: Option<String>,
    /// Refuse replies with a factor or an update of a larger norm, as FACTOR,UPDATE
    #[arg(long, value_name = "NORMS", help_heading = "Federation")]
    bounds: Option<String>,
    /// momentum:RATE,BETA or adam:RATE: how the server moves towards the clients' mean
    #[arg(long, help_heading = "Federation")]
    server: Option<String>,
    /// FedProx: pull clients towards where the round began
    #[arg(long, value_name = "MU", help_heading = "Federation")]
    proximal: Option<f64>,
    /// Clients at once, each with a model of its own in memory
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Federation")]
    jobs: usize,

    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: TrainingArgs,
    /// Each client keeps its promise in a ledger of its own, in OUT.privacy
    #[command(flatten)]
    privacy: PrivacyArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let recipe = Recipe::parse(&args.method.variant, VARIANTS)?;
    let config = args.method.adapter_config()?;
    args.method.is_for_train(false)?;
    let settings = args.settings()?;
    settings.check()?;
    let training = TrainConfig { proximal: args.proximal, ..args.training.train_config()? };
    training.check()?;
    if args.jobs == 0 || (args.jobs > 1 && (args.method.dropout > 0.0 || settings.rule == Rule::FedSa)) {
        let what = format!("--jobs {} with dropout or fedsa, or no jobs at all", args.jobs);
        return Err(Error::usage(what)
            .hint("dropout has one source of chance, fedsa's clients keep things: --jobs 1")
            .into());
    }
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let read = |path: &Path| args.training.read(path, &tokenizer, checkpoint.config().max_positions);
    let data = args.clients(read)?;
    let held_out = args.eval.as_deref().map(read).transpose()?;
    let out = OutputFolder::create(&args.out, args.overwrite, is_adapter_file)?;
    let mut log = Log::create(&args.out)?;

    tch::manual_seed(training.seed as i64);
    let promises = args.promises(data.keys())?;
    let bound = if promises.is_empty() { Vec::new() } else { hash_of(&args.model.model)? };
    let workers = (0..args.jobs).map(|_| {
        let keep = Keep { storage: recipe.storage(), packed: args.model.packed(), skip: &args.model.skip };
        let model = args.model.load(checkpoint.as_ref(), keep)?;
        let data = data.iter().map(|(name, data)| (name.clone(), data.clone())).collect();
        let local = Local::new(Box::new(model), recipe.clone(), config.clone(), training.clone(), data);
        Ok(local.promising(promises.clone(), bound.clone()))
    });
    let mut workers = workers.collect::<Result<Vec<_>>>()?;
    let start = workers[0].start()?;
    let scale = {
        let (recipe, alpha) = (recipe.clone(), config.lora_alpha);
        move |_: &str, rank: i64| recipe.scale(alpha, rank)
    };
    let mut federation = Federation::new(settings, Model::new(start), scale)?;
    say!("federation  {} clients, {}, {recipe}, rank {}", data.len(), args.rule, config.r);
    if recipe.to_string().contains("dora")
        && federation.settings().rule.trains().0 == lora::fed::engine::Trains::All
    {
        say!("            magnitudes are averaged by themselves, which is exact under no rule");
    }

    let names: Vec<String> = data.keys().cloned().collect();
    for _ in 0..args.rounds {
        let begin = Instant::now();
        let round = {
            let players = workers.iter_mut().map(|w| Box::new(Player(w)) as Box<dyn Worker + '_>).collect();
            federation.round(&mut InProcess::new(names.clone(), players))?
        };
        let loss = match &held_out {
            Some(held_out) => {
                let model = &federation.model;
                workers[0].put(&model.adapter, &model.beside)?;
                Some(lora::train::mean_loss(workers[0].model(), held_out, training.batch_size)?)
            }
            None => None,
        };
        log.round(&round, args.rounds, loss, begin.elapsed().as_secs_f64())?;
    }
    let base = args.model.model.display().to_string();
    workers[0].save(&federation.model, &base, out.path())?;
    out.commit()?;
    say!("adapter written to {}", args.out.display());
    Ok(())
}

/// A borrowed worker.
struct Player<'a>(&'a mut Local);

impl Worker for Player<'_> {
    fn train(
        &mut self,
        client: &str,
        task: &lora::fed::engine::Task,
    ) -> lora::Result<lora::fed::engine::Reply> {
        self.0.train(client, task)
    }
}

impl Args {
    fn settings(&self) -> Result<Settings> {
        let run = format!("{} {}", self.out.display(), self.training.seed);
        let wrong = |what: &str, given: &str| Error::usage(format!("`{given}` is no {what}"));
        let weights = match self.weights.split_once(':').unwrap_or((&self.weights, "")) {
            ("equal", "") => Weights::Equal,
            ("examples", "") => Weights::Examples { most: u64::MAX },
            ("examples", most) => {
                Weights::Examples { most: most.parse().map_err(|_| wrong("number of examples", most))? }
            }
            _ => return Err(wrong("weight", &self.weights).hint("equal, examples or examples:MOST").into()),
        };
        let numbers = |text: &str| -> Result<Vec<f64>> {
            let number = |n: &str| n.trim().parse().map_err(|_| wrong("number", n).into());
            text.split(',').map(number).collect()
        };
        let robust = self.robust.as_deref().map(|text| -> Result<Robust> {
            match text.split_once(':').unwrap_or((text, "")) {
                ("median", "") => Ok(Robust::Median),
                ("trimmed", share) => {
                    Ok(Robust::TrimmedMean(share.parse().map_err(|_| wrong("share", share))?))
                }
                ("krum", n) => {
                    Ok(Robust::Krum { lying: n.parse().map_err(|_| wrong("number of liars", n))? })
                }
                _ => Err(wrong("robust rule", text).hint("median, trimmed:SHARE or krum:LIARS").into()),
            }
        });
        let server = self.server.as_deref().map(|text| -> Result<ServerRule> {
            let (name, values) = text.split_once(':').unwrap_or((text, ""));
            match (name, &numbers(values)?[..]) {
                ("momentum", &[rate, momentum]) => Ok(ServerRule::Momentum { rate, momentum }),
                ("adam", &[rate]) => Ok(ServerRule::Adam { rate, betas: (0.9, 0.99), tau: 1e-3 }),
                _ => Err(wrong("server optimiser", text).hint("momentum:RATE,BETA or adam:RATE").into()),
            }
        });
        let bounds = self.bounds.as_deref().map(|text| -> Result<Bounds> {
            match numbers(text)?[..] {
                [factor, update] => Ok(Bounds { factor, update }),
                _ => Err(wrong("pair of norms", text).hint("FACTOR,UPDATE, as in 50,10").into()),
            }
        });
        Ok(Settings {
            weights,
            per_round: self.per_round,
            minimum: self.minimum,
            robust: robust.transpose()?,
            server: server.transpose()?,
            bounds: bounds.transpose()?,
            ranks: self.rank_of.iter().cloned().collect(),
            seed: self.training.seed,
            ..Settings::new(run, Rule::from_str(&self.rule)?, self.rounds)
        })
    }

    fn promises<'a>(&self, clients: impl Iterator<Item = &'a String>) -> Result<BTreeMap<String, Promise>> {
        let mut folder = self.out.as_os_str().to_owned();
        folder.push(".privacy");
        let folder = PathBuf::from(folder);
        let promise =
            |name: &String| Some((name.clone(), self.privacy.promise(folder.join(format!("{name}.jsonl")))?));
        let promises: BTreeMap<_, _> = clients.filter_map(promise).collect();
        if !promises.is_empty() {
            std::fs::create_dir_all(&folder)
                .map_err(|e| Error::io("create the ledgers' folder", &folder, e))?;
        }
        Ok(promises)
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
        for (name, _) in &self.rank_of {
            if !clients.contains_key(name) {
                return Err(
                    Error::usage(format!("--rank-of names {name}, and there is no such client")).into()
                );
            }
        }
        Ok(clients)
    }
}

/// Rounds, for people and as JSON lines.
struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    fn create(out: &Path) -> Result<Self> {
        let mut name = out.as_os_str().to_owned();
        name.push(".rounds.jsonl");
        let path = PathBuf::from(name);
        let file = File::create(&path).map_err(|e| Error::io("write the rounds", &path, e))?;
        Ok(Self { path, file })
    }

    fn round(&mut self, round: &Round, rounds: u64, held_out: Option<f64>, seconds: f64) -> Result<()> {
        let mut line = serde_json::to_value(round)?;
        line["held_out_loss"] = held_out.into();
        line["seconds"] = seconds.into();
        writeln!(self.file, "{line}").map_err(|e| Error::io("write the rounds", &self.path, e))?;
        let good: Vec<_> = round.clients.iter().filter(|t| t.refused.is_none()).collect();
        let losses: Vec<f64> = good.iter().filter_map(|t| t.metrics.get("loss").copied()).collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        let spent = good.iter().filter_map(|t| t.metrics.get("epsilon").copied()).reduce(f64::max);
        let megabytes =
            |of: fn(&lora::fed::engine::Told) -> u64| round.clients.iter().map(of).sum::<u64>() as f64 / 1e6;
        say!(
            "round {}/{rounds}  {} of {} clients{}{}  down {:.2} MB  up {:.2} MB  {seconds:.1} s{}",
            round.round,
            good.len(),
            round.clients.len(),
            if mean.is_finite() { format!("  loss {mean:.4}") } else { String::new() },
            held_out.map_or_else(String::new, |loss| format!("  held out {loss:.4}")),
            megabytes(|t| t.bytes_down),
            megabytes(|t| t.bytes_up),
            spent.map_or_else(String::new, |epsilon| format!("  epsilon {epsilon:.3}")),
        );
        for told in &round.clients {
            if let Some(why) = &told.refused {
                say!("  {} does not count: {why}", told.client);
            }
        }
        Ok(())
    }
}

fn named(text: &str) -> std::result::Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.into())),
        _ => Err("expected NAME=JSONL".to_owned()),
    }
}

fn ranked(text: &str) -> std::result::Result<(String, i64), String> {
    let (name, rank) = text.split_once('=').ok_or("expected NAME=RANK")?;
    match rank.parse() {
        Ok(rank) if rank > 0 => Ok((name.to_owned(), rank)),
        _ => Err(format!("`{rank}` is no rank")),
    }
}
