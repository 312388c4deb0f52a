//! Errors are data: what was wrong, where, and what to do about it.

use std::error::Error as StdError;
use std::fmt;
use std::path::Path;

/// What every fallible function of the workspace returns.
pub type Result<T> = std::result::Result<T, Error>;

/// The sort of fault, for callers that want to act on it (and for the CLI's exit code).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller asked for something that makes no sense: an unknown variant, rank 0.
    Usage,
    /// A file or tensor is malformed, or does not fit its counterpart.
    Data,
    /// A file is well formed but asks for something this build does not do.
    Unsupported,
    /// The operating system refused: missing file, full disk.
    Io,
    /// A number left the finite range.
    NonFinite,
    /// libtorch failed, or an invariant of ours broke.
    Internal,
}

/// A fault with its place and a hint. Built by chaining:
///
/// ```
/// use lora_core::Error;
/// let e = Error::data("rank is 0").at("adapter_config.json, `r`").hint("use a rank of 1 or more");
/// assert_eq!(e.to_string(), "adapter_config.json, `r`: rank is 0");
/// assert_eq!(e.hint_text(), Some("use a rank of 1 or more"));
/// ```
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    what: String,
    place: Option<String>,
    hint: Option<String>,
    faults: Vec<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        let what = what.into();
        Self(Box::new(Inner { kind, what, place: None, hint: None, faults: Vec::new(), source: None }))
    }

    /// The caller asked for something that makes no sense.
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Usage, what)
    }

    /// A file or tensor is malformed.
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Data, what)
    }

    /// Something well formed that this build does not do.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what)
    }

    /// A number left the finite range.
    pub fn non_finite(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::NonFinite, what)
    }

    /// libtorch failed, or an invariant of ours broke.
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, what)
    }

    /// The operating system refused `what` on `path`.
    pub fn io(what: &str, path: &Path, source: std::io::Error) -> Self {
        let hint = match source.kind() {
            std::io::ErrorKind::NotFound => Some("check the path"),
            std::io::ErrorKind::PermissionDenied => Some("check the permissions of the file and its folder"),
            std::io::ErrorKind::StorageFull => Some("free some disk space; nothing was changed"),
            std::io::ErrorKind::FileTooLarge => Some(
                "the file system, or a limit (`ulimit -f`), allows no file of that size; nothing was changed",
            ),
            std::io::ErrorKind::QuotaExceeded => Some("free some of your disk quota; nothing was changed"),
            _ => None,
        };
        let mut e =
            Self::new(ErrorKind::Io, format!("cannot {what}: {source}")).at(path.display().to_string());
        e.0.hint = hint.map(str::to_owned);
        e.0.source = Some(Box::new(source));
        e
    }

    /// Many faults at once, so that one run shows them all.
    pub fn faults(kind: ErrorKind, what: impl Into<String>, faults: Vec<String>) -> Self {
        let mut e = Self::new(kind, what);
        e.0.faults = faults;
        e
    }

    /// Where it was: a file, a line (`data.jsonl:12`), a tensor. An outer place goes before an inner one.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.0.place = Some(match self.0.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// The sort of fault.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What to do about it, if we know.
    pub fn hint_text(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.0.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.0.what)?;
        self.0.faults.iter().try_for_each(|fault| write!(f, "\n  - {fault}"))
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn StdError + 'static))
    }
}

/// libtorch's messages carry a C++ stack; the first line is what a person needs.
impl From<tch::TchError> for Error {
    fn from(e: tch::TchError) -> Self {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or("unknown libtorch error").to_owned();
        if first.contains("modified by an inplace operation") {
            return Self::usage(first).because(e).hint(
                "what a layer read or gave was changed before backward: write `x = &x + y` in the place of `x += y`, \
                 or change a copy",
            );
        }
        Self::internal(first).because(e)
    }
}
