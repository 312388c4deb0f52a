//! Writing a model as a Hugging Face folder, shard by shard.

use std::path::Path;

use lora_core::{Error, OutputFolder, Result, write_tensors_to};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::checkpoint::Checkpoint;
use crate::tokenizer::Tokenizer;

/// The most that one shard holds, and so what is in memory at one time.
const SHARD: u64 = 2 << 30;

/// What an HF folder may hold beside its weights; copied as it is.
const COMPANIONS: [&str; 10] = [
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "LICENSE",
];

/// Whether `path`, inside a model folder, is a file that [`export`] writes.
pub fn is_model_file(path: &Path) -> bool {
    let name = path.to_string_lossy();
    let shard = name.strip_prefix("model-").is_some_and(|n| n.ends_with(".safetensors"));
    shard
        || matches!(
            &*name,
            "config.json" | "model.safetensors" | "model.safetensors.index.json" | "README.md"
        )
        || COMPANIONS.contains(&&*name)
}

/// Writes the checkpoint's tensors in `kind` with its configuration and tokenizer. `replaced` gives the weight to
/// write in place of the stored one, by name; a replaced output head that was tied to the embedding is untied.
///
/// # Errors
/// What loading, `replaced` and writing refuse; the folder is not committed here.
pub fn export(
    checkpoint: &dyn Checkpoint,
    tokenizer: &Tokenizer,
    kind: Kind,
    out: &OutputFolder,
    replaced: &dyn Fn(&str) -> Result<Option<Tensor>>,
) -> Result<()> {
    const HEAD: &str = "lm_head.weight";
    let mut names = checkpoint.names();
    let untied = checkpoint.config().tie_word_embeddings && replaced(HEAD)?.is_some();
    if untied && !names.iter().any(|n| n == HEAD) {
        names.push(HEAD.to_owned());
    }
    let shards = plan(checkpoint, &names, kind);
    let mut index = Map::new();
    let mut total = 0;
    for (i, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let mut tensors = Vec::new();
        for name in shard {
            let tensor = match replaced(name)? {
                Some(w) => w.to_kind(kind),
                None => checkpoint.load(name, kind)?,
            };
            total += tensor.numel() * kind.elt_size_in_bytes();
            index.insert(name.clone(), json!(file));
            tensors.push((name.clone(), tensor));
        }
        out.write_with(&file, |to| write_tensors_to(to, &tensors, &[]))?;
    }
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": index });
        out.write("model.safetensors.index.json", pretty(&index))?;
    }
    out.write("config.json", pretty(&config(checkpoint, kind, untied)))?;
    companions(checkpoint, tokenizer, out)
}

fn plan(checkpoint: &dyn Checkpoint, names: &[String], kind: Kind) -> Vec<Vec<String>> {
    let (mut shards, mut size) = (vec![Vec::new()], 0);
    for name in names {
        let shape = checkpoint.shape(name).unwrap_or_default();
        let bytes = shape.iter().product::<i64>().unsigned_abs() * kind.elt_size_in_bytes() as u64;
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
        if untied {
            object.insert("tie_word_embeddings".into(), json!(false));
        }
    }
    config
}

/// A folder's own files, byte for byte; for other sources the tokenizer as we understand it.
fn companions(checkpoint: &dyn Checkpoint, tokenizer: &Tokenizer, out: &OutputFolder) -> Result<()> {
    if !checkpoint.source().is_dir() {
        return tokenizer.save(out.path());
    }
    for name in COMPANIONS {
        let from = checkpoint.source().join(name);
        if from.is_file() {
            out.write(name, std::fs::read(&from).map_err(|e| Error::io("read", &from, e))?)?;
        }
    }
    Ok(())
}

fn pretty(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}
