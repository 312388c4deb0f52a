//! Files for their owner's eyes only.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use lora_core::{Error, Result};
use zeroize::Zeroizing;

/// Longer ones are no keys.
const LONGEST: u64 = 1 << 16;

/// Writes a new file that only its owner may read.
pub(crate) fn write_new(path: &Path, text: &str) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || {
        let mut file = options.open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|e| Error::io("write the key", path, e))
}

/// Reads one; refuses it if others may read it too.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>> {
    let io = |e| Error::io("read the key", path, e);
    let file = File::open(path).map_err(io)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        if file.metadata().map_err(io)?.permissions().mode() & 0o077 != 0 {
            let e = Error::data("others may read this private key").at(path.display());
            return Err(e.hint(format!("chmod 600 {}", path.display())));
        }
    }
    let mut text = Zeroizing::new(String::new());
    file.take(LONGEST).read_to_string(&mut text).map_err(io)?;
    Ok(text)
}
