//! A Hugging Face model folder: `config.json`, and `model.safetensors` or shards with an index.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use lora_core::{BaseWeight, Error, ErrorKind, Packing, Result};
use serde::Deserialize;
use serde_json::json;
use tch::{Kind, Tensor};

use super::packed::Packed;
use super::safetensors::{Entry, Get, Mapped, Unique, kind_of};
use super::{Checkpoint, finite, no_such_tensor, numbers_at};
use crate::ModelConfig;
use crate::llama::HEAD;
use crate::shapes::EMBEDDING;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes from which a tensor is checked without being brought into memory.
const LARGE: u64 = 64 << 20;

/// Largest index taken: a million tensors need less.
const MAX_INDEX: u64 = 100_000_000;

#[derive(Debug)]
pub(super) struct HfCheckpoint {
    dir: PathBuf,
    config: ModelConfig,
    shards: Vec<Mapped>,
    /// Tensor name to position in `shards`.
    tensors: BTreeMap<String, usize>,
    /// Weights that are several tensors; their parts are no longer in `tensors`.
    packed: BTreeMap<String, Packed>,
}

impl HfCheckpoint {
    pub(super) fn open(dir: &Path, packings: &[&'static dyn Packing]) -> Result<Self> {
        if !dir.join("config.json").exists() {
            return Err(not_a_model(dir));
        }
        let config = ModelConfig::from_folder(dir)?;
        let (shards, tensors) = if dir.join(SINGLE).exists() {
            let shard = Mapped::open(&dir.join(SINGLE))?;
            let tensors = shard.tensors.keys().map(|name| (name.clone(), 0)).collect();
            (vec![shard], tensors)
        } else if dir.join(INDEX).exists() {
            sharded(dir)?
        } else {
            return Err(no_weights(dir));
        };
        Self::of(dir, config, (shards, tensors), packings)
    }

    /// One file's bytes as the whole folder.
    pub(super) fn from_bytes(
        bytes: &[u8],
        config: ModelConfig,
        packings: &[&'static dyn Packing],
    ) -> Result<Self> {
        let dir = Path::new("memory");
        let shard = Mapped::from_bytes(&dir.join(SINGLE), bytes)?;
        let tensors = shard.tensors.keys().map(|name| (name.clone(), 0)).collect();
        Self::of(dir, config, (vec![shard], tensors), packings)
    }

    fn of(
        dir: &Path,
        config: ModelConfig,
        (shards, mut tensors): (Vec<Mapped>, BTreeMap<String, usize>),
        packings: &[&'static dyn Packing],
    ) -> Result<Self> {
        let packed = Packed::find(&shards, &mut tensors, packings)?;
        if packed.is_empty() && !config.raw["quantization_config"].is_null() {
            return Err(Error::data("its configuration says that weights are packed, but none is")
                .at(dir.display())
                .hint(
                    "the checkpoint is incomplete, or its weights are packed in a way that is not read here",
                ));
        }
        let mut checkpoint = Self { dir: dir.to_owned(), config, shards, tensors, packed };
        if checkpoint.config.tie_word_embeddings && checkpoint.has_another_head()? {
            checkpoint.config.tie_word_embeddings = false;
            checkpoint.config.raw["tie_word_embeddings"] = json!(false);
        }
        Ok(checkpoint)
    }

    /// Whether there is an output head of other numbers than the embedding's. As in transformers 5 it is then no copy but
    /// the head, whatever the configuration says (transformers 4 took the embedding).
    fn has_another_head(&self) -> Result<bool> {
        let head = format!("{HEAD}.weight");
        if self.packed.contains_key(&head) {
            return Ok(true);
        }
        match (self.entry(EMBEDDING), self.entry(&head)) {
            (Some((shard, embedding)), Some(head)) => Ok(!shard.equals(embedding, head)?),
            _ => Ok(false),
        }
    }

    fn entry(&self, name: &str) -> Option<(&Mapped, &Entry)> {
        let shard = self.shards.get(*self.tensors.get(name)?)?;
        Some((shard, shard.tensors.get(name)?))
    }

    /// The tensor in `kind`, got out of its file by `get` where it is stored so: what is made out of what is stored would
    /// have the mapped file beside it.
    fn tensor(&self, name: &str, kind: Kind, get: Get) -> Result<Tensor> {
        if let Some(packed) = self.packed.get(name) {
            let packed = packed.read(&self.shards, name, kind, Mapped::read)?;
            return finite(packed.dense(kind), kind).map_err(|e| e.at(name).at(self.dir.display()));
        }
        let (shard, entry) = self.entry(name).ok_or_else(|| no_such_tensor(name, &self.dir))?;
        let place = |e: Error| e.at(format!("{}, tensor `{name}`", shard.path.display()));
        let stored = kind_of(entry.dtype).ok_or_else(|| {
            let what = format!("weights of type {} (F64, F32, F16 and BF16 are read)", entry.dtype);
            place(Error::unsupported(what).hint("save the model in bf16 or f32"))
        })?;
        let tensor = if stored == kind {
            get(shard, entry, stored).and_then(|t| finite(t, kind))
        } else {
            shard.cast(entry, (stored, kind))
        };
        tensor.map_err(place)
    }
}

impl Checkpoint for HfCheckpoint {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tensors.keys().chain(self.packed.keys()).cloned().collect();
        names.sort_unstable();
        names
    }

    fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let packed = self.packed.get(name).map(|p| vec![p.shape.0, p.shape.1]);
        packed.or_else(|| self.entry(name).map(|(_, e)| e.shape.clone()))
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        let packed = self.packed.get(name).map(|p| p.kind);
        packed.or_else(|| self.entry(name).and_then(|(_, e)| kind_of(e.dtype)))
    }

    fn load(&self, name: &str, kind: Kind) -> Result<Tensor> {
        if let Some((shard, entry)) = self.entry(name).filter(|_| self.maps(name, kind))
            && shard.is_finite(entry, kind)?
        {
            return shard.view(entry, kind);
        }
        self.tensor(name, kind, Mapped::view)
    }

    fn maps(&self, name: &str, kind: Kind) -> bool {
        self.entry(name).is_some_and(|(_, e)| e.nbytes() > LARGE && kind_of(e.dtype) == Some(kind))
    }

    fn packed_bytes(&self, name: &str) -> Option<u64> {
        self.packed.get(name).map(|packed| packed.nbytes(name, &self.shards))
    }

    fn read(&self, name: &str, kind: Kind) -> Result<Tensor> {
        self.tensor(name, kind, Mapped::read)
    }

    fn numbers_at(&self, name: &str, places: &[i64]) -> Result<Vec<f32>> {
        match self.entry(name).and_then(|(shard, entry)| Some((shard, entry, kind_of(entry.dtype)?))) {
            Some((shard, entry, kind)) => {
                let place = |e: Error| e.at(format!("{}, tensor `{name}`", shard.path.display()));
                shard.numbers_at(entry, kind, places).map_err(place)
            }
            // Packed, or of a type that is not read: that is told.
            None => numbers_at(&self.load(name, self.kind(name).unwrap_or(Kind::Float))?, places),
        }
    }

    fn packed(&self, name: &str, kind: Kind) -> Result<Option<Box<dyn BaseWeight>>> {
        self.packed.get(name).map(|packed| packed.read(&self.shards, name, kind, Mapped::view)).transpose()
    }

    fn prefers_packed(&self) -> bool {
        true
    }

    fn source(&self) -> &Path {
        &self.dir
    }

    fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|s| s.path.clone()).collect()
    }

    fn stored_bytes(&self) -> u64 {
        let packed: u64 = self.packed.iter().map(|(name, packed)| packed.nbytes(name, &self.shards)).sum();
        packed + self.tensors.keys().filter_map(|name| self.entry(name)).map(|(_, e)| e.nbytes()).sum::<u64>()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// Opens every shard the index names, and makes sure that each has what the index promises.
fn sharded(dir: &Path) -> Result<(Vec<Mapped>, BTreeMap<String, usize>)> {
    let path = dir.join(INDEX);
    let io = |e| Error::io("read", &path, e);
    let len = std::fs::metadata(&path).map_err(io)?.len();
    if len > MAX_INDEX {
        return Err(
            Error::data(format!("{len} bytes of index (at most {MAX_INDEX} are read)")).at(path.display())
        );
    }
    let text = std::fs::read(&path).map_err(io)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|e| Error::data(format!("is not a shard index: {e}")).at(path.display()).because(e))?;

    let mut shards: Vec<Mapped> = Vec::new();
    let mut seen = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    let mut missing = Vec::new();
    for (name, file) in index.weight_map.0 {
        let at = match seen.get(&file) {
            Some(&at) => at,
            None => {
                plain(&file).map_err(|e| e.at(format!("{}, tensor `{name}`", path.display())))?;
                let shard = dir.join(&file);
                let opened = Mapped::open(&shard);
                shards.push(if shard.exists() {
                    opened?
                } else {
                    opened.map_err(|e| e.hint(format!("{INDEX} names this shard: fetch it, too")))?
                });
                seen.insert(file.clone(), shards.len() - 1);
                shards.len() - 1
            }
        };
        if !shards.get(at).is_some_and(|s| s.tensors.contains_key(&name)) {
            missing.push(format!("`{name}` in {file}"));
        }
        tensors.insert(name, at);
    }
    if !missing.is_empty() {
        let what = format!("{} tensors of the index are not in their shards", missing.len());
        return Err(Error::faults(ErrorKind::Data, what, missing)
            .at(path.display())
            .hint("index and shards are of different versions: fetch the model again"));
    }
    if tensors.is_empty() {
        return Err(Error::data("names no tensors").at(path.display()));
    }
    Ok((shards, tensors))
}

/// A shard must lie in the folder itself: the index comes from elsewhere and must not reach other files.
fn plain(file: &str) -> Result<()> {
    let mut parts = Path::new(file).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == file);
    if one && !file.contains(['/', '\\', '\0']) {
        return Ok(());
    }
    Err(Error::data(format!("the shard name {file:?} is not a plain file name"))
        .hint("do not use this checkpoint: its index points outside its folder"))
}

fn not_a_model(dir: &Path) -> Error {
    let hint = if dir.join("adapter_config.json").exists() {
        "this is an adapter: give the base model it was trained on".to_owned()
    } else if let Some(gguf) = first_with(dir, |n| n.ends_with(".gguf")) {
        format!("to use the GGUF file in it, give its path: {}", dir.join(gguf).display())
    } else {
        "give the folder that holds config.json and the .safetensors files, or a .gguf file".to_owned()
    };
    Error::data("the folder holds no config.json, so no model").at(dir.display()).hint(hint)
}

fn no_weights(dir: &Path) -> Error {
    let pickle =
        |n: &str| n.starts_with("pytorch_model") && (n.ends_with(".bin") || n.ends_with(".bin.index.json"));
    match first_with(dir, pickle) {
        Some(file) => Error::unsupported(format!("the weights are a pickle ({file}), which can run any code"))
            .at(dir.display())
            .hint("convert it where you trust it: in Python, AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"),
        None => Error::data(format!("the folder holds no weights: neither {SINGLE} nor {INDEX}"))
            .at(dir.display())
            .hint("fetch the model's .safetensors files too"),
    }
}

fn first_with(dir: &Path, wanted: impl Fn(&str) -> bool) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok());
    names.filter(|n| wanted(n)).min()
}
