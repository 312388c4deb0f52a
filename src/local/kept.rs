//! What clients keep for themselves from round to round, and do not send.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lora_core::{Error, Result, read_tensors, write_tensors};
use tch::Tensor;

type Tensors = BTreeMap<String, Tensor>;

/// By client and round: a round may be done again, so what was kept before it stays until the next one is done.
#[derive(Debug, Default)]
pub(super) struct Kept {
    tensors: BTreeMap<String, BTreeMap<u64, Tensors>>,
    /// Where it outlives the process.
    folder: Option<PathBuf>,
}

impl Kept {
    /// What a folder has of these clients; it need not be there yet.
    pub(super) fn open<'a>(folder: PathBuf, clients: impl Iterator<Item = &'a String>) -> Result<Self> {
        let mut kept = Self::default();
        for client in clients {
            for round in rounds(&folder, client)? {
                let tensors = read_tensors(&file(&folder, client, round))?;
                kept.tensors.entry(client.clone()).or_default().insert(round, tensors);
            }
        }
        kept.folder = Some(folder);
        Ok(kept)
    }

    /// A client's, from the last round, or from the last before the one that is named.
    pub(super) fn of(&self, client: &str, before: Option<u64>) -> Option<&Tensors> {
        let rounds = self.tensors.get(client)?;
        rounds.range(..before.unwrap_or(u64::MAX)).next_back().map(|(_, tensors)| tensors)
    }

    /// Keeps a client's of that round.
    pub(super) fn put(&mut self, client: &str, round: u64, tensors: Tensors) -> Result<()> {
        if let Some(folder) = &self.folder {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create the folder", folder, e))?;
            let named: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
            write_tensors(&file(folder, client, round), &named, &[])?;
            for old in rounds(folder, client)?.into_iter().filter(|old| old + 1 < round) {
                let path = file(folder, client, old);
                std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        let rounds = self.tensors.entry(client.to_owned()).or_default();
        rounds.retain(|old, _| old + 1 >= round);
        rounds.insert(round, tensors);
        Ok(())
    }
}

fn file(folder: &Path, client: &str, round: u64) -> PathBuf {
    folder.join(format!("{client}.{round}.safetensors"))
}

/// The rounds that a client's files are of.
fn rounds(folder: &Path, client: &str) -> Result<Vec<u64>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", folder, e)),
    };
    let round =
        |name: &str| name.strip_prefix(client)?.strip_prefix('.')?.strip_suffix(".safetensors")?.parse().ok();
    Ok(entries.filter_map(|entry| round(entry.ok()?.file_name().to_str()?)).collect())
}
