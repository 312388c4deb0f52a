//! `fed`: federations of real processes, against what the in-process engine gives.

mod deaths;
mod deployment;
mod faults;
mod network;
mod rules;
mod scale;

use crate::{cache, peers, setup, sh};
use anyhow::{Context, Result, bail};
use deployment::{Deployment, Isolation};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version whose wire is spoken.
const REQUIREMENTS: [&str; 2] = ["flwr==1.41.0", "numpy"];

#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Args {
    /// Nodes and a coordinator of ours on an unmodified Flower, with TLS and node authentication
    #[arg(long, group = "what")]
    flower: bool,
    /// Nodes and coordinator of ours on Flower, killed at random moments, on a network that misbehaves, so often in all:
    /// the same adapter, in every bit
    #[arg(long, group = "what", value_name = "N")]
    faults: Option<usize>,
    /// The coordinator on Flower dies behind every change of its state: the same adapter, in every bit (Linux)
    #[arg(long, group = "what")]
    deaths: bool,
    /// Every rule on four files of different kinds, beside all rows in one place and each client alone
    #[arg(long, group = "what")]
    rules: bool,
    /// What a simulated round costs, as clients, rank and model grow
    #[arg(long, group = "what")]
    scale: bool,
    #[command(flatten)]
    rules_args: rules::Args,
    /// Use this virtual environment with flwr 1.41.0 (default: $FLWR, else one is made in the cache)
    #[arg(long, value_name = "FOLDER")]
    venv: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.rules {
        return rules::run(&args.rules_args);
    }
    if args.scale {
        return scale::run();
    }
    setup::ensure(false)?;
    let model = setup::model()?;
    let lora = sh::lora()?;
    let venv = venv(args)?;
    let home = sh::root().join("target/fed/trial");
    if home.exists() {
        fs::remove_dir_all(&home).with_context(|| home.display().to_string())?;
    }
    fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    let trial = Trial { lora, model, venv, home };
    trial.rows()?;
    trial.start()?;
    if let Some(wanted) = args.faults {
        trial.faults(wanted)?;
    } else if args.deaths {
        trial.deaths()?;
    } else {
        trial.fedavg()?;
        // One whose factors go on, and one that lays beside the weights what a mean would lose.
        trial.ours("fedsvd")?;
        trial.ours("fedex")?;
        trial.secure()?;
    }
    println!("all as it should be");
    Ok(())
}

/// Where things are.
struct Trial {
    lora: PathBuf,
    model: PathBuf,
    venv: PathBuf,
    home: PathBuf,
}

/// Clients that train, and the rows of the demo's data that each has.
const CLIENTS: [&str; 2] = ["bank", "clinic"];
/// With one more, for sums of which nobody can take the others' parts off.
const PARTIES: [&str; 3] = ["bank", "clinic", "mutual"];
const ROUNDS: u64 = 3;
/// The rule of runs that are disturbed: the one with most to keep, since what lies beside grows and nodes have it already.
const DISTURBED: &str = "fedex";
/// What the stock node claims to have.
const IDLE: u64 = 30;
/// How everybody trains. AdamW's first steps are as large where a gradient is nearly nothing as anywhere, so that the
/// last bit of Flower's mean in f32, which depends on whose reply came first, may turn them: the rate is low.
const TRAINING: [&str; 8] =
    ["--batch-size", "4", "--max-steps", "2", "--lr", "1e-6", "--schedule", "constant"];
/// How it trains is a node's own affair.
const SERVE: [&str; 2] = ["fed", "serve"];
const MODEL: [&str; 9] =
    ["--dtype", "f32", "--threads", "1", "--device", "cpu", "--variant", "lora", "--truncate"];

impl Trial {
    fn at(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn lora(&self, verb: &[&str]) -> Command {
        let mut command = sh::ours(&self.lora);
        command.args(verb).arg("--model").arg(&self.model).args(MODEL);
        if verb != SERVE {
            command.args(TRAINING);
        }
        command
    }

    /// Deals the demo's rows out.
    fn rows(&self) -> Result<()> {
        let rows = fs::read_to_string(sh::root().join("docs/demo/train.jsonl"))?;
        for (i, client) in PARTIES.iter().enumerate() {
            let mine = rows.lines().skip(i * 100).take(40 + 40 * i);
            let mine: String = mine.flat_map(|row| [row, "\n"]).collect();
            fs::write(self.at(&format!("{client}.jsonl")), mine)?;
        }
        Ok(())
    }

    /// An adapter that all begin with: one step, so that B is not zero.
    fn start(&self) -> Result<()> {
        let mut command = self.lora(&["train", "--rank", "4"]);
        command.arg("--data").arg(self.at("bank.jsonl")).arg("--out").arg(self.at("start"));
        sh::run(&mut command)
    }

    /// What the in-process engine makes of it.
    fn simulate(&self, rule: &str, rounds: u64, clients: &[&str], further: &[&str]) -> Result<PathBuf> {
        let out = self.at(&format!("simulated-{rule}-{}", clients.len()));
        let mut command = self.lora(&["fed", "simulate", "--rule", rule, "--rounds", &rounds.to_string()]);
        for client in clients {
            command
                .arg("--client")
                .arg(format!("{client}={}", self.at(&format!("{client}.jsonl")).display()));
        }
        command.arg("--adapter").arg(self.at("start")).arg("--out").arg(&out);
        sh::run(command.args(further))?;
        Ok(out.join("adapter_model.safetensors"))
    }

    fn apart(&self, what: &str, one: &Path, two: &Path) -> Result<()> {
        let mut python = Command::new(self.venv.join("bin/python"));
        let script = sh::root().join("xtask/peers/adapters_apart.py");
        let start = self.at("start/adapter_model.safetensors");
        let said = sh::capture(python.arg(script).arg(one).arg(two).arg(start))?;
        let numbers: Vec<f64> = said.split_whitespace().filter_map(|n| n.parse().ok()).collect();
        let &[apart, share] = &numbers[..] else { bail!("{what}: {said}") };
        println!("{what}: at most {apart:.1e} from the in-process engine, {share:.1e} of the way");
        if !(apart <= 1e-6 && share <= 1e-2) {
            bail!("{what}: further apart than 1e-6, or than a hundredth of the way");
        }
        Ok(())
    }

    fn equal(&self, one: &Path, two: &Path) -> Result<()> {
        if cache::sha256(one)? != cache::sha256(two)? {
            bail!("{} is not {}", one.display(), two.display());
        }
        println!("the adapter is the undisturbed run's, in every bit");
        Ok(())
    }

    /// A node of ours that trains a client's rows.
    fn node(&self, flower: &Deployment, client: &str, roots: &str) -> Result<Command> {
        self.node_at(flower, flower.address(), client, roots)
    }

    /// The same, told that the SuperLink is at `address`.
    fn node_at(&self, flower: &Deployment, address: &str, client: &str, roots: &str) -> Result<Command> {
        let key = flower.at(&format!("{client}.pem"));
        let mut keys = sh::ours(&self.lora);
        let line = sh::capture(keys.args(["fed", "keys", "--name", client, "--key"]).arg(&key))?;
        fs::write(flower.at(&format!("{client}.pub")), line)?;
        let mut node = self.lora(&["fed", "node", "--rank", "4", "--address", address]);
        node.arg("--key").arg(&key).arg("--roots").arg(flower.at(roots));
        let rows = if PARTIES.contains(&client) { client } else { CLIENTS[0] };
        node.arg("--data").arg(self.at(&format!("{rows}.jsonl")));
        Ok(node)
    }

    /// Registers and starts the nodes of all clients, perhaps told another address of the SuperLink.
    fn join(&self, flower: &mut Deployment, address: Option<&str>) -> Result<()> {
        for client in CLIENTS {
            let node = self.node_at(flower, address.unwrap_or(flower.address()), client, "ca.pem")?;
            flower.register(client)?;
            flower.spawn(client, node)?;
        }
        Ok(())
    }

    /// Flower's own server app, a stock node, and two of ours.
    fn fedavg(&self) -> Result<()> {
        let simulated = self.simulate("fedit", ROUNDS, &CLIENTS, &["--idle", &format!("stock={IDLE}")])?;
        let mut flower = Deployment::start(&self.venv, &self.at("fedavg"), Isolation::Subprocess)?;
        self.strangers(&flower)?;
        self.join(&mut flower, None)?;
        flower.stock_node()?;
        let out = flower.at("result.npz");
        let start = self.at("start/adapter_model.safetensors");
        flower.submit(&format!(
            "num-server-rounds={ROUNDS} nodes=3 examples={IDLE} start=\"{}\" out=\"{}\"",
            start.display(),
            out.display()
        ))?;
        flower.wait("Flower's FedAvg", || out.exists() || flower.ended())?;
        if !out.exists() {
            bail!(
                "Flower's FedAvg ended without a result\n  hint: see {}",
                flower.at("superlink.log").display()
            );
        }
        self.apart("Flower's FedAvg over one node of Flower's and two of ours", &out, &simulated)
    }

    /// Who is not known, does not trust, or speaks in clear.
    fn strangers(&self, flower: &Deployment) -> Result<()> {
        let stranger = |roots: &str| self.node(flower, "stranger", roots);
        let mut registers = stranger("ca.pem")?;
        registers.arg("--self-register");
        let distrusts = stranger("other.pem")?;
        let key = flower.at("stranger.pem");
        let mut clear =
            self.lora(&["fed", "node", "--rank", "4", "--insecure", "--address", flower.address()]);
        clear.arg("--key").arg(&key).arg("--data").arg(self.at("bank.jsonl"));
        for (what, node) in [
            ("a key that nobody registered", stranger("ca.pem")?),
            ("a key that registers itself", registers),
            ("another CA", distrusts),
            ("plaintext", clear),
        ] {
            println!("{what}: {}", deployment::refused(what, node)?);
        }
        Ok(())
    }

    /// Our coordinator by a rule, told that the SuperLink is at `address`.
    fn serve(
        &self,
        flower: &Deployment,
        address: &str,
        out: &Path,
        (rule, rounds, nodes): (&str, u64, usize),
    ) -> Command {
        let mut serve = self.lora(&SERVE);
        serve.args(["--rule", rule, "--address", address]);
        serve.args(["--minimum", "2", "--rounds", &rounds.to_string()]);
        // What a SuperLink hands out to a node that dies that moment is lost: the round is asked again.
        serve.args(["--patience", "60", "--tries", "100"]);
        serve.arg("--roots").arg(flower.at("ca.pem")).arg("--secret").arg(flower.at("secret"));
        serve.arg("--adapter").arg(self.at("start")).arg("--out").arg(out);
        serve.arg("--per-round").arg(nodes.to_string());
        serve
    }

    /// Our coordinator by a rule, and two nodes of ours.
    fn ours(&self, rule: &str) -> Result<()> {
        let simulated = self.simulate(rule, ROUNDS, &CLIENTS, &[])?;
        let mut flower = Deployment::start(&self.venv, &self.at(rule), Isolation::Process)?;
        self.join(&mut flower, None)?;
        flower.submit("")?;
        let out = self.at(&format!("served-{rule}"));
        sh::run(&mut self.serve(&flower, flower.address(), &out, (rule, ROUNDS, CLIENTS.len())))?;
        let what = format!("our {rule} over two nodes of ours");
        self.apart(&what, &out.join("adapter_model.safetensors"), &simulated)
    }

    /// Our coordinator by secure sums: it sees no client's part, and comes to the same. By a rule whose every number is
    /// a mean: FedSVD's decomposition would make much of a last bit.
    fn secure(&self) -> Result<()> {
        let simulated = self.simulate("ffa", ROUNDS, &PARTIES, &["--weights", "equal"])?;
        let mut flower = Deployment::start(&self.venv, &self.at("secure"), Isolation::Process)?;
        let key = |name: &str| flower.at(&format!("{name}.party"));
        let mut directory = String::new();
        for (name, number) in ["coordinator"].iter().chain(&PARTIES).zip(["coordinator", "1", "2", "3"]) {
            let mut keys = sh::ours(&self.lora);
            keys.args(["fed", "keys", "--party", number, "--name", name, "--key"]).arg(key(name));
            directory.push_str(&sh::capture(&mut keys)?);
        }
        fs::write(flower.at("directory"), directory)?;
        let secured = |mut command: Command, name: &str| {
            command.arg("--secure").arg(flower.at("directory")).arg("--party-key").arg(key(name));
            command
        };
        let nodes = PARTIES
            .iter()
            .map(|client| Ok((client, secured(self.node(&flower, client, "ca.pem")?, client))))
            .collect::<Result<Vec<_>>>()?;
        let out = self.at("served-secure");
        let mut serve = self.serve(&flower, flower.address(), &out, ("ffa", ROUNDS, PARTIES.len()));
        serve.args(["--weights", "equal"]);
        let mut serve = secured(serve, "coordinator");
        for (client, node) in nodes {
            flower.register(client)?;
            flower.spawn(client, node)?;
        }
        flower.submit("")?;
        sh::run(&mut serve)?;
        self.apart(
            "our FFA over three nodes of ours, by secure sums",
            &out.join("adapter_model.safetensors"),
            &simulated,
        )
    }
}

fn venv(args: &Args) -> Result<PathBuf> {
    let named = || std::env::var_os("FLWR").filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(venv) = args.venv.clone().or_else(named) {
        let venv = std::path::absolute(venv)?;
        if !venv.join("bin/flower-superlink").exists() {
            bail!("{} has no bin/flower-superlink\n  hint: see --venv and FLWR", venv.display());
        }
        return Ok(venv);
    }
    peers::environment("flower", "300 MB", &REQUIREMENTS)
}
