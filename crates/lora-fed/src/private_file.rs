//! Files for their owner's eyes only.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;

use lora_core::{Error, Result, sibling};
use zeroize::Zeroizing;

/// Longer ones are no keys.
const LONGEST: u64 = 1 << 16;

/// Writes a new file that only its owner may read.
#[cfg(any(feature = "flower", feature = "secagg"))]
pub(crate) fn write_new(path: &Path, text: &str) -> Result<()> {
    create(path, text.as_bytes()).map_err(|e| Error::io("write the key", path, e))
}

/// Reads one; refuses it if others may read it too.
#[cfg(any(feature = "flower", feature = "secagg"))]
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>> {
    let io = |e| Error::io("read the key", path, e);
    let file = File::open(path).map_err(io)?;
    is_its_owners(&file, path, "private key")?;
    let mut text = Zeroizing::new(String::new());
    file.take(LONGEST).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}

/// The bytes of the secret in a file, which is refused if others may read it too; or new ones, if there is none, which are put
/// there whole.
pub(crate) fn secret(
    path: &Path,
    new: impl FnOnce() -> Result<Zeroizing<Vec<u8>>>,
) -> Result<Zeroizing<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let bytes = new()?;
            put(path, &bytes).map_err(|e| Error::io("write the secret", path, e))?;
            return Ok(bytes);
        }
        Err(e) => return Err(Error::io("open the secret", path, e)),
    };
    is_its_owners(&file, path, "secret")?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(LONGEST).read_to_end(&mut bytes).map_err(|e| Error::io("read the secret", path, e))?;
    Ok(bytes)
}

/// By way of a file beside it. What a killed process left of that is not written into: others may have it open.
fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = sibling(path, "partial");
    match std::fs::remove_file(&partial) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    create(&partial, bytes)?;
    std::fs::rename(&partial, path)
}

fn create(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Takes from others what they may do with a file: versions before let them read it.
pub(crate) fn keep_others_out(file: &File) -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mut permissions = file.metadata()?.permissions();
        if permissions.mode() & 0o077 != 0 {
            permissions.set_mode(permissions.mode() & 0o700);
            file.set_permissions(permissions)?;
        }
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Refuses a file that others may read.
fn is_its_owners(file: &File, path: &Path, what: &str) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let metadata = file.metadata().map_err(|e| Error::io("read the permissions", path, e))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            let e = Error::data(format!("others may read this {what}")).at(path.display());
            return Err(e.hint(format!("chmod 600 {}", path.display())));
        }
    }
    #[cfg(not(unix))]
    let _ = (file, path, what);
    Ok(())
}
