//! One file a verb.

pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod fed;
pub(crate) mod generate;
pub(crate) mod init;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod train;
pub(crate) mod variants;

use std::fmt;
use std::io::Write;
use std::sync::OnceLock;

use anyhow::Result;
use lora::Error;

/// Prints lines for people, made harmless by [`shown`].
macro_rules! say {
    ($($arg:tt)*) => { crate::commands::tell(format_args!($($arg)*)) };
}
pub(crate) use say;

/// What [`say!`] does.
pub(crate) fn tell(text: fmt::Arguments<'_>) {
    emit(shown(&text.to_string()));
}

/// Prints a line for programs, as it is.
pub(crate) fn emit(line: impl fmt::Display) {
    told(writeln!(std::io::stdout(), "{line}"));
}

/// Says lines for people on standard error, beside the output.
pub(crate) fn aside(text: impl fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", shown(&text.to_string()));
}

/// What is said may quote a file's words: nothing in them moves the terminal's cursor. Lines are ours: what clients of a
/// federation say has none left.
pub(crate) fn shown(text: &str) -> String {
    text.split('\n').map(lora::fed::plain).collect::<Vec<_>>().join("\n")
}

/// Why standard output did not take what it was given, the first time.
static LOST: OnceLock<String> = OnceLock::new();

/// Whether standard output took something. What it did not is an error in the end and not at once: what a command
/// writes to files is worth more. A closed pipe (`lora ... | head`) is none.
pub(crate) fn told(written: std::io::Result<()>) -> bool {
    if let Err(e) = &written
        && e.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = LOST.set(e.to_string());
    }
    written.is_ok()
}

/// The error of standard output, if there was one.
///
/// # Errors
/// That one.
pub(crate) fn all_told() -> Result<()> {
    told(std::io::stdout().flush());
    match LOST.get() {
        None => Ok(()),
        Some(why) => Err(Error::io(
            "write to",
            "standard output".as_ref(),
            std::io::Error::other(format!("{why}; what it was given is cut short")),
        )
        .into()),
    }
}

/// The path of a folder, however its name ends: `out/` is `out`.
pub(crate) fn bare(path: &std::path::Path) -> std::path::PathBuf {
    path.components().collect()
}
