//! The masked sum is the plain sum, whoever drops out; below the threshold there is none.
#![allow(missing_docs)]

mod common;

use common::{DROPS, Drop, Run, id, plan, vectors};
use lora_fed::secagg::{Kind, Plan, Ring, SecAggError, plain_sum};
use proptest::prelude::*;

/// Runs the round, and holds its end to what the dropouts say it must be.
fn check(plan: &Plan, drops: &[Drop], vectors: &[Vec<u64>]) {
    let left = |kind: Kind| drops.iter().filter(|drop| drop.is_none_or(|drop| drop > kind)).count();
    let stages = [Kind::Advertise, Kind::Deal, Kind::Masked, Kind::Consent, Kind::Reveal];
    let short = stages.into_iter().find(|kind| left(*kind) < plan.threshold);
    let mut run = Run::with_drops(plan, drops);
    let end = run.finish(vectors);
    let Some(kind) = short else {
        let sum = end.unwrap();
        let survivors = || (0..drops.len()).filter(|i| drops[*i].is_none_or(|drop| drop > Kind::Masked));
        assert_eq!(sum.survivors, survivors().map(id).collect::<Vec<_>>());
        assert_eq!(sum.vector, plain_sum(survivors().map(|i| &*vectors[i]), plan.ring, plan.len));
        return;
    };
    let (have, need) = (left(kind), plan.threshold);
    assert_eq!(end, Err(SecAggError::BelowThreshold { kind, have, need }));
    // And nothing can be had from it afterwards.
    assert_eq!(run.server.finish(), Err(SecAggError::Over));
    assert!(run.server.close_masked().is_err() && run.server.missing().is_empty());
    if kind < Kind::Reveal {
        assert!(run.sent.iter().all(|(_, kind, _)| *kind != Kind::Reveal));
    }
}

#[test]
fn four_parties_every_way_to_drop_out() {
    let vectors = vectors(4, 3, 1);
    for threshold in [3, 4] {
        for code in 0..6usize.pow(4) {
            let drops: Vec<Drop> = (0..4).map(|i| DROPS[code / 6usize.pow(i) % 6]).collect();
            // With a threshold of all, whoever drops out ends the round: a part of the ways is enough.
            if threshold == 4 && code % 7 != 0 {
                continue;
            }
            let plan = Plan { threshold, ..plan(4, Ring::U64, 3) };
            check(&plan, &drops, &vectors);
        }
    }
}

#[test]
fn two_parties_are_the_fewest_and_many_work() {
    check(&plan(2, Ring::U32, 5), &[None; 2], &vectors(2, 5, 2));
    let mut drops = vec![None; 33];
    drops[3] = Some(Kind::Masked);
    drops[17] = Some(Kind::Consent);
    drops[32] = Some(Kind::Masked);
    check(&plan(33, Ring::U64, 4), &drops, &vectors(33, 4, 3));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_round(
        (n, t, drops) in (2usize..=9).prop_flat_map(|n| {
            // Mostly parties that stay, so that most rounds reach their end.
            let drop = prop_oneof![5 => Just(0usize), 1 => 1usize..6].prop_map(|i| DROPS[i]);
            (Just(n), n / 2 + 1..=n, prop::collection::vec(drop, n))
        }),
        len in prop_oneof![Just(0usize), Just(1), 2usize..50, Just(1024), Just(1025), Just(2500)],
        wide in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let ring = if wide { Ring::U64 } else { Ring::U32 };
        let plan = Plan { threshold: t, ..plan(n, ring, len) };
        check(&plan, &drops, &vectors(n, len, seed));
    }
}
