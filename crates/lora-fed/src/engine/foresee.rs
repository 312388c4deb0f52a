//! Whether an engine will carry the tasks of a whole run: under `fedex` and `flora` each has more beside the weights than the one
//! before.

use super::model::{A, B, SLACK};
use super::{Engine, Federation};
use crate::aggregate::Rule;
use lora_core::{Error, Result};

/// A module, and what will lie beside it.
struct Grows {
    rank: i64,
    /// What a round adds to that.
    adds: i64,
    inp: i64,
    out: i64,
    /// Bytes of a number.
    width: usize,
}

impl Federation {
    /// Refuses a run that has not begun and will outgrow the engine: in the round in which it did, all that was learnt would be stuck
    /// here. `task`: the bytes of the first round's largest one; `chosen`: whom it asks, as all rounds are taken to do.
    ///
    /// # Errors
    /// [`Error::unsupported`] that says how many rounds the engine carries.
    pub(super) fn foresee(&self, chosen: &[String], task: u64, engine: &dyn Engine) -> Result<()> {
        let modules = self.modules(chosen);
        if self.model.rounds > 0 || modules.iter().all(|module| module.adds == 0) {
            return Ok(());
        }
        let adapter = task.saturating_sub(bytes(&modules));
        for (round, beside) in sizes(modules, self.settings.rounds) {
            if let Err(e) = engine.carries(adapter + beside) {
                let (rule, asked, before) = (self.settings.rule, chosen.len(), round - 1);
                return Err(Error::unsupported(format!("round {round} would be too large: {e}")).hint(format!(
                    "by {rule}, with {asked} clients a round, it can have {before} rounds (--rounds {before}); or take a rule \
                     that lays nothing beside the weights, fewer targets or a lower rank"
                )));
            }
        }
        Ok(())
    }

    fn modules(&self, chosen: &[String]) -> Vec<Grows> {
        let module = |(name, a): (&String, &tch::Tensor)| {
            let module = name.strip_suffix(A)?;
            let b = self.model.adapter.get(&format!("{module}{B}"))?;
            let (&[own, inp], &[out, _]) = (&a.size()[..], &b.size()[..]) else { return None };
            let adds = match self.settings.rule {
                // The clients' differences.
                Rule::FedEx => (own * chosen.len().saturating_sub(1) as i64).min(inp).min(out),
                Rule::Flora => chosen
                    .iter()
                    .map(|client| self.settings.ranks.get(client).copied().unwrap_or(own))
                    .sum::<i64>(),
                _ => 0,
            };
            let rank = self.model.beside.get(module).map_or(0, |(a, _)| a.size()[0]);
            Some(Grows { rank, adds, inp, out, width: a.kind().elt_size_in_bytes() })
        };
        self.model.adapter.iter().filter_map(module).collect()
    }
}

impl Grows {
    /// The largest rank that it needs.
    fn full(&self) -> i64 {
        self.inp.min(self.out)
    }

    fn numbers(&self, rank: i64) -> f64 {
        (rank * (self.inp + self.out)) as f64
    }
}

/// The bytes that lie beside when each round begins, from the second on.
fn sizes(mut modules: Vec<Grows>, rounds: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut full = 0;
    (2..=rounds).map_while(move |round| {
        // From full to full they grow once more, perhaps further than from nothing; then all repeats.
        if full == 2 {
            return None;
        }
        full += usize::from(grow(&mut modules));
        Some((round, bytes(&modules)))
    })
}

/// What a round adds, and what [`Model::make_anew`](super::Model::make_anew) leaves of all. Was it made anew, and are all full?
fn grow(modules: &mut [Grows]) -> bool {
    modules.iter_mut().for_each(|module| module.rank += module.adds);
    let have: f64 = modules.iter().map(|module| module.numbers(module.rank)).sum();
    let need: f64 = modules.iter().map(|module| module.numbers(module.rank.min(module.full()))).sum();
    if have <= SLACK * need {
        return false;
    }
    modules.iter_mut().for_each(|module| module.rank = module.rank.min(module.full()));
    modules.iter().all(|module| module.adds == 0 || module.rank == module.full())
}

fn bytes(modules: &[Grows]) -> u64 {
    modules.iter().map(|module| module.numbers(module.rank) as u64 * module.width as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From full it may grow further than it did from nothing: 3, 6, 9, 7 (12 are too many), and then 10.
    #[test]
    fn the_largest_is_seen() {
        let module = Grows { rank: 0, adds: 3, inp: 7, out: 9, width: 4 };
        let ranks: Vec<u64> = sizes(vec![module], 100).map(|(_, bytes)| bytes / 64).collect();
        assert_eq!(ranks, [3, 6, 9, 7, 10, 7]);
    }
}
