//! `fuzz`: libFuzzer over what reads the files of others (docs/fuzzing.md).

use crate::{setup, sh};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

struct Target {
    name: &'static str,
    /// Executions unless told.
    runs: u64,
    dictionary: &'static str,
}

const TARGETS: [Target; 4] = [
    Target { name: "gguf", runs: 50_000_000, dictionary: "gguf" },
    Target { name: "bitsandbytes", runs: 50_000_000, dictionary: "bitsandbytes" },
    Target { name: "bitsandbytes_parts", runs: 2_000_000, dictionary: "bitsandbytes" },
    Target { name: "gguf_tokenizer", runs: 5_000_000, dictionary: "gguf" },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// gguf, bitsandbytes, bitsandbytes_parts or gguf_tokenizer; all of them, one after the other, if none
    target: Vec<String>,
    /// Executions of each, instead of its own number
    #[arg(long)]
    runs: Option<u64>,
    /// The longest input
    #[arg(long, default_value_t = 4096)]
    longest: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let chosen = chosen(&args.target)?;
    setup::ensure(false)?;
    let folder = sh::root().join("fuzz");
    let mut cargo = sh::cargo();
    // Flags and target folder: fuzz/.cargo/config.toml.
    let built = sh::built(cargo.args(["build", "--release", "--bins"]).current_dir(&folder))?;
    let mut results = Vec::new();
    for target in chosen {
        results.push(target.fuzz(args, &built)?);
    }
    println!("\n{}", results.join("\n"));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        let known = || format!("no target `{name}`: {}", TARGETS.map(|t| t.name).join(", "));
        TARGETS.iter().find(|t| t.name == name).with_context(known)
    };
    names.iter().map(find).collect()
}

impl Target {
    /// Runs it, and says in a line how far it came.
    fn fuzz(&self, args: &Args, built: &[sh::Built]) -> Result<String> {
        let fuzz = sh::root().join("fuzz");
        let out = sh::root().join("target/fuzz");
        let (corpus, found) = (out.join("corpus").join(self.name), out.join("found"));
        for folder in [&corpus, &found] {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let runs = args.runs.unwrap_or(self.runs);
        let program = built.iter().find(|b| b.target == self.name).map(|b| &b.file);
        let program = program.with_context(|| format!("cargo built no target called {}", self.name))?;
        let mut command = sh::ours(program);
        command
            .arg(format!("-runs={runs}"))
            .arg(format!("-max_len={}", args.longest))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
            .arg(format!("-dict={}/dictionaries/{}.dict", fuzz.display(), self.dictionary))
            .arg(format!("-artifact_prefix={}/{}-", found.display(), self.name))
            .args([corpus, fuzz.join("seeds").join(self.name)])
            .env("OMP_NUM_THREADS", "1")
            .current_dir(sh::root())
            .stderr(Stdio::piped());
        let begin = Instant::now();
        let log = out.join(format!("{}.log", self.name));
        let last = follow(&mut command, &log)?;
        let seconds = begin.elapsed().as_secs_f64();
        let Some(figures) = last else {
            bail!("{} did not come to its end\n  hint: the input is in {}", self.name, found.display());
        };
        Ok(format!("{}: nothing found; {figures} in {seconds:.0} s", self.name))
    }
}

/// Runs `command` with all that it says in `log`, and on the terminal what is no new input. The last line's figures, if
/// it was done; none if it failed.
fn follow(command: &mut Command, log: &PathBuf) -> Result<Option<String>> {
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", sh::show(command)))?;
    let mut log = fs::File::create(log).with_context(|| log.display().to_string())?;
    let mut done = None;
    let said = child.stderr.take().context("no standard error")?;
    for line in BufReader::new(said).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(log, "{line}")?;
        if !["\tNEW ", "\tREDUCE", "NEW_FUNC"].iter().any(|new| line.contains(new)) {
            println!("{line}");
        }
        done = figures(&line).or(done);
    }
    Ok(done.filter(|_| child.wait().is_ok_and(|status| status.success())))
}

/// `#50000000\tDONE   cov: 1234 ft: 5678 corp: 90/12Kb lim: 4096 exec/s: 40000 rss: 90Mb`
fn figures(line: &str) -> Option<String> {
    let (count, rest) = line.strip_prefix('#')?.split_once('\t')?;
    let after = |key: &str| rest.split_once(key)?.1.split_whitespace().next();
    rest.starts_with("DONE").then_some(())?;
    let (cov, features, rate) = (after("cov: ")?, after("ft: ")?, after("exec/s: ")?);
    Some(format!("{count} executions, {rate} a second, coverage {cov} edges and {features} features"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_the_figures() {
        let line = "#50000000\tDONE   cov: 12 ft: 56 corp: 9/12Kb lim: 4096 exec/s: 40000 rss: 90Mb";
        let figures = figures(line).unwrap();
        assert_eq!(figures, "50000000 executions, 40000 a second, coverage 12 edges and 56 features");
        assert_eq!(super::figures(&line.replace("DONE", "pulse")), None);
        assert!(chosen(&["gguf".into()]).is_ok() && chosen(&["all".into()]).is_err());
    }
}
