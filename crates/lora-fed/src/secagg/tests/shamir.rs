//! Sharing against its definition, and against the shares of another implementation.

use super::super::SecAggError;
use super::super::keys::{Entropy, Secret};
use super::super::plan::PartyId;
use super::super::shamir::{Held, Sharing, combine, seal, unseal};
use super::{bytes, secret};

fn share(secret: &Secret, threshold: usize, n: u8, seed: u8) -> Vec<(u8, Secret)> {
    let sharing = Sharing::new(secret, threshold, &mut Entropy::from_seed(&[seed; 32])).unwrap();
    (1..=n).map(|point| (point, sharing.at(point))).collect()
}

fn put_together<'a>(shares: impl Iterator<Item = &'a (u8, Secret)> + Clone) -> [u8; 32] {
    *combine(shares.map(|(point, share)| (*point, share))).expose()
}

/// Shares made by vsss-rs 6.0.1, `Gf256::split_bytes(3, 5, ..)`.
#[test]
fn shares_of_vsss_rs() {
    let shares = [
        (1, secret("3d07bb2c32c08dbca2fba8cb55e20d9b1036925ff84cd8177f845ff9d0af7664")),
        (2, secret("e230f1c02647c776cf3d92f98adaf6e4cc4b212b8a563116f95a98cac47e3daa")),
        (3, secret("d4071f968b43a3c45e9e479018d4ea4987fd16be9d0ed05f05760ac103ed2a48")),
        (4, secret("e093914d3bc300e2e972db068e2895f36acb337e1275408b25c9d43aa95f0a3f")),
        (5, secret("d6a47f1b96c7645078d10e6f1c26895e217d04eb052da1c2d9e546316ecc1ddd")),
    ];
    let whole = bytes("0b30557a9fc4e90e33587da2c7ec11365b80a5caef14395e83a8cdf2173c6186");
    for a in 0..5 {
        for b in 0..5 {
            for c in 0..5 {
                if a != b && b != c && a != c {
                    assert_eq!(put_together([&shares[a], &shares[b], &shares[c]].into_iter()), whole);
                }
            }
        }
    }
    assert_ne!(put_together(shares[..2].iter()), whole);
}

#[test]
fn any_threshold_of_shares_in_any_order() {
    let whole = Secret::new(std::array::from_fn(|i| (i * 11) as u8));
    for (n, t) in [(2, 2), (3, 2), (5, 3), (9, 6), (32, 22), (255, 170)] {
        let shares = share(&whole, t, n, 3);
        for start in [0, 1, n as usize / 2, n as usize - 1] {
            let run = || shares.iter().cycle().skip(start);
            assert_eq!(put_together(run().take(t)), *whole.expose(), "{t} of {n} from {start}");
            if t < n as usize {
                assert_eq!(put_together(run().take(t + 1)), *whole.expose());
            }
            assert_ne!(put_together(run().take(t - 1)), *whole.expose());
            let backwards: Vec<_> = run().take(t).collect();
            assert_eq!(put_together(backwards.into_iter().rev()), *whole.expose());
        }
    }
}

/// Below the threshold every secret is as likely: over 4096 sharings of one secret, each byte of a share, and the
/// secret that two shares of three would give, take all values alike.
#[test]
fn fewer_shares_say_nothing() {
    let whole = Secret::new([0x5a; 32]);
    let mut entropy = Entropy::from_seed(&[8; 32]);
    let (mut single, mut guessed) = ([0u32; 256], [0u32; 256]);
    for _ in 0..4096 {
        let sharing = Sharing::new(&whole, 3, &mut entropy).unwrap();
        let (one, two) = (sharing.at(1), sharing.at(2));
        one.expose().iter().for_each(|byte| single[*byte as usize] += 1);
        let guess = combine([(1, &one), (2, &two)].into_iter());
        guess.expose().iter().for_each(|byte| guessed[*byte as usize] += 1);
    }
    for counts in [single, guessed] {
        let expected = 4096.0 * 32.0 / 256.0;
        let chi: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
        // 255 degrees of freedom: beyond six deviations either way.
        assert!((chi - 255.0).abs() < 6.0 * (2.0f64 * 255.0).sqrt(), "{chi}");
    }
}

#[test]
fn sealed_for_one_receiver_by_one_dealer_in_one_view() {
    let held = Held { seed: Secret::new([1; 32]), mask_key: Secret::new([2; 32]) };
    let (key, view) = (Secret::new([3; 32]), [4; 32]);
    let (from, to) = (PartyId(1), PartyId(2));
    let sealed = seal(&held, &key, &view, from, to).unwrap();
    let opened = unseal(&sealed, &key, &view, from, to).unwrap();
    assert_eq!((opened.seed.expose(), opened.mask_key.expose()), (&[1; 32], &[2; 32]));
    let refused = Some(SecAggError::Sealed(from));
    assert_eq!(unseal(&sealed, &Secret::new([5; 32]), &view, from, to).err(), refused);
    assert_eq!(unseal(&sealed, &key, &[5; 32], from, to).err(), refused);
    assert_eq!(unseal(&sealed, &key, &view, from, PartyId(3)).err(), refused);
    assert_eq!(unseal(&sealed, &key, &view, PartyId(3), to).err(), Some(SecAggError::Sealed(PartyId(3))));
    for bit in 0..sealed.len() * 8 {
        let mut flipped = sealed;
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(unseal(&flipped, &key, &view, from, to).err(), refused);
    }
}
