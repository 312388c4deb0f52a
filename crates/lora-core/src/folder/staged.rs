//! What is being written beside its target, and the remnants of writers that were killed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::sibling;
use crate::{Error, Result};

/// Longer than a writer needs from making its file or folder to locking it; one that is gone needs no time.
const YOUNG: Duration = Duration::from_secs(60);

/// Longer than [`is_held`] has a lock.
const PROBE: Duration = Duration::from_millis(1);

/// A file or folder that is deleted on drop unless it has been put in place. Locked as long as it lives: what is not
/// locked belongs to nobody.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) path: PathBuf,
    pub(super) armed: bool,
    _lock: Option<File>,
}

impl Staged {
    /// Creates `NAME.partial-HOST-PID-N` beside `target` with the first N that is free.
    pub(super) fn new<T>(target: &Path, create: impl Fn(&Path) -> io::Result<T>) -> Result<(Self, T)> {
        let host = host();
        sweep(target, host);
        for n in 0_u64.. {
            let mut name = stem(target);
            name.push(format!("{host}-{}-{n}", std::process::id()));
            let path = target.with_file_name(name);
            match create(&path) {
                Ok(made) => return Ok((Self { _lock: lock(&path), path, armed: true }, made)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Error::io("write beside it", target, e)),
            }
        }
        Err(Error::internal("no name is free for a temporary file").at(target.display()))
    }
}

impl Staged {
    /// The process of another that is being written beside `target`. Each locks its own before it looks: of two at least one
    /// sees the other.
    pub(super) fn rival(&self, target: &Path) -> Option<i32> {
        let own = self.path.file_name();
        beside(target, host()).find_map(|(path, writer)| match writer {
            Writer::Here(process) if path.file_name() != own && is_held(&path) => Some(process),
            _ => None,
        })
    }

    /// What is whole, and could not take its target's place, is never deleted: `error` says where it is.
    pub(super) fn keep(&mut self, target: &Path, error: Error) -> Error {
        self.armed = false;
        let kept = free_name(target);
        if fs::rename(&self.path, &kept).is_ok() {
            let what =
                format!("what is finished was kept as {}: move it to where it should be", kept.display());
            return error.hint(what);
        }
        if fs::symlink_metadata(&self.path).is_err() {
            return error;
        }
        // Of this name it is a remnant to the next that writes the same output.
        error.hint(format!(
            "what is finished lies in {}: move it away before anything is written to {} again",
            self.path.display(),
            target.display()
        ))
    }
}

/// `NAME.finished-PID-N` beside `target` with the first N that is free: no sweep deletes it.
fn free_name(target: &Path) -> PathBuf {
    let name = |n: u64| sibling(target, &format!("finished-{}-{n}", std::process::id()));
    let taken = |n: &u64| fs::symlink_metadata(name(*n)).is_ok();
    name((0_u64..).find(|n| !taken(n)).unwrap_or_default())
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.armed {
            // Nobody is left to tell; the name says what a remnant is.
            let _ =
                if self.path.is_dir() { fs::remove_dir_all(&self.path) } else { fs::remove_file(&self.path) };
        }
    }
}

fn stem(target: &Path) -> OsString {
    let mut name = target.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".partial-");
    name
}

/// This host's name as a number, the same in every build (FNV-1a).
fn host() -> u32 {
    let of = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    rustix::system::uname().nodename().to_bytes().iter().fold(0x811c_9dc5, of)
}

/// None if somebody on this host has it, or the file system has no locks.
fn lock(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    let locked = match file.try_lock() {
        // Who asks whether somebody has it has it for a moment.
        Err(TryLockError::WouldBlock) => {
            std::thread::sleep(PROBE);
            file.try_lock()
        }
        tried => tried,
    };
    locked.ok()?;
    Some(file)
}

/// Whether a process has it, as far as this host sees. Others that ask do not.
fn is_held(path: &Path) -> bool {
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// What writers of this host have beside `target`, or left there.
fn beside(target: &Path, host: u32) -> impl Iterator<Item = (PathBuf, Writer)> {
    let parent = target.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let stem = stem(target);
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter_map(move |entry| Some((entry.path(), Writer::of(&entry.file_name(), &stem, host)?)))
}

/// Deletes what killed processes of this host left beside `target`. What cannot be deleted stays, and so does what others
/// have there: over a network a folder's lock is not seen (NFS), and what lives looks like nobody's.
fn sweep(target: &Path, host: u32) {
    for (path, writer) in beside(target, host) {
        if is_left(&path, writer)
            && !replaces(&path)
            && let Some(lock) = lock(&path)
        {
            drop(Staged { path, armed: true, _lock: Some(lock) });
        }
    }
}

/// Who writes, or wrote, what lies beside a target.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Writer {
    /// A process of this host: `NAME.partial-HOST-PID-N`.
    Here(i32),
    /// Of a host that is not known: `NAME.partial-PID-N`, as it was before hosts were told apart.
    Somewhere,
}

impl Writer {
    /// None for a name of another form, and for other hosts.
    fn of(name: &OsStr, stem: &OsStr, host: u32) -> Option<Self> {
        let rest = name.as_encoded_bytes().strip_prefix(stem.as_encoded_bytes())?;
        let parts: Vec<&str> = std::str::from_utf8(rest).ok()?.split('-').collect();
        let number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        match parts[..] {
            _ if !parts.iter().all(number) => None,
            [_, _] => Some(Self::Somewhere),
            [of, process, _] if of == host.to_string() => process.parse().ok().map(Self::Here),
            _ => None,
        }
    }

    fn is_gone(self) -> bool {
        let Self::Here(process) = self else { return false };
        Pid::from_raw(process).is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH))
    }
}

/// Whether nobody is about to lock it.
fn is_left(path: &Path, writer: Writer) -> bool {
    let Ok(there) = fs::symlink_metadata(path) else { return false };
    let age = || there.modified().ok()?.elapsed().ok();
    !there.is_symlink() && (writer.is_gone() || age().is_some_and(|age| age > YOUNG))
}

/// Whether it was to take the place of a folder that lies aside: then it is whole, and its target is gone.
fn replaces(path: &Path) -> bool {
    let mut aside = path.as_os_str().to_owned();
    aside.push("-old");
    Path::new(&aside).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who only asks keeps nobody who asks too from the answer, and has nothing.
    #[test]
    fn who_asks_is_no_holder() {
        let folder = tempfile::tempdir().unwrap();
        let asking = File::open(folder.path()).unwrap();
        asking.try_lock_shared().unwrap();
        assert!(!is_held(folder.path()));
        // For good it is not asked.
        assert!(lock(folder.path()).is_none());
        drop(asking);
        let own = lock(folder.path());
        assert!(own.is_some() && is_held(folder.path()) && lock(folder.path()).is_none());
        drop(own);
        assert!(!is_held(folder.path()));
    }
}
