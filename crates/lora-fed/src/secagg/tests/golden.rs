//! The wire, byte for byte: what these say, another implementation must say too. Derivations, masks and views were
//! computed apart, in Python, from the definitions; change one only together with the version of the wire.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::super::client::Client;
use super::super::keys::{Entropy, IdentityKey, Secret, Use, commitment, derive};
use super::super::mask::{Sign, apply, plain_sum};
use super::super::messages::{Advertise, keys_view, parties_view};
use super::super::plan::{Directory, PartyId, Plan, Ring, RoundId, Session};
use super::super::rounds::Rounds;
use super::super::server::Server;
use super::super::{Kind, wire};
use super::{bytes, secret};

/// RFC 8032, 7.1, tests 1 to 3: two parties and the server.
fn identities() -> [IdentityKey; 3] {
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    ]
    .map(|hex| IdentityKey::from_secret(&secret(hex)))
}

const U: PartyId = PartyId(5);
const V: PartyId = PartyId(8);

fn session() -> Session {
    let [u, v, server] = identities().map(|key| key.public());
    let round = RoundId { run: [7; 16], number: 3 };
    let mut plan = Plan::new(round, vec![U, V], Ring::U64, 1000);
    plan.context = [2; 32];
    Session::new(plan, &Directory { server, parties: BTreeMap::from([(U, u), (V, v)]) }).unwrap()
}

#[test]
fn derivations() {
    let [u, v, _] = identities().map(|key| key.public());
    assert_eq!(*u.as_bytes(), bytes("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
    assert_eq!(*v.as_bytes(), bytes("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"));
    let view: [u8; 32] = std::array::from_fn(|i| i as u8);
    let shared = secret("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
    let key = |purpose, from, to| *derive(purpose, &view, from, to, &shared).unwrap().expose();
    let (u, v) = ((U, &u), (V, &v));
    let golden = [
        (Use::Seal, u, v, "0c97aea99d152277dc115d956538f01a8d2ffe593a528f4446665fe4233cd39a"),
        (Use::Seal, v, u, "c4cbe0abebc44e56c24ef0e253264188022f75c3ec4dc32d3285f0d9a8d01bcc"),
        (Use::PairMask, u, v, "9c54a92a6cae3c4a393574a711dc9be1fe66113e2b5e2c39313a82b3871a2d50"),
        (Use::SelfMask, u, u, "71cdd90509d7ab6ab662e07bbe3038d9899c87f239bb50edaade4a0d259604cb"),
    ];
    for (purpose, from, to, hex) in golden {
        assert_eq!(key(purpose, from, to), bytes(hex), "{purpose:?}");
    }
    let committed = bytes("6014dd06600f87c2675ae21911b1d38cff518f1a60712a473be0c30898ac05db");
    assert_eq!(commitment(&view, U, &shared), committed);
    assert_ne!(commitment(&view, V, &shared), committed);
}

#[test]
fn views() {
    let session = session();
    assert_eq!(*session.digest(), bytes("f9645ac994e04c5746302d71495345c17f7aa1286fc7c65231bffce703cebfa4"));
    let advert = |seal, mask| Advertise { seal: [seal; 32], mask: [mask; 32] };
    let keys = BTreeMap::from([(U, advert(1, 2)), (V, advert(3, 4))]);
    let view = keys_view(&session, keys.iter());
    assert_eq!(view, bytes("1543c7154f1b36cb0c7cef03462f3133915de663cf28ee328d596b298ef4e0c9"));
    let dealers = parties_view(Kind::Bundle, &view, [U, V].iter());
    assert_eq!(dealers, bytes("0eb265df9b93c52f20064954db1b1b4692885f99e785a7516e6f7df8feb77a11"));
}

#[test]
fn masks() {
    let seed = secret("9c54a92a6cae3c4a393574a711dc9be1fe66113e2b5e2c39313a82b3871a2d50");
    let mask = |ring, sign| {
        let mut vector = vec![0; 1030];
        apply(&mut vector, ring, [(&seed, sign)]).unwrap();
        [0, 1, 1023, 1024, 1029].map(|i| vector[i])
    };
    let wide = [
        0xb0e5_8041_c37f_cc5a,
        0xc773_4b46_3f30_5216,
        0xc9c1_d18d_26d8_a470,
        0x9a3d_276a_03b6_ffce,
        0x1f35_99dd_12c8_e49au64,
    ];
    let narrow = [0xc37f_cc5a, 0xb0e5_8041, 0x6358_32e2, 0x6773_425b, 0x0f8f_df5cu64];
    assert_eq!(mask(Ring::U64, Sign::Plus), wide);
    assert_eq!(mask(Ring::U32, Sign::Plus), narrow);
    assert_eq!(mask(Ring::U64, Sign::Minus), wide.map(u64::wrapping_neg));
    assert_eq!(mask(Ring::U32, Sign::Minus), narrow.map(|x| u64::from((x as u32).wrapping_neg())));
}

/// A whole round from fixed randomness, one party dropping out: every message, by its hash.
#[test]
fn a_round() {
    let ids = [U, V, PartyId(13), PartyId(21)];
    let key = |i: usize| IdentityKey::from_secret(&Secret::new([i as u8 + 1; 32]));
    let parties = (0..4).map(|i| (ids[i], key(i).public())).collect();
    let [_, _, server_key] = identities();
    let directory = Directory { server: server_key.public(), parties };
    let plan = Plan::new(RoundId { run: [1; 16], number: 9 }, ids.to_vec(), Ring::U64, 5);
    let session = Session::new(plan, &directory).unwrap();
    let mut clients: Vec<Client> = (0..4)
        .map(|i| {
            let entropy = Entropy::from_seed(&[i as u8 + 100; 32]);
            Client::join_with(key(i), ids[i], session.clone(), &mut Rounds::default(), entropy).unwrap()
        })
        .collect();
    let mut server = Server::open(server_key, session).unwrap();
    let vectors: Vec<Vec<u64>> = (0..4).map(|i| vec![i, 0, 1, u64::MAX, i << 60]).collect();

    let mut hash = Sha256::new();
    let mut sizes = Vec::new();
    let mut note = |message: &[u8]| {
        hash.update(message);
        sizes.push(message.len());
    };
    let mut send = |server: &mut Server, message: Vec<u8>| {
        note(&message);
        server.receive(&message).unwrap();
    };
    for client in &mut clients {
        send(&mut server, client.advertise().unwrap());
    }
    let list = server.close_keys().unwrap();
    for client in &mut clients {
        send(&mut server, client.deal(&list).unwrap());
    }
    let bundles = server.close_deals().unwrap();
    clients.pop();
    for (i, client) in clients.iter_mut().enumerate() {
        send(&mut server, client.mask(&bundles[i].1, &vectors[i]).unwrap());
    }
    let survivors = server.close_masked().unwrap();
    for client in &mut clients {
        send(&mut server, client.consent(&survivors).unwrap());
    }
    let unmask = server.close_consents().unwrap();
    for client in &mut clients {
        send(&mut server, client.reveal(&unmask).unwrap());
    }
    [&list, &bundles[0].1, &survivors, &unmask].into_iter().for_each(|message| note(message));

    let sum = server.finish().unwrap();
    assert_eq!(sum.vector, plain_sum(vectors[..3].iter().map(Vec::as_slice), Ring::U64, 5));
    assert_eq!(sizes[0], wire::HEADER + 64);
    let digest: [u8; 32] = hash.finalize().into();
    assert_eq!(
        digest,
        bytes("859ddfb54046658d07937140bb63c5fc9c120b573079bee6615e7d87cac7a263"),
        "{sizes:?}"
    );
}
