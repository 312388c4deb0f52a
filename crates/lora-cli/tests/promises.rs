//! Promises of privacy, as a person meets them.

#[allow(dead_code)]
mod common;

use std::fs;

use common::{Bench, SIMULATE, refused};
use serde_json::Value;

/// The rule that is taken where none is named is a sum of what is sent: others are refused here.
#[test]
fn a_bound_on_clients_is_kept_in_a_ledger() {
    let bench = Bench::new();
    let words = format!("{SIMULATE} --weights equal --rounds 2 --client-epsilon 5 --drawn 1");
    let out = bench.lora(&words).ok();
    assert!(out.contains("epsilon 5 at delta 1.0e-5 a client"), "{out}");
    // Who was drawn, how many, and how they fared, is told nowhere.
    for line in out.lines().filter(|line| line.starts_with("round ")) {
        assert!(line.ends_with(" a client") && !line.contains(" of ") && !line.contains("loss"), "{line}");
    }
    let rounds = bench.lines("out.rounds.jsonl");
    assert_eq!(rounds.len(), 2);
    for round in &rounds {
        let clients = round["clients"].as_array().unwrap();
        assert!(clients.len() == 1 && clients[0]["client"] == "" && round["seconds"].is_null(), "{round}");
        assert!(clients[0]["metrics"].as_object().unwrap().is_empty(), "{round}");
        assert!(clients[0]["bytes_down"].as_u64() > clients[0]["bytes_up"].as_u64(), "{round}");
    }
    let ledger = || bench.lines("out.clients.privacy.jsonl").len();
    assert_eq!(ledger(), 3);
    // The same again costs nothing. Where clients learn otherwise it is another run with noise of its own, for which nothing is
    // left.
    bench.lora(&format!("{words} --overwrite")).ok();
    for other in ["--alpha 7", "--variant rslora", "--proximal 0.5"] {
        let run = bench.lora(&format!("{words} --overwrite {other}"));
        assert!(run.code == Some(2) && run.err.contains("the budget is 5"), "{other}: {}", run.err);
    }
    assert_eq!(ledger(), 3);
}

#[test]
fn private_training_keeps_its_promise() {
    let bench = Bench::new();
    let train = "train --model model --dtype f32 --data data.jsonl --batch-size 1 --max-steps 3 --dp-epsilon 4 --rank 2";
    let out = bench.lora(&format!("{train} --out out")).ok();
    assert!(out.contains("epsilon 4 at delta"), "{out}");
    let summary: Value = serde_json::from_slice(&fs::read(bench.path("out/training.json")).unwrap()).unwrap();
    let spent = summary["privacy"]["epsilon"].as_f64().unwrap();
    assert!(spent > 3.0 && spent <= 4.0, "{summary}");
    // What is computed from the rows without noise does not travel with the adapter.
    let of_the_rows = ["outcome", "load_seconds", "peak_bytes"];
    assert!(of_the_rows.iter().all(|name| summary.get(name).is_none()), "{summary}");
    let ledger = fs::read(bench.path("data.jsonl.privacy.jsonl")).unwrap();
    let adapter = fs::read(bench.path("out/adapter_model.safetensors")).unwrap();
    for same in ["out", "out/"] {
        bench.lora(&format!("{train} --out {same} --overwrite")).ok();
        assert_eq!(fs::read(bench.path("data.jsonl.privacy.jsonl")).unwrap(), ledger);
        assert_eq!(fs::read(bench.path("out/adapter_model.safetensors")).unwrap(), adapter);
    }
    // Another gradient never has the noise of this one.
    for other in ["--out other --lr 1e-3", "--out out --overwrite --dtype bf16"] {
        let run = bench.lora(&format!("{} {other}", train.replace(" --dtype f32", "")));
        assert_eq!(run.code, Some(2), "{other}");
        assert!(run.err.contains("the budget is 4") && run.err.contains("hint: "), "{}", run.err);
    }
    let run = bench.lora(&format!("{train} --out other --dropout 0.1"));
    assert!(run.err.contains("dropout") && run.err.contains("--dropout 0"), "{}", run.err);
    let run = bench.lora(&format!("{train} --out other --trace t"));
    assert!(run.err.contains("in secret"), "{}", run.err);
}

/// What a weight is rounded to shapes the gradient.
#[test]
fn bases_that_are_kept_differently_have_noise_of_their_own() {
    let bench = Bench::new();
    let train = "train --model model --dtype f32 --data data.jsonl --batch-size 1 --max-steps 3 --dp-epsilon 4 --rank 2 --variant qlora --out out --overwrite";
    bench.lora(train).ok();
    bench.lora(train).ok();
    let run = bench.lora(&format!("{train} --skip q_proj"));
    assert!(run.code == Some(2) && run.err.contains("the budget is 4"), "{}", run.err);
}

/// The rows are the same by whatever name: what was given away of them is in one ledger.
#[cfg(unix)]
#[test]
fn a_link_to_rows_has_their_ledger() {
    let bench = Bench::new();
    std::os::unix::fs::symlink("data.jsonl", bench.path("link.jsonl")).unwrap();
    let train = |data: &str, out: &str| {
        let words = "train --model model --dtype f32 --batch-size 1 --max-steps 3 --dp-epsilon 4 --rank 2";
        bench.lora(&format!("{words} --data {data} --out {out}"))
    };
    train("data.jsonl", "out").ok();
    let run = train("link.jsonl", "other");
    assert!(run.code == Some(2) && run.err.contains("the budget is 4"), "{}", run.err);
    assert!(!bench.path("link.jsonl.privacy.jsonl").exists());
}

/// It is its own coordinator, and says of how many rounds. The ledgers are those of the rows, whatever runs use them.
#[test]
fn a_simulation_keeps_its_clients_promises() {
    let bench = Bench::new();
    bench.write("b.jsonl", fs::read(bench.path("data.jsonl")).unwrap());
    let words = SIMULATE.replace("b=data.jsonl", "b=b.jsonl").replace("--out out", "");
    let words = format!("{words} --rounds 2 --max-steps 1 --dp-epsilon 4");
    let out = bench.lora(&format!("{words} --out out")).ok();
    assert!(out.contains("round 2/2  2 of 2 clients") && out.contains("beside the clients' rows"), "{out}");
    let ledgers = || ["data", "b"].map(|rows| bench.lines(&format!("{rows}.jsonl.privacy.jsonl")));
    let first = ledgers();
    for ledger in &first {
        assert_eq!(ledger.len(), 3);
        // The noise of two steps, and no more than they need.
        assert_eq!(ledger[1]["sigma"], ledger[2]["sigma"]);
    }
    let rounds = bench.lines("out.rounds.jsonl");
    let spent = rounds[1]["clients"][0]["metrics"]["epsilon"].as_f64().unwrap();
    assert!(spent > 3.0 && spent <= 4.0, "{rounds:?}");
    // The same again costs nothing. Any other run has what is left, and that is nothing.
    let adapter = || fs::read(bench.path("out/adapter_model.safetensors")).unwrap();
    let learnt = adapter();
    bench.lora(&format!("{words} --out out --overwrite")).ok();
    assert!(adapter() == learnt);
    let train =
        "train --model model --dtype f32 --data b.jsonl --batch-size 1 --max-steps 3 --dp-epsilon 4 --rank 2";
    // One of another number of steps has other noise, too.
    for (other, said) in [(&*words, "the budget is 4"), (train, "and the ledger has steps of noise")] {
        let run = bench.lora(&format!("{other} --out other"));
        assert!(run.code != Some(0) && run.err.contains(said), "{other}: {}", run.err);
    }
    assert_eq!(ledgers(), first);
    // Unless it is asked for.
    let out = bench.lora(&format!("{words} --out other --dp-ledgers tried")).ok();
    assert!(out.contains("by ledgers in tried alone"), "{out}");
    assert_eq!((bench.lines("tried/b.jsonl").len(), ledgers()), (3, first));
}

/// What would keep a promise by a ledger that is not that of the rows is asked for by name.
#[test]
fn whose_ledger_it_is_is_said() {
    let bench = Bench::new();
    let before = bench.files();
    let promise = "--rounds 1 --max-steps 1 --dp-epsilon 4";
    let dealt = format!(
        "fed simulate --model model --dtype f32 --data data.jsonl --split 2 --out out --batch-size 1 --rank 2 {promise}"
    );
    for (words, said) in [
        (format!("{SIMULATE} {promise}"), ["a and b have the same rows", "or say where ledgers lie"]),
        (dealt.clone(), ["--dp-epsilon with --data", "or say where ledgers lie"]),
        (
            format!("{SIMULATE} {promise} --dp-ledgers ."),
            ["--dp-ledgers", "is a folder that holds these rows"],
        ),
        (format!("{SIMULATE} --dp-ledgers tried"), ["error", "--dp-epsilon"]),
        // The one is removed at the end, the others are written anew.
        (format!("{dealt} --dp-ledgers out.kept"), ["lies in out.kept", "ledgers outlive a run"]),
        (format!("{dealt} --dp-ledgers out/ledgers"), ["lies in out,", "ledgers outlive a run"]),
        (format!("{dealt} --dp-ledgers out.clients/a"), ["lies in out.clients", "ledgers outlive a run"]),
    ] {
        refused(&bench, &words, 2, &said);
    }
    assert_eq!(bench.files(), before);
    bench.lora(&format!("{dealt} --dp-ledgers tried")).ok();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("tried"), mode("tried/client-1.jsonl")), (0o700, 0o600));
    }
    // As an earlier version kept them: nothing is charged twice.
    fs::rename(bench.path("tried"), bench.path("out.privacy")).unwrap();
    let words = format!("{dealt} --overwrite");
    refused(&bench, &words, 2, &["ledgers of such a run", "--dp-ledgers out.privacy; or"]);
    bench.lora(&format!("{words} --dp-ledgers out.privacy")).ok();
    assert_eq!(bench.lines("out.privacy/client-1.jsonl").len(), 2);
}

/// What a promise to rows asks of a node, said before a key is read.
#[test]
fn a_node_with_a_promise_chooses_its_rounds_and_judges_nothing() {
    let bench = Bench::new();
    let node =
        "fed node --address 127.0.0.1:1 --insecure --model model --data data.jsonl --rank 2 --key bank.pem";
    for (more, said) in [
        ("--dp-epsilon 4", "--dp-epsilon without --rounds"),
        ("--dp-epsilon 4 --rounds 3 --eval data.jsonl", "--eval with --dp-epsilon"),
        ("--dp-epsilon 4 --rounds 3", "bank.pem"),
        ("--eval data.jsonl", "bank.pem"),
    ] {
        let run = bench.lora(&format!("{node} {more}"));
        assert!(run.code != Some(0) && run.err.contains(said), "{more}: {}", run.err);
        assert!(said == "bank.pem" || run.err.contains("hint: "), "{more}: {}", run.err);
    }
}
