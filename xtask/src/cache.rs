//! The user's cache folder: what was fetched once is there for every clone.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};

/// `$LORA_CACHE`, else `$XDG_CACHE_HOME/lora`, else `~/.cache/lora`; made if missing.
pub(crate) fn dir() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let dir = var("LORA_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("lora")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/lora")))
        .context("no cache folder: HOME is not set\n  hint: set LORA_CACHE to a folder with 2 GB of room")?;
    fs::create_dir_all(&dir).with_context(|| {
        format!("cannot make the cache folder {}\n  hint: set LORA_CACHE to a folder of yours", dir.display())
    })?;
    std::path::absolute(&dir).context("the cache folder")
}

/// Waits for its turn; the lock ends with the returned file, also when the process is killed.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = opened(path)?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another process to finish ({})", path.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

/// As [`lock`], but none where one would have to wait.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let file = opened(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(e) => bail!("cannot lock {}: {e}", path.display()),
    }
}

fn opened(path: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(path);
    file.with_context(|| format!("cannot open the lock file {}", path.display()))
}

/// Deletes what interrupted runs left: every `PREFIX*` in `dir`. Call it under the lock only.
pub(crate) fn sweep(dir: &Path, prefix: &str, keep: &str) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(prefix) && name != keep {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, a link or a whole folder; nothing there is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let gone = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    gone.with_context(|| format!("cannot remove {}", path.display()))
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    Ok(hex(&hasher.finalize()))
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_as_the_standard_says() {
        // FIPS 180-2, appendix B.1.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("abc");
        fs::write(&file, "abc").unwrap();
        let want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&file).unwrap(), want);
    }

    #[test]
    fn a_lock_that_is_held_is_told_from_one_that_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = lock(&path).unwrap();
        assert!(try_lock(&path).unwrap().is_none());
        drop(held);
        assert!(try_lock(&path).unwrap().is_some());
    }

    #[test]
    fn sweeping_spares_the_lock_and_strangers() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["partial-1", "partial-lock", "whole"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::create_dir_all(dir.path().join("partial-2/deep")).unwrap();
        sweep(dir.path(), "partial-", "partial-lock").unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["partial-lock", "whole"]);
    }
}
