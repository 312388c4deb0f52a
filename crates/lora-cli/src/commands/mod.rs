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

use std::io::Write;
use std::sync::OnceLock;

use anyhow::Result;
use lora::Error;

/// Prints a line.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        crate::commands::told(writeln!(std::io::stdout(), $($arg)*));
    }};
}
pub(crate) use say;

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
