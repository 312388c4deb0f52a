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

/// Prints a line; a closed pipe (`lora ... | head`) is no error.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}
pub(crate) use say;

/// The path of a folder, however its name ends: `out/` is `out`.
pub(crate) fn bare(path: &std::path::Path) -> std::path::PathBuf {
    path.components().collect()
}
