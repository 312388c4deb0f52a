//! The store: all or none, whenever the process dies; nothing that rotted is taken.

use lora_core::Error;
use lora_fed::store::Store;
use std::process::Command;

fn fails<T: std::fmt::Debug>(result: Result<T, Error>, why: &str) {
    let e = result.unwrap_err().to_string();
    assert!(e.contains(why), "{e}");
}

#[test]
fn values_come_back_in_order_and_all_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.db");
    let mut store = Store::open(&path).unwrap();
    store.put("a", "z", b"1").unwrap();
    store.put("a", "b", b"2").unwrap();
    store.put("a", "z", b"3").unwrap();
    store.put("b", "z", b"").unwrap();
    assert_eq!(store.keys("a").unwrap(), ["z", "b"], "the order in which they first came");
    fails(
        store.write(|changes| {
            changes.clear("a")?;
            changes.put("a", "new", b"x")?;
            Err(Error::data("changed my mind"))
        }),
        "changed my mind",
    );
    let mut fresh = Vec::new();
    store
        .write(|changes| {
            fresh.push(changes.put_new("a", "z", b"4")?);
            fresh.push(changes.put_new("a", "y", b"5")?);
            changes.remove("a", "b")
        })
        .unwrap();
    assert_eq!(fresh, [false, true]);
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.keys("a").unwrap(), ["z", "y"]);
    assert_eq!(store.get("a", "z").unwrap().unwrap(), b"3");
    assert_eq!(store.get("b", "z").unwrap().unwrap(), b"");
    assert_eq!(store.get("b", "y").unwrap(), None);
}

#[test]
fn one_process_has_it_and_its_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.db");
    let store = Store::open(&path).unwrap();
    fails(Store::open(&path), "open in another process");
    #[cfg(unix)]
    for name in ["node.db", "node.db-wal"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is for others too: {mode:o}");
    }
    drop(store);
    Store::open(&path).unwrap();
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.db");
    std::fs::write(&path, b"some letter of some length, which is no data base at all").unwrap();
    fails(Store::open(&path), "damaged");
    std::fs::remove_file(&path).unwrap();
    let other = rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("CREATE TABLE entry (x)").unwrap();
    drop(other);
    fails(Store::open(&path), "not a store of this version");
    fails(Store::open(&dir.path().join("no/such/folder.db")), "open the store");
}

/// Every byte of the file, changed: what reads is what was written, or nothing is read.
#[test]
fn no_flipped_bit_is_taken_for_data() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.db");
    let mut store = Store::open(&path).unwrap();
    let value = |i: u32| i.to_le_bytes().repeat(40);
    for i in 0..20 {
        store.put("s", &format!("k{i}"), &value(i)).unwrap();
    }
    drop(store);
    let whole = std::fs::read(&path).unwrap();
    let (mut refused, mut same) = (0, 0);
    for at in (0..whole.len()).step_by(37) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&path, &bytes).unwrap();
        let Ok(store) = Store::open(&path) else {
            refused += 1;
            continue;
        };
        let mut all = 0;
        for key in store.keys("s").unwrap_or_default() {
            match store.get("s", &key) {
                Ok(Some(read)) => {
                    let i: u32 = key[1..].parse().expect("a key that was not written");
                    assert_eq!(read, value(i), "byte {at} changed {key} unseen");
                    all += 1;
                }
                Ok(None) | Err(_) => refused += 1,
            }
        }
        same += usize::from(all == 20);
    }
    assert!(refused > 20 && same > 20, "refused {refused}, no harm {same}");
}

/// Run as another process: counts up, three values in step, until it is killed.
#[test]
fn counting_until_killed() {
    let Some(path) = std::env::var_os("LORA_FED_STORE_COUNTS") else { return };
    let mut store = Store::open(path.as_ref()).unwrap();
    let began = store.get("n", "a").unwrap().map_or(0, |v| u64::from_le_bytes(v.try_into().unwrap()));
    for n in began + 1.. {
        store
            .write(|changes| {
                changes.put("n", "a", &n.to_le_bytes())?;
                changes.put("blob", "b", &n.to_le_bytes().repeat(5000))?;
                changes.put("n", "c", &n.to_le_bytes())
            })
            .unwrap();
        std::fs::write(format!("{}.said", path.display()), n.to_string()).unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_loses_nothing_that_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.db");
    let said = dir.path().join("node.db.said");
    let mut last = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "counting_until_killed"])
            .env("LORA_FED_STORE_COUNTS", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while std::time::Instant::now() < until
            && std::fs::read_to_string(&said).ok().and_then(|s| s.parse().ok()).unwrap_or(0) <= last
        {
            std::thread::sleep(std::time::Duration::from_millis(3 + 2 * round));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&path).unwrap();
        let n =
            |space, key| u64::from_le_bytes(store.get(space, key).unwrap().unwrap()[..8].try_into().unwrap());
        let (a, b, c) = (n("n", "a"), n("blob", "b"), n("n", "c"));
        assert!(a == b && b == c, "torn: {a} {b} {c}");
        // What was said to be written is there; the file that says so may itself be cut.
        let promised: u64 = std::fs::read_to_string(&said).unwrap().parse().unwrap_or(0);
        assert!(a >= promised && a > last, "promised {promised}, found {a}");
        last = a;
    }
}
