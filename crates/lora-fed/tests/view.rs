//! What the server sees: vectors that look like noise, whichever it adds up.
#![allow(missing_docs)]

mod common;

use common::{Drop, Run, decode, id, plan, vectors};
use lora_fed::secagg::messages::Masked;
use lora_fed::secagg::{Kind, Plan, Ring, RoundId, mask, plain_sum};

/// The masked vectors that the server was sent, in the order of the parties.
fn masked(run: &Run) -> Vec<Vec<u64>> {
    let ring = run.session.plan().ring;
    let vectors = run.sent.iter().filter(|(_, kind, _)| *kind == Kind::Masked);
    let read = |message: &[u8]| {
        let mut vector = vec![0; run.session.plan().len];
        mask::add_bytes(&mut vector, ring, decode::<Masked<'_>>(message).vector).unwrap();
        vector
    };
    vectors.map(|(_, _, message)| read(message)).collect()
}

fn looks_uniform(vector: &[u64], ring: Ring, what: &str) {
    let bytes = mask::to_bytes(vector, ring);
    let mut counts = [0u32; 256];
    bytes.iter().for_each(|byte| counts[*byte as usize] += 1);
    let expected = bytes.len() as f64 / 256.0;
    let chi: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
    // 255 degrees of freedom; six deviations.
    assert!((chi - 255.0).abs() < 6.0 * (2.0f64 * 255.0).sqrt(), "{what}: {chi}");
    let ones: u32 = bytes.iter().map(|byte| byte.count_ones()).sum();
    let bits = bytes.len() as f64 * 8.0;
    let z = (f64::from(ones) - bits / 2.0) / (bits / 4.0).sqrt();
    assert!(z.abs() < 6.0, "{what}: {z}");
}

fn minus(a: &[u64], b: &[u64], ring: Ring) -> Vec<u64> {
    a.iter().zip(b).map(|(a, b)| ring.reduce(a.wrapping_sub(*b))).collect()
}

const LEN: usize = 1 << 14;

/// Vectors of zeros, in every part of the parties but all: pairs cancel, and the seeds' masks stay.
#[test]
fn any_part_of_the_sum_looks_uniform() {
    for ring in [Ring::U32, Ring::U64] {
        let zeros = vec![vec![0; LEN]; 4];
        let mut run = Run::new(&plan(4, ring, LEN));
        run.masked(&zeros).unwrap();
        let masked = masked(&run);
        for part in 1..16usize {
            let chosen = (0..4).filter(|i| part >> i & 1 == 1).map(|i| masked[i].as_slice());
            looks_uniform(&plain_sum(chosen, ring, LEN), ring, &format!("{ring:?}, parties {part:04b}"));
        }
    }
}

/// Below the threshold the server has masked vectors and nothing that unmasks them, after whichever stage.
#[test]
fn below_the_threshold_nothing_is_seen() {
    for kind in [Kind::Masked, Kind::Consent, Kind::Reveal] {
        let drops: [Drop; 4] = [None, None, Some(kind), Some(kind)];
        let mut run = Run::with_drops(&plan(4, Ring::U64, LEN), &drops);
        let vectors =
            vectors(4, LEN, 3).iter().map(|v| v.iter().map(|x| x >> 60).collect()).collect::<Vec<_>>();
        assert!(run.finish(&vectors).is_err());
        let masked = masked(&run);
        assert_eq!(masked.len(), if kind == Kind::Masked { 2 } else { 4 });
        for part in 1..1usize << masked.len() {
            let chosen = || (0..masked.len()).filter(|i| part >> i & 1 == 1);
            let sum = plain_sum(chosen().map(|i| masked[i].as_slice()), Ring::U64, LEN);
            looks_uniform(&sum, Ring::U64, &format!("{kind}, {part:04b}"));
            let plain = plain_sum(chosen().map(|i| vectors[i].as_slice()), Ring::U64, LEN);
            assert!(sum.iter().zip(&plain).filter(|(s, p)| s == p).count() <= 1);
        }
    }
}

/// The same parties, the same vectors, another round: no mask has anything to do with the one before.
#[test]
fn rounds_are_independent() {
    let first = plan(3, Ring::U64, LEN);
    let next = Plan { round: RoundId { number: 2, ..first.round }, ..first.clone() };
    let zeros = vec![vec![0; LEN]; 3];
    let rounds: Vec<Vec<Vec<u64>>> = [&first, &first, &next]
        .into_iter()
        .map(|plan| {
            let mut run = Run::new(plan);
            run.masked(&zeros).unwrap();
            masked(&run)
        })
        .collect();
    for i in 0..3 {
        for (a, b) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b) = (&rounds[a][i], &rounds[b][i]);
            looks_uniform(&minus(a, b, Ring::U64), Ring::U64, &format!("difference, party {i}"));
            let xor: Vec<u64> = a.iter().zip(b).map(|(a, b)| a ^ b).collect();
            looks_uniform(&xor, Ring::U64, &format!("xor, party {i}"));
        }
        // Nor have the masks of two parties of one round.
        let (a, b) = (&rounds[0][i], &rounds[0][(i + 1) % 3]);
        looks_uniform(&minus(a, b, Ring::U64), Ring::U64, "two parties");
    }
}

/// Within one vector, too, nothing repeats: neither its halves, nor the blocks in which it is made.
#[test]
fn no_mask_repeats_within_a_vector() {
    let mut run = Run::new(&plan(3, Ring::U64, LEN));
    run.masked(&vec![vec![0; LEN]; 3]).unwrap();
    let vector = &masked(&run)[0];
    for shift in [1, 8, 1024, 2048, LEN / 2] {
        looks_uniform(&minus(&vector[shift..], &vector[..LEN - shift], Ring::U64), Ring::U64, "shifted");
    }
}

/// Beside the vector a round of ten takes two kilobytes up and four down.
#[test]
fn sizes_of_a_round() {
    for (ring, len) in [(Ring::U32, 10_000), (Ring::U64, 10_000)] {
        let mut run = Run::new(&plan(10, ring, len));
        let vectors = vectors(10, len, 1);
        run.finish(&vectors).unwrap();
        let sent = run.sent.iter().filter(|(party, ..)| *party == id(0));
        let sizes: Vec<usize> = sent.map(|(.., message)| message.len()).collect();
        let vector = len * ring.bytes();
        assert_eq!(sizes, [158, 897, 94 + 32 + 3 + vector, 126, 458]);
        assert_eq!(run.down, 4063);
    }
}
