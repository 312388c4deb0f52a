//! Taking the masks off a sum, from a threshold of reveals.

use std::collections::BTreeMap;

use super::error::{Result, SecAggError};
use super::keys::{RoundKey, Secret, commitment};
use super::mask::{self, Sign};
use super::messages::{Reveal, Share};
use super::plan::{PartyId, Session};
use super::roster::{Roster, pair_sign};
use super::shamir::combine;

/// `sum` is that of the survivors' masked vectors; `dealers` are all whose masks may be in it, with what they
/// committed to. Every reveal has a share for every dealer, survivors' seeds and others' keys, in rising order.
pub(crate) fn unmask(
    session: &Session,
    roster: &Roster,
    dealers: &BTreeMap<PartyId, [u8; 32]>,
    survivors: &[PartyId],
    mut sum: Vec<u64>,
    reveals: &BTreeMap<PartyId, Reveal>,
) -> Result<Vec<u64>> {
    let mut masks = Vec::new();
    let (mut seed_at, mut key_at) = (0, 0);
    for (&party, committed) in dealers {
        if survivors.binary_search(&party).is_ok() {
            let right = |seed: &Secret| commitment(&roster.view, party, seed) == *committed;
            let seed = secret(session, party, reveals, |reveal| reveal.seeds.get(seed_at), right)?;
            masks.push((roster.self_seed(session, party, &seed)?, Sign::Minus));
            seed_at += 1;
        } else {
            let public = roster.get(party)?.mask;
            let right = |secret: &Secret| RoundKey::new(secret).public() == public;
            let key = secret(session, party, reveals, |reveal| reveal.keys.get(key_at), right)?;
            let key = RoundKey::new(&key);
            for &survivor in survivors {
                let seed = roster.pair_seed(session, &key, party, survivor)?;
                masks.push((seed, pair_sign(survivor, party).flipped()));
            }
            key_at += 1;
        }
    }
    mask::apply(&mut sum, session.plan().ring, masks.iter().map(|(seed, sign)| (seed, *sign)))?;
    Ok(sum)
}

/// The party's secret, from the first run of a threshold of shares that gives the right one. One wrong share among
/// more than a threshold does no harm: some run leaves it out.
fn secret<'a>(
    session: &Session,
    of: PartyId,
    reveals: &'a BTreeMap<PartyId, Reveal>,
    share: impl Fn(&'a Reveal) -> Option<&'a Share>,
    right: impl Fn(&Secret) -> bool,
) -> Result<Secret> {
    let shares = reveals.iter().map(|(from, reveal)| {
        let share = share(reveal).filter(|share| share.of == of).ok_or(SecAggError::BadShares(of))?;
        Ok((session.point(*from)?, &share.share))
    });
    let shares: Vec<(u8, &Secret)> = shares.collect::<Result<_>>()?;
    let run = |start| shares.iter().cycle().skip(start).take(session.plan().threshold).copied();
    let secrets = (0..shares.len()).map(|start| combine(run(start)));
    secrets.into_iter().find(|secret| right(secret)).ok_or(SecAggError::BadShares(of))
}
