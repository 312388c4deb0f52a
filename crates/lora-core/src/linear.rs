//! `y = x W'ᵀ + b`: a frozen weight, a bias, and the adapters beside it.

use tch::{Kind, Tensor};

use crate::adapter::{Adapter, Mode};
use crate::factors::Factors;
use crate::projection::{linear, project};
use crate::weight::{BaseWeight, Dense, all_finite, master_kind, whole};
use crate::{Error, Result};

/// A linear layer whose weight is frozen. Any number of named adapters lie beside it, at most one is active.
/// The bias stays outside the formula: no adapter scales it.
#[derive(Debug)]
pub struct Linear {
    base: Box<dyn BaseWeight>,
    bias: Option<Tensor>,
    adapters: Vec<(String, Box<dyn Adapter>)>,
    active: Option<usize>,
    merged: Option<Dense>,
}

impl Linear {
    /// A frozen layer; `bias [out]`.
    pub fn new(base: Box<dyn BaseWeight>, bias: Option<Tensor>) -> Self {
        Self { base, bias, adapters: Vec::new(), active: None, merged: None }
    }

    /// A frozen layer over `weight [out, in]` as it is.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::new(Box::new(Dense::new(weight)), bias)
    }

    /// `[.., in] -> [.., out]`, in x's dtype. Several layers that read one input: [`crate::project`].
    pub fn forward(&self, x: &Tensor, mode: Mode) -> Tensor {
        project(&[self], x.into(), mode).swap_remove(0)
    }

    /// Through `W'` itself: for an adapter that has no normal form.
    pub(crate) fn forward_by_definition(&self, x: &Tensor) -> Tensor {
        let (weight, kind) = (self.weight(), x.kind());
        let effective = |w: &Tensor| self.adapter().map_or_else(|| w.shallow_clone(), |a| a.effective(w));
        let bare = weight.bare(kind);
        // What lies beside stays a product of its own: it is taken out of W' again, which may turn last bits.
        let dense = match weight.beside() {
            Some((a, b)) => (effective(&whole(weight, &bare)) - b.matmul(a)).to_kind(kind),
            None => effective(&bare),
        };
        linear(x, &dense, self.bias(), weight)
    }

    /// The weight that is multiplied with: the merged one, or the base that adapters lie beside.
    pub(crate) fn weight(&self) -> &dyn BaseWeight {
        self.merged.as_ref().map_or(self.base.as_ref(), |merged| merged)
    }

    /// What is to be added to `weight` (dense, by its `bare`: `w`): nothing, or the active adapter in its normal form, if it
    /// has one.
    pub(crate) fn factors(&self, w: &Tensor) -> Option<Option<Factors<'_>>> {
        match (self.constant(), self.adapter()) {
            (None, Some(adapter)) => adapter.factors(self.base.as_ref(), w).map(Some),
            _ => Some(None),
        }
    }

    /// The frozen weight.
    pub fn base(&self) -> &dyn BaseWeight {
        self.base.as_ref()
    }

    /// Puts another weight of the same shape in its place. Adapters, which may know things of the one that was there,
    /// are attached afterwards.
    ///
    /// # Errors
    /// [`Error::usage`] for another shape, or if the layer is merged or has an adapter, active or not.
    pub fn replace_base(&mut self, base: Box<dyn BaseWeight>) -> Result<()> {
        self.refuse_merged("replace the weight")?;
        if let Some((name, _)) = self.adapters.first() {
            let e = Error::usage(format!("cannot replace the weight beneath the adapter `{name}`"));
            return Err(e.hint("detach it first"));
        }
        if base.shape() != self.base.shape() {
            let what =
                format!("a weight of {:?} in the place of one of {:?}", base.shape(), self.base.shape());
            return Err(Error::usage(what));
        }
        self.base = base;
        Ok(())
    }

    /// The bias, if the layer has one.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The weight that `forward` multiplies with, if it is a constant: nothing trains here.
    pub fn constant(&self) -> Option<&dyn BaseWeight> {
        match (&self.merged, self.active) {
            (Some(merged), _) => Some(merged),
            (None, None) => Some(self.base.as_ref()),
            (None, Some(_)) => None,
        }
    }

    /// The active adapter.
    pub fn adapter(&self) -> Option<&dyn Adapter> {
        self.active.and_then(|i| self.adapters.get(i)).map(|(_, a)| a.as_ref())
    }

    /// The active adapter's name.
    pub fn active(&self) -> Option<&str> {
        self.active.and_then(|i| self.adapters.get(i)).map(|(name, _)| name.as_str())
    }

    /// The adapter of that name, active or not.
    pub fn adapter_named(&self, name: &str) -> Option<&dyn Adapter> {
        self.adapters.iter().find(|(n, _)| n == name).map(|(_, a)| a.as_ref())
    }

    /// Puts an adapter beside the weight and makes it the active one.
    ///
    /// # Errors
    /// [`Error::usage`] if the name is taken, or the layer is merged.
    pub fn attach(&mut self, name: &str, mut adapter: Box<dyn Adapter>) -> Result<()> {
        self.refuse_merged("attach an adapter")?;
        if self.adapter_named(name).is_some() {
            return Err(Error::usage(format!("an adapter named `{name}` is attached already"))
                .hint("choose another name, or detach that one first"));
        }
        adapter.forget();
        self.adapters.push((name.to_owned(), adapter));
        self.active = Some(self.adapters.len() - 1);
        Ok(())
    }

    /// Takes the adapter of that name away, if there is one.
    ///
    /// # Errors
    /// [`Error::usage`] if the layer is merged.
    pub fn detach(&mut self, name: &str) -> Result<Option<Box<dyn Adapter>>> {
        self.refuse_merged("detach an adapter")?;
        let Some(i) = self.adapters.iter().position(|(n, _)| n == name) else { return Ok(None) };
        self.active = match self.active {
            Some(a) if a == i => None,
            Some(a) if a > i => Some(a - 1),
            other => other,
        };
        Ok(Some(self.adapters.remove(i).1))
    }

    /// Switches to the adapter of that name; a layer that has none of that name, or `None`, is the bare base.
    ///
    /// # Errors
    /// [`Error::usage`] if the layer is merged.
    pub fn activate(&mut self, name: Option<&str>) -> Result<()> {
        self.refuse_merged("switch adapters")?;
        self.active = name.and_then(|name| self.adapters.iter().position(|(n, _)| n == name));
        Ok(())
    }

    /// `W'` of the active adapter (W without one) in `kind`, computed in f32 (f64 for an f64 weight) and
    /// rounded once.
    pub fn effective(&self, kind: Kind) -> Tensor {
        let _guard = tch::no_grad_guard();
        match self.adapter() {
            Some(adapter) => {
                let exact = master_kind(self.base.kind());
                adapter.effective(&self.base.dense(exact)).to_kind(kind)
            }
            None => self.base.dense(kind),
        }
    }

    /// Replaces the weight in use by `W'`, dense and in the base's dtype: the adapter then costs nothing. The
    /// stored weight is kept aside untouched for [`Linear::unmerge`].
    ///
    /// # Errors
    /// [`Error::non_finite`] if W' is not finite; the layer is then unchanged.
    pub fn merge(&mut self) -> Result<()> {
        if self.merged.is_none() && self.active.is_some() {
            let w = self.effective(self.base.kind());
            if !all_finite(&w) {
                return Err(Error::non_finite("the merged weight is not finite")
                    .hint("the adapter holds extreme values; `lora inspect` shows the norms"));
            }
            self.merged = Some(Dense::new(w));
        }
        Ok(())
    }

    /// Undoes [`Linear::merge`]: the very weight that was there before.
    pub fn unmerge(&mut self) {
        self.merged = None;
    }

    pub(crate) fn refuse_merged(&self, what: &str) -> Result<()> {
        match self.merged {
            Some(_) => Err(Error::usage(format!("cannot {what} while merged")).hint("unmerge first")),
            None => Ok(()),
        }
    }
}
