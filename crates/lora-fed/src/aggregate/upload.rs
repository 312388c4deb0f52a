//! What clients send, and whether it can be put together.

use lora_core::{Error, ErrorKind, Result, all_finite};
use std::collections::{BTreeMap, BTreeSet};
use tch::Tensor;

/// One layer's update `scale · B A`.
#[derive(Debug)]
pub struct Layer {
    /// `A [r, in]`.
    pub a: Tensor,
    /// `B [out, r]`.
    pub b: Tensor,
    /// What the client multiplies `B A` with.
    pub scale: f64,
}

/// One client's adapter after its local steps.
#[derive(Debug)]
pub struct Upload {
    /// Who sent it: from the connection, never from the message.
    pub client: String,
    /// Its share, before normalisation: one for all, or the number of examples if the clients are trusted with it.
    pub weight: f64,
    /// By module.
    pub layers: BTreeMap<String, Layer>,
    /// What is no low-rank factor, by its name: DoRA's magnitudes.
    pub others: BTreeMap<String, Tensor>,
}

impl Layer {
    pub(crate) fn rank(&self) -> i64 {
        self.a.size().first().copied().unwrap_or(0)
    }

    /// `(out, in)` of the weight beside it.
    pub(crate) fn shape(&self) -> (i64, i64) {
        (self.b.size().first().copied().unwrap_or(0), self.a.size().last().copied().unwrap_or(0))
    }
}

impl Upload {
    /// Of an adapter's tensors by their names in PEFT's file; `scale` of a module.
    ///
    /// # Errors
    /// [`Error::data`] for an A without a B, or a B without an A.
    pub fn from_tensors(
        client: impl Into<String>,
        weight: f64,
        tensors: BTreeMap<String, Tensor>,
        scale: impl Fn(&str) -> f64,
    ) -> Result<Self> {
        let (mut a, mut b, mut others) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for (key, tensor) in tensors {
            if let Some(module) = key.strip_suffix(".lora_A.weight") {
                a.insert(module.to_owned(), tensor);
            } else if let Some(module) = key.strip_suffix(".lora_B.weight") {
                b.insert(module.to_owned(), tensor);
            } else {
                others.insert(key, tensor);
            }
        }
        let mut layers = BTreeMap::new();
        for (module, a) in a {
            let Some(b) = b.remove(&module) else {
                return Err(Error::data("there is an A, but no B").at(module));
            };
            let scale = scale(&module);
            layers.insert(module, Layer { a, b, scale });
        }
        match b.into_keys().next() {
            Some(module) => Err(Error::data("there is a B, but no A").at(module)),
            None => Ok(Self { client: client.into(), weight, layers, others }),
        }
    }
}

/// Normalised weights, if the uploads can be put together at all.
///
/// # Errors
/// All faults at once: no uploads, a client twice, a weight that is not positive, other modules than the first has,
/// shapes that do not fit, numbers that are not finite.
pub(crate) fn shares(uploads: &[Upload]) -> Result<Vec<f64>> {
    let Some(first) = uploads.first() else { return Err(Error::usage("no client has sent anything")) };
    let (mut faults, mut seen) = (Vec::new(), BTreeSet::new());
    for u in uploads {
        let who = &u.client;
        let mut refuse = |bad: bool, what: String| faults.extend(bad.then(|| format!("{who}: {what}")));
        refuse(!seen.insert(who), "is there twice".into());
        refuse(!(u.weight > 0.0 && u.weight.is_finite()), format!("the weight {} is not positive", u.weight));
        let names = !u.layers.keys().eq(first.layers.keys()) || !u.others.keys().eq(first.others.keys());
        refuse(names, format!("has other modules than {}", first.client));
        for (name, layer) in &u.layers {
            let sizes = (layer.a.size(), layer.b.size());
            let fits = matches!((&sizes.0[..], &sizes.1[..]), ([r, _], [_, q]) if r == q && *r > 0);
            refuse(!fits, format!("{name}: A {:?} and B {:?} do not fit", sizes.0, sizes.1));
            let alike = first.layers.get(name).is_none_or(|l| l.shape() == layer.shape());
            refuse(fits && !alike, format!("{name}: another shape than {}'s", first.client));
            let finite = all_finite(&layer.a) && all_finite(&layer.b) && layer.scale.is_finite();
            refuse(!finite, format!("{name}: numbers that are not finite"));
        }
        for (name, tensor) in &u.others {
            let alike = first.others.get(name).is_none_or(|t| t.size() == tensor.size());
            refuse(!alike, format!("{name}: another shape than {}'s", first.client));
            refuse(!all_finite(tensor), format!("{name}: numbers that are not finite"));
        }
    }
    if !faults.is_empty() {
        return Err(Error::faults(ErrorKind::Data, "these uploads cannot be put together", faults));
    }
    let total: f64 = uploads.iter().map(|u| u.weight).sum();
    Ok(uploads.iter().map(|u| u.weight / total).collect())
}
