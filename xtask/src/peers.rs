//! `peers`: the Python libraries that we measure ourselves against, in an environment of their own.

use crate::{cache, sh};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The versions that the project's numbers were taken with.
const REQUIREMENTS: [&str; 5] =
    ["torch==2.11.0", "transformers==5.23.0", "peft==0.21.2", "bitsandbytes==0.50.2", "gguf==0.19.0"];

#[derive(clap::Args)]
#[group(id = "peers")]
pub(crate) struct Args {
    /// Use this virtual environment (default: $LORA_PEERS, else one is made in the cache)
    #[arg(long, value_name = "FOLDER")]
    pub(crate) venv: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    println!("{}", python(args)?.display());
    Ok(())
}

/// A Python that has the peers; made at the first call (5 GB, minutes), and gone on with after an interruption.
pub(crate) fn python(args: &Args) -> Result<PathBuf> {
    let named = || std::env::var_os("LORA_PEERS").filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(venv) = args.venv.clone().or_else(named) {
        let python = interpreter(&std::path::absolute(&venv)?);
        if !python.exists() {
            bail!(
                "{} is no virtual environment: it has no bin/python\n  hint: see --venv and LORA_PEERS",
                venv.display()
            );
        }
        return Ok(python);
    }
    Ok(interpreter(&environment("peers", "5 GB", &REQUIREMENTS)?))
}

/// A virtual environment in the cache with these packages, made at the first call.
pub(crate) fn environment(name: &str, size: &str, requirements: &[&str]) -> Result<PathBuf> {
    let hash = cache::hex(&Sha256::digest(requirements.join(" "))[..6]);
    let venv = cache::dir()?.join(format!("{name}-{hash}"));
    let (python, complete) = (interpreter(&venv), venv.join("complete"));
    let _lock = cache::lock(&venv.with_extension("lock"))?;
    if complete.exists() && python.exists() {
        return Ok(venv);
    }
    eprintln!("making the Python environment `{name}` in {} (once; about {size})", venv.display());
    let made = sh::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    made.context("hint: on Debian and Ubuntu `sudo apt install python3-venv`")?;
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--only-binary=:all:"]);
    sh::run(pip.args(requirements))?;
    fs::write(&complete, requirements.join("\n")).with_context(|| complete.display().to_string())?;
    Ok(venv)
}

fn interpreter(venv: &Path) -> PathBuf {
    venv.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" })
}
