//! `lora fed keys`

use std::path::PathBuf;

use anyhow::Result;
use lora::Error;
use lora::fed::flower::NodeKey;

use crate::commands::say;

/// Make a node's key; its public line goes to whoever runs the SuperLink (`flwr supernode register`)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The key to write, for its owner's eyes only; one that is there is only read
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// Said in the public line
    #[arg(long, default_value = "")]
    name: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.name.chars().any(char::is_control) {
        return Err(Error::usage("a name of one line, please").into());
    }
    let key = match args.key.exists() {
        true => NodeKey::load(&args.key)?,
        false => {
            let key = NodeKey::generate()?;
            key.save(&args.key)?;
            key
        }
    };
    say!("{}", key.openssh(&args.name).trim_end());
    Ok(())
}
