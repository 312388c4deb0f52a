//! `lora fed`: training together.

mod course;
mod epsilon;
mod federation;
mod keys;
mod ledgers;
mod link;
mod log;
mod node;
mod secure;
mod serve;
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
    Node(Box<node::Args>),
    Serve(Box<serve::Args>),
    Keys(keys::Args),
    Epsilon(epsilon::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Simulate(args) => simulate::run(args),
        Verb::Node(args) => node::run(args),
        Verb::Serve(args) => serve::run(args),
        Verb::Keys(args) => keys::run(args),
        Verb::Epsilon(args) => epsilon::run(args),
    }
}
