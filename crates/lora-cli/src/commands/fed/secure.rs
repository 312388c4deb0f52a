//! Secure sums: the arguments that `node` and `serve` share, and a simulation's identities.

use std::path::PathBuf;

use anyhow::Result;
use lora::Error;
use lora::fed::engine::{Claims, Coordinator, Parties, Worker};
use lora::fed::secagg::{Directory, Own, PartyId};

#[derive(clap::Args)]
pub(super) struct SecureArgs {
    /// Give what is learnt to sums alone, with the parties of this directory: a file of the lines of `lora fed keys --party`,
    /// the same for all
    #[arg(long, value_name = "FILE", requires = "party_key", help_heading = "Secure sums")]
    secure: Option<PathBuf>,
    /// One's own key among them
    #[arg(long, value_name = "FILE", requires = "secure", help_heading = "Secure sums")]
    pub(super) party_key: Option<PathBuf>,
}

impl SecureArgs {
    /// The directory, and who one is.
    pub(super) fn read(&self) -> Result<Option<(Directory, Own)>> {
        let (Some(directory), Some(key)) = (&self.secure, &self.party_key) else { return Ok(None) };
        let (directory, own) = (Directory::read(directory)?, Own::load(key)?);
        if directory.parties.len() < 3 {
            let what = format!("the directory has {} parties", directory.parties.len());
            return Err(Error::usage(what)
                .hint("of two parties each would know the other's part from the sum: three and more")
                .into());
        }
        Ok(Some((directory, own)))
    }
}

/// Identities for all clients of a simulation, for as long as the process lives.
pub(super) struct Cast {
    coordinator: Coordinator,
    directory: Directory,
    parties: Vec<(String, Own)>,
}

impl Cast {
    pub(super) fn new(names: &[String]) -> Result<Self> {
        let own = Own::generate(None)?;
        let parties: Vec<(String, Own)> = (1..)
            .zip(names)
            .map(|(number, name)| Ok((name.clone(), Own::generate(Some(PartyId(number)))?)))
            .collect::<Result<_>>()?;
        let pins = parties.iter().filter_map(|(_, own)| Some((own.party?, own.key.public()))).collect();
        let directory = Directory { server: own.key.public(), parties: pins };
        Ok(Self { coordinator: Coordinator::new(own, directory.clone())?, directory, parties })
    }

    pub(super) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// A worker who plays any of them.
    pub(super) fn boxed<'a>(&self, worker: impl Worker + 'a) -> Result<Box<dyn Worker + 'a>> {
        let all = Parties::new(worker, self.directory.clone());
        let with = |all: Parties<_>, (name, own): &(String, Own)| {
            all.with(name.clone(), own.clone(), Claims::default())
        };
        Ok(Box::new(self.parties.iter().try_fold(all, with)?))
    }
}
