//! The ledger: never below what was released, whatever happens to it.

use std::fs;
use std::path::{Path, PathBuf};

use lora_fed::privacy::{
    Accounting, Budget, Charge, Ledger, Mechanism, PrivacyError, Secret, StepInputs, StepKey, Unit, steps_for,
};

const BUDGET: Budget = Budget { unit: Unit::Example, epsilon: 2.0, delta: 1e-5, accounting: Accounting::Rdp };

fn key(step: u64, weights: &str) -> StepKey {
    let weights = weights.as_bytes();
    StepKey::new(&StepInputs { run: "ledger", step, data: b"", configuration: b"", weights })
}

fn mechanism() -> Mechanism {
    Mechanism::new(1.0, 0.01).unwrap()
}

/// In memory where there is such a folder: thousands of syncs take a minute on a disk.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = folder.path().join("ledger.jsonl");
    (folder, path)
}

fn open(path: &Path) -> Ledger {
    open_with(path, &BUDGET)
}

fn open_with(path: &Path, budget: &Budget) -> Ledger {
    Ledger::open(path, budget).unwrap().under(&Secret::from_bytes([3; 32]))
}

/// A ledger of five charges.
fn five(path: &Path) -> f64 {
    let mut ledger = open(path);
    for step in 0..5 {
        assert_eq!(ledger.charge(&key(step, "w"), mechanism()).unwrap(), Charge::New);
    }
    ledger.spent().unwrap()
}

#[test]
fn it_remembers_exactly() {
    let (_folder, path) = folder();
    let spent = five(&path);
    let ledger = open(&path);
    assert_eq!((ledger.charges(), ledger.spent().unwrap()), (5, spent));
    assert_eq!(ledger.accountant().history().len(), 1);
    assert_eq!(ledger.budget(), &BUDGET);
    // Every line is JSON, and its first says what is spent of.
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert_eq!(lines[0]["budget"]["unit"], "example");
    assert_eq!(lines[5]["sigma"], 1.0);
}

#[test]
fn a_replay_is_charged_once() {
    let (_folder, path) = folder();
    let spent = five(&path);
    let mut ledger = open(&path);
    assert_eq!(ledger.charge(&key(4, "w"), mechanism()).unwrap(), Charge::Replayed);
    assert_eq!(ledger.spent().unwrap(), spent);
    // The same step from other weights is another release.
    assert_eq!(ledger.charge(&key(4, "other"), mechanism()).unwrap(), Charge::New);
    assert_eq!(ledger.charges(), 6);
    assert!(ledger.spent().unwrap() > spent);
    drop(ledger);
    assert_eq!(open(&path).charges(), 6);
}

/// As builds before wrote it: steps by a hash without a key, one of them with that of what was released.
const FORMER: &str = r#"{"ledger":1,"budget":{"unit":"example","epsilon":2.0,"delta":1e-5,"accounting":"rdp"},"sha256":"ad616a9e1cf26e3770a2b0067005af926e33845f07955274769b0376e8183f0b"}
{"step":0,"key":"194be1d4a8a9659aeb5f9171db84d03cb23cdd53e993ed4d7c7f043b977bee2b","sigma":1.0,"q":0.01,"sha256":"8a070060e9f1f74d7adb649cebb0e40ac638007e5fafc779a0e94696890d6c93"}
{"step":1,"key":"0da2bca8710d63407ddf544302afe97a04994f635e2c8c166cb3b30739c4ea80","sigma":1.0,"q":0.01,"released":"0707070707070707070707070707070707070707070707070707070707070707","sha256":"0c73084f85e46b0e099d82f845adb6a393d72c1a6eb21572bb3bb3912c2f1f88"}
"#;

/// What a build before charged is known again, and no hash of that sort is written any more: whoever knows all rows but one
/// could try that one by it.
#[test]
fn a_former_ledger_goes_on() {
    let (_folder, path) = folder();
    fs::write(&path, FORMER).unwrap();
    let mut ledger = open(&path);
    ledger.allow(&key(1, "w"), mechanism()).unwrap();
    assert_eq!(ledger.charge_release(&key(1, "w"), mechanism(), &[7; 32]).unwrap(), Charge::Replayed);
    let other = ledger.charge_release(&key(1, "w"), mechanism(), &[8; 32]);
    assert!(matches!(other, Err(PrivacyError::OtherRelease { step: 1 })), "{other:?}");
    assert_eq!((ledger.charges(), fs::read_to_string(&path).unwrap()), (2, FORMER.to_owned()));
    // Of what was released there is no hash: under another secret it would be other noise, and free.
    assert_eq!(ledger.charge(&key(0, "w"), mechanism()).unwrap(), Charge::New);
    drop(ledger);
    assert_eq!(open(&path).charge(&key(0, "w"), mechanism()).unwrap(), Charge::Replayed);
    // The same steps in a ledger of today, under two secrets.
    let former: Vec<&str> = FORMER.lines().filter_map(|line| line.split('"').nth(5)).skip(1).collect();
    assert!(former.len() == 2 && former.iter().all(|name| name.len() == 64), "{former:?}");
    let written = [1, 2].map(|secret| {
        let (_folder, path) = folder();
        let mut ledger = Ledger::open(&path, &BUDGET).unwrap().under(&Secret::from_bytes([secret; 32]));
        (0..2).for_each(|step| assert_eq!(ledger.charge(&key(step, "w"), mechanism()).unwrap(), Charge::New));
        fs::read_to_string(&path).unwrap()
    });
    assert!(former.iter().all(|name| written.iter().all(|text| !text.contains(name))), "{written:?}");
    assert_ne!(written[0].lines().nth(1), written[1].lines().nth(1));
}

/// Told of no secret it names steps under one that is gone with it: too much is charged rather than too little.
#[test]
fn a_ledger_without_a_secret_knows_what_it_charged_itself() {
    let (_folder, path) = folder();
    for before in 0..2 {
        let mut ledger = Ledger::open(&path, &BUDGET).unwrap();
        assert_eq!(ledger.charge(&key(0, "w"), mechanism()).unwrap(), Charge::New);
        assert_eq!(ledger.charge(&key(0, "w"), mechanism()).unwrap(), Charge::Replayed);
        assert_eq!(ledger.charges(), before + 1);
    }
}

/// When steps were, and how many, is nobody else's affair on this machine.
#[cfg(unix)]
#[test]
fn it_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = folder();
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    drop(open(&path));
    assert_eq!(mode(), 0o600);
    // As builds before made it.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    drop(open(&path));
    assert_eq!(mode(), 0o600);
}

#[test]
fn a_crash_at_any_byte_forgets_nothing_released() {
    let (folder, path) = folder();
    five(&path);
    let whole = fs::read(&path).unwrap();
    let torn = folder.path().join("torn");
    for length in 0..=whole.len() {
        for zeros in [0, 3] {
            let mut bytes = whole[..length].to_vec();
            // A charge was released only after its whole line was on the disk.
            let lines = bytes.iter().filter(|&&b| b == b'\n').count();
            let ended = bytes.ends_with(b"\n") || length == 0;
            bytes.resize(length + zeros, 0);
            fs::write(&torn, &bytes).unwrap();
            let mut ledger = open(&torn);
            let released = lines.saturating_sub(1);
            let charged = ledger.charges();
            // A line that only lacks its end counts; nothing else that is torn does.
            let complete = !ended && whole[length] == b'\n' && lines > 0;
            assert_eq!(charged, released + usize::from(complete), "{length}");
            // And it goes on from there.
            ledger.charge(&key(9, "w"), mechanism()).unwrap();
            drop(ledger);
            assert_eq!(open(&torn).charges(), charged + 1, "{length}");
        }
    }
}

#[test]
fn a_flipped_bit_is_noticed() {
    let (folder, path) = folder();
    five(&path);
    let whole = fs::read(&path).unwrap();
    let bad = folder.path().join("bad");
    for index in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[index] ^= 1 << bit;
            fs::write(&bad, &bytes).unwrap();
            match Ledger::open(&bad, &BUDGET) {
                Err(PrivacyError::Corrupt { line, .. }) => {
                    let at = whole[..index].iter().filter(|&&b| b == b'\n').count() + 1;
                    assert!(line == at || line == at + 1, "byte {index}, bit {bit}: line {line}, not {at}");
                }
                other => panic!("byte {index}, bit {bit}: {other:?}"),
            }
        }
    }
}

#[test]
fn lines_that_are_missing_or_doubled_are_noticed() {
    let (folder, path) = folder();
    five(&path);
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let bad = folder.path().join("bad");
    let with = |lines: &[&str]| {
        fs::write(&bad, lines.join("\n") + "\n").unwrap();
        Ledger::open(&bad, &BUDGET).map(|l| l.charges())
    };
    for gone in 0..5 {
        let mut left = lines.clone();
        left.remove(gone);
        let at = gone + 1;
        assert!(matches!(with(&left), Err(PrivacyError::Corrupt { line, .. }) if line == at), "{gone}");
    }
    let mut twice = lines.clone();
    twice.insert(3, lines[3]);
    assert!(matches!(with(&twice), Err(PrivacyError::Corrupt { line: 5, .. })));
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    assert!(with(&swapped).is_err());
    // Lines taken from the end leave a good ledger; a head that was kept tells.
    let head = open(&path).head().to_owned();
    assert_eq!(with(&lines[..4]).unwrap(), 3);
    assert!(open(&path).holds(&head) && !open(&bad).holds(&head));
}

#[test]
fn it_stops_before_the_budget_is_exceeded() {
    for accounting in [Accounting::Rdp, Accounting::Pld] {
        let (_folder, path) = folder();
        let budget = Budget { accounting, epsilon: 1.5, ..BUDGET };
        let mechanism = Mechanism::new(1.0, 0.01).unwrap();
        let mut ledger = open_with(&path, &budget);
        let fit = steps_for(ledger.accountant(), 1.5, 1e-5, 1.0, 0.01, 1000).unwrap();
        assert!((10..1000).contains(&fit), "{fit}");
        assert_eq!(ledger.remaining(mechanism, 1000).unwrap(), fit);
        let mut charged = 0;
        let refused = loop {
            match ledger.charge(&key(charged, "w"), mechanism) {
                Ok(Charge::New) => charged += 1,
                other => break other,
            }
            assert!(charged % 32 > 0 || ledger.spent().unwrap() <= 1.5);
            // In the middle, from the file.
            if charged == fit / 2 {
                drop(ledger);
                ledger = open_with(&path, &budget);
            }
        };
        assert_eq!(charged, fit, "{accounting:?}");
        match refused {
            Err(PrivacyError::Exceeded { step, would, budget, .. }) => {
                assert!(step == fit && would > budget && budget == 1.5);
            }
            other => panic!("{other:?}"),
        }
        // Nothing was charged; a replay is free; what spends nothing still fits.
        let before = fs::read(&path).unwrap();
        assert!(ledger.charge(&key(charged, "w"), mechanism).is_err());
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(ledger.charge(&key(0, "w"), mechanism).unwrap(), Charge::Replayed);
        assert_eq!(
            ledger.charge(&key(charged, "w"), Mechanism::new(1.0, 0.0).unwrap()).unwrap(),
            Charge::New
        );
    }
}

/// Two kinds of steps may cost as much by either history, and more by the one that is chosen when the first step was seen:
/// of (1.5, 0.3) and then (2.789, 1) or (0.4325, 0.002), at delta 1e-5, epsilon is 2.00 either way and about 2.19 by choice.
#[test]
fn steps_of_another_kind_are_refused() {
    let kind = |sigma, q| Mechanism::new(sigma, q).unwrap();
    for accounting in [Accounting::Rdp, Accounting::Pld] {
        let (_folder, path) = folder();
        let budget = Budget { accounting, epsilon: 8.0, ..BUDGET };
        let mut ledger = open_with(&path, &budget);
        ledger.charge(&key(0, "w"), kind(1.5, 0.3)).unwrap();
        drop(ledger);
        let before = fs::read(&path).unwrap();
        let mut ledger = open_with(&path, &budget);
        for (sigma, q) in [(2.789, 1.0), (0.4325, 0.002), (1.5, 0.2), (1.6, 0.3)] {
            let refused = |result: Result<Charge, PrivacyError>| {
                let error = result.unwrap_err();
                let PrivacyError::OtherKind { step: 1, found, wanted } = error else { panic!("{error}") };
                assert_eq!((found, wanted), (kind(1.5, 0.3), kind(sigma, q)));
            };
            refused(ledger.charge(&key(1, "w"), kind(sigma, q)));
            refused(ledger.allow(&key(1, "w"), kind(sigma, q)).map(|()| Charge::New));
            assert_eq!(ledger.remaining(kind(sigma, q), 10).unwrap(), 0);
        }
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(ledger.charge(&key(0, "w"), kind(1.5, 0.3)).unwrap(), Charge::Replayed);
        assert_eq!(ledger.charge(&key(1, "w"), kind(1.5, 0.3)).unwrap(), Charge::New);
        // Another machine's last digits are no other kind.
        assert_eq!(ledger.settled(kind(1.5 * (1.0 + 1e-12), 0.3)), kind(1.5, 0.3));
        for other in [kind(1.501, 0.3), kind(1.5, 0.31)] {
            assert_eq!(ledger.settled(other), other);
        }
        // Gaussians that draw nothing.
        let (_folder, path) = folder();
        let mut ledger = open_with(&path, &budget);
        for (step, sigma) in [3.0, 4.0, 5.0].into_iter().enumerate() {
            assert_eq!(ledger.charge(&key(step as u64, "w"), kind(sigma, 1.0)).unwrap(), Charge::New);
        }
        assert!(matches!(ledger.charge(&key(9, "w"), kind(3.0, 0.5)), Err(PrivacyError::OtherKind { .. })));
    }
}

#[test]
fn only_one_may_have_it_open() {
    let (_folder, path) = folder();
    let first = open(&path);
    let second = Ledger::open(&path, &BUDGET);
    assert!(matches!(second, Err(PrivacyError::Locked { .. })), "{second:?}");
    assert!(second.unwrap_err().hint().is_some());
    drop(first);
    open(&path);
}

#[test]
fn another_budget_is_refused() {
    let (_folder, path) = folder();
    five(&path);
    for other in [
        Budget { unit: Unit::Client, ..BUDGET },
        Budget { epsilon: 2.5, ..BUDGET },
        Budget { delta: 1e-6, ..BUDGET },
        Budget { accounting: Accounting::Pld, ..BUDGET },
    ] {
        let opened = Ledger::open(&path, &other);
        assert!(matches!(opened, Err(PrivacyError::OtherBudget { .. })), "{opened:?}");
    }
    for bad in [Budget { epsilon: f64::NAN, ..BUDGET }, Budget { delta: 0.0, ..BUDGET }] {
        assert!(matches!(Ledger::open(&path, &bad), Err(PrivacyError::Parameter { .. })));
    }
}

#[test]
fn a_folder_that_is_not_there() {
    let (folder, _) = folder();
    let missing = Ledger::open(&folder.path().join("no/such/ledger"), &BUDGET);
    match missing {
        Err(e @ PrivacyError::Disk { .. }) => assert_eq!(e.hint(), Some("check the path")),
        other => panic!("{other:?}"),
    }
}
