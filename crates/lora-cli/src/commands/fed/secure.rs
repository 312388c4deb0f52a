//! Secure sums: the arguments that `node` and `serve` share, and a simulation's identities.

use std::path::PathBuf;

use anyhow::Result;
use lora::fed::engine::{Claims, Coordinator, FEWEST, Noise, Parties, Quorum, Worker};
use lora::fed::privacy::{Accounting, Budget, Ledger, Unit, sigma_for};
use lora::fed::secagg::{Directory, Own, PartyId};
use lora::{Error, sibling};

use crate::commands::say;

#[derive(clap::Args)]
pub(super) struct SecureArgs {
    /// Give what is learnt to sums alone, with the parties of this directory: a file of the lines of `lora fed keys --party`,
    /// the same for all
    #[arg(long, value_name = "FILE", requires = "party_key", help_heading = "Secure sums")]
    secure: Option<PathBuf>,
    /// One's own key among them
    #[arg(long, value_name = "FILE", requires = "secure", help_heading = "Secure sums")]
    pub(super) party_key: Option<PathBuf>,
    /// Take part in rounds of so many parties and more [default: two more than may be on the coordinator's side: one, or the
    /// most that are fewer than a third of the directory]. With a smaller N that is a promise that N - 2 are the most
    #[arg(long, value_name = "N", requires = "secure", help_heading = "Secure sums")]
    parties_at_least: Option<usize>,
    /// Noised sums: over all rounds they give away at most this of any one client with all its rows. A coordinator has
    /// clients add so much noise; a node takes part as long as no more is spent
    #[arg(long, value_name = "EPSILON", requires = "secure", help_heading = "Secure sums")]
    client_epsilon: Option<f64>,
    /// The chance that this does not hold
    #[arg(long, value_name = "DELTA", default_value_t = DELTA, help_heading = "Secure sums")]
    client_delta: f64,
}

/// There may be few clients: a tenth of one over them would be no promise.
pub(super) const DELTA: f64 = 1e-5;

/// The noise with which `rounds` rounds keep a promise to clients whose parts are clipped to `clip`; and it is told.
pub(super) fn noise(epsilon: f64, delta: f64, clip: f64, rounds: u64) -> Result<Noise> {
    if !(clip > 0.0 && clip.is_finite()) {
        return Err(Error::usage(format!("the clipping norm is {clip}")).hint("it must be above 0").into());
    }
    let sigma = sigma_for(Accounting::Pld, epsilon, delta, 1.0, rounds).map_err(Error::from)?;
    say!(
        "privacy     epsilon {epsilon} at delta {delta:.1e} a client over {rounds} rounds: what each learns is clipped to \
         {clip}, and the sum's noise is {:.3}",
        sigma * clip
    );
    Ok(Noise { clip, sigma })
}

impl SecureArgs {
    /// The noise to have clients add, if any.
    pub(super) fn noise(&self, clip: f64, rounds: u64) -> Result<Option<Noise>> {
        self.client_epsilon.map(|epsilon| noise(epsilon, self.client_delta, clip, rounds)).transpose()
    }

    /// A client's ledger of what sums gave away, if it has a budget: beside its key.
    pub(super) fn ledger(&self) -> Result<Option<Ledger>> {
        let (Some(epsilon), Some(key)) = (self.client_epsilon, &self.party_key) else { return Ok(None) };
        let budget =
            Budget { unit: Unit::Client, epsilon, delta: self.client_delta, accounting: Accounting::Pld };
        Ok(Some(Ledger::open(&sibling(key, "privacy.jsonl"), &budget).map_err(Error::from)?))
    }

    /// A worker who takes part with as many as were asked for.
    pub(super) fn parties<W: Worker>(&self, worker: W, directory: Directory) -> Result<Parties<W>> {
        Ok(Parties::new(worker, directory).at_least(self.parties_at_least)?)
    }

    /// A coordinator who plans with as many.
    pub(super) fn coordinator(&self, own: Own, directory: Directory) -> Result<Coordinator> {
        Ok(Coordinator::new(own, directory)?.at_least(self.parties_at_least)?)
    }

    /// The directory, and who one is.
    pub(super) fn read(&self) -> Result<Option<(Directory, Own)>> {
        let (Some(directory), Some(key)) = (&self.secure, &self.party_key) else { return Ok(None) };
        let (directory, own) = (Directory::read(directory)?, Own::load(key)?);
        if directory.parties.len() < FEWEST {
            let what = format!("the directory has {} parties", directory.parties.len());
            return Err(Error::usage(what)
                .hint("of two parties each would know the other's part from the sum: three and more")
                .into());
        }
        // Before anything else is read.
        Quorum::of(&directory).at_least(self.parties_at_least)?;
        Ok(Some((directory, own)))
    }
}

/// Identities for all clients of a simulation, for as long as the process lives.
pub(super) struct Cast {
    coordinator: Coordinator,
    directory: Directory,
    parties: Vec<(String, Own)>,
    at_least: Option<usize>,
    noised: bool,
}

impl Cast {
    pub(super) fn new(names: &[String], noise: Option<Noise>, at_least: Option<usize>) -> Result<Self> {
        let own = Own::generate(None)?;
        let parties: Vec<(String, Own)> = (1..)
            .zip(names)
            .map(|(number, name)| Ok((name.clone(), Own::generate(Some(PartyId(number)))?)))
            .collect::<Result<_>>()?;
        let pins = parties.iter().filter_map(|(_, own)| Some((own.party?, own.key.public()))).collect();
        let directory = Directory { server: own.key.public(), parties: pins };
        let plain = Coordinator::new(own, directory.clone())?.at_least(at_least)?;
        let coordinator = noise.into_iter().fold(plain, Coordinator::with);
        Ok(Self { coordinator, directory, parties, at_least, noised: noise.is_some() })
    }

    pub(super) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// A worker who plays any of them.
    pub(super) fn boxed<'a>(&self, worker: impl Worker + 'a) -> Result<Box<dyn Worker + 'a>> {
        let all = Parties::new(worker, self.directory.clone()).at_least(self.at_least)?;
        // Of rounds that were planned to keep their promise, by clients that nobody has to protect.
        let endless = Budget { unit: Unit::Client, epsilon: 1e9, delta: DELTA, accounting: Accounting::Rdp };
        let with = |all: Parties<_>, (name, own): &(String, Own)| {
            let all = all.with(name.clone(), own.clone(), Claims::default())?;
            if self.noised { all.promising(name, Ledger::in_memory(&endless)?) } else { Ok(all) }
        };
        Ok(Box::new(self.parties.iter().try_fold(all, with)?))
    }
}
