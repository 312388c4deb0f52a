//! The `lora` that does the runs: a copy beside the one that cargo built, named after its bytes, so that a build
//! changes nothing for a comparison that goes on.

use crate::{cache, sh};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What cargo calls it.
const NAME: &str = "lora";
const LOCK: &str = "lora.lock";
const PARTIAL: &str = "lora.partial-";
/// A copy's name: this, and so many digits of its hash.
const PREFIX: &str = "lora-";
const DIGITS: usize = 12;

pub(crate) struct Program {
    pub(crate) copy: PathBuf,
    /// What it is a copy of.
    pub(crate) plain: PathBuf,
    /// The digits in its name.
    pub(crate) build: String,
    /// Shared by all that use the copy: who removes it must have it alone.
    _used: File,
}

impl Program {
    /// Built now; or, if `last` is asked for and it is there, that of the last comparison.
    pub(crate) fn get(last: bool) -> Result<Self> {
        let note = sh::root().join("target/compare/.program");
        let found = if last { Self::last(&note)? } else { None };
        found.map_or_else(|| Self::pin(&sh::lora()?, &note), Ok)
    }

    /// Copies `plain`, and notes it as the last.
    fn pin(plain: &Path, note: &Path) -> Result<Self> {
        let folder = plain.parent().context("a program lies in a folder")?;
        let _lock = cache::lock(&folder.join(LOCK))?;
        cache::sweep(folder, PARTIAL, "")?;
        let partial = folder.join(format!("{PARTIAL}{}", std::process::id()));
        fs::copy(plain, &partial).with_context(|| format!("cannot copy {}", plain.display()))?;
        // Of the copy: a build may replace the other at any moment.
        let build = cache::sha256(&partial)?[..DIGITS].to_owned();
        let copy = folder.join(format!("{PREFIX}{build}"));
        if copy.exists() {
            cache::remove(&partial)?;
        } else {
            fs::rename(&partial, &copy).with_context(|| copy.display().to_string())?;
        }
        let program = Self::hold(&copy)?;
        sweep(folder, &copy)?;
        if let Some(home) = note.parent() {
            fs::create_dir_all(home).with_context(|| home.display().to_string())?;
        }
        fs::write(note, copy.display().to_string()).with_context(|| note.display().to_string())?;
        Ok(program)
    }

    fn last(note: &Path) -> Result<Option<Self>> {
        let copy = PathBuf::from(fs::read_to_string(note).unwrap_or_default());
        let Some(folder) = copy.parent().filter(|folder| folder.is_dir()) else { return Ok(None) };
        let _lock = cache::lock(&folder.join(LOCK))?;
        if copy.exists() { Self::hold(&copy).map(Some) } else { Ok(None) }
    }

    /// Call it under the folder's lock only.
    fn hold(copy: &Path) -> Result<Self> {
        let used = File::open(copy).with_context(|| copy.display().to_string())?;
        used.lock_shared().with_context(|| format!("cannot lock {}", copy.display()))?;
        Ok(Self {
            copy: copy.to_owned(),
            plain: copy.with_file_name(NAME),
            build: digits(copy).context("a copy's name")?.to_owned(),
            _used: used,
        })
    }
}

fn digits(copy: &Path) -> Option<&str> {
    let digits = copy.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    (digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

/// Removes the copies that nobody uses, but `keep`.
fn sweep(folder: &Path, keep: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let is_free = || File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if path != keep && digits(&path).is_some() && is_free() {
            cache::remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_keeps_its_program_whatever_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, note) = (dir.path().join("release"), dir.path().join("compare/.program"));
        let plain = folder.join(NAME);
        fs::create_dir(&folder).unwrap();
        assert!(Program::last(&note).unwrap().is_none(), "there was none");
        let built = |bytes: &str| {
            fs::write(&plain, bytes).unwrap();
            Program::pin(&plain, &note).unwrap()
        };
        let (first, second) = (built("one"), built("two"));
        assert_eq!(fs::read_to_string(&first.copy).unwrap(), "one");
        assert_eq!(first.build, cache::sha256(&first.copy).unwrap()[..DIGITS]);
        assert_eq!((first.copy.parent(), &first.plain), (Some(&*folder), &plain), "the same search path");

        // A report has the last comparison's, though another was built since.
        fs::write(&plain, "three").unwrap();
        let last = Program::last(&note).unwrap().unwrap();
        assert_eq!((&last.copy, &last.build), (&second.copy, &second.build));

        // What is not in use goes, what is stays.
        let gone = first.copy.clone();
        drop(first);
        fs::write(folder.join("lora-of-mine"), "").unwrap();
        let third = built("three");
        let mut left: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
        left.sort();
        let mut want = vec![plain.clone(), folder.join(LOCK), folder.join("lora-of-mine")];
        want.extend([second.copy.clone(), third.copy.clone()]);
        want.sort();
        assert!(left == want && !left.contains(&gone), "{left:?}");
    }
}
