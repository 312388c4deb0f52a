//! How a federation trains.

use crate::aggregate::{Bounds, Robust, Rule, ServerRule};
use lora_core::{Error, ErrorKind, Result};
use std::collections::BTreeMap;

/// What a client counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// All the same: nobody can claim more.
    Equal,
    /// By the number of examples that it says it has, up to a limit: what trusted clients allow for.
    Examples {
        /// A client that says more counts as this.
        most: u64,
    },
}

/// How rounds go.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The run's name: two never share one.
    pub run: String,
    /// Rounds in all.
    pub rounds: u64,
    /// How replies are put together.
    pub rule: Rule,
    /// What clients count for.
    pub weights: Weights,
    /// Clients a round, chosen at random; none: all that are there.
    pub per_round: Option<usize>,
    /// Good replies that a round needs.
    pub minimum: usize,
    /// What a reply may be at most.
    pub bounds: Option<Bounds>,
    /// Instead of the rule's mean.
    pub robust: Option<Robust>,
    /// How the server moves towards the clients' mean; none: all the way.
    pub server: Option<ServerRule>,
    /// Ranks of clients that have one of their own.
    pub ranks: BTreeMap<String, i64>,
    /// Of the choice of clients and of fresh starts.
    pub seed: u64,
}

impl Settings {
    /// The rule over all clients, each counting the same.
    pub fn new(run: impl Into<String>, rule: Rule, rounds: u64) -> Self {
        Self {
            run: run.into(),
            rounds,
            rule,
            weights: Weights::Equal,
            per_round: None,
            minimum: 1,
            bounds: None,
            robust: None,
            server: None,
            ranks: BTreeMap::new(),
            seed: 0,
        }
    }

    /// Whether rounds can go so.
    ///
    /// # Errors
    /// [`Error::usage`] with everything that does not go together.
    pub fn check(&self) -> Result<()> {
        let (mut faults, rule) = (Vec::new(), self.rule);
        let mut refuse = |bad: bool, what: String| faults.extend(bad.then_some(what));
        refuse(self.run.is_empty(), "a run needs a name".into());
        refuse(self.rounds == 0, "a run has at least one round".into());
        refuse(self.minimum == 0, "a round needs at least one reply".into());
        refuse(
            self.weights == Weights::Examples { most: 0 },
            "clients that count for nothing have no mean".into(),
        );
        let few = self.per_round.is_some_and(|n| n < self.minimum);
        refuse(few, "fewer clients a round than a round needs".into());
        refuse(
            self.robust.is_some() && !rule.is_linear(),
            format!("{rule} needs every client's factors, and a robust rule gives one pair for all"),
        );
        refuse(
            self.robust.is_some() && matches!(self.weights, Weights::Examples { .. }),
            "a robust rule has no weights: whoever lies could lie about them".into(),
        );
        if let Err(e) = self.check_clients(usize::MAX) {
            refuse(true, e.to_string());
        }
        let moves =
            matches!(rule, Rule::FedIt | Rule::Ffa | Rule::RoLora { .. } | Rule::FedSa | Rule::FedSvd);
        refuse(
            self.server.is_some() && !moves,
            format!("a server optimiser moves factors from round to round, and {rule} makes new ones"),
        );
        refuse(
            rule == Rule::FedSvd && matches!(self.server, Some(ServerRule::Adam { .. })),
            "fedsvd turns its factors, and adam's squares cannot follow: momentum can".into(),
        );
        refuse(
            !self.ranks.is_empty() && !matches!(rule, Rule::Flora | Rule::FlexLora),
            format!("{rule} needs one rank; flora and flexlora take different ones"),
        );
        if faults.is_empty() {
            return Ok(());
        }
        Err(Error::faults(ErrorKind::Usage, "these settings do not go together", faults))
    }

    /// Whether a round has enough to ask for its robust rule, of so many clients.
    ///
    /// # Errors
    /// Those of [`Robust::takes`].
    pub fn check_clients(&self, clients: usize) -> Result<()> {
        self.robust.map_or(Ok(()), |robust| robust.takes(self.per_round.unwrap_or(clients)))
    }
}
