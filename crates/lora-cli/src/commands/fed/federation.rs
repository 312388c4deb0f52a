//! How rounds go: the arguments that `simulate` and `serve` share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use lora::fed::aggregate::{Bounds, Robust, Rule, ServerRule};
use lora::fed::engine::{Settings, Weights};
use lora::{AdapterConfig, CONFIG_FILE, Error, Local, Recipe, VARIANTS, weights_file};
use tch::Tensor;

use super::log::Log;
use crate::open::chosen;
use crate::paths;
use crate::privacy::hash_of;
use crate::settings::MethodArgs;

/// What is begun with, and what comes out.
#[derive(clap::Args)]
pub(super) struct OutArgs {
    /// Begin with this adapter instead of a fresh one: of --variant only the storage counts then
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["rank", "alpha", "dropout", "targets", "exclude", "layers", "rank_pattern", "alpha_pattern", "init"])]
    pub(super) adapter: Option<PathBuf>,
    /// Held-out rows, for the loss after each round
    #[arg(long, value_name = "JSONL")]
    pub(super) eval: Option<PathBuf>,
    /// The adapter folder to write (PEFT's format); rounds go to OUT.rounds.jsonl
    #[arg(long, value_name = "FOLDER")]
    pub(super) out: PathBuf,
    /// Replace an adapter folder that is there
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Ask nobody any more: write the adapter of the rounds that are done, and end the run
    #[arg(long)]
    pub(super) end: bool,
}

impl OutArgs {
    /// What the run is to begin with, as a state remembers it: an adapter by its files. A fresh one is not known by its numbers,
    /// the last bits of which may be others on another machine.
    pub(super) fn begins_with(&self) -> Result<String> {
        let Some(folder) = &self.adapter else { return Ok("a fresh adapter".to_owned()) };
        let hash = hash_of(&[folder.join(CONFIG_FILE), weights_file(folder)?])?;
        let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("the adapter {name}"))
    }

    /// Refuses to write, OUT or the log of the rounds, in the place of what is read: the model, the adapter, or rows, these or
    /// the held-out ones.
    pub(super) fn apart<'a>(
        &'a self,
        model: &'a Path,
        rows: impl Iterator<Item = &'a Path>,
    ) -> lora::Result<()> {
        let log = Log::place(&self.out);
        let rows = rows.chain(self.eval.as_deref()).map(|path| ("these rows", Some(path)));
        let read = [
            ("the model", Some(model)),
            ("the adapter", self.adapter.as_deref().filter(|_| !self.overwrite)),
        ];
        let inputs: Vec<_> = read.into_iter().chain(rows).collect();
        paths::apart(
            &[("--out", Some(self.out.as_path())), ("OUT.rounds.jsonl", Some(log.as_path()))],
            &inputs,
        )
    }

    /// The adapter that all begin with, on the model of `host`.
    pub(super) fn start(&self, host: &mut Local) -> Result<BTreeMap<String, Tensor>> {
        let start = match &self.adapter {
            Some(folder) => host.start_from(folder)?,
            None => host.start()?,
        };
        host.put(&start, &BTreeMap::new())?;
        Ok(start)
    }
}

#[derive(clap::Args)]
pub(super) struct FederationArgs {
    /// fedsvd, fedit, ffa, rolora, fedex, flora, flexlora or fedsa (docs/federated.md)
    #[arg(long, default_value = "fedsvd", help_heading = "Federation")]
    pub(super) rule: String,
    /// Rounds
    #[arg(long, default_value_t = 10, help_heading = "Federation")]
    pub(super) rounds: u64,
    /// Clients a round, chosen at random [default: all]
    #[arg(long, value_name = "N", help_heading = "Federation")]
    per_round: Option<usize>,
    /// Good replies that a round needs
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Federation")]
    minimum: usize,
    /// What a client counts for: equal, examples, or examples:MOST
    #[arg(long, default_value = "examples", help_heading = "Federation")]
    weights: String,
    /// A client's own rank (flora, flexlora); may be repeated. On Flower NAME is the node's number, which it prints when it
    /// joins
    #[arg(long, value_name = "NAME=RANK", value_parser = ranked, help_heading = "Federation")]
    pub(super) rank_of: Vec<(String, i64)>,
    /// Instead of the mean: median, trimmed:SHARE or krum:LIARS; with --weights equal, for fedit, ffa, rolora, fedsvd, fedsa
    #[arg(long, help_heading = "Federation")]
    robust: Option<String>,
    /// Refuse replies with a factor or an update of a larger norm, as FACTOR,UPDATE
    #[arg(long, value_name = "NORMS", help_heading = "Federation")]
    bounds: Option<String>,
    /// momentum:RATE,BETA or adam:RATE: how the server moves towards the clients' mean
    #[arg(long, help_heading = "Federation")]
    server: Option<String>,
}

impl FederationArgs {
    /// How rounds go.
    pub(super) fn settings(&self, run: String, seed: u64) -> Result<Settings> {
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
            seed,
            ..Settings::new(run, Rule::from_str(&self.rule)?, self.rounds)
        })
    }
}

pub(super) fn ranked(text: &str) -> std::result::Result<(String, i64), String> {
    let (name, rank) = text.split_once('=').ok_or("expected NAME=RANK")?;
    match rank.parse() {
        Ok(rank) if rank > 0 => Ok((name.to_owned(), rank)),
        _ => Err(format!("`{rank}` is no rank")),
    }
}

/// The recipe and configuration of the arguments, or of an adapter that is there, on the arguments' storage.
pub(super) fn method(args: &MethodArgs, adapter: Option<&Path>) -> Result<(Recipe, AdapterConfig)> {
    args.is_for_train(adapter.is_some())?;
    let Some(folder) = adapter else {
        return Ok((Recipe::parse(&args.variant, VARIANTS)?, args.adapter_config()?));
    };
    let config = AdapterConfig::read(folder)?;
    let asked = chosen(&args.variant, Some(&config))?;
    let parts = Recipe::from_flags(&config.flags, VARIANTS)?;
    Ok((parts.stored_as(&asked), config))
}
