//! How many must take part and stay, if some of the directory are on the coordinator's side.

use super::FEWEST;
use crate::secagg::{Directory, Plan};
use lora_core::{Error, Result};

/// Parts of honest parties in a sum, at least: one alone is the sum less the others'.
const HONEST: usize = 2;

/// With which plans a party takes part.
///
/// Who is in a plan is the coordinator's choice. So those who may be on its side, fewer than a third of the *directory*, or
/// one, may all be in the plan, however few it names: three of a directory of ten, in a plan of five as in one of ten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quorum {
    /// Of the directory.
    parties: usize,
    /// Of a plan.
    least: usize,
}

impl Quorum {
    /// As few as can be sound: two more than those of the directory who may be on the coordinator's side, and [`FEWEST`]
    /// at least.
    pub fn of(directory: &Directory) -> Self {
        Self::among(directory.parties.len())
    }

    fn among(parties: usize) -> Self {
        let any = Self { parties, least: FEWEST };
        Self { least: FEWEST.max(any.third() + HONEST), ..any }
    }

    /// At least so many parties in a plan, if it is said. With fewer than [`Quorum::of`] says, that many less two are the
    /// most of the directory who may be on the coordinator's side.
    ///
    /// # Errors
    /// [`Error::usage`] for fewer than [`FEWEST`], or more than the directory has.
    pub fn at_least(self, least: Option<usize>) -> Result<Self> {
        let Some(least) = least else { return Ok(self) };
        if !(FEWEST..=self.parties).contains(&least) {
            let what = format!("at least {least} parties a round, of {} in the directory", self.parties);
            return Err(Error::usage(what).hint(format!("{FEWEST} and more, and no more than there are")));
        }
        Ok(Self { least, ..self })
    }

    /// How many parties a plan has, at least.
    pub fn least(self) -> usize {
        self.least
    }

    /// The most that are fewer than a third of the directory.
    pub(super) fn third(self) -> usize {
        self.parties.saturating_sub(1) / 3
    }

    /// The third, or the single party that takes its own part off a sum: it need be on nobody's side for that.
    fn curious(self) -> usize {
        self.third().max(1)
    }

    /// Who may be on the coordinator's side: the `c` of [`Quorum::threshold`].
    fn colluders(self) -> usize {
        self.curious().min(self.least - HONEST)
    }

    /// How many of the `n` parties of a plan must stay: the least `t`, two thirds at least, for which, with `c` of them on
    /// the coordinator's side, one at the least,
    ///
    /// ```text
    /// t >= c + 2      and      2 t > n + c
    /// ```
    ///
    /// The first: a sum that can be opened is of `t` parties or more, so of two honest ones or more, and no part of it is
    /// bare. The second: an honest party signs one list of survivors, and reveals by it one of the two secrets of each
    /// party. Two lists, or both secrets of one party, would take `t - c` honest parties each, so `2 (t - c)` of the
    /// `n - c` that there are, which is more than there are. Fewer than `c` in the plan only help. Both can be met if
    /// `n >= c + 2`, by `t = n`.
    pub(super) fn threshold(self, n: usize) -> usize {
        let c = self.colluders();
        Plan::usual_threshold(n).max(c + HONEST).max((n + c) / 2 + 1)
    }

    /// Of how many parties the shares of noise make the whole: of no more than are sure to be in a sum without the third of
    /// the directory, or a single curious party at the least, who know their own: of `t` less these, or fewer.
    ///
    /// It goes by the directory alone, so that one party that takes part with fewer brings no smaller share than the others
    /// count on; where there are too few for that, each brings all of it.
    pub(super) fn shares(self, threshold: usize) -> usize {
        threshold.saturating_sub(self.curious()).max(1)
    }

    /// Is it a plan to take part in?
    pub(super) fn check(self, plan: &Plan) -> Result<()> {
        let (count, stay, least) = (plan.parties.len(), plan.threshold, self.least);
        let need = self.threshold(count);
        if count >= least && stay >= need {
            return Ok(());
        }
        // The coordinator is not told hints.
        let why = match count < least {
            true => format!("this party takes part with {least} and more"),
            false => format!("of so many {need} must stay for this party to take part"),
        };
        let what = format!("a plan of {count} parties, {stay} of whom must stay: {why}");
        Err(Error::data(what).hint(self.reason()))
    }

    /// Are so many a round enough?
    pub(super) fn allows(self, asked: usize) -> Result<()> {
        if asked >= self.least {
            return Ok(());
        }
        let what = format!("{asked} clients a round, where parties take part with {} and more", self.least);
        Err(Error::usage(what).hint(format!(
            "{}; ask more, or have all say that they take part with so few: --parties-at-least",
            self.reason()
        )))
    }

    fn reason(self) -> String {
        let (parties, colluders) = (self.parties, self.colluders());
        format!(
            "of {parties} parties in the directory {colluders} may be on the coordinator's side, and it chooses whom a \
             plan names"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secagg::{PartyId, Ring, RoundId};

    fn allowed(quorum: Quorum, n: usize, threshold: usize) -> bool {
        let round = RoundId { run: [0; 16], number: 1 };
        let parties = (1..=n as u32).map(PartyId).collect();
        let plan = Plan { threshold, ..Plan::new(round, parties, Ring::U64, 1) };
        plan.check().is_ok() && quorum.check(&plan).is_ok()
    }

    /// Any plan that a party takes part in, with any number of the others on the coordinator's side that it counts on.
    #[test]
    fn a_third_of_the_directory_sees_no_part_and_little_of_the_noise() {
        for parties in 3..=20 {
            let third = (0..parties).filter(|c| 3 * c < parties).max().unwrap();
            let all = Quorum::among(parties);
            assert_eq!(all.third(), third);
            // Of three nobody is on its side, and each is curious.
            let most = third.max(1);
            let fewer = (3..=parties).map(|least| (all.at_least(Some(least)).unwrap(), most.min(least - 2)));
            for (quorum, most) in fewer.chain([(all, most)]) {
                for n in 1..=parties {
                    for t in (1..=n).filter(|t| allowed(quorum, n, *t)) {
                        assert!(n >= quorum.least() && 3 * t >= 2 * n, "{quorum:?} {n} {t}");
                        for side in 0..=most {
                            let what = format!("{quorum:?}: {t} of {n}, {side} of them on its side");
                            assert!(t >= side + 2, "bare: {what}");
                            assert!(2 * (t - side) > n - side, "two lists: {what}");
                            assert!(t - side.max(1) >= quorum.shares(t), "noise: {what}");
                        }
                    }
                }
            }
        }
    }

    /// Nothing is refused that is sound, and what the coordinator plans is accepted.
    #[test]
    fn plans_that_are_sound_are_there_from_two_more_than_the_third() {
        for parties in 3..=60 {
            let quorum = Quorum::among(parties);
            let third = (parties - 1) / 3;
            assert_eq!(quorum.least(), FEWEST.max(third + 2));
            for n in quorum.least()..=parties {
                let t = quorum.threshold(n);
                assert!(allowed(quorum, n, t) && !allowed(quorum, n, t - 1), "{parties}: {t} of {n}");
                let c = third.max(1);
                let sound = |t: usize| t >= c + 2 && 2 * t > n + c && t >= Plan::usual_threshold(n);
                assert!(sound(t) && !sound(t - 1));
            }
        }
        // A sum of two would be bare to both.
        assert!(allowed(Quorum::among(3), 3, 3) && !allowed(Quorum::among(3), 3, 2));
        let ten = Quorum::among(10);
        assert_eq!([5, 6, 7, 8, 9, 10].map(|n| ten.threshold(n)), [5, 5, 6, 6, 7, 7]);
        // The plan whose sum is of one honest party and one that is not.
        assert!(!allowed(ten, 3, 2) && !allowed(ten, 4, 3) && !allowed(ten, 5, 4) && !allowed(ten, 9, 6));
        let shares = |parties, threshold| Quorum::among(parties).shares(threshold);
        assert_eq!((shares(3, 3), shares(5, 4), shares(10, 7), shares(100, 67)), (2, 3, 4, 34));
        // Of six of ten the three that know their own may be there too.
        assert_eq!((shares(10, 5), ten.at_least(Some(3)).unwrap().shares(3)), (2, 1));
    }

    #[test]
    fn more_or_fewer_can_be_asked_for() {
        let ten = Quorum::among(10);
        for wrong in [0, 2, 11] {
            let refused = ten.at_least(Some(wrong)).unwrap_err().to_string();
            assert!(refused.contains("of 10 in the directory"), "{refused}");
        }
        let few = ten.at_least(Some(3)).unwrap();
        assert!(allowed(few, 3, 3) && !allowed(few, 3, 2) && allowed(few, 10, 7));
        let all = ten.at_least(Some(10)).unwrap();
        assert!(allowed(all, 10, 7) && !allowed(all, 9, 9));
    }
}
