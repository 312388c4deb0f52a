//! `bench`: training steps a second and peak memory, alone or round by round against a peer.

use crate::{cache, generation, ops, peers, setup, sh};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also the peer, interleaved with us round by round; unsloth: on a GPU, from a --venv that has it
    #[arg(long, value_parser = ["peft", "unsloth"])]
    peer: Option<String>,
    /// Generation instead of training, of the demo's model on the CPU
    #[arg(long, conflicts_with_all = ["rows", "model", "device", "data", "steps"])]
    generation: bool,
    /// The operations instead, each over libtorch's own, against the ratios kept in benches/ratios.json
    #[arg(long, conflicts_with_all = ["generation", "peer", "json", "rounds", "rows", "model", "device", "data", "steps", "venv"])]
    ops: bool,
    /// Keep the ratios of this run, in the place of all those of such a processor
    #[arg(long, requires = "ops")]
    keep: bool,
    /// One JSON object a row instead of the table
    #[arg(long)]
    json: bool,
    /// What to measure: variant-dtype-batchxtokens of random ids; with the stem of --data's file in the place of the
    /// tokens, its rows; with `-recompute` behind it, what the layers make is made again in backward
    #[arg(long, value_delimiter = ',', default_value = "lora-bf16-4x256,lora-f32-4x256,dora-bf16-4x256")]
    rows: Vec<String>,
    /// The model: a GGUF file or a folder, or the shape of one, with random weights in bf16 (made at the first call by
    /// the peers' Python): llama-3.2-1b (2.5 GB), llama-3-8b (16 GB); default: the demo's, SmolLM2-135M-Instruct
    #[arg(long, value_name = "PATH|SHAPE")]
    model: Option<PathBuf>,
    /// Where both run
    #[arg(long, default_value = "cpu", value_parser = ["cpu", "cuda"])]
    device: String,
    /// Rows of `context` and `target`, whose targets are learnt
    #[arg(long, value_name = "JSONL")]
    data: Option<PathBuf>,
    /// Processes of each side a row
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Measured steps a process, after one for warming up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    #[command(flatten)]
    peers: peers::Args,
}

/// One line of the result. Rates and memory are medians over the rounds; `ratio` is the median of each round's.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    tok_s: f64,
    peer_tok_s: Option<f64>,
    ratio: Option<f64>,
    ratio_min: Option<f64>,
    ratio_max: Option<f64>,
    peak_mb: f64,
    peer_peak_mb: Option<f64>,
    limit_fraction: Option<f64>,
    first_loss_s: Option<f64>,
    peer_first_loss_s: Option<f64>,
    cpu: String,
    date: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.ops {
        return ops::run(args.keep);
    }
    if args.generation {
        if args.peer.as_deref() == Some("unsloth") {
            bail!("--generation: the peer is peft alone");
        }
        if args.peers.venv.is_some() && args.peer.is_none() {
            bail!("--venv is a peer's, and --peer names none");
        }
        return generation::run(args.peer.is_some(), args.json, args.rounds, &args.peers);
    }
    let rows = args.rows.iter().map(|row| flags(row, args.data.as_deref())).collect::<Result<Vec<_>>>()?;
    setup::ensure(false)?;
    let model = model(args)?;
    let ours = executable("train_step")?;
    let mut peer = None;
    if let Some(name) = &args.peer {
        let script = sh::root().join(format!("xtask/peers/{name}_step.py"));
        let folder = cache::dir()?.join("peers-models");
        peer = Some((
            peers::python(&args.peers)?,
            [script.into(), "--cache".into(), folder.into(), "--model".into()],
        ));
    }
    let (cpu, date) = (cpu(), today()?);
    let mut done = Vec::new();
    for (name, row) in args.rows.iter().zip(&rows) {
        let measure = |mut command: Command, leading: &[OsString], again: &[&str]| {
            command
                .args(leading)
                .arg(&model)
                .args(&row.flags)
                .args(if row.recompute { again } else { &[] })
                .args(["--device", &args.device, "--rank", "8", "--warmup", "1", "--steps"]);
            sh::capture_json(command.arg(args.steps.to_string()))
        };
        let mut rounds = Vec::new();
        for round in 0..args.rounds {
            eprintln!("{name}, round {} of {}", round + 1, args.rounds);
            let we = || measure(sh::ours(&ours), &["--model".into()], &["--recompute", "1000"]);
            let again = ["--checkpointing"];
            let theirs =
                |python: &PathBuf, leading: &[OsString]| measure(Command::new(python), leading, &again);
            let they = || peer.as_ref().map(|(python, leading)| theirs(python, leading)).transpose();
            rounds.push(in_turn(round, we, they)?);
        }
        let row = summary(name, &rounds, &cpu, &date)?;
        if args.json {
            println!("{}", serde_json::to_string(&row)?);
        }
        done.push(row);
    }
    if !args.json {
        print!("{}", table(&done));
    }
    Ok(())
}

/// Never both at once; and each goes first as often, so that a machine growing warm favours neither.
pub(crate) fn in_turn<A, B>(
    round: u32,
    we: impl FnOnce() -> Result<A>,
    they: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    if round.is_multiple_of(2) {
        return Ok((we()?, they()?));
    }
    let theirs = they()?;
    Ok((we()?, theirs))
}

/// The model that `--model` names, made first if it is a shape.
fn model(args: &Args) -> Result<PathBuf> {
    let Some(model) = &args.model else { return setup::model() };
    let shape = model.to_str().filter(|name| ["llama-3.2-1b", "llama-3-8b"].contains(name));
    let Some(shape) = shape.filter(|_| !model.exists()) else {
        return std::path::absolute(model).ok().filter(|path| path.exists()).with_context(|| {
            format!("--model {}: neither a file, nor a folder, nor a shape", model.display())
        });
    };
    let folder = cache::dir()?.join("peers-models").join(shape);
    if !folder.join("complete").exists() {
        let script = sh::root().join("xtask/peers/random_model.py");
        sh::run(Command::new(peers::python(&args.peers)?).arg(script).arg(shape).arg(&folder))?;
    }
    Ok(folder)
}

/// What a row's name asks for.
struct Asked {
    /// Flags that both programs know.
    flags: Vec<OsString>,
    recompute: bool,
}

fn flags(row: &str, data: Option<&Path>) -> Result<Asked> {
    let parse = || {
        let (name, recompute) = row.strip_suffix("-recompute").map_or((row, false), |name| (name, true));
        let (rest, shape) = name.rsplit_once('-')?;
        let (variant, dtype) = rest.rsplit_once('-')?;
        let (batch, what) = shape.split_once('x')?;
        let number = |n: &str| n.parse::<u32>().ok().filter(|n| *n > 0).map(|n| n.to_string());
        let mut flags: Vec<OsString> =
            vec!["--variant".into(), variant.into(), "--dtype".into(), dtype.into()];
        flags.extend(["--batch".into(), number(batch)?.into()]);
        let file = data.filter(|data| data.file_stem().is_some_and(|stem| stem == what));
        match file {
            Some(file) => flags.extend(["--data".into(), std::path::absolute(file).ok()?.into()]),
            None => flags.extend(["--seq".into(), number(what)?.into()]),
        }
        Some(Asked { flags, recompute })
    };
    parse().with_context(|| {
        format!(
            "row `{row}` is none\n  hint: variant-dtype-batchxtokens, as in lora-bf16-4x256; lora-bf16-16xNAME with \
             --data NAME.jsonl; either with -recompute behind it"
        )
    })
}

pub(crate) fn executable(bench: &str) -> Result<PathBuf> {
    let built = sh::built(sh::cargo().args(["bench", "--bench", bench, "--no-run"]))?;
    let found = built.into_iter().find(|b| b.target == bench).map(|b| b.file);
    found.with_context(|| format!("cargo built no bench called {bench}"))
}

fn summary(name: &str, rounds: &[(Value, Option<Value>)], cpu: &str, date: &str) -> Result<Row> {
    let field = |run: &Value, key: &str| {
        let number = run[key].as_f64().filter(|n| n.is_finite());
        number.with_context(|| format!("{name}: a run told no `{key}` but {run}"))
    };
    let ours = |key: &str| rounds.iter().map(|(run, _)| field(run, key)).collect::<Result<Vec<_>>>();
    let theirs = |key: &str| {
        rounds
            .iter()
            .filter_map(|(_, run)| run.as_ref())
            .map(|run| field(run, key))
            .collect::<Result<Vec<_>>>()
    };
    let (our_rates, their_rates) = (ours("tok_s")?, theirs("tok_s")?);
    let ratios: Vec<f64> = our_rates.iter().zip(&their_rates).map(|(our, their)| our / their).collect();
    if ratios.iter().any(|r| !r.is_finite()) {
        bail!("{name}: the peer told a speed of zero");
    }
    same_work(name, rounds);
    Ok(Row {
        name: name.to_owned(),
        tok_s: median(&our_rates).unwrap_or_default(),
        peer_tok_s: median(&their_rates),
        ratio: median(&ratios),
        ratio_min: ratios.iter().copied().reduce(f64::min),
        ratio_max: ratios.iter().copied().reduce(f64::max),
        peak_mb: median(&ours("peak_mb")?).unwrap_or_default(),
        peer_peak_mb: median(&theirs("peak_mb")?),
        limit_fraction: median(
            &rounds.iter().filter_map(|(r, _)| r["limit_fraction"].as_f64()).collect::<Vec<_>>(),
        ),
        first_loss_s: first(&rounds.iter().map(|(run, _)| run).collect::<Vec<_>>()),
        peer_first_loss_s: first(&rounds.iter().filter_map(|(_, run)| run.as_ref()).collect::<Vec<_>>()),
        cpu: cpu.to_owned(),
        date: date.to_owned(),
    })
}

fn first(runs: &[&Value]) -> Option<f64> {
    median(&runs.iter().filter_map(|run| run["first_loss_s"].as_f64()).collect::<Vec<_>>())
}

/// A race is fair over the same distance only: says so where the first losses differ by more than two percent.
fn same_work(name: &str, rounds: &[(Value, Option<Value>)]) {
    if let Some((our, Some(their))) = rounds.first() {
        let (a, b) = (our["losses"][0].as_f64(), their["losses"][0].as_f64());
        if !a.zip(b).is_some_and(|(a, b)| (a - b).abs() <= 0.02 * b.abs()) {
            eprintln!("warning: {name}: the first losses differ ({a:?}, peer {b:?}): not the same work?");
        }
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { upper } else { (sorted[middle - 1] + upper) / 2.0 })
}

fn table(rows: &[Row]) -> String {
    let or = |value: Option<f64>, digits: usize| value.map_or("-".into(), |v| format!("{v:.digits$}"));
    let head =
        ["row", "tok/s", "peer", "ratio", "(min..max)", "peak MB", "peer MB", "of limit", "1st loss", "peer"];
    let line = |c: [String; 10]| {
        let [name, rate, peer, ratio, spread, peak, peer_peak, limit, first, peer_first] = c;
        format!(
            "{name:26} {rate:>7} {peer:>6} {ratio:>6} {spread:>12} {peak:>8} {peer_peak:>8} {limit:>8} {first:>8} \
             {peer_first:>6}\n"
        )
    };
    let cells = |row: &Row| {
        let spread = row.ratio_min.zip(row.ratio_max).map_or("-".into(), |(a, b)| format!("{a:.2}..{b:.2}"));
        let (rate, peak) = (format!("{:.0}", row.tok_s), format!("{:.0}", row.peak_mb));
        let (peer, peer_peak) = (or(row.peer_tok_s, 0), or(row.peer_peak_mb, 0));
        let (limit, first) = (or(row.limit_fraction, 2), or(row.first_loss_s, 1));
        let (ratio, theirs) = (or(row.ratio, 2), or(row.peer_first_loss_s, 1));
        [row.name.clone(), rate, peer, ratio, spread, peak, peer_peak, limit, first, theirs]
    };
    let mut text = line(head.map(str::to_owned));
    text.extend(rows.iter().map(|row| line(cells(row))));
    if let Some(row) = rows.first() {
        text += &format!("{}, {}\n", row.cpu, row.date);
    }
    text
}

/// The day, as 2026-11-24.
pub(crate) fn today() -> Result<String> {
    Ok(sh::capture(Command::new("date").args(["-u", "+%F"]))?.trim().to_owned())
}

/// The processor's name, its cores, and what it has of vectors.
pub(crate) fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find_map(|l| l.strip_prefix("model name")).map(|m| m.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // A model's name may be that of processors with and without AVX-512.
    let kind = Some(ops::processor()).filter(|kind| *kind != std::env::consts::ARCH);
    let kind = kind.map_or(String::new(), |kind| format!(", {kind}"));
    format!("{}, {cores} cores{kind}", model.unwrap_or(std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rows_are_flags() {
        let want = ["--variant", "qlora+dora", "--dtype", "bf16", "--batch", "4", "--seq", "256"];
        let asked = flags("qlora+dora-bf16-4x256", None).unwrap();
        assert_eq!((asked.flags, asked.recompute), (want.map(OsString::from).to_vec(), false));
        let data = Some(Path::new("/some/fpb.jsonl"));
        let asked = flags("lora-f32-16xfpb-recompute", data).unwrap();
        assert_eq!(
            (&asked.flags[6..], asked.recompute),
            (&["--data".into(), "/some/fpb.jsonl".into()][..], true)
        );
        for bad in
            ["", "lora", "lora-bf16", "lora-bf16-4", "lora-bf16-0x8", "lora-bf16-ax8", "lora-bf16-4xnone"]
        {
            assert!(flags(bad, data).is_err(), "{bad}");
        }
    }

    /// What a kind of measuring does not read is refused.
    #[test]
    fn what_would_be_ignored_is_refused() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let parse = |line: &str| <Line as clap::Parser>::try_parse_from(line.split(' '));
        for more in ["--model m", "--device cuda", "--steps 2", "--rows lora-bf16-4x256", "--data d"] {
            assert!(parse(&format!("bench --generation {more}")).is_err(), "{more}");
            assert!(parse(&format!("bench --ops {more}")).is_err(), "{more}");
            assert!(parse(&format!("bench {more}")).is_ok(), "{more}");
        }
        assert!(parse("bench --ops --keep").is_ok() && parse("bench --ops --peer peft").is_err());
        assert!(parse("bench --generation --peer peft --rounds 1 --json").is_ok());
        let unsloth = parse("bench --generation --peer unsloth").ok().unwrap();
        assert!(run(&unsloth.args).unwrap_err().to_string().contains("peft alone"));
    }

    #[test]
    fn each_goes_first_in_its_turn() {
        let order = std::cell::RefCell::new(String::new());
        let said = |who: char| {
            order.borrow_mut().push(who);
            Ok(who)
        };
        for round in 0..3 {
            assert_eq!(in_turn(round, || said('a'), || said('b')).unwrap(), ('a', 'b'));
        }
        assert_eq!(order.into_inner(), "abbaab");
    }

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_own() {
        // Ratios 4, 1, 2: their median is 2, the ratio of the medians (300 / 100) would be 3.
        let rounds = [(400, 100), (100, 100), (300, 150)]
            .map(|(a, b)| (json!({"tok_s": a, "peak_mb": 10}), Some(json!({"tok_s": b, "peak_mb": 50}))));
        let row = summary("x", &rounds, "cpu", "day").unwrap();
        assert_eq!((row.tok_s, row.peer_tok_s, row.ratio), (300.0, Some(100.0), Some(2.0)));
        assert_eq!((row.ratio_min, row.ratio_max, row.peer_peak_mb), (Some(1.0), Some(4.0), Some(50.0)));
        assert!(table(&[row]).contains("1.00..4.00"));
        let alone = summary("x", &[(json!({"tok_s": 1, "peak_mb": 2, "limit_fraction": 0.5}), None)], "", "")
            .unwrap();
        assert_eq!((alone.ratio, alone.limit_fraction), (None, Some(0.5)));
        let error = summary("x", &[(json!({"tok_s": 1}), None)], "", "").unwrap_err().to_string();
        assert!(error.contains("told no `peak_mb`"), "{error}");
    }
}
