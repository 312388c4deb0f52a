//! Noise that parties add, a share each.

use super::Quorum;
use crate::engine::Noise;
use crate::privacy::{Lattice, Mechanism, Randomness};
use crate::secagg::Plan;
use lora_core::Result;

/// The lattice's bits.
const BITS: u32 = 20;

impl Noise {
    /// What is charged: all parties take part, so there is no chance that one is not in the sum.
    pub(super) fn mechanism(self) -> Result<Mechanism> {
        Ok(Mechanism::new(self.sigma, 1.0)?)
    }

    fn lattice(self, plan: &Plan) -> Result<Lattice> {
        Ok(Lattice::new(self.clip, plan.len, BITS)?)
    }

    /// A party's share. Drawn before any data is touched: how long it takes must not tell what it is added to.
    pub(super) fn share(self, plan: &Plan, quorum: Quorum, random: &Randomness) -> Result<Vec<i64>> {
        let parts = quorum.shares(plan.threshold) as f64;
        // Sums of discrete Gaussians this wide are one, to exp(-10^6) (theorem 1 there): the lattice refuses less.
        let noise = self.lattice(plan)?.noise(self.sigma / parts.sqrt())?;
        let mut share = vec![0; plan.len];
        noise.fill(random, &mut share);
        Ok(share)
    }

    /// What was learnt, clipped and rounded at random, with the share, as residues modulo 2^64.
    pub(super) fn hide(
        self,
        plan: &Plan,
        learnt: &[f64],
        share: &[i64],
        random: &Randomness,
    ) -> Result<Vec<u64>> {
        let integers = self.lattice(plan)?.quantise(learnt, &mut random.stream(0))?;
        Ok(integers.iter().zip(share).map(|(x, noise)| x.wrapping_add(*noise) as u64).collect())
    }

    /// A sum's values.
    pub(super) fn values(self, plan: &Plan, sum: &[u64]) -> Result<Vec<f64>> {
        let unit = self.lattice(plan)?.unit();
        Ok(sum.iter().map(|x| *x as i64 as f64 * unit).collect())
    }
}
