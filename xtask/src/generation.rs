//! `bench --generation`: tokens a second of a prompt and of what follows it, beside transformers and PEFT.

use crate::{bench, cache, peers, setup, sh};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Command;

/// Sequences at a time.
const BATCHES: [u32; 2] = [1, 8];

pub(crate) fn run(peer: bool, as_json: bool, rounds: u32, peers: &peers::Args) -> Result<()> {
    setup::ensure(false)?;
    let gguf = setup::model()?;
    let ours = bench::executable("generation")?;
    let python = peer.then(|| peers::python(peers)).transpose()?;
    let models = cache::dir()?.join("peers-models");
    for batch in BATCHES {
        let (mut we, mut they) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{batch} sequences, round {} of {rounds}", round + 1);
            let batch = batch.to_string();
            let our =
                || sh::capture_json(sh::ours(&ours).arg("--model").arg(&gguf).args(["--batch", &batch]));
            let peer = |python: &PathBuf| {
                let mut command = Command::new(python);
                command.arg(sh::root().join("xtask/peers/peft_generate.py")).arg("--gguf").arg(&gguf);
                sh::capture_json(command.arg("--cache").arg(&models).args(["--batch", &batch]))
            };
            let (our, their) = bench::in_turn(round, our, || python.as_ref().map(peer).transpose())?;
            we.push(our);
            they.extend(their);
        }
        for what in ["prefill", "decode"] {
            for state in ["base", "merged", "unmerged"] {
                let key = format!("{what}_{state}");
                let ours = best(&we, &key).with_context(|| format!("no run told `{key}`"))?;
                let theirs = best(&they, &key);
                let name = format!("{what}-{state}-{batch}");
                if as_json {
                    let ratio = theirs.map(|theirs| ours / theirs);
                    println!(
                        "{}",
                        json!({"name": name, "tok_s": ours, "peer_tok_s": theirs, "ratio": ratio})
                    );
                } else {
                    let theirs = theirs.map_or(String::new(), |t| format!("{t:9.1} {:6.2}", ours / t));
                    println!("{name:22} {ours:9.1} tok/s {theirs}");
                }
            }
        }
    }
    Ok(())
}

/// Of runs that a busy machine only slows down.
fn best(runs: &[Value], key: &str) -> Option<f64> {
    runs.iter().filter_map(|run| run[key].as_f64()).reduce(f64::max)
}
