//! Noise that parties add, a share each.

use crate::engine::Noise;
use crate::privacy::{Lattice, Mechanism, Randomness};
use crate::secagg::Plan;
use lora_core::Result;

/// The lattice's bits.
const BITS: u32 = 20;

/// Of how many parties the shares make the whole. At least a threshold's are in the sum. Of these a coalition that the sums
/// withstand, or a single curious party at the least, knows its own.
fn shares(parties: usize, threshold: usize) -> usize {
    let coalition = (2 * threshold).saturating_sub(parties + 1).max(1);
    threshold - coalition
}

impl Noise {
    /// What is charged: all parties take part, so there is no chance that one is not in the sum.
    pub(super) fn mechanism(self) -> Result<Mechanism> {
        Ok(Mechanism::new(self.sigma, 1.0)?)
    }

    fn lattice(self, plan: &Plan) -> Result<Lattice> {
        Ok(Lattice::new(self.clip, plan.len, BITS)?)
    }

    /// A party's share. Drawn before any data is touched: how long it takes must not tell what it is added to.
    pub(super) fn share(self, plan: &Plan, random: &Randomness) -> Result<Vec<i64>> {
        let parts = shares(plan.parties.len(), plan.threshold) as f64;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the coalition that the sums withstand, the shares of the others in the sum make the whole.
    #[test]
    fn shares_are_counted_without_the_coalition() {
        for parties in 3..=255 {
            let threshold = Plan::usual_threshold(parties);
            let shares = shares(parties, threshold);
            let coalition = (2 * threshold - parties).saturating_sub(1).max(1);
            assert!(shares >= 1 && shares + coalition <= threshold, "{parties}");
        }
        assert_eq!((shares(3, 2), shares(10, 7), shares(100, 67)), (1, 4, 34));
    }
}
