//! A step under way: from drawn records to a sum that may be seen.

use sha2::{Digest, Sha256};

use super::error::{PrivacyError, Result, require};
use super::keys::{Randomness, StepKey};
use super::lattice::{add_integers, norm};
use super::release::Release;

/// A step whose sample and noise are drawn, and whose sum is not released yet. Dropped, it was never there.
#[derive(Debug)]
pub struct Step<'a> {
    release: &'a mut Release,
    key: StepKey,
    drawn: Vec<usize>,
    /// Of each record drawn, whether it was added.
    added: Vec<bool>,
    rounding: Randomness,
    sum: Sum,
}

/// The sum so far.
#[derive(Debug)]
pub(super) enum Sum {
    /// Of noise and contributions, in lattice units.
    Lattice(Vec<i64>),
    /// Bare.
    Plain(Vec<f64>),
}

impl<'a> Step<'a> {
    pub(super) fn new(release: &'a mut Release, key: StepKey, drawn: Vec<usize>, sum: Sum) -> Self {
        let rounding = key.randomness(&release.secret, "rounding");
        Self { added: vec![false; drawn.len()], release, key, drawn, rounding, sum }
    }

    /// The records of this step, in order; maybe none, and the step is released all the same. Which they are, and how
    /// many, is secret: the accountants rely on it.
    pub fn drawn(&self) -> &[usize] {
        &self.drawn
    }

    /// Clips `gradient * scale` to the clipping norm, all trained numbers together, and adds it. Gives its norm before
    /// clipping, which is of the data: not to be shown to anybody.
    ///
    /// `scale` is what makes a record's sum of losses its mean. Refuses a record that was not drawn or was added
    /// already, another length, and NaN or infinity; then nothing was added. The order of records does not matter.
    pub fn add(&mut self, record: usize, gradient: &[f32], scale: f64) -> Result<f64> {
        require(scale >= 0.0 && scale.is_finite(), "the gradient's scale", scale, "0 or more, and finite")?;
        let refused = |what| PrivacyError::Record { record, what };
        let at = self.drawn.binary_search(&record).map_err(|_| refused("was not drawn in this step"))?;
        if self.added[at] {
            return Err(refused("was added to this step already"));
        }
        let Release { lattice, rounded, config, .. } = &mut *self.release;
        let length = match &mut self.sum {
            Sum::Lattice(sum) => {
                let mut random = self.rounding.stream(record as u64);
                let length = lattice.quantise_into(gradient, scale, &mut random, rounded)?;
                add_integers(sum, rounded)?;
                length
            }
            Sum::Plain(sum) => {
                lattice.fits(gradient)?;
                let length = norm(gradient)? * scale;
                let factor = scale * (config.clip / length).min(1.0);
                sum.iter_mut().zip(gradient).for_each(|(s, &g)| *s += f64::from(g) * factor);
                length
            }
        };
        self.added[at] = true;
        Ok(length)
    }

    /// Charges the ledger, durably, and only then gives the noised sum over the divisor.
    ///
    /// Refuses while a drawn record is missing, for its absence would show. Refuses a replay that comes out other than
    /// the first time, as gradients of another machine may: the same noise on another sum takes the noise off.
    pub fn release(self) -> Result<Vec<f32>> {
        if let Some(at) = self.added.iter().position(|added| !added) {
            return Err(PrivacyError::Record { record: self.drawn[at], what: "was drawn, and not added" });
        }
        let Release { lattice, config, ledger, .. } = self.release;
        match self.sum {
            Sum::Lattice(sum) => {
                ledger.charge_release(&self.key, config.mechanism, &fingerprint(&sum))?;
                let unit = lattice.unit() / config.divisor;
                Ok(sum.into_iter().map(|k| (k as f64 * unit) as f32).collect())
            }
            Sum::Plain(sum) => Ok(sum.into_iter().map(|x| (x / config.divisor) as f32).collect()),
        }
    }
}

/// A hash of what is about to be public anyway.
fn fingerprint(sum: &[i64]) -> [u8; 32] {
    let mut sha = Sha256::new();
    let mut bytes = [0; 8 * 512];
    for part in sum.chunks(512) {
        for (to, k) in bytes.chunks_exact_mut(8).zip(part) {
            to.copy_from_slice(&k.to_le_bytes());
        }
        sha.update(&bytes[..8 * part.len()]);
    }
    sha.finalize().into()
}
