//! What a federation has learnt.

use crate::aggregate::{Layer, Stack, Upload, rounding};
use lora_core::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha20Rng;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The names of a module's factors in PEFT's file.
pub(crate) const A: &str = ".lora_A.weight";
/// Likewise.
pub(crate) const B: &str = ".lora_B.weight";

/// The model that all clients have in common: `W + beside + s B A`.
#[derive(Debug)]
pub struct Model {
    /// Rounds done.
    pub rounds: u64,
    /// The adapter that the next one starts from, by its names in PEFT's file.
    pub adapter: BTreeMap<String, Tensor>,
    /// What was learnt before and is frozen: `A [R, in]`, `B [out, R]` with scale 1, by module. A round adds rows and columns
    /// behind those that are there.
    pub beside: BTreeMap<String, (Tensor, Tensor)>,
    /// How often that was made anew, of a lower rank.
    pub made: u64,
}

/// What lies beside may have so many times the numbers that it needs.
pub(super) const SLACK: f64 = 1.5;

impl Model {
    /// One that has learnt nothing yet. What is in half precision is kept in f32: a mean moves by less.
    pub fn new(mut adapter: BTreeMap<String, Tensor>) -> Self {
        let halves = [Kind::Half, Kind::BFloat16];
        adapter.values_mut().filter(|t| halves.contains(&t.kind())).for_each(|t| *t = t.to_kind(Kind::Float));
        Self { rounds: 0, adapter, beside: BTreeMap::new(), made: 0 }
    }

    /// Another handle on the same tensors.
    pub(crate) fn share(&self) -> Self {
        let adapter = self.adapter.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
        Self { adapter, beside: share(&self.beside), ..*self }
    }

    /// The modules that have factors.
    fn modules(&self) -> impl Iterator<Item = &str> {
        self.adapter.keys().filter_map(|name| name.strip_suffix(A))
    }

    /// Adds `scale B A` to what lies beside, behind what is there: that stays as it is, so that whoever has it need not be
    /// sent it again.
    ///
    /// # Errors
    /// For shapes that do not fit what lies there.
    pub(crate) fn lay_beside(&mut self, module: &str, layer: &Layer) -> Result<()> {
        let kind = layer.a.kind();
        let (mut a, mut b) = (layer.a.shallow_clone(), (&layer.b * layer.scale).to_kind(kind));
        if let Some((old_a, old_b)) = self.beside.get(module) {
            a = Tensor::f_cat(&[old_a, &a], 0)?;
            b = Tensor::f_cat(&[old_b, &b], 1)?;
        }
        self.beside.insert(module.to_owned(), (a, b));
        Ok(())
    }

    /// Makes what lies beside anew, of the least rank, once that has far fewer numbers: then all of it must be sent again.
    ///
    /// # Errors
    /// If no decomposition is found.
    pub(crate) fn make_anew(&mut self) -> Result<()> {
        let (mut have, mut need) = (0.0, 0.0);
        for (a, b) in self.beside.values() {
            let (rank, inp, out) = (a.size()[0], a.size()[1], b.size()[0]);
            have += (rank * (inp + out)) as f64;
            need += (rank.min(inp).min(out) * (inp + out)) as f64;
        }
        if have <= SLACK * need {
            return Ok(());
        }
        for (module, (a, b)) in &mut self.beside {
            let (kind, sum) = (a.kind(), Stack::new(&[(1.0, b, a)]).and_then(|s| s.decompose()));
            let sum = sum.map_err(|e| e.at(module))?;
            let rank = sum.rank_above(rounding(kind) * sum.s.max().double_value(&[]));
            let (new_b, new_a) = sum.at_rank(rank.max(1));
            (*a, *b) = (new_a.to_kind(kind), new_b.to_kind(kind));
        }
        self.made += 1;
        Ok(())
    }

    /// An adapter that begins anew: A uniform in `±1/√in` as PEFT's, B zero, the rest as it is.
    pub(crate) fn begin_anew(&mut self, seed: u64) {
        for (number, (name, tensor)) in self.adapter.iter_mut().enumerate() {
            if name.ends_with(B) {
                *tensor = tensor.zeros_like();
            } else if name.ends_with(A) {
                *tensor = uniform(tensor, tensor.size()[0], seed, self.rounds << 32 | number as u64);
            }
        }
    }

    /// The adapter for a client of another rank: what lies nearest; of one that has learnt nothing, its first rows. What a
    /// higher rank adds begins anew: A random, B zero.
    ///
    /// # Errors
    /// For an A without a B.
    pub(crate) fn at_rank(
        &self,
        rank: i64,
        scale: impl Fn(&str, i64) -> f64,
        seed: u64,
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut all = self.share().adapter;
        for module in self.modules() {
            let (name_a, name_b) = (format!("{module}{A}"), format!("{module}{B}"));
            let Some((a, b)) = self.adapter.get(&name_a).zip(self.adapter.get(&name_b)) else {
                return Err(Error::data("there is an A, but no B").at(module));
            };
            let full = a.size()[0];
            if rank == full {
                continue;
            }
            let nothing = rank < full && b.count_nonzero(None).int64_value(&[]) == 0;
            let (near_a, near_b) = if nothing {
                (a.narrow(0, 0, rank).copy(), b.narrow(1, 0, rank).copy())
            } else if rank > full {
                let b = b * (scale(module, full) / scale(module, rank));
                (self.grown(module, a, rank, seed), b.constant_pad_nd([0, rank - full]))
            } else {
                let (b, a) = Stack::new(&[(scale(module, full), b, a)])?.decompose()?.at_rank(rank);
                (a, b / scale(module, rank))
            };
            all.insert(name_a, near_a.to_kind(a.kind()).contiguous());
            all.insert(name_b, near_b.to_kind(b.kind()).contiguous());
        }
        Ok(all)
    }

    /// A module's A with random rows below, up to that rank: of zeros there, with a B of zeros, nothing could be learnt.
    pub(crate) fn grown(&self, module: &str, a: &Tensor, rank: i64, seed: u64) -> Tensor {
        let more = rank - a.size()[0];
        if more <= 0 {
            return a.shallow_clone();
        }
        let number = self.modules().position(|name| name == module).unwrap_or_default() as u64;
        // Not a stream of `begin_anew`: these rows must differ from those.
        let rows = uniform(a, more, seed, 1 << 63 | self.rounds << 32 | number);
        Tensor::cat(&[a, &rows], 0)
    }
}

/// Rows like those of `a`, uniform in `±1/√in` as PEFT's.
fn uniform(a: &Tensor, rows: i64, seed: u64, stream: u64) -> Tensor {
    let mut random = ChaCha20Rng::seed_from_u64(seed);
    random.set_stream(stream);
    let inp = a.size().last().copied().unwrap_or(1);
    let bound = 1.0 / (inp as f64).sqrt();
    let values: Vec<f32> = (0..rows * inp).map(|_| random.random_range(-bound..bound) as f32).collect();
    Tensor::from_slice(&values).view([rows, inp]).to_kind(a.kind()).to_device(a.device())
}

/// Other handles on the same pairs.
pub(crate) fn share(pairs: &BTreeMap<String, (Tensor, Tensor)>) -> BTreeMap<String, (Tensor, Tensor)> {
    let both = |(a, b): &(Tensor, Tensor)| (a.shallow_clone(), b.shallow_clone());
    pairs.iter().map(|(module, pair)| (module.clone(), both(pair))).collect()
}

/// Named tensors as an upload; `scale` of a module at a rank.
pub(crate) fn upload(
    client: &str,
    weight: f64,
    adapter: &BTreeMap<String, Tensor>,
    scale: impl Fn(&str, i64) -> f64,
) -> Result<Upload> {
    let ranks: BTreeMap<String, i64> = adapter
        .iter()
        .filter_map(|(name, t)| Some((name.strip_suffix(A)?.to_owned(), t.size().first().copied()?)))
        .collect();
    let tensors = adapter.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    let scale = |module: &str| scale(module, ranks.get(module).copied().unwrap_or(1));
    Upload::from_tensors(client, weight, tensors, scale)
}
