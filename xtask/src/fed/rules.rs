//! `fed --rules`: four organisations with rows of different kinds, by every rule, beside all rows in one place and each
//! alone: what it brings, and what it sends.

mod methods;
mod report;
#[cfg(test)]
mod tests;

use crate::compare::plan::Data;
use crate::compare::split::{self, Parts};
use crate::compare::{threads, traffic};
use crate::{bench, cache, setup, sh};
use anyhow::{Context, Result, bail, ensure};
use methods::{Method, Rates};
use report::{Row, Score};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is compared.
#[derive(clap::Args)]
#[group(id = "rules_args")]
pub(super) struct Args {
    /// The folder with fpb.jsonl, fiqa.jsonl, tfns.jsonl and nwgi.jsonl (docs/federated.md)
    #[arg(long, value_name = "FOLDER", default_value = "data/finlora")]
    data: PathBuf,
    /// Rules, for --rules; one may be there with several rates
    #[arg(long, value_delimiter = ',', default_value = "fedit,ffa,fedex,fedsvd")]
    rule: Vec<String>,
    /// Seeds
    #[arg(long, value_delimiter = ',', default_value = "1")]
    seeds: Vec<u64>,
    /// Also, of every method, with these promises to every row
    #[arg(long, value_delimiter = ',')]
    epsilons: Vec<f64>,
    /// Rounds, which share the passes
    #[arg(long, default_value_t = 5)]
    rounds: u64,
    /// Passes over the rows in all, of every method
    #[arg(long, default_value_t = 1.0)]
    passes: f64,
    /// At most so many training rows a client
    #[arg(long, default_value_t = 942)]
    rows: usize,
    /// Judge by so many held-out rows of each client
    #[arg(long, default_value_t = 100)]
    held_out: usize,
    /// Peak learning rate; for a rule of its own rate: `--rule fedsvd:3e-3`
    #[arg(long, default_value_t = 1e-3)]
    lr: f64,
    /// Choose each method's rate among these: trained on four fifths of the training rows with the first seed, judged by
    /// the rest. A client alone has the rate of all rows in one place
    #[arg(long, value_delimiter = ',', value_name = "RATES")]
    rates: Vec<f64>,
    /// How the server moves, of every rule: momentum:RATE,BETA or adam:RATE
    #[arg(long, value_name = "OPTIMISER")]
    server: Option<String>,
    /// What a client counts for, by every rule: equal, examples, or examples:MOST
    #[arg(long, default_value = "examples")]
    weights: String,
    /// Rows in a client's step, where central training has 8; with a promise 32 are expected
    #[arg(long, default_value_t = 8, value_name = "ROWS")]
    client_batch: u64,
    /// Runs at once, each with its share of the processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
}

const CLIENTS: [&str; 4] = ["fpb", "fiqa", "tfns", "nwgi"];

/// What is kept of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ended {
    scores: Vec<Score>,
    up: u64,
    down: u64,
    seconds: f64,
    /// Where, and on which day.
    machine: String,
    date: String,
}

struct Runner<'a> {
    args: &'a Args,
    lora: PathBuf,
    /// Of `lora`, as `compare` names it.
    build: String,
    model: PathBuf,
    /// The model, by its bytes.
    base: String,
    home: PathBuf,
    parts: Vec<Parts>,
    /// `--threads N`, where runs share the processors.
    threads: Vec<String>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    args.check()?;
    setup::ensure(false)?;
    let model = setup::model()?;
    let lora = sh::lora()?;
    let home = sh::root().join("target/fed/rules");
    fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    let _lock = cache::lock(&home.join("lock"))?;
    let folder = if args.data.is_absolute() { args.data.clone() } else { sh::root().join(&args.data) };
    let mut parts = Vec::new();
    for client in CLIENTS {
        let data = Data::Split(folder.join(format!("{client}.jsonl")));
        parts.push(split::split(&data, &home.join("data"))?);
    }
    let threads =
        threads(args.jobs).into_iter().flat_map(|n| ["--threads".to_owned(), n.to_string()]).collect();
    let (build, base) = (build_of(&lora)?, cache::sha256(&model)?);
    let mut runner = Runner { args, lora, build, model, base, home, parts, threads };
    runner.cut()?;
    let chosen = choose(&runner)?;
    let rows = Mutex::new(BTreeMap::new());
    work(&runner, &args.methods(&chosen)?, &|at, row| told(&runner, &rows, at, row))?;
    println!("{}", fs::read_to_string(runner.home.join("report.md"))?);
    Ok(())
}

/// A program, by its bytes.
fn build_of(program: &Path) -> Result<String> {
    Ok(cache::sha256(program)?[..12].to_owned())
}

/// What is trained on of a client's rows, and what judges.
fn files(part: &Parts, tuning: bool) -> (&Path, &Path) {
    let (learnt, judges) = if tuning { (&part.fit, &part.validation) } else { (&part.train, &part.held_out) };
    (learnt.as_path(), judges.as_path())
}

/// The best of the rates that are to be tried.
fn choose(runner: &Runner<'_>) -> Result<Rates> {
    let args = runner.args;
    let named = args.rule.iter().filter(|rule| !rule.contains(':')).map(String::as_str);
    let names: Vec<&str> = ["central"].into_iter().chain(named).collect();
    let seed = *args.seeds.first().context("--seeds: none")?;
    let one = |name: &str, lr| Method { name: name.into(), lr, seed, epsilon: None, tuning: true };
    let tried: Vec<Method> =
        names.iter().flat_map(|name| args.rates.iter().map(|&lr| one(name, lr))).collect();
    let scores = Mutex::new(BTreeMap::<String, Vec<(f64, f64)>>::new());
    work(runner, &tried, &|at, row| {
        let mut scores = scores.lock().unwrap_or_else(PoisonError::into_inner);
        scores.entry(row.method.clone()).or_default().push((row.accuracy(), tried[at].lr));
        Ok(())
    })?;
    let mut chosen = Rates::new();
    for (name, mut scores) in scores.into_inner().unwrap_or_else(PoisonError::into_inner) {
        scores.sort_by(|a, b| a.1.total_cmp(&b.1));
        let best = scores.iter().copied().reduce(|best, s| if s.0 > best.0 { s } else { best });
        let (_, best) = best.context("no rate was tried")?;
        let all: Vec<String> = scores.iter().map(|(a, lr)| format!("{lr:e}: {:.1} %", 100.0 * a)).collect();
        eprintln!("{name}: rate {best:e} (on the validation part, {})", all.join(", "));
        chosen.insert(name, best);
    }
    Ok(chosen)
}

/// All runs, some at once; the first failure, when those that run have ended.
fn work(
    runner: &Runner<'_>,
    methods: &[Method],
    told: &(dyn Fn(usize, Row) -> Result<()> + Sync),
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let locked = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..runner.args.jobs {
            scope.spawn(|| {
                while locked().is_none() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(method) = methods.get(at) else { break };
                    if let Err(e) = runner.once(method).and_then(|row| told(at, row)) {
                        *locked() = Some(e);
                    }
                }
            });
        }
    });
    if let Some(e) = locked().take() {
        return Err(e);
    }
    Ok(())
}

/// What is there so far can be looked at.
fn told(runner: &Runner<'_>, rows: &Mutex<BTreeMap<usize, Row>>, at: usize, row: Row) -> Result<()> {
    let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
    rows.insert(at, row);
    let all: Vec<Row> = rows.values().cloned().collect();
    report::write(&all, &CLIENTS, &runner.build, &runner.home)
}

impl Runner<'_> {
    /// Cuts the training parts to the rows that are asked for, and puts them together.
    fn cut(&mut self) -> Result<()> {
        let rows = self.args.rows;
        let mut whole = [String::new(), String::new()];
        for part in &mut self.parts {
            let files = [(&mut part.train, rows, "train"), (&mut part.fit, rows - rows / 5, "fit")];
            for ((file, rows, name), whole) in files.into_iter().zip(&mut whole) {
                let text = fs::read_to_string(&*file)?;
                let text: String = text.lines().take(rows).flat_map(|row| [row, "\n"]).collect();
                *file = file.with_file_name(format!("{name}-{rows}.jsonl"));
                fs::write(&*file, &text)?;
                whole.push_str(&text);
            }
        }
        let files = [false, true].map(|tuning| self.all(tuning));
        files
            .iter()
            .zip(whole)
            .try_for_each(|(file, text)| fs::write(file, text).with_context(|| file.display().to_string()))
    }

    /// All clients' rows.
    fn all(&self, tuning: bool) -> PathBuf {
        self.home.join("data").join(if tuning { "all-fit.jsonl" } else { "all.jsonl" })
    }

    /// A run, if it is not there yet.
    fn once(&self, method: &Method) -> Result<Row> {
        let Method { name, lr, seed, epsilon, .. } = method;
        let settings = self.settings(method)?;
        let dir = self.home.join(cache::hex(&Sha256::digest(&settings)[..8]));
        let result = dir.join("result.json");
        let ended = match fs::read(&result) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => {
                if dir.exists() {
                    fs::remove_dir_all(&dir)?;
                }
                fs::create_dir_all(&dir)?;
                fs::write(dir.join("settings.txt"), &settings)?;
                let epsilon = epsilon.map_or(String::new(), |e| format!(", epsilon {e}"));
                eprintln!("{name}, rate {lr:e}, seed {seed}{epsilon}");
                let ended = self.train(method, &dir)?;
                self.is_its_build()?;
                fs::write(dir.join("partial"), serde_json::to_vec(&ended)?)?;
                fs::rename(dir.join("partial"), &result)?;
                ended
            }
        };
        let Ended { scores, up, down, seconds, machine, date } = ended;
        let (method, lr, seed, epsilon) = (name.clone(), *lr, *seed, *epsilon);
        Ok(Row { method, lr, seed, epsilon, scores, up, down, seconds, machine, date })
    }

    /// All that a run's figures depend on.
    fn settings(&self, method: &Method) -> Result<String> {
        let Method { name, lr, seed, epsilon, tuning } = method;
        let Args { rounds, passes, rows, held_out, server, weights, client_batch, .. } = self.args;
        let mut text = format!("build {}\nmodel {}\n", self.build, self.base);
        let _ = writeln!(text, "{name}, rate {lr:e}, seed {seed}, epsilon {epsilon:?}, tuning {tuning}");
        if method.is_rule() {
            let server = server.as_deref().unwrap_or("none");
            let _ = writeln!(
                text,
                "{rounds} rounds, server {server}, weights {weights}, {client_batch} rows a step"
            );
        }
        let _ = writeln!(text, "passes {passes}, at most {rows} rows a client, judged by {held_out}");
        for part in &self.parts {
            let (learnt, judged) = files(part, *tuning);
            let [learnt, judged] = [cache::sha256(learnt)?, cache::sha256(judged)?];
            let _ = writeln!(text, "{}: rows {learnt}, held out {judged}", part.name);
        }
        Ok(text)
    }

    /// Another one would have its figures found again under the name of this one.
    fn is_its_build(&self) -> Result<()> {
        ensure!(
            build_of(&self.lora)? == self.build,
            "{} was built anew meanwhile\n  hint: the same command begins again with that build",
            self.lora.display()
        );
        Ok(())
    }

    /// And the threads that a run has of it, if not all.
    fn machine(&self) -> String {
        let threads = self.threads.last().map_or_else(String::new, |n| format!(", --threads {n}"));
        bench::cpu() + &threads
    }

    fn train(&self, method: &Method, dir: &Path) -> Result<Ended> {
        let &Method { ref name, lr, seed, epsilon, tuning } = method;
        let passes = self.args.passes.to_string();
        let begin = std::time::Instant::now();
        let out = dir.join("adapter");
        let mut lora = sh::ours(&self.lora);
        let batch = if method.is_rule() { self.args.client_batch } else { 8 };
        let mut rest: Vec<String> = ["--rank", "8", "--alpha", "16"].map(Into::into).to_vec();
        rest.extend(["--batch-size".into(), batch.to_string()]);
        rest.extend(["--lr".into(), lr.to_string(), "--seed".into(), seed.to_string()]);
        let of = |name: &str| self.parts.iter().find(|part| part.name == name);
        let rows = |part: &Parts| files(part, tuning).0.to_owned();
        match name.strip_suffix(" alone") {
            _ if name == "central" => {
                lora.args(["train", "--epochs", &passes]).arg("--data").arg(self.all(tuning));
            }
            Some(client) => {
                let part = of(client).with_context(|| format!("no client {client}"))?;
                lora.args(["train", "--epochs", &passes]).arg("--data").arg(rows(part));
            }
            None => {
                lora.args(["fed", "simulate", "--rule", name, "--rounds", &self.args.rounds.to_string()]);
                // The rate falls over the rounds.
                let part = self.args.passes / self.args.rounds as f64;
                lora.args([
                    "--epochs",
                    &part.to_string(),
                    "--schedule",
                    "linear",
                    "--weights",
                    &self.args.weights,
                ]);
                if let Some(server) = &self.args.server {
                    lora.args(["--server", server]);
                }
                for part in &self.parts {
                    lora.arg("--client").arg(format!("{}={}", part.name, rows(part).display()));
                }
            }
        }
        if let Some(epsilon) = epsilon {
            lora.args(["--dp-epsilon", &epsilon.to_string()]);
            lora.args(["--accumulate", &(32 / batch).max(1).to_string()]);
            // Each run makes its own promise, as if it were the only one.
            let (flag, place) =
                if method.is_rule() { ("--dp-ledgers", "ledgers") } else { ("--dp-ledger", "ledger.jsonl") };
            lora.arg(flag).arg(dir.join(place));
        }
        lora.arg("--model").arg(&self.model).arg("--out").arg(&out).args(&rest).args(&self.threads);
        let log = fs::File::create(dir.join("log.txt"))?;
        let status = lora.stdout(log.try_clone()?).stderr(log).status()?;
        if !status.success() {
            let said = fs::read_to_string(dir.join("log.txt")).unwrap_or_default();
            bail!("`{}`\n{}", sh::show(&lora), said.lines().rev().take(3).collect::<Vec<_>>().join("\n"));
        }
        let seconds = begin.elapsed().as_secs_f64();
        let rounds = dir.join("adapter.rounds.jsonl");
        let (up, down) = if method.is_rule() { traffic::read(&rounds)? } else { (0, 0) };
        let judge = |part| self.judge(&out, files(part, tuning).1);
        let scores = self.parts.iter().map(judge).collect::<Result<Vec<_>>>()?;
        Ok(Ended { scores, up, down, seconds, machine: self.machine(), date: bench::today()? })
    }

    fn judge(&self, adapter: &Path, rows: &Path) -> Result<Score> {
        let mut lora = sh::ours(&self.lora);
        lora.args([
            "eval",
            "--labels",
            "auto",
            "--max-tokens",
            "0",
            "--json",
            "--limit",
            &self.args.held_out.to_string(),
        ]);
        lora.arg("--model").arg(&self.model).arg("--adapter").arg(adapter).arg("--data").arg(rows);
        lora.args(&self.threads);
        let value: Value = sh::capture_json(&mut lora)?;
        let of = |name: &str| value["labels"][name].as_f64().with_context(|| format!("no {name} in {value}"));
        Ok(Score {
            rows: value["examples"].as_u64().unwrap_or(0),
            accuracy: of("accuracy")?,
            macro_f1: of("macro_f1")?,
        })
    }
}
