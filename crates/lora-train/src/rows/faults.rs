//! What is wrong with a file's rows, all of it at once.

use std::ops::ControlFlow;
use std::path::Path;

use lora_core::{Error, ErrorKind, Result};

/// Faults that are told; the others are counted.
const SHOWN: usize = 10;

/// The faults of a file's rows.
pub(crate) struct Faults<'a> {
    path: &'a Path,
    shown: Vec<String>,
    hints: Vec<String>,
    count: usize,
    /// Of those, what this program or model cannot do.
    unsupported: usize,
}

impl<'a> Faults<'a> {
    pub(crate) fn of(path: &'a Path) -> Self {
        Self { path, shown: Vec::new(), hints: Vec::new(), count: 0, unsupported: 0 }
    }

    /// One more. A break where it is no use to look further: a template that runs too long takes its time at every row.
    pub(crate) fn add(&mut self, line: usize, e: &Error) -> ControlFlow<()> {
        self.count += 1;
        self.unsupported += usize::from(e.kind() == ErrorKind::Unsupported);
        if self.shown.len() < SHOWN {
            self.shown.push(format!("{}:{line}: {e}", self.path.display()));
            let hint = e.hint_text().map(str::to_owned);
            self.hints.extend(hint.filter(|hint| !self.hints.contains(hint)));
        }
        if self.unsupported < SHOWN { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// An error, if there are any: of data, unless no row is to be blamed.
    pub(crate) fn check(mut self) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        if self.count > self.shown.len() {
            self.shown.push(format!("and {} more", self.count - self.shown.len()));
        }
        if self.unsupported >= SHOWN {
            self.shown.push("further lines were not looked at".to_owned());
        }
        let kind = if self.unsupported == self.count { ErrorKind::Unsupported } else { ErrorKind::Data };
        let e = Error::faults(kind, "these rows cannot be used", self.shown);
        let e = e.at(self.path.display());
        // Each hint on a line of its own, below the first.
        Err(if self.hints.is_empty() { e } else { e.hint(self.hints.join("\n      ")) })
    }
}
