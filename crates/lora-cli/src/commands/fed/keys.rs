//! `lora fed keys`

use std::path::PathBuf;

use lora::Error;
use lora::fed::flower::NodeKey;
use lora::fed::secagg::{Own, PartyId};

use crate::commands::emit;

/// Make a key and show its public line: a node's, for whoever runs the SuperLink (`flwr supernode register`), or with --party
/// an identity in secure sums, for the directory that all parties share
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The key to write, for its owner's eyes only; one that is there is only read
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// Said in the public line
    #[arg(long, default_value = "")]
    name: String,
    /// A party's number, or `coordinator`
    #[arg(long, value_name = "NUMBER", value_parser = party)]
    party: Option<Party>,
}

/// Whose identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Party(Option<PartyId>);

fn party(text: &str) -> Result<Party, String> {
    match (text, text.parse()) {
        ("coordinator", _) => Ok(Party(None)),
        (_, Ok(number)) => Ok(Party(Some(PartyId(number)))),
        _ => Err("expected a number, or `coordinator`".to_owned()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.name.chars().any(char::is_control) {
        return Err(Error::usage("a name of one line, please").into());
    }
    if let Some(Party(party)) = args.party {
        let own = match args.key.exists() {
            true => Own::load(&args.key)?,
            false => {
                let own = Own::generate(party)?;
                own.save(&args.key)?;
                own
            }
        };
        if own.party != party {
            return Err(Error::usage(format!("{} is another party's key", args.key.display())).into());
        }
        emit(own.line(&args.name));
        return Ok(());
    }
    let key = match args.key.exists() {
        true => NodeKey::load(&args.key)?,
        false => {
            let key = NodeKey::generate()?;
            key.save(&args.key)?;
            key
        }
    };
    emit(key.openssh(&args.name).trim_end());
    Ok(())
}
