//! Weights that lie in safetensors as several tensors.

use std::collections::BTreeMap;

use lora_core::{BaseWeight, Error, Packing, Parts, Result};
use tch::{Kind, Tensor};

use super::safetensors::{Get, Mapped, part_kind};

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
        let names: Vec<String> = tensors.keys().cloned().collect();
        for name in names {
            // One weight at a time: names within names within names would make all groups together as large as the
            // square of the header.
            let parts = parts_of(&name, tensors);
            if parts.len() < 2 {
                continue;
            }
            let part_names: Vec<&str> = parts.keys().copied().collect();
            let load = |part: &str| load(shards, parts.get(part), (name.as_str(), part), Mapped::view);
            let described = describe(&Parts { names: &part_names, load: &load }, packings)
                .map_err(|e| e.at(place(shards, parts.get(""), &name)))?;
            if let Some((packing, (shape, kind))) = described {
                let parts: BTreeMap<_, _> =
                    parts.into_iter().map(|(part, at)| (part.to_owned(), at)).collect();
                for part in parts.keys() {
                    tensors.remove(&full(&name, part));
                }
                found.insert(name, Self { shape, kind, packing, parts });
            }
        }
        Ok(found)
    }

    /// The weight, on the CPU, its parts got out of their files by `get`; `name` is its own.
    pub(super) fn read(
        &self,
        shards: &[Mapped],
        name: &str,
        kind: Kind,
        get: Get,
    ) -> Result<Box<dyn BaseWeight>> {
        let names: Vec<&str> = self.parts.keys().map(String::as_str).collect();
        let load = |part: &str| load(shards, self.parts.get(part), (name, part), get);
        let weight = self.packing.read(&Parts { names: &names, load: &load }, kind);
        weight.map_err(|e| e.at(place(shards, self.parts.get(""), name)))
    }

    pub(super) fn nbytes(&self, name: &str, shards: &[Mapped]) -> u64 {
        let entry = |(part, &at): (&String, &usize)| shards.get(at)?.tensors.get(&full(name, part));
        self.parts.iter().filter_map(entry).map(|e| e.nbytes()).sum()
    }
}

/// A packing, and the weight's shape and dtype.
type Described = (&'static dyn Packing, ((i64, i64), Kind));

/// The first packing that knows these parts, and what it says of them.
fn describe(parts: &Parts<'_>, packings: &[&'static dyn Packing]) -> Result<Option<Described>> {
    for &packing in packings {
        if let Some(described) = packing.describe(parts)? {
            return Ok(Some((packing, described)));
        }
    }
    Ok(None)
}

/// The tensor of this name, as "", and all that are named after it; none if another weight has taken it for a part.
fn parts_of<'a>(name: &str, tensors: &'a BTreeMap<String, usize>) -> BTreeMap<&'a str, usize> {
    let Some(&own) = tensors.get(name) else { return BTreeMap::new() };
    let prefix = format!("{name}.");
    let after = tensors.range(prefix.clone()..).map_while(|(n, &at)| Some((n.strip_prefix(&prefix)?, at)));
    after.chain([("", own)]).collect()
}

fn full(name: &str, part: &str) -> String {
    if part.is_empty() { name.to_owned() } else { format!("{name}.{part}") }
}

fn place(shards: &[Mapped], at: Option<&usize>, name: &str) -> String {
    let shard = at.and_then(|&at| shards.get(at));
    shard.map_or(name.to_owned(), |shard| format!("{}, tensor `{name}`", shard.path.display()))
}

/// A part, from shard number `at`.
fn load(shards: &[Mapped], at: Option<&usize>, (name, part): (&str, &str), get: Get) -> Result<Tensor> {
    let found = at.and_then(|&at| {
        let shard = shards.get(at)?;
        Some((shard, shard.tensors.get(&full(name, part))?))
    });
    let (shard, entry) = found.ok_or_else(|| Error::data(format!("its `{part}` is missing")))?;
    let kind = part_kind(entry.dtype)
        .ok_or_else(|| Error::unsupported(format!("its `{part}` is of type {}", entry.dtype)))?;
    get(shard, entry, kind)
}
