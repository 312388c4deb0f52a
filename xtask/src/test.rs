//! `test`: every test of the workspace.

use crate::{libtorch, setup, sh};
use anyhow::Result;
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For `cargo test`: `-p lora-dora`, a test's name, `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(false)?;
    setup::nvrtc()?;
    let mut passed = args.args.clone();
    // `cargo xtask test -- --nocapture`: clap keeps the first `--` to itself.
    if std::env::args().nth(2).is_some_and(|a| a == "--") {
        passed.insert(0, "--".into());
    }
    commands(&passed).iter_mut().try_for_each(sh::run)
}

/// All that stands on libtorch in release, so that libtorch's bindings are compiled once; xtask in the profile that
/// it already has.
pub(crate) fn commands(args: &[String]) -> Vec<Command> {
    let all = all(args, libtorch::FETCHES);
    let mut own = sh::cargo();
    own.args(["test", "--quiet", "-p", "xtask"]);
    if args.is_empty() { vec![own, all] } else { vec![all] }
}

/// `fetched`: the compiler of CUDA kernels is there.
fn all(args: &[String], fetched: bool) -> Command {
    let mut all = sh::cargo();
    all.args(["test", "--release"]);
    // Kernels must compile: without this, a missing compiler is no fault.
    if fetched {
        all.env("LORA_NVRTC", "1");
    }
    if !args.iter().any(|a| a.starts_with("-p") || a.starts_with("--package")) {
        all.args(["--workspace", "--exclude", "xtask"]);
    }
    all.args(args);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_must_compile_only_where_their_compiler_was_fetched() {
        let asked = |command: &Command| command.get_envs().any(|(name, _)| name == "LORA_NVRTC");
        assert!(asked(&all(&[], true)) && !asked(&all(&[], false)));
        let commands = commands(&[]);
        assert_eq!(commands.len(), 2);
        assert_eq!(commands.iter().any(asked), libtorch::FETCHES);
    }
}
