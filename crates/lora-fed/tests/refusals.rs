//! Plans and keys that are refused before anything is sent.
#![allow(missing_docs)]

mod common;

use common::{Run, decode, directory, id, key, plan};
use lora_fed::secagg::messages::{Advertise, KeyList};
use lora_fed::secagg::{Directory, Identity, Kind, PartyId, Plan, Ring, SecAggError, Session};
use serde_bytes::Bytes;

#[test]
fn plans_that_make_no_sense() {
    let good = plan(4, Ring::U64, 3);
    let faults = [
        Plan { threshold: 2, ..good.clone() },
        Plan { threshold: 0, ..good.clone() },
        Plan { threshold: 5, ..good.clone() },
        Plan { len: usize::MAX, ..good.clone() },
        Plan { parties: vec![id(0)], threshold: 1, ..good.clone() },
        Plan { parties: vec![], threshold: 0, ..good.clone() },
        Plan { parties: vec![id(0), id(0), id(1)], threshold: 2, ..good.clone() },
        Plan { parties: vec![id(1), id(0), id(2)], threshold: 2, ..good.clone() },
        Plan { parties: (0..256).map(id).collect(), threshold: 200, ..good.clone() },
        Plan { parties: vec![id(0), PartyId(u32::MAX)], threshold: 2, ..good.clone() },
    ];
    for fault in faults {
        assert!(matches!(Session::new(fault, &directory(256)), Err(SecAggError::Plan(_))));
    }
    assert_eq!(Session::new(good.clone(), &directory(3)).unwrap_err(), SecAggError::UnknownParty(id(3)));
    // One party under two names would have two votes.
    let mut twice: Directory = directory(4);
    twice.parties.insert(id(3), key(id(0).0).public());
    assert!(matches!(Session::new(good, &twice), Err(SecAggError::Plan(_))));
    for (n, t) in [(2, 2), (3, 3), (4, 3), (5, 4), (6, 4), (9, 6), (10, 7), (32, 22), (255, 170)] {
        assert_eq!(Plan::usual_threshold(n), t);
    }
    assert!((2..=255).all(|n| 2 * Plan::usual_threshold(n) > n && Plan::usual_threshold(n) <= n));
}

#[test]
fn keys_that_no_honest_party_has() {
    // 0, 1, p - 1, p, p + 1 and the two points of order eight.
    let eight = [
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000000",
    ];
    for point in eight {
        let mut low = [0; 32];
        let byte = |i: usize| u8::from_str_radix(&point[2 * i..2 * i + 2], 16).unwrap();
        low.iter_mut().enumerate().for_each(|(i, b)| *b = byte(i));
        for mask in [true, false] {
            let mut run = Run::new(&Plan { threshold: 2, ..plan(3, Ring::U64, 1) });
            let own = run.client(0).advertise().unwrap();
            let good: Advertise = decode(&own);
            let bad = if mask { Advertise { mask: low, ..good } } else { Advertise { seal: low, ..good } };
            let bad = run.forge_from(1, Kind::Advertise, &bad);
            let adverts = vec![Bytes::new(&own), Bytes::new(&bad)];
            let list = run.forge(Kind::KeyList, &KeyList { adverts });
            assert_eq!(run.client(0).deal(&list), Err(SecAggError::WeakKey(format!("party {}", id(1)))));
        }
    }
    // Identities: the neutral point, a point of order two, and bytes that are no point.
    let mut one = [0; 32];
    one[0] = 1;
    let mut minus_one = [0xff; 32];
    (minus_one[0], minus_one[31]) = (0xec, 0x7f);
    let mut none = [0; 32];
    none[0] = 2;
    for bytes in [one, minus_one, none, [0; 32]] {
        assert!(Identity::from_bytes(&bytes).is_err(), "{bytes:?}");
    }
    let key = key(1).public();
    assert_eq!(Identity::from_bytes(key.as_bytes()), Ok(key));
}
