//! Writing a model as a Hugging Face folder, shard by shard.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lora_core::{BaseWeight, Error, OutputFolder, Pending, Result, Storage, write_pending_to};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::checkpoint::{Checkpoint, check_skip, stays_dense};
use crate::llama::{HEAD, linear_names};
use crate::shapes::EMBEDDING;
use crate::tokenizer::{TEMPLATES, Tokenizer, template_files};

/// About the most that one file holds.
const SHARD: u64 = 1 << 30;

/// What an HF folder may hold beside its weights; copied as it is, and so are named chat templates and the licence.
const COMPANIONS: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];
const LICENSE: &str = "LICENSE";

/// Whether a path, inside the model folder `target`, is a file that [`Export`] writes of the model at `source`. A licence is one
/// only if it is the model's, byte for byte: people lay theirs there, too.
pub fn is_model_file(source: &Path, target: &Path) -> impl Fn(&Path) -> bool + use<> {
    let (own, there) = (source.join(LICENSE), target.join(LICENSE));
    move |path: &Path| {
        let name = path.to_string_lossy();
        let shard = name.strip_prefix("model-").is_some_and(|n| n.ends_with(".safetensors"));
        let same = || matches!((fs::read(&own), fs::read(&there)), (Ok(own), Ok(there)) if own == there);
        let template =
            path.parent() == Some(Path::new(TEMPLATES)) && path.extension().is_some_and(|end| end == "jinja");
        shard
            || template
            || matches!(&*name, "config.json" | "model.safetensors" | "model.safetensors.index.json")
            || COMPANIONS.contains(&&*name)
            || name == LICENSE && same()
    }
}

/// What is written of a checkpoint.
pub struct Export<'a> {
    /// The model.
    pub checkpoint: &'a dyn Checkpoint,
    /// Its tokenizer, written for checkpoints that are no folder; a folder's own files are copied.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The dtype of what is written dense, and that the rest is computed in.
    pub kind: Kind,
    /// Weights to write in place of the stored ones, by name. A replaced output head that was tied to the embedding is
    /// untied.
    pub replaced: &'a dyn Fn(&str) -> Result<Option<Tensor>>,
    /// How linear weights inside the blocks are packed; `None`: all is dense.
    pub packed: Option<Pack<'a>>,
}

/// How weights are packed.
#[derive(Clone, Copy)]
pub struct Pack<'a> {
    /// What packs them.
    pub storage: &'a dyn Storage,
    /// Modules that stay dense, as in [`crate::Keep`].
    pub skip: &'a [String],
    /// Is shown each weight as it was and as it is kept.
    pub seen: &'a dyn Fn(&str, &Tensor, &dyn BaseWeight),
}

impl Export<'_> {
    /// Writes tensors, configuration and tokenizer into the folder, which is not committed here. In memory are one
    /// tensor and, of packed weights, what one file holds.
    ///
    /// # Errors
    /// What loading, `replaced`, packing and writing refuse.
    pub fn write(&self, out: &OutputFolder) -> Result<()> {
        let head = format!("{HEAD}.weight");
        self.packed.map_or(Ok(()), |pack| check_skip(self.checkpoint.config(), pack.skip))?;
        let Self { checkpoint, kind, replaced, .. } = *self;
        let mut names = checkpoint.names();
        let untied = checkpoint.config().tie_word_embeddings && replaced(&head)?.is_some();
        if untied && !names.contains(&head) {
            names.push(head);
        }
        let shards = self.plan(&names);
        let (mut index, mut total) = (Map::new(), 0);
        for (i, shard) in shards.iter().enumerate() {
            let file = match shards.len() {
                1 => "model.safetensors".to_owned(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            let packed = shard.iter().filter(|name| self.storage(name).is_some());
            let packed = packed.map(|name| self.packed(name)).collect::<Result<Vec<_>>>()?;
            let mut tensors: Vec<_> =
                packed.iter().flatten().map(|(name, t)| Pending::ready(name, t)).collect();
            for name in shard.iter().filter(|name| self.storage(name).is_none()) {
                let shape = checkpoint.shape(name).or_else(|| checkpoint.shape(EMBEDDING));
                let make = Box::new(move || self.dense(name));
                tensors.push(Pending { name: name.clone(), kind, shape: shape.unwrap_or_default(), make });
            }
            for t in &tensors {
                total += t.shape.iter().product::<i64>().unsigned_abs() * t.kind.elt_size_in_bytes() as u64;
                index.insert(t.name.clone(), json!(file));
            }
            out.write_with(&file, |to| write_pending_to(to, tensors, &[]))?;
        }
        if shards.len() > 1 {
            let index = json!({ "metadata": { "total_size": total }, "weight_map": index });
            out.write("model.safetensors.index.json", pretty(&index))?;
        }
        let mut config = config(checkpoint, kind, untied);
        // The head, too, or readers would look for its parts; whole paths, for their rules for parts of one differ.
        let skipped = |p: Pack<'_>| {
            let modules = linear_names(checkpoint.config()).filter(|path| stays_dense(path, p.skip));
            modules.chain([HEAD.to_owned()]).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        let packing = self.packed.and_then(|p| p.storage.config(kind, &skipped(p)));
        if let (Some(object), Some(packing)) = (config.as_object_mut(), packing) {
            object.insert("quantization_config".into(), packing);
        }
        out.write("config.json", pretty(&config))?;
        companions(checkpoint, self.tokenizer, out)
    }

    /// What packs the tensor of that name, if anything does: linear weights inside the blocks are packed.
    fn storage(&self, name: &str) -> Option<&dyn Storage> {
        let Pack { storage, skip, .. } = self.packed?;
        let module = name.strip_suffix(".weight")?;
        let packs = self.checkpoint.shape(name)?.len() == 2 && !stays_dense(module, skip);
        packs.then_some(storage)
    }

    fn dense(&self, name: &str) -> Result<Tensor> {
        match (self.replaced)(name)? {
            Some(w) => Ok(w.to_kind(self.kind)),
            None => self.checkpoint.read(name, self.kind),
        }
    }

    /// The parts of a weight, packed anew.
    fn packed(&self, name: &str) -> Result<Vec<(String, Tensor)>> {
        let weight = self.dense(name)?;
        let Some((storage, pack)) = self.storage(name).zip(self.packed.as_ref()) else { return Ok(vec![]) };
        let kept = storage.store(weight.shallow_clone()).map_err(|e| e.at(name))?;
        (pack.seen)(name, &weight, kept.as_ref());
        let parts = kept.parts().unwrap_or_else(|| vec![(String::new(), weight)]);
        let full = |part: String| if part.is_empty() { name.to_owned() } else { format!("{name}.{part}") };
        Ok(parts.into_iter().map(|(part, t)| (full(part), t)).collect())
    }

    /// The names by file.
    fn plan(&self, names: &[String]) -> Vec<Vec<String>> {
        let (mut shards, mut size) = (vec![Vec::new()], 0);
        for name in names {
            let shape = self.checkpoint.shape(name).unwrap_or_default();
            let bytes = match (self.storage(name), &shape[..]) {
                (Some(storage), &[out, inp]) => storage.bytes((out, inp), self.kind),
                _ => shape.iter().product::<i64>().unsigned_abs() * self.kind.elt_size_in_bytes() as u64,
            };
            if size + bytes > SHARD && size > 0 {
                shards.push(Vec::new());
                size = 0;
            }
            size += bytes;
            if let Some(last) = shards.last_mut() {
                last.push(name.clone());
            }
        }
        shards
    }
}

fn config(checkpoint: &dyn Checkpoint, kind: Kind, untied: bool) -> Value {
    let mut config = checkpoint.config().raw.clone();
    if let Some(object) = config.as_object_mut() {
        let name = match kind {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        };
        // Older readers look for torch_dtype, newer ones for dtype.
        object.insert("dtype".into(), json!(name));
        object.insert("torch_dtype".into(), json!(name));
        object.remove("quantization_config");
        // And older ones for the rotary base and its scaling beside, not inside.
        if let Some(rope) = object.get("rope_parameters").and_then(Value::as_object).cloned() {
            let lacks = |object: &Map<String, Value>, key| object.get(key).is_none_or(Value::is_null);
            if let (Some(theta), true) = (rope.get("rope_theta"), lacks(object, "rope_theta")) {
                object.insert("rope_theta".into(), theta.clone());
            }
            let scales = rope.get("rope_type").is_some_and(|kind| kind != "default");
            if scales && lacks(object, "rope_scaling") {
                object.insert("rope_scaling".into(), Value::Object(rope));
            }
        }
        if untied {
            object.insert("tie_word_embeddings".into(), json!(false));
        }
    }
    config
}

/// A folder's own files, byte for byte; for other sources the tokenizer as we understand it.
fn companions(checkpoint: &dyn Checkpoint, tokenizer: Option<&Tokenizer>, out: &OutputFolder) -> Result<()> {
    if !checkpoint.source().is_dir() {
        return tokenizer.map_or(Ok(()), |tokenizer| tokenizer.save(out.path()));
    }
    let source = checkpoint.source();
    let own = COMPANIONS.into_iter().chain([LICENSE]).map(|name| source.join(name));
    for from in own.filter(|path| path.is_file()).chain(template_files(source)?) {
        let name = from.strip_prefix(source).unwrap_or(&from);
        out.write(name, fs::read(&from).map_err(|e| Error::io("read", &from, e))?)?;
    }
    Ok(())
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
