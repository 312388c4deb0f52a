//! `lora fed node`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use lora::fed::engine::{Claims, Joined, Letter, Reply, Task, Worker};
use lora::fed::flower::{Event, Limits, NodeKey, NodeOptions, serve};
use lora::fed::plain;
use lora::model::Keep;
use lora::train::TrainConfig;
use lora::{Error, Local, sibling};

use super::federation::method;
use super::link::LinkArgs;
use super::log::{left_out_here, told_here};
use super::secure::SecureArgs;
use crate::commands::aside;
use crate::open::ModelArgs;
use crate::paths;
use crate::privacy::{PrivacyArgs, bound_to, ledger_of};
use crate::settings::{MethodArgs, StepArgs};

/// Join a Flower deployment as a node: train here on rows that stay here
#[derive(clap::Args)]
#[command(after_help = "Example (docs/federated.md walks through it):
  lora fed keys --key bank.pem --name bank         its line goes to whoever runs the SuperLink
  lora fed node --address fed.example:8000 --roots ca.pem --key bank.pem \\
      --model SmolLM2.gguf --data bank.jsonl --epochs 1 --dp-epsilon 8 --rounds 10

--epochs and --max-steps are those of one round. In a round the rate stays the same; --schedule is its course from round \
to round.")]
pub(crate) struct Args {
    #[command(flatten)]
    link: LinkArgs,
    /// This node's key (`lora fed keys`)
    #[arg(long, value_name = "PEM", help_heading = "Flower")]
    key: PathBuf,
    /// Make the key known oneself, where the SuperLink does not ask for registered ones
    #[arg(long, help_heading = "Flower")]
    self_register: bool,
    /// What must survive the node [default: KEY.store]
    #[arg(long, value_name = "FILE", help_heading = "Flower")]
    store: Option<PathBuf>,
    /// Seconds between heartbeats
    #[arg(long, default_value_t = 30.0, help_heading = "Flower")]
    heartbeat: f64,
    /// Rounds that noise and rates are planned for [default: as many as the coordinator says; Flower's own strategies do
    /// not say]. With --dp-epsilon it must be given, and a coordinator that says another number is refused
    #[arg(long, value_name = "N", help_heading = "Flower")]
    rounds: Option<u64>,
    /// Stop after so many answers
    #[arg(long, value_name = "N", help_heading = "Flower")]
    answers: Option<u64>,

    #[command(flatten)]
    model: ModelArgs,
    /// Training rows
    #[arg(long, value_name = "JSONL")]
    data: PathBuf,
    /// Held-out rows, for those who ask how good the model is here; not with --dp-epsilon
    #[arg(long, value_name = "JSONL")]
    eval: Option<PathBuf>,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    training: StepArgs,
    /// FedProx: pull towards where the round began
    #[arg(long, value_name = "MU", help_heading = "Training")]
    proximal: Option<f64>,
    #[command(flatten)]
    privacy: PrivacyArgs,
    /// The file of all that was given away of these rows: always the same one for the same rows [default: DATA.privacy.jsonl]
    #[arg(long, value_name = "FILE", help_heading = "Privacy", requires = "dp_epsilon")]
    dp_ledger: Option<PathBuf>,
    #[command(flatten)]
    secure: SecureArgs,
}

/// The name of the only client here.
const HERE: &str = "here";

pub(crate) fn run(args: &Args) -> Result<()> {
    paths::apart(
        &[("--store", args.store.as_deref()), ("--dp-ledger", args.dp_ledger.as_deref())],
        &[
            ("the data", Some(args.data.as_path())),
            ("the held-out rows", args.eval.as_deref()),
            ("the model", Some(args.model.model.as_path())),
            ("the key", Some(args.key.as_path())),
        ],
    )?;
    args.check_privacy()?;
    let (recipe, config) = method(&args.method, None)?;
    let training = TrainConfig { proximal: args.proximal, ..args.training.train_config()? };
    training.check()?;
    let options = NodeOptions {
        address: args.link.address.clone(),
        roots: args.link.roots.clone(),
        insecure: args.link.insecure,
        key: NodeKey::load(&args.key)?,
        self_register: args.self_register,
        heartbeat: args.heartbeat,
        poll: Duration::from_secs(1),
        store: args.store.clone().unwrap_or_else(|| sibling(&args.key, "store")),
        limits: Limits::default(),
    };
    let secure = args.secure.read()?;
    let (checkpoint, tokenizer) = args.model.checkpoint()?;
    args.training.text.tell_longest(checkpoint.config().max_positions);
    let read = |path| args.training.text.read(path, &tokenizer, checkpoint.config().max_positions);
    let data = read(&args.data)?;
    let held_out = args.eval.as_deref().map(read).transpose()?;
    let promise = args.privacy.promise(args.dp_ledger.clone().unwrap_or_else(|| ledger_of(&args.data)));
    let bound = if promise.is_some() { bound_to(&args.model)? } else { Vec::new() };
    let keep = Keep { storage: recipe.storage(), packed: args.model.packed(), skip: &args.model.skip };
    let base = lora::fingerprint(checkpoint.as_ref())?;
    let model = args.model.load(checkpoint.as_ref(), keep)?;
    let data = BTreeMap::from([(HERE.to_owned(), data)]);
    let mut local = Local::new(Box::new(model), recipe, config, training, data)
        .over(base)
        .promising(promise.map(|promise| (HERE.to_owned(), promise)).into_iter().collect(), bound)?
        .expecting(args.rounds)
        .keeping(sibling(&args.key, "kept"))?;
    local.check_promises()?;
    if let Some(held_out) = held_out {
        local = local.judging(held_out);
    }

    let stop = AtomicBool::new(false);
    let mut answered = 0;
    let mut told = |event: &Event| {
        say_event(event);
        answered += u64::from(matches!(event, Event::Answered(_)));
        if args.answers.is_some_and(|most| answered >= most) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let local = Loud(Counted(local));
    let mut worker: Box<dyn Worker> = match (secure, &args.secure.party_key) {
        (Some((directory, own)), Some(key)) => {
            let claims = Claims::open(&sibling(key, "rounds"))?;
            let party = args.secure.parties(local, directory)?.with(HERE, own, claims)?;
            // Loud too: a party has errors of its own, and keeps to itself those of work for which it sends noise.
            Box::new(Loud(match args.secure.ledger()? {
                Some(ledger) => party.promising(HERE, ledger)?,
                None => party,
            }))
        }
        _ => Box::new(local),
    };
    serve(&options, &mut Joined::new(&mut *worker, HERE, &mut told), &stop)?;
    Ok(())
}

impl Args {
    /// What a promise to rows asks of the other arguments.
    fn check_privacy(&self) -> Result<()> {
        if self.privacy.dp_epsilon.is_none() {
            return Ok(());
        }
        if self.eval.is_some() {
            let e = Error::usage("--eval with --dp-epsilon: whoever asks is told a loss without noise");
            return Err(e.hint("leave --eval away; `lora eval` judges the adapter here").into());
        }
        if self.rounds.is_none() {
            let e = Error::usage("--dp-epsilon without --rounds: the coordinator would choose the noise");
            return Err(e
                .hint("say how many rounds epsilon is to last for, as the coordinator plans them")
                .into());
        }
        Ok(())
    }
}

/// Says here why a part failed.
struct Loud<W>(W);

impl<W: Worker> Worker for Loud<W> {
    fn train(&mut self, client: &str, task: &Task) -> lora::Result<Reply> {
        let reply = self.0.train(client, task);
        told_here(client, &reply);
        reply
    }

    fn evaluate(&mut self, client: &str, task: &Task) -> lora::Result<(f64, u64)> {
        let judged = self.0.evaluate(client, task);
        told_here(client, &judged);
        judged
    }

    fn answer(&mut self, client: &str, letter: &Letter) -> lora::Result<Vec<u8>> {
        let answer = self.0.answer(client, letter);
        told_here(client, &answer);
        answer
    }
}

/// Says here how many texts counted as zeros.
struct Counted(Local);

impl Worker for Counted {
    fn train(&mut self, client: &str, task: &Task) -> lora::Result<Reply> {
        let reply = self.0.train(client, task);
        left_out_here(client, self.0.left_out());
        reply
    }

    fn evaluate(&mut self, client: &str, task: &Task) -> lora::Result<(f64, u64)> {
        self.0.evaluate(client, task)
    }
}

fn say_event(event: &Event) {
    let short = |id: &str| id.chars().take(8).collect::<String>();
    let text = match event {
        Event::Joined(id) => format!("joined as node {id}"),
        Event::Received(id, bytes) => format!("task {}: {:.2} MB, training", short(id), *bytes as f64 / 1e6),
        Event::Replied(id) => format!("task {}: done, kept", short(id)),
        Event::Answered(id) => format!("task {}: answered", short(id)),
        Event::Refused(id, why) => format!("task {}: refused: {}", short(id), plain(why)),
        Event::Dropped(id, why) => {
            format!("task {}: nobody waits for it any more: {}", short(id), plain(why))
        }
        Event::Offline(why) => format!("the SuperLink does not answer: {}", plain(why)),
        Event::Uploading(..) | Event::Uploaded(_) => return,
    };
    aside(text);
}
