//! Errors are data: which rule was broken, by whom, and what to do about it.

use super::plan::{PartyId, RoundId};
use super::wire::Kind;

/// What every fallible function here returns.
pub type Result<T> = std::result::Result<T, SecAggError>;

/// Why a round, a message or a vector was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecAggError {
    /// The plan does not make sense.
    #[error("the round's plan does not make sense: {0}")]
    Plan(String),
    /// No pinned identity for this party, or it has no part in the round.
    #[error("party {0} is unknown here")]
    UnknownParty(PartyId),
    /// The identity key is not the one pinned for this party.
    #[error("the identity key is not the one pinned for {0}")]
    WrongIdentity(String),
    /// A public key that no honest party has.
    #[error("a public key of {0} is weak: it would make a secret that anybody knows")]
    WeakKey(String),
    /// This party has already taken part in that round, or in a later one.
    #[error("round {0} was joined before")]
    Replayed(RoundId),
    /// The bytes are no message of this protocol.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// A message of another kind than the one awaited.
    #[error("a message of kind `{got}` came where `{want}` was awaited")]
    WrongKind {
        /// The kind that came.
        got: Kind,
        /// The kind that fits the stage.
        want: Kind,
    },
    /// A call or message that the stage does not allow.
    #[error("`{0}` does not fit this stage of the round")]
    OutOfOrder(Kind),
    /// A message of another round.
    #[error("a message of round {0} came")]
    WrongRound(RoundId),
    /// The signature does not fit the sender's pinned identity and this round's plan.
    #[error("the signature of {0} does not hold")]
    Signature(String),
    /// A sealed share does not open.
    #[error("the share from party {0} does not open")]
    Sealed(PartyId),
    /// The message speaks of another view of the round (keys, dealers or survivors) than ours.
    #[error("{0} sees another round than we do")]
    View(String),
    /// A party sent two different messages for one stage.
    #[error("party {from} sent two different messages of kind `{kind}`")]
    Conflict {
        /// Who.
        from: PartyId,
        /// Of which kind.
        kind: Kind,
    },
    /// The server named a second, different set of survivors.
    #[error("the server named a second, different set of survivors")]
    SecondSurvivors,
    /// A list of parties breaks a rule.
    #[error("the list of parties in `{kind}` is refused: {why}")]
    Parties {
        /// In which message.
        kind: Kind,
        /// Which rule.
        why: &'static str,
    },
    /// Fewer parties than the threshold are left.
    #[error("`{kind}`: {have} parties are left, and {need} are needed")]
    BelowThreshold {
        /// At which stage.
        kind: Kind,
        /// How many are left.
        have: usize,
        /// The threshold.
        need: usize,
    },
    /// The round has ended: with a sum, or given up.
    #[error("this round is over")]
    Over,
    /// The revealed shares do not make the secret that the party committed to.
    #[error("the shares of party {0}'s secret do not fit together")]
    BadShares(PartyId),
    /// A vector of the wrong length.
    #[error("a vector of {got} coordinates came where the plan says {want}")]
    WrongLength {
        /// Its length.
        got: usize,
        /// The plan's.
        want: usize,
    },
    /// A coordinate that is no finite number.
    #[error("coordinate {0} is not a finite number")]
    NonFinite(usize),
    /// An integer beyond what the grid allows a party.
    #[error("coordinate {index} is {value}, beyond ±{bound}")]
    OutOfBound {
        /// Which coordinate.
        index: usize,
        /// Its value.
        value: i64,
        /// The grid's bound for one party.
        bound: i64,
    },
    /// The sum of all parties would not fit the ring.
    #[error("the grid does not fit: {0}")]
    Grid(String),
    /// What a party must remember cannot be written down.
    #[error("the log of rounds: {0}")]
    Log(String),
    /// The operating system gave no randomness.
    #[error("the operating system gave no randomness")]
    Entropy,
}

impl SecAggError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Plan(_) => "correct the plan; every party must be given the same one",
            Self::UnknownParty(_) => "pin the party's identity in the directory, or leave it out of the plan",
            Self::WrongIdentity(_) => {
                "compare identities over another channel; do not simply pin the new one"
            }
            Self::WeakKey(_) | Self::Signature(_) | Self::Sealed(_) | Self::View(_) => {
                "drop the message; if it comes again, somebody between the parties alters messages, \
                 or they were given different plans or directories"
            }
            Self::Replayed(_) => "use a round number that was never used in this run",
            Self::Malformed(_) | Self::WrongKind { .. } | Self::WrongRound(_) => "drop the message",
            Self::OutOfOrder(_) => "wait for the stage, or drop the message",
            Self::Conflict { .. } => "keep the first message; ask the party what happened",
            Self::SecondSurvivors | Self::Parties { .. } => {
                "leave the round: answering could show one party's vector to the server"
            }
            Self::BelowThreshold { .. } => "start a new round; nothing was revealed in this one",
            Self::Over => "start a new round",
            Self::BadShares(_) => {
                "start a new round without that party, or without those who revealed its shares"
            }
            Self::WrongLength { .. } => "all parties must send the parameters that the plan names",
            Self::NonFinite(_) => "look for the step at which training left the finite range",
            Self::OutOfBound { .. } => "clip before encoding, or choose a larger bound",
            Self::Grid(_) => "lower the scale, the clip or the number of parties, or take the 64-bit ring",
            Self::Log(_) => "no round is joined that could not be remembered",
            Self::Entropy => "try again when the system's generator is ready",
        }
    }
}

impl From<SecAggError> for lora_core::Error {
    fn from(e: SecAggError) -> Self {
        Self::data(e.to_string()).hint(e.hint())
    }
}
