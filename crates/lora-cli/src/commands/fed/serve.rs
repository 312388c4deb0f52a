//! `lora fed serve`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use lora::fed::engine::{Engine, Server};
use lora::fed::flower::{AppOptions, Limits, ServerApp};
use lora::model::Keep;
use lora::{Error, Local};

use super::course::{Course, beside};
use super::federation::{FederationArgs, method};
use crate::commands::say;
use crate::open::ModelArgs;
use crate::settings::{MethodArgs, TrainingArgs};

/// Coordinate a run on a Flower deployment, by any of the rules
#[derive(clap::Args)]
#[command(after_help = "Example (docs/federated.md walks through it):
  lora fed serve --address fed.example:8000 --roots ca.pem --secret secret.bin --model SmolLM2.gguf \\
      --rule fedsvd --rounds 10 --minimum 2 --per-round 2 --out together")]
pub(crate) struct Args {
    /// The SuperLink, HOST:PORT
    #[arg(long, value_name = "HOST:PORT", help_heading = "Flower")]
    address: String,
    /// Certificates (PEM) that may vouch for it [default: the public ones]
    #[arg(long, value_name = "PEM", help_heading = "Flower")]
    roots: Option<PathBuf>,
    /// Without TLS, which is for this machine alone
    #[arg(long, help_heading = "Flower")]
    insecure: bool,
    /// The SuperLink's --superexec-auth-secret-file
    #[arg(long, value_name = "FILE", help_heading = "Flower")]
    secret: Option<PathBuf>,
    /// How long to wait for `flwr run`, for enough nodes, and for a round's replies, in seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS", help_heading = "Flower")]
    patience: u64,
    /// How often a round is tried
    #[arg(long, default_value_t = 3, value_name = "N", help_heading = "Flower")]
    tries: u64,

    #[command(flatten)]
    model: ModelArgs,
    /// Begin with this adapter instead of a fresh one: of --variant only the storage counts then
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["rank", "alpha", "targets", "exclude", "layers", "init"])]
    adapter: Option<PathBuf>,
    /// Held-out rows, for the loss after each round
    #[arg(long, value_name = "JSONL")]
    eval: Option<PathBuf>,
    /// The adapter folder to write (PEFT's format); rounds go to OUT.rounds.jsonl
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Replace an adapter folder that is there
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    federation: FederationArgs,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: TrainingArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (recipe, config) = method(&args.method, args.adapter.as_deref())?;
    let training = args.training.train_config()?;
    let settings =
        args.federation.settings(format!("{} {}", args.out.display(), training.seed), training.seed)?;
    settings.check()?;
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    let read = |path| args.training.read(path, &tokenizer, checkpoint.config().max_positions);
    let held_out = args.eval.as_deref().map(read).transpose()?;
    let secret = args
        .secret
        .as_ref()
        .map(|path| std::fs::read(path).map_err(|e| Error::io("read the secret", path, e)));
    let patience = Duration::from_secs(args.patience);
    let options = AppOptions {
        address: args.address.clone(),
        roots: args.roots.clone(),
        insecure: args.insecure,
        secret: secret.transpose()?,
        wait: patience,
        store: beside(&args.out, "flower"),
        limits: Limits::default(),
    };
    let keep = Keep { storage: recipe.storage(), packed: args.model.packed(), skip: &args.model.skip };
    let model = args.model.load(checkpoint.as_ref(), keep)?;
    tch::manual_seed(training.seed as i64);
    let mut host = Local::new(Box::new(model), recipe.clone(), config.clone(), training, BTreeMap::new());
    let start = match &args.adapter {
        Some(folder) => lora::read_tensors(&folder.join(lora::WEIGHTS_FILE))?,
        None => host.start()?,
    };
    host.put(&start, &BTreeMap::new())?;
    let mut course = Course::begin(settings, start, (&recipe, &config), (&args.out, args.overwrite))?;
    say!("            waits for a run at {}", args.address);
    let mut engine = Server::new(ServerApp::acquire(&options)?, patience);
    let result = rounds(args, &mut course, &mut engine, |course, told| {
        course.tell(told, &mut host, held_out.as_ref())
    });
    let app = engine.into_app();
    match result {
        Ok(()) => {
            course.end(&mut host, &args.model.model, &args.out)?;
            Ok(app.finish(true, "")?)
        }
        // It may be tried again: the run stays open for a minute, and this command goes on with it.
        Err(e) => Err(e),
    }
}

fn rounds(
    args: &Args,
    course: &mut Course,
    engine: &mut Server,
    mut tell: impl FnMut(&mut Course, super::course::Told) -> Result<()>,
) -> Result<()> {
    let wanted = course.settings().per_round.unwrap_or(0).max(course.settings().minimum);
    while course.goes_on() {
        let until = Instant::now() + Duration::from_secs(args.patience);
        while engine.clients()?.len() < wanted && Instant::now() < until {
            std::thread::sleep(Duration::from_secs(1));
        }
        let mut tries = 0;
        let told = loop {
            tries += 1;
            match course.round(engine, None) {
                Ok(told) => break told,
                Err(e) if tries < args.tries.max(1) => {
                    say!("round failed, and is tried again: {e}");
                    course.choose_again()?;
                }
                Err(e) => return Err(e),
            }
        };
        tell(course, told)?;
    }
    Ok(())
}
