//! `lora fed serve`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use lora::fed::aggregate::Robust;
use lora::fed::engine::{Coordinator, Engine, Server};
use lora::fed::flower::{AppOptions, Limits, ServerApp};
use lora::model::Keep;
use lora::train::TrainConfig;
use lora::{Error, ErrorKind, Local, sibling};

use super::course::{Course, Kind, forget};
use super::federation::{FederationArgs, OutArgs, method};
use super::link::LinkArgs;
use super::secure::SecureArgs;
use crate::commands::{bare, say};
use crate::open::ModelArgs;
use crate::settings::{MethodArgs, TextArgs};

/// Coordinate a run on a Flower deployment, by any of the rules
#[derive(clap::Args)]
#[command(after_help = "Example (docs/federated.md walks through it):
  lora fed serve --address fed.example:8000 --roots ca.pem --secret secret.bin \\
      --model SmolLM2.gguf --rule fedsvd --rounds 10 --minimum 2 --per-round 2 --out together

How clients train (rates, steps, batches) is said at each node.")]
pub(crate) struct Args {
    #[command(flatten)]
    link: LinkArgs,
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
    #[command(flatten)]
    out: OutArgs,
    #[command(flatten)]
    federation: FederationArgs,
    #[command(flatten)]
    method: MethodArgs,
    /// Of the initialisation, and of who is chosen
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    secure: SecureArgs,
    /// With --client-epsilon: the largest norm of what a client has learnt in a round
    #[arg(long, value_name = "NORM", default_value_t = 1.0, help_heading = "Secure sums")]
    client_clip: f64,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.out.apart(&args.model.model, std::iter::empty())?;
    let (recipe, config) = method(&args.method, args.out.adapter.as_deref())?;
    let run = format!("{} {}", bare(&args.out.out).display(), args.seed);
    let settings = args.federation.settings(run, args.seed)?;
    settings.check()?;
    let secure = match args.secure.read()? {
        Some((directory, own)) => {
            let plain = args.secure.coordinator(own, directory)?;
            plain.check(&settings)?;
            let noise = args.secure.noise(args.client_clip, settings.rounds)?;
            Some(noise.into_iter().fold(plain, Coordinator::with))
        }
        None => None,
    };
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    args.text.tell_longest(checkpoint.config().max_positions);
    let read = |path| args.text.read(path, &tokenizer, checkpoint.config().max_positions);
    let held_out = args.out.eval.as_deref().map(read).transpose()?;
    let secret = args
        .secret
        .as_ref()
        .map(|path| std::fs::read(path).map_err(|e| Error::io("read the secret", path, e)));
    let patience = Duration::from_secs(args.patience);
    let options = AppOptions {
        address: args.link.address.clone(),
        roots: args.link.roots.clone(),
        insecure: args.link.insecure,
        secret: secret.transpose()?,
        wait: patience,
        store: sibling(&args.out.out, "flower"),
        limits: Limits::default(),
    };
    let keep = Keep { storage: recipe.storage(), packed: args.model.packed(), skip: &args.model.skip };
    let base = lora::fingerprint(checkpoint.as_ref())?;
    let model = args.model.load(checkpoint.as_ref(), keep)?;
    tch::manual_seed(args.seed as i64);
    let mut host =
        Local::new(Box::new(model), recipe.clone(), config.clone(), TrainConfig::default(), BTreeMap::new());
    let start = args.out.start(&mut host)?;
    let mut course = Course::begin(settings, start, (&host, &base), &args.out, false)?;
    if args.out.end {
        course.end(&mut host, &args.model.model, &args.out.out)?;
        // A task in it may be alive for a minute, and what was sent for it is nothing that another run may take up.
        return Ok(forget(&options.store)?);
    }
    if secure.is_some() {
        course.name()?;
        say!("            by secure sums: nobody sees a client's part");
    }
    say!("            waits for a run at {}", args.link.address);
    let mut engine = Server::new(ServerApp::acquire(&options)?, patience);
    let result = rounds(args, &mut course, &mut engine, secure.as_ref(), |course, told| {
        course.tell(told, &mut host, held_out.as_ref())
    });
    let app = engine.into_app();
    match result {
        Ok(()) => {
            course.end(&mut host, &args.model.model, &args.out.out)?;
            Ok(app.finish(true, "")?)
        }
        // It may be tried again: the run stays open for a minute, and this command goes on with it.
        Err(e) => Err(course.stuck(e)),
    }
}

/// Whether another try would end alike: what the engine does not carry it never does.
fn lasts(e: &anyhow::Error) -> bool {
    e.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::Unsupported)
}

fn rounds(
    args: &Args,
    course: &mut Course,
    engine: &mut Server,
    secure: Option<&Coordinator>,
    mut tell: impl FnMut(&mut Course, super::course::Told) -> Result<()>,
) -> Result<()> {
    let settings = course.settings();
    let wanted = settings.per_round.unwrap_or(0).max(settings.minimum);
    let wanted = wanted.max(settings.robust.map_or(0, Robust::least));
    let wanted = wanted.max(secure.map_or(0, Coordinator::least));
    while course.goes_on() {
        let until = Instant::now() + Duration::from_secs(args.patience);
        while engine.clients()?.len() < wanted && Instant::now() < until {
            std::thread::sleep(Duration::from_secs(1));
        }
        let mut tries = 0;
        let told = loop {
            tries += 1;
            let kind = secure.map_or(Kind::Plain, Kind::Secure);
            match course.round(engine, kind) {
                Ok(told) => break told,
                Err(e) if tries < args.tries.max(1) && !lasts(&e) => {
                    say!("round failed, and is tried again: {e}");
                    course.choose_again()?;
                }
                Err(e) => {
                    // Nobody was asked, and fewer may be the next time.
                    if lasts(&e) {
                        course.choose_again()?;
                    }
                    return Err(e);
                }
            }
        };
        tell(course, told)?;
    }
    Ok(())
}
