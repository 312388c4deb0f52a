//! `lora fed`: training together.

mod epsilon;
mod simulate;

use anyhow::Result;

/// Train one adapter together with others, whose data stay with them
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    Simulate(Box<simulate::Args>),
    Epsilon(epsilon::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Simulate(args) => simulate::run(args),
        Verb::Epsilon(args) => epsilon::run(args),
    }
}
