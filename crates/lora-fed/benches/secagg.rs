//! What a round costs: `cargo bench -p lora-fed`.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lora_fed::secagg::{
    Client, Directory, IdentityKey, PartyId, Plan, Ring, RoundId, Rounds, Secret, Server, Session, mask,
};

const LEN: usize = 1_000_000;

fn key(i: u32) -> IdentityKey {
    IdentityKey::from_secret(&Secret::new([i as u8 + 1; 32]))
}

fn session(n: u32, ring: Ring) -> Session {
    let parties = (0..n).map(|i| (PartyId(i), key(i).public())).collect();
    let round = RoundId { run: [0; 16], number: 0 };
    let plan = Plan::new(round, (0..n).map(PartyId).collect(), ring, LEN);
    Session::new(plan, &Directory { server: key(200).public(), parties }).unwrap()
}

/// A round up to the masked vectors, `dropped` of the parties not sending theirs.
fn masked(session: &Session, dropped: usize, vector: &[u64]) -> (Server, Vec<Client>) {
    let ids = session.plan().parties.clone();
    let join = |id: &PartyId| Client::join(key(id.0), *id, session.clone(), &mut Rounds::default()).unwrap();
    let mut clients: Vec<Client> = ids.iter().map(join).collect();
    let mut server = Server::open(key(200), session.clone()).unwrap();
    for client in &mut clients {
        server.receive(&client.advertise().unwrap()).unwrap();
    }
    let list = server.close_keys().unwrap();
    for client in &mut clients {
        server.receive(&client.deal(&list).unwrap()).unwrap();
    }
    let bundles = server.close_deals().unwrap();
    clients.truncate(ids.len() - dropped);
    for (client, (_, bundle)) in clients.iter_mut().zip(&bundles) {
        server.receive(&client.mask(bundle, vector).unwrap()).unwrap();
    }
    (server, clients)
}

/// The end of a round up to the last reveal.
fn revealed(session: &Session, dropped: usize, vector: &[u64]) -> Server {
    let (mut server, mut clients) = masked(session, dropped, vector);
    let survivors = server.close_masked().unwrap();
    for client in &mut clients {
        server.receive(&client.consent(&survivors).unwrap()).unwrap();
    }
    let unmask = server.close_consents().unwrap();
    for client in &mut clients {
        server.receive(&client.reveal(&unmask).unwrap()).unwrap();
    }
    server
}

fn rounds(c: &mut Criterion) {
    let vector = vec![3u64; LEN];
    let mut group = c.benchmark_group("million");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    group.throughput(Throughput::Elements(LEN as u64));
    for ring in [Ring::U32, Ring::U64] {
        let seed = Secret::new([5; 32]);
        let mut sum = vector.clone();
        group.bench_function(format!("one mask, {ring:?}"), |b| {
            b.iter(|| mask::apply(black_box(&mut sum), ring, [(&seed, mask::Sign::Plus)]).unwrap());
        });
        let session = session(10, ring);
        group.bench_function(format!("a party's masked vector among 10, {ring:?}"), |b| {
            let before = || {
                let ids = session.plan().parties.clone();
                let mut clients: Vec<Client> = ids
                    .iter()
                    .map(|id| Client::join(key(id.0), *id, session.clone(), &mut Rounds::default()).unwrap())
                    .collect();
                let mut server = Server::open(key(200), session.clone()).unwrap();
                for client in &mut clients {
                    server.receive(&client.advertise().unwrap()).unwrap();
                }
                let list = server.close_keys().unwrap();
                for client in &mut clients {
                    server.receive(&client.deal(&list).unwrap()).unwrap();
                }
                let bundles = server.close_deals().unwrap();
                (clients.swap_remove(0), bundles[0].1.clone())
            };
            b.iter_batched(
                before,
                |(mut client, bundle)| client.mask(&bundle, &vector).unwrap(),
                BatchSize::PerIteration,
            );
        });
        for dropped in [0, 3] {
            group.bench_function(format!("the server's unmasking, {dropped} of 10 dropped, {ring:?}"), |b| {
                b.iter_batched(
                    || revealed(&session, dropped, &vector),
                    |mut server| server.finish().unwrap(),
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();

    let mut group = c.benchmark_group("keys and shares, all parties and the server");
    group.sample_size(10).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for n in [10, 32] {
        let parties = (0..n).map(|i| (PartyId(i), key(i).public())).collect();
        let round = RoundId { run: [0; 16], number: 0 };
        let plan = Plan::new(round, (0..n).map(PartyId).collect(), Ring::U64, 0);
        let session = Session::new(plan, &Directory { server: key(200).public(), parties }).unwrap();
        group.bench_function(format!("a whole round of {n}, no coordinates"), |b| {
            b.iter(|| revealed(&session, 0, &[]).finish().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, rounds);
criterion_main!(benches);
