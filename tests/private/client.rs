//! A client's part of a federation, with a promise to its rows.

use std::collections::BTreeMap;
use std::path::Path;

use lora::fed::aggregate::Rule;
use lora::fed::engine::{Task, Trains, Worker};
use lora::fed::privacy::{Accounting, Budget, Ledger, Unit};
use lora::train::{Sample, TrainConfig};
use lora::{AdapterConfig, Local, Promise, recipe};

use super::{RANDOM, bare, data, training};

/// A client's part of a round, with a promise to its rows.
fn client(folder: &Path, rate: f64) -> Local {
    let model = bare();
    let rows = data(&model, 40);
    let training = TrainConfig { learning_rate: rate, ..training(4, 1, 2) };
    let promise = Promise { epsilon: 4.0, delta: Some(1e-5), clip: 1.0, ledger: folder.join("ledger") };
    let config = AdapterConfig::default();
    Local::new(
        Box::new(model),
        recipe("lora").unwrap(),
        config,
        training,
        BTreeMap::from([("me".into(), rows)]),
    )
    .promising(BTreeMap::from([("me".into(), promise)]), b"the model".to_vec())
    .unwrap()
    .expecting(Some(3))
}

fn charges(folder: &Path) -> usize {
    std::fs::read_to_string(folder.join("ledger")).unwrap().lines().count() - 1
}

fn task(local: &mut Local, round: u64) -> Task {
    tch::manual_seed(11);
    let adapter = local.start().unwrap();
    let (trains, sends) = Rule::FedSvd.trains();
    let (run, scales, beside) = ("a run".into(), BTreeMap::new(), BTreeMap::new());
    Task { run, round, rounds: 3, trains, sends, scales, base: None, adapter, beside }
}

/// What does not train shapes gradients as much: another A is another release, with noise of its own and a charge.
#[test]
fn a_frozen_factor_is_part_of_what_noise_is_bound_to() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut local = client(folder.path(), 1e-3);
    let charges = || charges(folder.path());
    let one = task(&mut local, 1);
    let first = local.train("me", &one).unwrap();
    assert_eq!(charges(), 2);
    let again = local.train("me", &one).unwrap();
    assert_eq!((&first.adapter, charges()), (&again.adapter, 2));
    let mut other = task(&mut local, 1);
    other.adapter.iter_mut().filter(|(name, _)| name.contains("lora_A")).for_each(|(_, a)| *a = &*a * 1.5);
    local.train("me", &other).unwrap();
    assert_eq!(charges(), 4);
    // Nothing that was computed from the rows goes out but the adapter.
    assert_eq!(first.metrics.keys().collect::<Vec<_>>(), ["epsilon"]);
}

/// What runs, and not only what was sent: with a factor that the client keeps it is another release than with the task's own.
#[test]
fn what_a_client_keeps_is_part_of_what_noise_is_bound_to() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut local = client(folder.path(), 1e-3);
    let of = |local: &mut Local, round, trains, sends| Task { trains, sends, ..task(local, round) };
    let first = of(&mut local, 1, Trains::All, Trains::A);
    local.train("me", &first).unwrap();
    for (charged, sends) in [(4, Trains::A), (6, Trains::All)] {
        let next = of(&mut local, 2, Trains::A, sends);
        local.train("me", &next).unwrap();
        assert_eq!(charges(folder.path()), charged);
    }
}

/// Rows are nobody else's affair: an error that names them, or a file, stays here.
#[test]
fn what_work_on_rows_failed_of_stays_here() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut local = client(folder.path(), 1e-3).promising(BTreeMap::new(), Vec::new()).unwrap();
    let mut task = task(&mut local, 1);
    task.adapter.values_mut().for_each(|t| *t = t.full_like(1e30));
    let e = local.train("me", &task).unwrap_err();
    assert!(!e.to_string().contains("line") && !e.to_string().contains("made"), "{e}");
    let cause = std::error::Error::source(&e).unwrap().to_string();
    assert!(cause.contains("lines"), "{cause}");
}

/// Nor do names of files, which may tell whose rows they are.
#[test]
fn where_files_lie_stays_here() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let stays = |e: lora::Error, said: &str| {
        let (told, cause) = (e.to_string(), std::error::Error::source(&e).unwrap().to_string());
        let place = folder.path().display().to_string();
        assert!(told.contains(said) && !told.contains(&place) && cause.contains(&place), "{told}: {cause}");
    };
    let mut local = client(folder.path(), 1e-3);
    let one = task(&mut local, 1);
    let budget = Budget { unit: Unit::Example, epsilon: 4.0, delta: 1e-5, accounting: Accounting::Pld };
    let held = Ledger::open(&folder.path().join("ledger"), &budget).unwrap();
    stays(local.train("me", &one).unwrap_err(), "its ledger");
    drop(held);
    local.train("me", &one).unwrap();
    // What it keeps from round to round.
    let kept = folder.path().join("kept");
    let mut local = local.promising(BTreeMap::new(), Vec::new()).unwrap().keeping(kept.clone()).unwrap();
    let one = Task { trains: Trains::All, sends: Trains::A, ..task(&mut local, 1) };
    local.train("me", &one).unwrap();
    let file = std::fs::read_dir(kept).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    stays(local.train("me", &one).unwrap_err(), "what it keeps");
}

/// Nor is it anybody else's to read on the same machine; what a build before left open is closed.
#[cfg(unix)]
#[test]
fn what_a_client_keeps_is_its_own() {
    use std::fs::{Permissions, metadata, read_dir, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let mode = |path: &Path| metadata(path).unwrap().permissions().mode() & 0o777;
    let open = || {
        let local = client(folder.path(), 1e-3).promising(BTreeMap::new(), Vec::new()).unwrap();
        local.keeping(kept.clone()).unwrap()
    };
    let mut local = open();
    let one = Task { trains: Trains::All, sends: Trains::A, ..task(&mut local, 1) };
    local.train("me", &one).unwrap();
    let files: Vec<_> = read_dir(&kept).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!((mode(&kept), files.len(), mode(&files[0])), (0o700, 1, 0o600));
    set_permissions(&kept, Permissions::from_mode(0o755)).unwrap();
    drop(open());
    assert_eq!(mode(&kept), 0o700);
}

/// Who is its own coordinator does the same work in another run for nothing; a run of anybody else's is a release of its own.
#[test]
fn the_same_work_is_the_same_release() {
    let _alone = RANDOM.lock();
    for (work, charged) in [(Some("work"), 2), (None, 4)] {
        let folder = tempfile::tempdir().unwrap();
        let local = client(folder.path(), 1e-3);
        let mut local = match work {
            Some(work) => local.doing(work.to_owned()),
            None => local,
        };
        let [one, two] = ["one", "two"].map(|run| {
            let task = Task { run: run.to_owned(), ..task(&mut local, 1) };
            local.train("me", &task).unwrap().adapter
        });
        assert_eq!((one == two, charges(folder.path())), (work.is_some(), charged));
    }
}

/// Whether work on rows fails is of the rows too: with a promise to them it does not, it is charged, and it is noised.
#[test]
fn an_adapter_that_overflows_learns_nothing_for_nothing() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut local = client(folder.path(), 1e-3);
    let mut task = task(&mut local, 1);
    task.adapter.values_mut().for_each(|t| *t = t.full_like(1e30));
    let reply = local.train("me", &task).unwrap();
    assert_eq!(charges(folder.path()), 2);
    assert_eq!(reply.metrics.keys().collect::<Vec<_>>(), ["epsilon"]);
    assert!(reply.adapter.values().all(lora::all_finite));
    // Whoever holds the rows is told.
    let (count, why) = local.left_out();
    assert_eq!(count > 0, why.is_some());
}

/// A token that the model does not have, or a text beyond its context, would count as zeros for good: it is found before all,
/// by whoever holds the rows.
#[test]
fn rows_that_the_model_cannot_read_are_found_at_the_start() {
    let _alone = RANDOM.lock();
    let breaks: [fn(&mut Sample); 2] = [
        |sample| sample.ids[0] = 1 << 40,
        |sample| (sample.ids, sample.labels) = (vec![1; 257], vec![1; 257]),
    ];
    for breaks in breaks {
        let promise = Promise { epsilon: 4.0, delta: None, clip: 1.0, ledger: "nowhere".into() };
        let mut rows = data(&bare(), 40);
        breaks(&mut rows.samples[7]);
        let rows = BTreeMap::from([("me".into(), rows)]);
        let config = AdapterConfig::default();
        let local = Local::new(Box::new(bare()), recipe("lora").unwrap(), config, training(4, 1, 2), rows);
        let e = local.promising(BTreeMap::from([("me".into(), promise)]), Vec::new()).unwrap_err();
        assert!(e.to_string().contains("made:8"), "{e}");
    }
}

/// Rows on a disk that nobody may write to, say: seen when a node starts, not at its first task.
#[test]
fn a_ledger_that_cannot_be_kept_is_found_at_the_start() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let e = client(&folder.path().join("nowhere"), 1e-3).check_promises().unwrap_err();
    assert!(e.to_string().contains("ledger"), "{e}");
    let mut local = client(folder.path(), 1e-3);
    local.check_promises().unwrap();
    assert_eq!(charges(folder.path()), 0);
    // It is not held, and holds for the tasks that come.
    let task = task(&mut local, 1);
    local.train("me", &task).unwrap();
    assert_eq!(charges(folder.path()), 2);
    let other = Promise { epsilon: 5.0, delta: Some(1e-5), clip: 1.0, ledger: folder.path().join("ledger") };
    let local = local.promising(BTreeMap::from([("me".into(), other)]), Vec::new()).unwrap();
    let e = local.check_promises().unwrap_err();
    assert!(e.to_string().contains("was opened with"), "{e}");
}

/// A loss has no noise.
#[test]
fn a_client_with_a_promise_judges_no_models() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut local = client(folder.path(), 1e-3).judging(data(&bare(), 4));
    let task = task(&mut local, 1);
    let e = local.evaluate("me", &task).unwrap_err();
    assert!(e.to_string().contains("judges no models"), "{e}");
    let mut local = local.promising(BTreeMap::new(), Vec::new()).unwrap();
    assert_eq!(local.evaluate("me", &task).unwrap().1, 4);
}

/// By few rounds a coordinator would have the budget spent at once, and by many choose the noise.
#[test]
fn a_promise_lasts_for_rounds_that_are_the_clients_to_say() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let mut local = client(folder.path(), 1e-3);
    let mut task = task(&mut local, 1);
    for rounds in [1, 2, 4, 1000] {
        task.rounds = rounds;
        let e = local.train("me", &task).unwrap_err();
        assert!(e.to_string().contains("the noise here is for 3"), "{e}");
        assert!(e.hint_text().unwrap().contains("--rounds") && !folder.path().join("ledger").exists());
    }
    // Flower's own strategies say none.
    task.rounds = 0;
    local.train("me", &task).unwrap();
    let ledger = std::fs::read_to_string(folder.path().join("ledger")).unwrap();
    let charge: serde_json::Value = serde_json::from_str(ledger.lines().nth(1).unwrap()).unwrap();
    let promise = Promise { epsilon: 4.0, delta: Some(1e-5), clip: 1.0, ledger: "nowhere".into() };
    let terms = promise.terms(40, 4, 6).unwrap();
    assert_eq!(charge["sigma"].as_f64(), Some(terms.noise));
    let e = client(folder.path(), 1e-3).expecting(None).train("me", &task).unwrap_err();
    assert!(e.hint_text().unwrap().contains("--rounds"), "{e}");
}

/// Whoever reads the secret takes the noise off.
#[cfg(unix)]
#[test]
fn a_secret_that_others_may_read_is_not_used() {
    use std::fs::{Permissions, metadata, read, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let promise =
        Promise { epsilon: 2.0, delta: Some(1e-5), clip: 1.0, ledger: folder.path().join("ledger") };
    let (rows, terms) = (data(&bare(), 40), promise.terms(40, 4, 5).unwrap());
    let open = || promise.release(&rows, (4, terms), 10, "a run", b"").map(drop);
    let secret = promise.secret_file();
    // What a killed process left, open to all.
    let partial = lora::sibling(&secret, "partial");
    write(&partial, "old").unwrap();
    set_permissions(&partial, Permissions::from_mode(0o666)).unwrap();
    open().unwrap();
    assert_eq!(metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(read(&secret).unwrap().len() == 32 && !partial.exists());
    open().unwrap();
    for mode in [0o640, 0o604] {
        set_permissions(&secret, Permissions::from_mode(mode)).unwrap();
        let e = open().unwrap_err();
        assert!(e.to_string().contains("others may read this secret"), "{e}");
        assert!(e.hint_text().unwrap().contains("chmod 600"));
    }
}
