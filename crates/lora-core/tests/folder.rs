//! Whatever fails and whenever the process dies: the old folder or the new one, whole, and nothing beside it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use lora_core::{Error, ErrorKind, OutputFolder, Result, sibling, write_file};
use proptest::prelude::*;

fn ours(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "ours")
}

/// Every file below a folder, with its bytes; a folder itself as `None`.
fn tree(root: &Path) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(root).into_iter().flatten().map(|e| e.unwrap().path()) {
        if entry.is_dir() {
            found.extend(tree(&entry));
            found.insert(entry, None);
        } else {
            found.insert(entry.clone(), Some(fs::read(entry).unwrap()));
        }
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    Dropped,
    FillFails,
    NameTwice,
    NameOutside,
    StagedGone,
    ForeignArrives,
    FileArrives,
}
const FAULTS: [Fault; 8] = [
    Fault::None,
    Fault::Dropped,
    Fault::FillFails,
    Fault::NameTwice,
    Fault::NameOutside,
    Fault::StagedGone,
    Fault::ForeignArrives,
    Fault::FileArrives,
];

fn attempt(
    target: &Path,
    overwrite: bool,
    files: &[(String, Vec<u8>)],
    fault: Fault,
    at: usize,
) -> Result<()> {
    let folder = OutputFolder::create(target, overwrite, ours)?;
    for (i, (name, bytes)) in files.iter().enumerate() {
        if i == at % files.len() {
            match fault {
                Fault::Dropped => return Err(Error::internal("dropped")),
                Fault::FillFails => folder.write_with("half.ours", |file| {
                    std::io::Write::write_all(file, b"half").unwrap();
                    Err(Error::internal("failed"))
                })?,
                Fault::NameTwice => {
                    folder.write("twice.ours", b"1")?;
                    folder.write("twice.ours", b"2")?;
                }
                Fault::NameOutside => folder.write("../outside.ours", b"1")?,
                Fault::StagedGone => fs::remove_dir_all(folder.path()).unwrap(),
                Fault::ForeignArrives => {
                    fs::create_dir_all(target).unwrap();
                    fs::write(target.join("thesis.doc"), b"precious").unwrap();
                }
                Fault::FileArrives if !target.exists() => fs::write(target, b"precious").unwrap(),
                _ => {}
            }
        }
        if fault != Fault::StagedGone || i < at % files.len() {
            folder.write(name, bytes)?;
        }
    }
    folder.commit()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn all_or_nothing(
        old in prop::option::of(prop::collection::btree_map("[a-z]{1,4}(/[a-z]{5})?\\.ours", "[a-z]{0,9}", 0..4)),
        new in prop::collection::btree_map("[a-z]{1,4}(/[a-z]{5})?\\.ours", "\\PC{0,99}", 1..5),
        overwrite in any::<bool>(),
        fault in prop::sample::select(&FAULTS[..]),
        at in 0..5_usize,
    ) {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("made/on the way/out");
        let whole = |files: &BTreeMap<String, String>| files.iter().map(|(n, b)| (n.clone(), b.clone().into_bytes())).collect::<Vec<_>>();
        let occupied = old.as_ref().is_some_and(|old| !old.is_empty());
        if let Some(old) = &old {
            fs::create_dir_all(&target).unwrap();
            for (name, bytes) in whole(old) {
                fs::create_dir_all(target.join(&name).parent().unwrap()).unwrap();
                fs::write(target.join(name), bytes).unwrap();
            }
        }
        let before = tree(&target);
        let result = attempt(&target, overwrite, &whole(&new), fault, at);
        let arrived = (!occupied || overwrite)
            && matches!((fault, old.is_some()), (Fault::ForeignArrives, _) | (Fault::FileArrives, false));
        let succeeds = (!occupied || overwrite)
            && (fault == Fault::None || fault == Fault::FileArrives && old.is_some());
        prop_assert_eq!(result.is_ok(), succeeds, "{:?}", result);
        if succeeds {
            let files: Vec<_> = tree(&target).into_iter().filter_map(|(p, b)| Some((p, b?))).collect();
            let expected: Vec<_> = whole(&new).into_iter().map(|(n, b)| (target.join(n), b)).collect();
            prop_assert_eq!(files.into_iter().collect::<BTreeMap<_, _>>(), expected.into_iter().collect());
        } else if arrived {
            let precious = if target.is_dir() { target.join("thesis.doc") } else { target.clone() };
            prop_assert_eq!(fs::read(precious).unwrap(), b"precious");
        } else {
            prop_assert_eq!(tree(&target), before);
        }
        let beside: Vec<_> = fs::read_dir(root.path()).unwrap().chain(fs::read_dir(target.parent().unwrap()).into_iter().flatten())
            .map(|e| e.unwrap().file_name()).filter(|n| n != "out" && n != "made").collect();
        let is_kept = |name: &&std::ffi::OsString| name.to_string_lossy().starts_with("out.finished-");
        let (kept, beside): (Vec<_>, Vec<_>) = beside.iter().partition(is_kept);
        prop_assert_eq!(kept.len(), usize::from(arrived), "what was finished");
        prop_assert!(beside.is_empty() || beside == ["on the way"], "{:?}", beside);
    }
}

#[test]
fn targets_that_must_not_be_replaced() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::write(path("file"), "x").unwrap();
    fs::create_dir_all(path("real/sub")).unwrap();
    fs::write(path("real/sub/notes.txt"), "x").unwrap();
    fs::create_dir(path("empty")).unwrap();
    std::os::unix::fs::symlink(path("empty"), path("link")).unwrap();
    fs::create_dir(path("holds-link")).unwrap();
    std::os::unix::fs::symlink(path("file"), path("holds-link/a.ours")).unwrap();
    let here = std::env::current_dir().unwrap();
    let bad = ["/", ".", "..", "", "a/.."].map(PathBuf::from);
    let more = ["file", "link", "link/", "real", "holds-link", "file/below"].map(path);
    for target in bad.iter().chain(&more).chain([&here, &here.join("../../crates")]) {
        let before = tree(root.path());
        let e = OutputFolder::create(target, true, ours).unwrap_err();
        assert!(e.kind() == ErrorKind::Usage || target.ends_with("below"), "{target:?}: {e}");
        assert!(tree(root.path()) == before, "{target:?}");
    }
    let e = OutputFolder::create(&path("real"), true, ours).unwrap_err();
    assert!(e.to_string().contains("sub/notes.txt"), "{e}");
    let e = OutputFolder::create(&path("real"), false, ours).unwrap_err();
    assert!(e.hint_text().unwrap().contains("--overwrite"));
    for bad in ["", ".", "link", "empty"].map(path) {
        assert!(write_file(&bad, b"x").is_err(), "{bad:?}");
    }
}

/// A foreign file has come into the target in the meantime: what is finished stays beside it, each time, and no later writer
/// sweeps it, not even one whose target's name begins the same.
#[test]
fn what_is_finished_and_has_no_place_is_kept() {
    for name in ["out", "x.partial-1-0"] {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join(name);
        let finish = |said: &str| {
            let folder = OutputFolder::create(&target, true, ours).unwrap();
            folder.write("a.ours", said).unwrap();
            fs::create_dir_all(&target).unwrap();
            fs::write(target.join("notes.txt"), "x").unwrap();
            let e = folder.commit().unwrap_err();
            let beside = fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path());
            let holds_it = |path: &PathBuf| fs::read(path.join("a.ours")).is_ok_and(|a| a == said.as_bytes());
            let here = beside.filter(|path| *path != target).find(holds_it).expect("what is finished");
            assert!(e.hint_text().unwrap().contains(&*here.to_string_lossy()), "{e}");
            assert_eq!(fs::read(target.join("notes.txt")).unwrap(), b"x");
            fs::remove_file(target.join("notes.txt")).unwrap();
            here
        };
        let kept = ["one", "another"].map(finish);
        let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        for path in &kept {
            assert!(path.file_name().unwrap().to_string_lossy().starts_with(&format!("{name}.finished-")));
            fs::File::open(path).unwrap().set_modified(long_ago).unwrap();
        }
        for swept in [target, root.path().join("x")] {
            OutputFolder::create(&swept, true, ours).unwrap().commit().unwrap();
        }
        for (path, said) in kept.iter().zip(["one", "another"]) {
            assert_eq!(fs::read(path.join("a.ours")).unwrap(), said.as_bytes());
        }
    }
}

#[test]
fn a_sibling_is_beside_its_target() {
    for target in ["a/b", "a/b/", "a/b/."] {
        assert_eq!(sibling(Path::new(target), "metrics.jsonl"), Path::new("a/b.metrics.jsonl"));
    }
}

/// Runs one test of this file again in a process of its own, which finds `folder` in its environment.
fn child(test: &str, folder: &Path, before: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("LORA_TEST_CHILD", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    shell
}

/// A disk that takes 8 KiB more of one file and then fails (its signal ignored, the limit is an error like any).
#[test]
fn a_full_disk_changes_nothing() {
    if let Some(folder) = std::env::var_os("LORA_TEST_CHILD").map(PathBuf::from) {
        let big = vec![1; 1 << 20];
        let e = attempt(&folder.join("out"), true, &[("b.ours".to_owned(), big.clone())], Fault::None, 0)
            .unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Io, "{e}");
        let e = write_file(&folder.join("one.ours"), big).unwrap_err();
        assert!(e.kind() == ErrorKind::Io && e.to_string().contains("one.ours: cannot write"), "{e}");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    write_file(&root.path().join("one.ours"), b"old").unwrap();
    attempt(&root.path().join("out"), false, &[("b.ours".to_owned(), b"old".to_vec())], Fault::None, 0)
        .unwrap();
    let before = tree(root.path());
    let limited = "trap '' XFSZ; ulimit -f 16;";
    let output = child("a_full_disk_changes_nothing", root.path(), limited).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    assert!(tree(root.path()) == before);
}

/// What a killed process left goes with the next writer of the same target, however new; what lives, is new and may be
/// somebody's, or is another's, stays.
#[test]
fn remnants_are_swept() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("out");
    let living = OutputFolder::create(&target, false, ours).unwrap();
    living.write("a.ours", b"1").unwrap();
    let old = |name: &str| {
        let path = root.path().join(name);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("a.ours"), b"1").unwrap();
        path
    };
    let aged = std::time::SystemTime::now() - Duration::from_secs(3600);
    let age = |path: &Path| fs::File::open(path).unwrap().set_modified(aged).unwrap();
    // NAME.partial-HOST-PID-N; without the host, as earlier versions left it.
    let name = living.path().file_name().unwrap().to_string_lossy().into_owned();
    let host: u32 = name.split('-').nth(1).unwrap().parse().unwrap();
    let gone = ["1-0".to_owned(), "99999999-12".to_owned(), format!("{host}-1-0")];
    let gone = gone.map(|rest| old(&format!("out.partial-{rest}")));
    let kept =
        ["out.partial-2-0-old", "out.partial-2-0", "out2.partial-1-0", "out.partial-1", "out.partial-x-0"];
    let kept = [&kept.map(old)[..], &[old(&format!("out.partial-{}-1-0", host ^ 1))]].concat();
    gone.iter().chain(&kept).for_each(|path| age(path));
    age(living.path());
    // Higher than any process's number; and the first one's, which always lives.
    let dead = old(&format!("out.partial-{host}-{}-0", i32::MAX));
    let young = ["out.partial-3-0".to_owned(), format!("out.partial-{host}-1-1")].map(|name| old(&name));
    attempt(&target, false, &[("b.ours".to_owned(), vec![1])], Fault::None, 0).unwrap();
    for path in gone.iter().chain([&dead]) {
        assert!(!path.exists(), "{}", path.display());
    }
    for path in kept.iter().chain(&young) {
        assert!(path.join("a.ours").exists(), "{}", path.display());
    }
    living.write("b.ours", b"2").unwrap();
    assert!(living.path().join("a.ours").exists());
    let file = root.path().join("one.ours");
    let left = root.path().join("one.ours.partial-1-0");
    fs::write(&left, b"half").unwrap();
    age(&left);
    write_file(&file, b"x").unwrap();
    assert!(!left.exists());
}

/// Another thread may finish it.
#[test]
fn a_folder_may_be_committed_elsewhere() {
    fn shared<T: Sync>(_: &T) {}
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("out");
    let folder = OutputFolder::create(&target, false, ours).unwrap();
    shared(&folder);
    std::thread::spawn(move || folder.commit().unwrap()).join().unwrap();
    assert!(target.is_dir());
}

/// Two may write one target; who wants to be alone is told of the other, and no remnant is another.
#[test]
fn one_can_be_alone() {
    let root = tempfile::tempdir().unwrap();
    let create = |name: &str| OutputFolder::create(&root.path().join(name), false, ours).unwrap();
    let (one, beside) = (create("out").alone().unwrap(), create("out2"));
    let e = create("out").alone().unwrap_err();
    let me = format!("process {} is writing it", std::process::id());
    assert!(e.kind() == ErrorKind::Usage && e.to_string().contains(&me), "{e}");
    drop(beside);
    // Nobody's, but young, with the number of a process that lives.
    let left = one.path().with_file_name(format!("{}9", one.path().file_name().unwrap().to_string_lossy()));
    drop(one);
    fs::create_dir(&left).unwrap();
    create("out").alone().unwrap();
    assert!(left.exists());
}

/// Killed at any moment, the target is one generation or the next, whole.
#[test]
fn a_kill_leaves_a_whole_folder() {
    if let Some(folder) = std::env::var_os("LORA_TEST_CHILD").map(PathBuf::from) {
        for generation in 1_u32.. {
            let files: Vec<_> =
                (0..4).map(|i| (format!("{i}.ours"), generation.to_le_bytes().repeat(999))).collect();
            attempt(&folder.join("out"), true, &files, Fault::None, 0).unwrap();
            write_file(&folder.join("one.ours"), &files[0].1).unwrap();
            if generation == 1 {
                std::io::Write::write_all(&mut std::io::stdout(), b"ready\n").unwrap();
            }
        }
    }
    let root = tempfile::tempdir().unwrap();
    for kill in 0..20 {
        let mut process = child("a_kill_leaves_a_whole_folder", root.path(), "").spawn().unwrap();
        let mut said = Vec::new();
        let mut out = process.stdout.take().unwrap();
        while !String::from_utf8_lossy(&said).contains("ready") {
            let mut byte = [0];
            assert_eq!(out.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.push(byte[0]);
        }
        std::thread::sleep(Duration::from_micros(kill * 1777 % 9001));
        process.kill().unwrap();
        process.wait().unwrap();
        let files: Vec<_> =
            (0..4).map(|i| fs::read(root.path().join(format!("out/{i}.ours"))).unwrap()).collect();
        assert!(files[0].len() == 3996 && files.iter().all(|f| *f == files[0]), "kill {kill}");
        let one = fs::read(root.path().join("one.ours")).unwrap();
        assert!(one == one[..4].repeat(999), "kill {kill}");
    }
}
