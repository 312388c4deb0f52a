//! What clients keep for themselves from round to round, and do not send: nor is it anybody else's to read on this machine.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use lora_core::{Error, OutputFile, Result, read_tensors, write_tensors_to};
use sha2::{Digest, Sha256};
use tch::Tensor;

type Tensors = BTreeMap<String, Tensor>;

/// By client, run and round. A round may be done again, so what was kept before it stays until the next one is done.
#[derive(Debug, Default)]
pub(super) struct Kept {
    tensors: BTreeMap<(String, String), BTreeMap<u64, Tensors>>,
    /// Where it outlives the process.
    folder: Option<PathBuf>,
}

impl Kept {
    /// What a folder has of these clients; it need not be there yet.
    pub(super) fn open<'a>(folder: PathBuf, clients: impl Iterator<Item = &'a String>) -> Result<Self> {
        let mut kept = Self::default();
        if folder.is_dir() {
            keep_others_out(&folder)?;
        }
        for client in clients {
            for (run, round) in found(&folder, client)? {
                let tensors = read_tensors(&file(&folder, client, &run, round))?;
                kept.tensors.entry((client.clone(), run)).or_default().insert(round, tensors);
            }
        }
        kept.folder = Some(folder);
        Ok(kept)
    }

    /// A client's of a run, from the last round, or from the last before the one that is named.
    pub(super) fn of(&self, client: &str, run: &str, before: Option<u64>) -> Option<&Tensors> {
        let rounds = self.tensors.get(&(client.to_owned(), short(run)))?;
        rounds.range(..before.unwrap_or(u64::MAX)).next_back().map(|(_, tensors)| tensors)
    }

    /// Keeps a client's of that round.
    pub(super) fn put(&mut self, client: &str, run: &str, round: u64, tensors: Tensors) -> Result<()> {
        let run = short(run);
        if let Some(folder) = &self.folder {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.map_err(|e| Error::io("create the folder", folder, e))?;
            keep_others_out(folder)?;
            let named: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
            let path = file(folder, client, &run, round);
            OutputFile::private(&path)?
                .commit_with(|to| write_tensors_to(to, &named, &[]).map_err(|e| e.at(path.display())))?;
        }
        let rounds = self.tensors.entry((client.to_owned(), run.clone())).or_default();
        // Not every round asks every client. Those behind this one are of an earlier run of that name.
        let before = rounds.range(..round).next_back().map(|(last, _)| *last);
        let stays = |of: u64| of == round || Some(of) == before;
        rounds.retain(|of, _| stays(*of));
        rounds.insert(round, tensors);
        if let Some(folder) = &self.folder {
            for (_, old) in found(folder, client)?.into_iter().filter(|(of, old)| *of == run && !stays(*old))
            {
                let path = file(folder, client, &run, old);
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        Ok(())
    }
}

/// Of a folder that a version before made, or somebody.
fn keep_others_out(folder: &Path) -> Result<()> {
    let metadata = std::fs::metadata(folder).map_err(|e| Error::io("read the permissions", folder, e))?;
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
        .map_err(|e| Error::io("keep others out", folder, e))
}

/// A run's name as it can be in a file's.
fn short(run: &str) -> String {
    Sha256::digest(run).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn file(folder: &Path, client: &str, run: &str, round: u64) -> PathBuf {
    folder.join(format!("{client}.{run}.{round}.safetensors"))
}

/// The runs and rounds that a client's files are of.
fn found(folder: &Path, client: &str) -> Result<Vec<(String, u64)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", folder, e)),
    };
    let of = |name: &str| {
        let rest = name.strip_prefix(client)?.strip_prefix('.')?.strip_suffix(".safetensors")?;
        let (run, round) = rest.split_once('.')?;
        Some((run.to_owned(), round.parse().ok()?))
    };
    Ok(entries.filter_map(|entry| of(entry.ok()?.file_name().to_str()?)).collect())
}
