//! A small store that survives anything: named values in one SQLite file, changed all or none.
//!
//! What [`Store::write`] returned from is on the disk (`synchronous=FULL`), whenever the power goes. Every value has a
//! SHA-256 over its place and its bytes, so that one that rotted is never taken for one that was written. The file is
//! its owner's only, and one process has it at a time.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use lora_core::{Error, Result};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest, Sha256};

/// Marks our files (`LoFd`).
const APPLICATION: i64 = 0x4c6f_4664;
const VERSION: i64 = 1;

/// Bytes of a part of a long value: SQLite takes a billion in one.
const PART: usize = if cfg!(test) { 256 << 10 } else { 64 << 20 };

/// Values by space and key.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
}

/// Changes that happen together; see [`Store::write`].
#[derive(Debug)]
pub struct Changes<'a> {
    store: &'a Store,
}

impl Store {
    /// Opens the file, or makes it, and checks it through.
    ///
    /// # Errors
    /// If it is damaged, not ours, of a later version, or open in another process.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path).map_err(|e| Error::io("open the store", path, e))?;
        let connection = Connection::open(path).map_err(|e| fault(path, e))?;
        let store = Self { connection, path: path.to_owned() };
        store.prepare().map_err(|e| fault(path, e))?;
        store.check()?;
        Ok(store)
    }

    fn prepare(&self) -> rusqlite::Result<()> {
        let c = &self.connection;
        c.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        c.pragma_update(None, "journal_mode", "WAL")?;
        c.pragma_update(None, "synchronous", "FULL")?;
        c.pragma_update(None, "journal_size_limit", 64 << 20)?;
        // Takes the lock, which is then kept.
        c.execute_batch("BEGIN EXCLUSIVE; COMMIT;")?;
        let tables: i64 = c.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        if tables == 0 {
            c.execute_batch(&format!(
                "BEGIN;
                 CREATE TABLE entry (
                     number INTEGER PRIMARY KEY AUTOINCREMENT, space TEXT NOT NULL, key TEXT NOT NULL,
                     value BLOB NOT NULL, digest BLOB NOT NULL, UNIQUE (space, key)) STRICT;
                 PRAGMA application_id = {APPLICATION};
                 PRAGMA user_version = {VERSION};
                 COMMIT;"
            ))?;
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let pragma = |name| {
            self.connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|e| fault(&self.path, e))
        };
        let (application, version): (i64, i64) = (pragma("application_id")?, pragma("user_version")?);
        if application != APPLICATION || version != VERSION {
            return Err(Error::data("not a store of this version").at(self.path.display()));
        }
        let verdict: String = self
            .connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(|e| fault(&self.path, e))?;
        if verdict != "ok" {
            return Err(damaged(&self.path, &verdict));
        }
        Ok(())
    }

    /// A value.
    ///
    /// # Errors
    /// If it is damaged or cannot be read.
    pub fn get(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let row: Option<(Vec<u8>, Vec<u8>)> = self
            .connection
            .prepare_cached("SELECT value, digest FROM entry WHERE space = ? AND key = ?")
            .and_then(|mut s| {
                s.query_row(params![space, key], |row| Ok((row.get(0)?, row.get(1)?))).optional()
            })
            .map_err(|e| fault(&self.path, e))?;
        match row {
            Some((value, digest)) if digest == digest_of(space, key, &value) => Ok(Some(value)),
            Some(_) => Err(damaged(&self.path, &format!("`{space}` `{key}` is not what was written"))),
            None => Ok(None),
        }
    }

    /// A value that was put as [`Changes::put_long`], or by [`Changes::put`].
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_long(&self, space: &str, key: &str) -> Result<Option<Vec<u8>>> {
        let Some(mut value) = self.get(space, key)? else { return Ok(None) };
        let mut number = 1;
        while let Some(part) = self.get(space, &part_of(key, number))? {
            value.extend_from_slice(&part);
            number += 1;
        }
        Ok(Some(value))
    }

    /// A space's keys, in the order in which they first came.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn keys(&self, space: &str) -> Result<Vec<String>> {
        self.connection
            .prepare_cached("SELECT key FROM entry WHERE space = ? ORDER BY number")
            .and_then(|mut s| s.query_map([space], |row| row.get(0))?.collect())
            .map_err(|e| fault(&self.path, e))
    }

    /// Makes the changes of `change`, all or none; once this has returned they are on the disk.
    ///
    /// # Errors
    /// If `change` fails, and then nothing is changed, or the disk does.
    pub fn write(&mut self, change: impl FnOnce(&Changes<'_>) -> Result<()>) -> Result<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|e| fault(&self.path, e))?;
        let done = change(&Changes { store: self })
            .and_then(|()| self.connection.execute_batch("COMMIT").map_err(|e| fault(&self.path, e)));
        if done.is_err() && !self.connection.is_autocommit() {
            // What made it fail is what is reported.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        done
    }

    /// Sets one value.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn put(&mut self, space: &str, key: &str, value: &[u8]) -> Result<()> {
        self.write(|changes| changes.put(space, key, value))
    }
}

impl Changes<'_> {
    /// Sets a value.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn put(&self, space: &str, key: &str, value: &[u8]) -> Result<()> {
        let sql = "INSERT INTO entry (space, key, value, digest) VALUES (?, ?, ?, ?)
                   ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, digest = excluded.digest";
        self.run(sql, params![space, key, value, digest_of(space, key, value)]).map(drop)
    }

    /// Sets a value of any length, in parts. No other key of the space may be `key` and a number.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn put_long(&self, space: &str, key: &str, value: &[u8]) -> Result<()> {
        let (first, rest) = value.split_at(value.len().min(PART));
        self.put(space, key, first)?;
        let mut number = 1;
        for part in rest.chunks(PART) {
            self.put(space, &part_of(key, number), part)?;
            number += 1;
        }
        // Of a longer one that was there.
        while self.delete(space, &part_of(key, number))? {
            number += 1;
        }
        Ok(())
    }

    /// Sets a value if there is none; is there now a new one?
    ///
    /// # Errors
    /// If the disk fails.
    pub fn put_new(&self, space: &str, key: &str, value: &[u8]) -> Result<bool> {
        let sql = "INSERT INTO entry (space, key, value, digest) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
        Ok(self.run(sql, params![space, key, value, digest_of(space, key, value)])? > 0)
    }

    /// Removes a value, if it is there.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn remove(&self, space: &str, key: &str) -> Result<()> {
        self.delete(space, key).map(drop)
    }

    /// Was there a value?
    fn delete(&self, space: &str, key: &str) -> Result<bool> {
        Ok(self.run("DELETE FROM entry WHERE space = ? AND key = ?", params![space, key])? > 0)
    }

    /// Removes a whole space.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn clear(&self, space: &str) -> Result<()> {
        self.run("DELETE FROM entry WHERE space = ?", params![space]).map(drop)
    }

    fn run(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<usize> {
        self.store
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.execute(values))
            .map_err(|e| fault(&self.store.path, e))
    }
}

/// The key of a part behind the first.
fn part_of(key: &str, number: usize) -> String {
    format!("{key} {number}")
}

fn digest_of(space: &str, key: &str, value: &[u8]) -> Vec<u8> {
    let mut hash = Sha256::new();
    for part in [space.as_bytes(), key.as_bytes(), value] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().to_vec()
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::data(format!("the store is damaged: {what}"))
        .at(path.display())
        .hint("put back a copy, or move it away: what was open is then lost")
}

fn fault(path: &Path, e: rusqlite::Error) -> Error {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseCorrupt, DatabaseLocked, DiskFull, NotADatabase};
    let error = match e.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked) => {
            Error::usage("the store is open in another process").hint("stop the other, or name another store")
        }
        Some(DatabaseCorrupt | NotADatabase) => return damaged(path, &e.to_string()),
        Some(DiskFull) => Error::data("the disk is full").hint("free some disk space; nothing was changed"),
        _ => Error::data(format!("the store failed: {e}")),
    };
    error.at(path.display()).because(e)
}

#[cfg(test)]
impl Store {
    /// No value, and no row, may be longer.
    pub(crate) fn limit(&self, bytes: i32) {
        self.connection.set_limit(rusqlite::limits::Limit::SQLITE_LIMIT_LENGTH, bytes).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_kept_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(&dir.path().join("store")).unwrap();
        store.limit(1 << 20);
        let value = |length: usize| (0..length).map(|i| (i % 251) as u8).collect::<Vec<u8>>();
        let refused = store.put("s", "k", &value(2 << 20)).unwrap_err().to_string();
        assert!(refused.contains("too big"), "{refused}");
        // Longer and shorter ones in turn, and lengths about a part's.
        for length in [0, 1, PART - 1, PART, PART + 1, 3 << 20, 2 * PART, 7] {
            store.write(|changes| changes.put_long("s", "k", &value(length))).unwrap();
            assert_eq!(store.get_long("s", "k").unwrap().unwrap(), value(length), "{length}");
            assert_eq!(store.keys("s").unwrap().len(), length.div_ceil(PART).max(1));
        }
        assert_eq!(store.get_long("s", "another").unwrap(), None);
        store.put("s", "k", b"whole").unwrap();
        assert_eq!(store.get_long("s", "k").unwrap().unwrap(), b"whole");
    }
}
