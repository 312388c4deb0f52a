//! `parity`: the same model, texts and adapters through the Python libraries and through us.

use crate::{cache, peers, setup, sh};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Further JSON-lines files whose texts must become the same token ids
    #[arg(long, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// 4 bits instead: every code, block size and dtype, and whole checkpoints, beside bitsandbytes and transformers
    #[arg(long, conflicts_with = "data")]
    quant: bool,
    #[command(flatten)]
    peers: peers::Args,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(false)?;
    let gguf = setup::model()?;
    let python = peers::python(&args.peers)?;
    let root = sh::root();
    let dir = root.join("target/parity");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    if !args.data.is_empty() {
        // The script keeps what is there; these texts are new.
        cache::remove(&dir.join("tokens.json"))?;
    }
    let mut theirs = Command::new(&python);
    theirs.arg(root.join("xtask/peers/parity.py")).arg("--gguf").arg(&gguf).arg("--out").arg(&dir);
    if !args.data.is_empty() {
        theirs.arg("--data").args(&args.data);
    }
    sh::run(&mut theirs)?;
    let mut ours = sh::cargo();
    ours.args(["run", "--release", "--example", "parity", "--", "--dir"]).arg(&dir).arg("--gguf").arg(&gguf);
    if args.quant {
        let mut make = Command::new(&python);
        make.arg(root.join("xtask/peers/quant.py")).arg("make");
        sh::run(make.arg("--hf").arg(dir.join("hf")).arg("--out").arg(dir.join("quant")))?;
        ours.arg("--quant");
    }
    // The example hands it the adapters that we write.
    ours.env("LORA_PARITY_PYTHON", &python);
    sh::run(&mut ours)
}
