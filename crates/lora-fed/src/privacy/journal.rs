//! A file that only grows, a line at a time, each on disk before it counts.
//!
//! A line is a JSON object whose last member is the SHA-256 of the line before's and of this one without it. So a
//! line that was changed, moved or taken from the middle by accident is noticed. What is cut off at the end is not, nor what
//! somebody wrote anew with hashes that fit, which no key keeps from anybody: whoever must know keeps a line's hash elsewhere.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::{PrivacyError, Result};
use crate::hex::hex;
use crate::private_file;

const MARK: &str = r#","sha256":""#;
const HASH: usize = 64;

/// An open journal, locked against every other opening.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    poisoned: bool,
    hashes: Vec<String>,
    /// Held as long as this lives; the system lets it go when the process dies.
    _lock: File,
}

impl Journal {
    /// Opens or creates a journal, and returns its lines without their hashes.
    ///
    /// What a crash left of a last line is dropped: nothing was released on it. A last line that only lacks its end
    /// counts.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<String>)> {
        let disk = |action| move |source| PrivacyError::Disk { action, path: path.to_owned(), source };
        let lock = lora_core::sibling(path, "lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(lock);
        let lock = lock.map_err(disk("create the lock beside it"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PrivacyError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(disk("lock")(source)),
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(path).map_err(disk("open"))?;
        private_file::keep_others_out(&file).map_err(disk("keep others out"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(disk("read"))?;

        let mut lines = Lines::default();
        let mut rest = &bytes[..];
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            lines.push(&rest[..end]).map_err(|what| corrupt(path, lines.bodies.len() + 1, what))?;
            rest = &rest[end + 1..];
        }
        let complete = bytes.len() - rest.len();
        let unended = match lines.tail(rest) {
            Ok(unended) => unended,
            Err(what) => return Err(corrupt(path, lines.bodies.len() + 1, what)),
        };
        let mut journal =
            Self { path: path.to_owned(), file, poisoned: false, hashes: lines.hashes, _lock: lock };
        let keep = complete + unended.unwrap_or(0);
        journal.durably("repair", |file| {
            file.set_len(keep as u64)?;
            file.seek(SeekFrom::End(0))?;
            if unended.is_some() { file.write_all(b"\n") } else { Ok(()) }
        })?;
        if bytes.is_empty() {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder).and_then(|f| f.sync_all()).map_err(disk("sync the folder of"))?;
        }
        Ok((journal, lines.bodies))
    }

    /// Adds a JSON object, and returns when it is on the disk.
    pub(super) fn append(&mut self, body: &str) -> Result<()> {
        if self.poisoned {
            return Err(PrivacyError::Poisoned { path: self.path.clone() });
        }
        let hash = link(self.hashes.last(), body);
        let open = body.strip_suffix('}').unwrap_or(body);
        let line = format!("{open}{MARK}{hash}\"}}\n");
        self.durably("write", |file| file.write_all(line.as_bytes()))?;
        self.hashes.push(hash);
        Ok(())
    }

    /// The hashes of all lines.
    pub(super) fn hashes(&self) -> &[String] {
        &self.hashes
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something to the file and waits for the disk. After a failure the disk may hold anything, and a second
    /// fsync may report success for what the first one lost: nothing more is written.
    fn durably(
        &mut self,
        action: &'static str,
        f: impl FnOnce(&mut File) -> std::io::Result<()>,
    ) -> Result<()> {
        f(&mut self.file).and_then(|()| self.file.sync_all()).map_err(|source| {
            self.poisoned = true;
            PrivacyError::Disk { action, path: self.path.clone(), source }
        })
    }
}

fn corrupt(path: &Path, line: usize, what: &str) -> PrivacyError {
    PrivacyError::Corrupt { path: path.to_owned(), line, what: what.to_owned() }
}

fn link(before: Option<&String>, body: &str) -> String {
    let mut sha = Sha256::new();
    sha.update(before.map_or("", String::as_str));
    sha.update(body);
    hex(&sha.finalize())
}

#[derive(Default)]
struct Lines {
    bodies: Vec<String>,
    hashes: Vec<String>,
}

impl Lines {
    /// A line without its end.
    fn push(&mut self, line: &[u8]) -> std::result::Result<(), &'static str> {
        let line = std::str::from_utf8(line).map_err(|_| "it is no text")?;
        let (open, hash) = line
            .strip_suffix("\"}")
            .and_then(|l| l.split_at_checked(l.len().checked_sub(HASH + MARK.len())?))
            .and_then(|(open, end)| Some((open, end.strip_prefix(MARK)?)))
            .ok_or("it does not end with its hash")?;
        let body = format!("{open}}}");
        let wanted = link(self.hashes.last(), &body);
        if wanted != hash {
            return Err("its hash is another: it was changed, or a line before it is missing");
        }
        self.bodies.push(body);
        self.hashes.push(wanted);
        Ok(())
    }

    /// What follows the last end of a line: how long the line is, if it is one, complete but for that end.
    ///
    /// A write cut short leaves a beginning of a line (and zeros, on some file systems). What shows a whole hash is
    /// no mere beginning: then it must be a good line.
    fn tail(&mut self, tail: &[u8]) -> std::result::Result<Option<usize>, &'static str> {
        let written = tail.len() - tail.iter().rev().take_while(|&&b| b == 0).count();
        let mark = tail.windows(MARK.len()).position(|w| w == MARK.as_bytes());
        match mark {
            Some(at) if written >= at + MARK.len() + HASH + 2 => {
                self.push(&tail[..written]).map(|()| Some(written))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_is_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (mut journal, lines) = Journal::open(&path).unwrap();
        assert!(lines.is_empty());
        journal.append(r#"{"a":1}"#).unwrap();
        let writable = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
        assert!(matches!(journal.append(r#"{"a":2}"#), Err(PrivacyError::Disk { action: "write", .. })));
        journal.file = writable;
        assert!(matches!(journal.append(r#"{"a":3}"#), Err(PrivacyError::Poisoned { .. })));
        drop(journal);
        assert_eq!(Journal::open(&path).unwrap().1, [r#"{"a":1}"#]);
    }
}
