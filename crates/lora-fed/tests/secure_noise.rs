//! Sums to which every client brings its share of the noise.

#[allow(dead_code)]
#[path = "common/cast.rs"]
mod cast;

use cast::{Cast, DOUBLE, NAMES, TEN, settings};
use lora_core::Error;
use lora_fed::engine::{Federation, Model, Noise, Settings};
use lora_fed::privacy::{Accounting, sigma_for};
use lora_fed::secagg::wire::Kind;
use lora_fed::secagg::{Own, PartyId};
use tch::{Kind as Dtype, Tensor};

/// A larger model, so that moments can be told.
fn wide() -> Federation {
    wide_of(settings("ffa"))
}

fn wide_of(settings: Settings) -> Federation {
    let b = Tensor::zeros([5000, 2], DOUBLE);
    let a = Tensor::arange(12, DOUBLE).view([2, 6]) / 12.0;
    let model = Model::new([("m.lora_A.weight".to_owned(), a), ("m.lora_B.weight".to_owned(), b)].into());
    Federation::new(settings, model, |_, r| 4.0 / r as f64).unwrap()
}

fn b_of(f: &Federation) -> &Tensor {
    &f.model.adapter["m.lora_B.weight"]
}

/// What each learnt, clipped, and noise of the size that was asked for: more with all five there than with the four that
/// must stay, of whom one may be on the coordinator's side.
#[test]
fn noise_is_as_large_as_it_must_be() {
    let noise = Noise { clip: 3.0, sigma: 0.7 };
    let mut cast = Cast::noised(&NAMES, noise, 1e6);
    let mut f = wide();
    let mut engine = cast.between(|_, _, _| Ok(()));
    cast.round(&mut f, &mut engine).unwrap();

    // Every number of a client's B moves alike, so its clipped B is the norm spread evenly, with its sign.
    let step = |client: &str| (f64::from(client.as_bytes()[0] - 90) / 70.0 + 1.0).sin().signum();
    let each = noise.clip / 10_000f64.sqrt();
    let mean = NAMES.iter().map(|c| step(c) * each).sum::<f64>() / 5.0;
    let off = b_of(&f) - mean;
    let deviation = 0.7 * 3.0 * (5f64 / 3.0).sqrt() / 5.0;
    let found = off.square().mean(Dtype::Double).double_value(&[]).sqrt();
    assert!((found / deviation - 1.0).abs() < 0.05, "{found} {deviation}");
    let centre = off.mean(Dtype::Double).double_value(&[]) / deviation * 100.0;
    assert!(centre.abs() < 5.0, "{centre} deviations of a mean off");
    // And it is another every time. Clients learn from where they start: from the same again, or theirs would follow the first.
    f.model.adapter = wide().model.adapter;
    cast.round(&mut f, &mut engine).unwrap();
    let again = b_of(&f) - b_of(&f).mean(Dtype::Double);
    let product = (&again * &off).mean(Dtype::Double).double_value(&[]) / deviation.powi(2);
    assert!(product.abs() < 0.06, "{product}");
}

/// Of ten three may tell the coordinator their shares, and all three may be among six that it asks, of whom five must stay:
/// the shares of two make the whole.
#[test]
fn a_few_of_many_bring_larger_shares() {
    let mut cast = Cast::noised(&TEN, Noise { clip: 3.0, sigma: 0.7 }, 1e6);
    let mut f = wide_of(Settings { per_round: Some(6), ..settings("ffa") });
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    assert!(round.clients.len() == 6 && round.clients.iter().all(|told| told.refused.is_none()), "{round:?}");
    // Every number learnt is the same, so what differs is noise.
    let off = b_of(&f) - b_of(&f).mean(Dtype::Double);
    let found = off.square().mean(Dtype::Double).double_value(&[]).sqrt();
    let deviation = 0.7 * 3.0 * (6f64 / 2.0).sqrt() / 6.0;
    assert!((found / deviation - 1.0).abs() < 0.05, "{found} {deviation}");
}

/// How large a share is hangs on the directory. Parties of a larger one than the coordinator's bring none.
#[test]
fn shares_are_of_one_directory() {
    let mut cast = Cast::noised(&NAMES, Noise { clip: 1.0, sigma: 2.0 }, 100.0);
    for party in [8, 9].map(PartyId) {
        cast.directory.parties.insert(party, Own::generate(Some(party)).unwrap().key.public());
    }
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut wide(), &mut engine).unwrap();
    let refused = round.clients[0].refused.clone().unwrap();
    assert!(round.lost.is_some() && refused.contains("not the one that the plan names"), "{refused}");
    drop(engine);
    assert!(NAMES.iter().all(|client| cast.ledger(client).charges() == 0));
}

/// Of a client that would take over, no more than the clip is in the mean.
#[test]
fn no_part_is_larger_than_the_clip() {
    let mut cast = Cast::noised(&["a", "b", "far"], Noise { clip: 1e-3, sigma: 0.01 }, 1e9);
    let mut f = wide();
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    assert!(round.clients.iter().all(|told| told.refused.is_none()), "{round:?}");
    let norm = b_of(&f).norm().double_value(&[]);
    assert!(norm < 1.1e-3 + 3.0 * 0.01 * 1e-3 * 100.0, "{norm}");
}

#[test]
fn a_budget_ends_a_clients_part() {
    let sigma = sigma_for(Accounting::Pld, 5.0, 1e-5, 1.0, 2).unwrap();
    let mut cast = Cast::noised(&NAMES, Noise { clip: 1.0, sigma }, 5.0);
    let mut f = wide();
    let mut engine = cast.between(|_, _, _| Ok(()));
    for _ in 0..2 {
        cast.round(&mut f, &mut engine).unwrap();
    }
    let round = cast.round(&mut f, &mut engine).unwrap();
    let refused = round.clients[0].refused.clone().unwrap();
    assert!(round.lost.is_some() && refused.contains("budget"), "{refused}");
    drop(engine);
    for client in NAMES {
        let ledger = cast.ledger(client);
        let spent = ledger.spent().unwrap();
        assert!(ledger.charges() == 2 && spent <= 5.0 && spent > 4.9, "{client}: {spent}");
    }
}

/// Whether work on rows fails is of the rows too: it does not, it is charged, and it is noised.
#[test]
fn a_part_that_fails_for_its_rows_is_zeros() {
    let (noise, names) = (Noise { clip: 3.0, sigma: 0.01 }, ["a", "b", "nan", "overflows"]);
    let mut cast = Cast::noised(&names, noise, 1e9);
    let mut f = wide();
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut f, &mut engine).unwrap();
    assert!(round.lost.is_none() && round.clients.iter().all(|told| told.refused.is_none()), "{round:?}");
    drop(engine);
    assert!(names.iter().all(|client| cast.ledger(client).charges() == 1));
    // What two learnt, over four. All that they learnt is positive.
    let (mean, found) = (2.0 * 3.0 / 100.0 / 4.0, b_of(&f).mean(Dtype::Double).double_value(&[]));
    assert!((found - mean).abs() < 0.05 * mean, "{found} {mean}");
}

/// What hangs on no row ends a part, and nothing left: a task that fits nobody, a disk.
#[test]
fn a_part_that_fails_for_anything_else_is_not_charged() {
    let noise = Noise { clip: 1.0, sigma: 2.0 };
    for bad in ["broken", "full"] {
        let mut cast = Cast::noised(&["a", "b", "c", bad], noise, 100.0);
        let mut engine = cast.between(|_, _, _| Ok(()));
        let round = cast.round(&mut wide(), &mut engine).unwrap();
        drop(engine);
        let told = round.clients.iter().find(|told| told.client == bad).unwrap();
        assert!(told.refused.as_ref().unwrap().contains("training failed"), "{round:?}");
        assert_eq!(
            (round.lost.is_none(), cast.ledger(bad).charges(), cast.ledger("a").charges()),
            (true, 0, 1)
        );
    }
}

/// A round that is lost behind its vectors was paid for.
#[test]
fn what_left_is_charged() {
    let mut cast = Cast::noised(&NAMES, Noise { clip: 1.0, sigma: 2.0 }, 100.0);
    let mut f = wide();
    let mut engine = cast.between(|_, kind, _| match kind {
        Some(Kind::Survivors) => Err(Error::data("gone")),
        _ => Ok(()),
    });
    assert!(cast.round(&mut f, &mut engine).unwrap().lost.is_some());
    drop(engine);
    assert!(NAMES.iter().all(|client| cast.ledger(client).charges() == 1));
}

/// A party whose memory of rounds was lost makes other noise for the same round, and pays for it.
#[test]
fn other_noise_is_another_charge() {
    let mut cast = Cast::noised(&NAMES, Noise { clip: 1.0, sigma: 2.0 }, 100.0);
    for charges in 1..=2 {
        let mut engine = cast.between(|_, _, _| Ok(()));
        cast.round(&mut wide(), &mut engine).unwrap();
        drop(engine);
        assert!(NAMES.iter().all(|client| cast.ledger(client).charges() == charges));
        if charges == 1 {
            cast.forget();
        }
    }
}

/// Less noise for one, none at all, or none of its own will: refused.
#[test]
fn noise_is_what_the_plan_says() {
    let noise = Noise { clip: 1.0, sigma: 2.0 };
    let meddles: [Option<Noise>; 3] =
        [None, Some(Noise { sigma: 0.01, ..noise }), Some(Noise { clip: 1e6, ..noise })];
    for meddle in meddles {
        let mut cast = Cast::noised(&NAMES, noise, 100.0);
        let mut f = wide();
        let mut engine = cast.between(move |client, _, letter| {
            if letter.task.is_some() && client == "c" {
                letter.noise = meddle;
            }
            Ok(())
        });
        let round = cast.round(&mut f, &mut engine).unwrap();
        let refused = round.clients[2].refused.clone().unwrap();
        assert!(refused.contains("not the one that the plan names"), "{refused}");
        drop(engine);
        assert_eq!(cast.ledger("c").charges(), 0);
    }
    // The parties have budgets, and the coordinator asks for bare sums; and the other way round.
    let mut cast = Cast::noised(&NAMES, noise, 100.0);
    let plain = Cast::new(&NAMES);
    cast.coordinator = plain.coordinator;
    cast.directory = plain.directory;
    cast.own = plain.own;
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut wide(), &mut engine).unwrap();
    assert!(round.clients[0].refused.as_ref().unwrap().contains("noised sums alone"), "{round:?}");
    let mut cast = Cast::new(&NAMES);
    cast.coordinator = cast.coordinator.with(noise);
    let mut engine = cast.between(|_, _, _| Ok(()));
    let round = cast.round(&mut wide(), &mut engine).unwrap();
    assert!(round.clients[0].refused.as_ref().unwrap().contains("no budget"), "{round:?}");
}
