//! Weights that lie in safetensors as several tensors.

use std::collections::BTreeMap;

use lora_core::{BaseWeight, Error, Packing, Parts, Result};
use tch::{Kind, Tensor};

use super::safetensors::{Mapped, part_kind};

/// A weight and where its parts are.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) shape: (i64, i64),
    pub(super) kind: Kind,
    packing: &'static dyn Packing,
    /// By their name behind the weight's, "" for the tensor of its own name; the position in the shards.
    parts: BTreeMap<String, usize>,
}

impl Packed {
    /// Takes every packed weight out of `tensors`, with its parts.
    pub(super) fn find(
        shards: &[Mapped],
        tensors: &mut BTreeMap<String, usize>,
        packings: &[&'static dyn Packing],
    ) -> Result<BTreeMap<String, Self>> {
        let mut found = BTreeMap::new();
        for (name, parts) in groups(tensors) {
            for &packing in packings {
                let names: Vec<&str> = parts.keys().map(String::as_str).collect();
                let load = |part: &str| load(shards, &parts, &name, part);
                let parts_now = Parts { names: &names, load: &load };
                let described =
                    packing.describe(&parts_now).map_err(|e| e.at(place(shards, &parts, &name)))?;
                if let Some((shape, kind)) = described {
                    for part in parts.keys() {
                        tensors.remove(&full(&name, part));
                    }
                    found.insert(name, Self { shape, kind, packing, parts });
                    break;
                }
            }
        }
        Ok(found)
    }

    /// The weight, on the CPU; `name` is its own.
    pub(super) fn read(&self, shards: &[Mapped], name: &str, kind: Kind) -> Result<Box<dyn BaseWeight>> {
        let names: Vec<&str> = self.parts.keys().map(String::as_str).collect();
        let load = |part: &str| load(shards, &self.parts, name, part);
        let weight = self.packing.read(&Parts { names: &names, load: &load }, kind);
        weight.map_err(|e| e.at(place(shards, &self.parts, name)))
    }

    pub(super) fn nbytes(&self, name: &str, shards: &[Mapped]) -> u64 {
        let entry = |(part, &at): (&String, &usize)| shards.get(at)?.tensors.get(&full(name, part));
        self.parts.iter().filter_map(entry).map(|e| e.nbytes()).sum()
    }
}

/// Every tensor that others are named after, with them.
fn groups(tensors: &BTreeMap<String, usize>) -> Vec<(String, BTreeMap<String, usize>)> {
    let mut groups = Vec::new();
    for (name, &at) in tensors {
        let prefix = format!("{name}.");
        let after = tensors.range(prefix.clone()..).take_while(|(n, _)| n.starts_with(&prefix));
        let mut parts: BTreeMap<_, _> = after.map(|(n, &at)| (n[prefix.len()..].to_owned(), at)).collect();
        if !parts.is_empty() {
            parts.insert(String::new(), at);
            groups.push((name.clone(), parts));
        }
    }
    groups
}

fn full(name: &str, part: &str) -> String {
    if part.is_empty() { name.to_owned() } else { format!("{name}.{part}") }
}

fn place(shards: &[Mapped], parts: &BTreeMap<String, usize>, name: &str) -> String {
    let shard = parts.get("").and_then(|&at| shards.get(at));
    shard.map_or(name.to_owned(), |shard| format!("{}, tensor `{name}`", shard.path.display()))
}

fn load(shards: &[Mapped], parts: &BTreeMap<String, usize>, name: &str, part: &str) -> Result<Tensor> {
    let found = parts.get(part).and_then(|&at| {
        let shard = shards.get(at)?;
        Some((shard, shard.tensors.get(&full(name, part))?))
    });
    let (shard, entry) = found.ok_or_else(|| Error::data(format!("its `{part}` is missing")))?;
    let kind = part_kind(entry.dtype)
        .ok_or_else(|| Error::unsupported(format!("its `{part}` is of type {}", entry.dtype)))?;
    shard.view(entry, kind)
}
