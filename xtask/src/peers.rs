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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever it is called; and of several peers that want it at once one converts it.
    #[cfg(unix)]
    #[test]
    fn a_converted_model_is_known_by_what_is_in_its_file() {
        const SCRIPT: &str = r#"
import sys, time
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from converted import folder_of, once
home = Path(sys.argv[2])
def make(folder):
    with (home / "made").open("a") as log:
        log.write(folder.name + " ")
    folder.mkdir()
    time.sleep(0.3)
    (folder / "complete").touch()
for name in ["SmolLM2-135M-Instruct.mine.gguf", "other.gguf"]:
    print(once(folder_of(home / name, home, "f32"), make).name)
"#;
        // Who has a libtorch of their own may have no Python.
        if Command::new("python3").arg("--version").output().is_err() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path();
        for name in ["SmolLM2-135M-Instruct.mine.gguf", "other.gguf"] {
            fs::write(home.join(name), "not the demo's").unwrap();
        }
        let wanted = format!("hf-f32-{}", &cache::sha256(&home.join("other.gguf")).unwrap()[..16]);
        fs::create_dir_all(home.join(&wanted).join("half made")).unwrap();
        let scripts = sh::root().join("xtask/peers");
        let start = |_| {
            let mut python = Command::new("python3");
            python.args(["-c", SCRIPT]).arg(&scripts).arg(home).stdout(std::process::Stdio::piped());
            python.spawn().unwrap()
        };
        let running: Vec<_> = (0..3).map(start).collect();
        for python in running {
            let output = python.wait_with_output().unwrap();
            assert!(output.status.success());
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{wanted}\n{wanted}\n"));
        }
        assert_eq!(fs::read_to_string(home.join("made")).unwrap(), format!("{wanted}.partial "));
        let left: Vec<_> =
            fs::read_dir(home.join(&wanted)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["complete"]);
    }
}
