//! `cargo xtask VERB`: the project's chores, one file a verb.
#![allow(clippy::print_stdout)]

mod bench;
mod bundle;
mod cache;
mod ci;
mod compare;
mod demo;
mod fuzz;
mod generation;
mod lexer;
mod libtorch;
mod ops;
mod parity;
mod peers;
mod pip;
mod rules;
mod setup;
mod sh;
mod test;
mod tidy;
mod unpack;
mod wheels;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// The project's chores. New here? `cargo xtask demo`, then `cargo xtask test`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// See it work: fetches all that is needed, trains a small model, measures it before and after
    Demo(demo::Args),
    /// Run every test of the workspace; arguments go to `cargo test`
    Test(test::Args),
    /// All that must hold before a commit: format, tidy, lints, tests, docs, a short demo
    Ci,
    /// Bring libtorch into `.libtorch` (the verbs that need it call this themselves)
    Setup(setup::Args),
    /// Check the rules that no compiler knows: who may depend on whom, where `unsafe` may stand
    Tidy,
    /// Compare methods, ranks and seeds on held-out rows: what is best, what it costs, how sure that is
    Compare(compare::Args),
    /// Measure training speed and memory, alone or against a peer
    Bench(bench::Args),
    /// Feed what reads files with damaged ones, millions of them
    Fuzz(fuzz::Args),
    /// Compare our numbers with those of the Python libraries
    Parity(parity::Args),
    /// Make the Python environment of the peers, and print its interpreter
    Peers(peers::Args),
    /// Pack binaries, tests and benches, to run on a machine without Rust
    Bundle(bundle::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().verb {
        None => Cli::command().print_long_help().map_err(anyhow::Error::from),
        Some(Verb::Demo(args)) => demo::run(&args),
        Some(Verb::Test(args)) => test::run(&args),
        Some(Verb::Ci) => ci::run(),
        Some(Verb::Setup(args)) => setup::run(&args),
        Some(Verb::Tidy) => tidy::run(),
        Some(Verb::Compare(args)) => compare::run(&args),
        Some(Verb::Bench(args)) => bench::run(&args),
        Some(Verb::Fuzz(args)) => fuzz::run(&args),
        Some(Verb::Parity(args)) => parity::run(&args),
        Some(Verb::Peers(args)) => peers::run(&args),
        Some(Verb::Bundle(args)) => bundle::run(&args),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("error: {error:#}");
    let code = error.downcast_ref::<sh::Failed>().map_or(1, |failed| failed.code);
    ExitCode::from(u8::try_from(code).unwrap_or(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_newcomers_see_their_verbs_first() {
        let mut cli = Cli::command();
        cli.build();
        let verbs: Vec<_> = cli.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
        assert_eq!(verbs[..2], ["demo", "test"]);
        for line in [
            "test -p lora-dora -- --nocapture",
            "bench --peer peft --venv x --rows a,b",
            "parity --data a b",
            "fuzz gguf --runs 9",
        ] {
            let args = ["xtask"].into_iter().chain(line.split(' '));
            assert!(Cli::try_parse_from(args).is_ok(), "{line}");
        }
    }
}
