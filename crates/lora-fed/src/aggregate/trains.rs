//! Which of an adapter's tensors a rule lets clients train, and send.

#[cfg(feature = "flower")]
use lora_core::{Error, Result};

/// Which factors a client trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trains {
    /// A, B, and what is no factor.
    All,
    /// A alone.
    A,
    /// B alone.
    B,
}

impl Trains {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// By that name.
    #[cfg(feature = "flower")]
    pub(crate) fn parse(name: &str) -> Result<Self> {
        let all = [Self::All, Self::A, Self::B];
        let found = all.into_iter().find(|trains| trains.name() == name);
        found.ok_or_else(|| Error::data(format!("`{name}` is none of all, A and B")))
    }

    /// Whether the tensor of that name is among them.
    pub fn holds(self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::A => name.ends_with(".lora_A.weight"),
            Self::B => name.ends_with(".lora_B.weight"),
        }
    }
}
