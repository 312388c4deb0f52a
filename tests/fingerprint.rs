//! What weights are known by: their numbers, whatever file they lie in.

use std::path::{Path, PathBuf};

use lora::model::Checkpoint;
use lora::{fingerprint, open, write_tensors};
use tch::{Kind, Tensor};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/lora-model/tests/data").join(name)
}

type Tensors = Vec<(String, Tensor)>;

/// A model's numbers, in f32.
fn numbers(model: &dyn Checkpoint) -> Tensors {
    let number = |name: String| (name.clone(), model.load(&name, Kind::Float).unwrap());
    model.names().into_iter().map(number).collect()
}

/// What a folder of these tensors is known by.
fn of_folder(model: &dyn Checkpoint, tensors: &[(String, Tensor)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), model.config().raw.to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), tensors, &[]).unwrap();
    fingerprint(open(folder.path()).unwrap().as_ref()).unwrap()
}

fn with(tensors: &[(String, Tensor)], change: impl Fn(&str, &Tensor) -> Tensor) -> Tensors {
    tensors.iter().map(|(name, t)| (name.clone(), change(name, t))).collect()
}

/// A GGUF file, where rows of q and k lie in another order, and a folder.
#[test]
fn the_same_numbers_in_another_file_are_the_same_base() {
    for arch in ["llama", "llama3", "qwen2", "qwen3"] {
        let gguf = open(&data(&format!("{arch}.gguf"))).unwrap();
        let name = fingerprint(gguf.as_ref()).unwrap();
        assert!(name.len() == 16 && name.chars().all(|c| c.is_ascii_hexdigit()), "{name}");
        assert_eq!(of_folder(gguf.as_ref(), &numbers(gguf.as_ref())), name, "{arch}");
    }
}

/// In a type that holds them, and with a copy of what is tied.
#[test]
fn how_numbers_are_written_is_nothing_of_them() {
    let model = open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/smollm/model")).unwrap();
    assert!(model.config().tie_word_embeddings);
    let narrow = with(&numbers(model.as_ref()), |_, t| t.to_kind(Kind::BFloat16));
    let name = of_folder(model.as_ref(), &narrow);
    let mut wide = with(&narrow, |_, t| t.to_kind(Kind::Float));
    assert_eq!(of_folder(model.as_ref(), &wide), name);
    let embedding = wide.iter().find(|(name, _)| name.contains("embed_tokens")).unwrap().1.shallow_clone();
    wide.push(("lm_head.weight".to_owned(), embedding));
    assert_eq!(of_folder(model.as_ref(), &wide), name);
}

/// Any tensor by ever so little, as merging an adapter leaves it.
#[test]
fn other_numbers_are_another_base() {
    let model = open(&data("qwen2.gguf")).unwrap();
    let own = numbers(model.as_ref());
    let mut names = vec![of_folder(model.as_ref(), &own)];
    for (changed, _) in &own {
        let other = with(&own, |name, t| if name == changed { t * 1.0001 } else { t.shallow_clone() });
        names.push(of_folder(model.as_ref(), &other));
    }
    let all = names.len();
    names.sort();
    names.dedup();
    assert!(all > 15 && names.len() == all, "{} of {all}", names.len());
}

#[test]
fn what_is_missing_is_said() {
    let model = open(&data("qwen2.gguf")).unwrap();
    let mut few = numbers(model.as_ref());
    few.retain(|(name, _)| !name.contains("layers.0.mlp.up_proj"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), model.config().raw.to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), &few, &[]).unwrap();
    let e = fingerprint(open(folder.path()).unwrap().as_ref()).unwrap_err();
    assert!(e.to_string().contains("layers.0.mlp.up_proj"), "{e}");
}
