//! What `--rows` and `--trace` write takes the place of what they wrote before, unasked, and of nothing else.

use std::fs::File;
use std::io::Read;

use lora::{Error, Result};

use crate::paths::Named;

/// Whether there is a file that this option has written. Refuses another that is not empty.
///
/// # Errors
/// Usage; or the file cannot be read.
pub(super) fn check((option, path): Named<'_>) -> Result<bool> {
    let Some(path) = path.filter(|path| path.is_file()) else { return Ok(false) };
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(64).read_to_end(&mut head));
    read.map_err(|e| Error::io("read", path, e))?;
    if head.is_empty() || writer(&head) == Some(option) {
        return Ok(!head.is_empty());
    }
    Err(Error::usage(format!("is there already, and {option} did not write it"))
        .at(path.display())
        .hint("name another file, or delete this one"))
}

/// The option that writes files that begin so.
fn writer(head: &[u8]) -> Option<&'static str> {
    let rest = head.strip_prefix(b"{\"line\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    match &rest[digits..] {
        _ if digits == 0 => None,
        rest if rest.starts_with(b",\"texts\":") => Some("--trace"),
        rest if rest.starts_with(b",\"reference\":") || rest.starts_with(b"}") => Some("--rows"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_who_wrote_it() {
        for (head, option) in [
            ("{\"line\":12,\"texts\":[{\"ids\":[1", Some("--trace")),
            ("{\"line\":1,\"reference\":\"four\"", Some("--rows")),
            ("{\"line\":1}\n{\"line\":2}", Some("--rows")),
            ("{\"line\":1,\"prompt\":", None),
            ("{\"line\":\"reference\"}", None),
            ("{\"prompt\": \"two\"}", None),
            ("GGUF", None),
        ] {
            assert_eq!(writer(head.as_bytes()), option, "{head}");
        }
    }
}
