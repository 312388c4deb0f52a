//! `lora fed`, as a person meets it.

#[allow(dead_code)]
mod common;

use std::fs;

use common::{Bench, SIMULATE};
use serde_json::Value;

#[test]
fn a_simulation_from_end_to_end() {
    for rule in ["fedit", "ffa", "rolora", "fedex", "flora", "flexlora", "fedsvd"] {
        let bench = Bench::new();
        let words = format!("{SIMULATE} --rule {rule} --rounds 2 --eval data.jsonl --variant dora");
        let out = bench.lora(&words).ok();
        assert!(out.contains("round 2/2  2 of 2 clients"), "{out}");
        let rounds = bench.lines("out.rounds.jsonl");
        assert_eq!(rounds.len(), 2);
        assert!(rounds.iter().all(|r| r["held_out_loss"].as_f64().unwrap() > 0.0), "{rounds:?}");
        // Nothing is left but what was asked for, and PEFT's reader of ours takes it.
        assert!(!bench.path("out.state").exists());
        bench.lora("eval --model model --dtype f32 --adapter out --data data.jsonl --max-tokens 0").ok();
    }
}

/// A run that is broken off behind its first round: there is no room for that round's line.
#[cfg(target_os = "linux")]
fn break_off(bench: &Bench, words: &str) {
    let log = bench.path("out.rounds.jsonl");
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let run = bench.lora(words);
    assert_eq!(run.code, Some(5), "{}", run.err);
    fs::remove_file(&log).unwrap();
}

/// Neither another storage, nor other weights, nor another start changes shapes or scales.
#[cfg(target_os = "linux")]
#[test]
fn a_run_goes_on_by_its_own_variant_over_its_own_base_from_its_own_start() {
    let bench = Bench::new();
    bench.lora("train --model model --dtype f32 --data data.jsonl --rank 2 --max-steps 1 --out begun").ok();
    let words = format!("{SIMULATE} --rounds 2");
    break_off(&bench, &words);
    let refused = |words: &str, said: &str| {
        let run = bench.lora(words);
        assert!(run.code == Some(2) && run.err.contains("1 of whose rounds are done"), "{}", run.err);
        assert!(run.err.contains(said) && run.err.contains("--variant"), "{}", run.err);
    };
    refused(&format!("{words} --variant qlora"), "another recipe: lora, and here it is qlora");
    let begun = words.replace("--rank 2", "--adapter begun");
    refused(&begun, "another start: a fresh adapter, and here it is the adapter ");
    let file = bench.path("model/model.safetensors");
    let (own, mut other) = (fs::read(&file).unwrap(), fs::read(&file).unwrap());
    let numbers = 8 + u64::from_le_bytes(own[..8].try_into().unwrap()) as usize;
    // The last bit of each.
    other[numbers..].iter_mut().step_by(4).for_each(|byte| *byte ^= 1);
    fs::write(&file, other).unwrap();
    refused(&words, "another base model: ");
    fs::write(&file, own).unwrap();
    let out = bench.lora(&words).ok();
    assert!(out.contains("goes on after round 1") && out.contains("round 2/2  2 of 2 clients"), "{out}");
    assert_eq!(bench.lines("out.rounds.jsonl").len(), 2);
}

/// One whose clients can go no further, here for their ledgers, is ended by what its rounds have learnt.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_stuck_can_be_ended() {
    let bench = Bench::new();
    bench.write("b.jsonl", fs::read(bench.path("data.jsonl")).unwrap());
    let words = SIMULATE.replace("b=data.jsonl", "b=b.jsonl");
    let words = format!("{words} --rounds 2 --max-steps 1 --dp-epsilon 4");
    break_off(&bench, &words);
    ["data", "b"].iter().for_each(|rows| bench.write(&format!("{rows}.jsonl.privacy.jsonl"), "nothing\n"));
    let run = bench.lora(&words);
    assert!(run.code != Some(0) && run.err.contains("round 2 has 0 good replies of 2"), "{}", run.err);
    assert!(run.err.contains("with --end writes the adapter of the rounds that are done (1)"), "{}", run.err);
    let out = bench.lora(&format!("{words} --end")).ok();
    assert!(out.contains("goes on after round 1") && out.contains("adapter written to out"), "{out}");
    assert!(!bench.path("out.state").exists() && bench.lines("out.rounds.jsonl").len() == 1);
    bench.lora("eval --model model --dtype f32 --adapter out --data data.jsonl --max-tokens 0").ok();
}

/// What clients keep is of one run: one that begins anew finds nothing of the one before, by whatever OUT both go.
#[cfg(target_os = "linux")]
#[test]
fn fedsa_keeps_nothing_for_another_run() {
    let words = format!("{SIMULATE} --client c=data.jsonl --rule fedsa --rounds 6");
    let (bench, fresh) = (Bench::new(), Bench::new());
    break_off(&bench, &words);
    assert_eq!(fs::read_dir(bench.path("out.kept")).unwrap().count(), 3);
    for ending in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(bench.path(&format!("out.state{ending}")));
    }
    // Some are asked later than in the first round, or never.
    [&bench, &fresh].iter().for_each(|bench| drop(bench.lora(&format!("{words} --per-round 1")).ok()));
    for client in ["a", "b", "c"] {
        let file = format!("out.clients/{client}/adapter_model.safetensors");
        let [one, other] = [&bench, &fresh].map(|bench| fs::read(bench.path(&file)).unwrap());
        assert!(one == other, "{client}");
    }
}

#[test]
fn fedsa_leaves_every_client_its_own() {
    let bench = Bench::new();
    bench.lora(&format!("{SIMULATE} --rule fedsa --rounds 2")).ok();
    for client in ["a", "b"] {
        let adapter = format!("out.clients/{client}");
        bench
            .lora(&format!(
                "eval --model model --dtype f32 --adapter {adapter} --data data.jsonl --max-tokens 0"
            ))
            .ok();
    }
    assert!(!bench.path("out.kept").exists());
}

/// By sums of which the coordinator sees no part: the same adapter as in plain.
#[test]
fn secure_sums_come_to_the_same() {
    let bench = Bench::new();
    let words =
        format!("{SIMULATE} --client c=data.jsonl --rule ffa --weights equal --rounds 2 --eval data.jsonl");
    bench.lora(&words).ok();
    let plain = bench.lines("out.rounds.jsonl");
    let out = bench.lora(&format!("{words} --secure --overwrite --jobs 2")).ok();
    assert!(out.contains("round 2/2  3 of 3 clients"), "{out}");
    let secure = bench.lines("out.rounds.jsonl");
    for (a, b) in plain.iter().zip(&secure) {
        let [a, b] = [a, b].map(|round| round["held_out_loss"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    let told = &secure[1]["clients"][0];
    assert!(told["examples"] == 0 && told["metrics"].as_object().unwrap().is_empty(), "{told}");
    assert!(!bench.path("out.state").exists());
}

/// Of seven clients two may be on the coordinator's side: with two others they are four.
#[test]
fn secure_sums_of_few_of_many_are_asked_for() {
    let bench = Bench::new();
    let others = ["c", "d", "e", "f", "g"].map(|name| format!("--client {name}=data.jsonl")).join(" ");
    let words = format!("{SIMULATE} {others} --rule ffa --weights equal --rounds 1 --secure --per-round");
    let before = bench.files();
    let run = bench.lora(&format!("{words} 3"));
    assert!(run.code != Some(0) && run.err.contains("take part with 4 and more"), "{}", run.err);
    assert!(run.err.contains("--parties-at-least"), "{}", run.err);
    assert_eq!(bench.files(), before);
    for more in ["4", "3 --parties-at-least 3"] {
        let out = bench.lora(&format!("{words} {more} --overwrite")).ok();
        assert!(out.contains(&format!("{0} of {0} clients", &more[..1])), "{out}");
    }
}

/// With noise that clients add, which is all that there is for a small epsilon: as large as the clip.
#[test]
fn noised_sums() {
    let bench = Bench::new();
    let words = format!("{SIMULATE} --client c=data.jsonl --rule ffa --weights equal --rounds 1 --secure");
    let norm = |more: &str| {
        let out = bench.lora(&format!("{words} --overwrite --client-epsilon {more}")).ok();
        assert!(out.contains("a client over 1 rounds"), "{out}");
        let found: Value = serde_json::from_str(&bench.lora("inspect out --json").ok()).unwrap();
        let norms = found["modules"].as_array().unwrap().iter().map(|m| m["norm_b"].as_f64().unwrap());
        norms.map(|norm| norm * norm).sum::<f64>().sqrt()
    };
    let (little, much, more) = (norm("1e6"), norm("0.5 --client-clip 1000"), norm("0.5 --client-clip 4000"));
    assert!(little < 1.0 && much > 1e4 && (more / much / 4.0 - 1.0).abs() < 0.2, "{little} {much} {more}");
    let run = bench.lora(&format!("{words} --client-epsilon 3 --client-clip 0"));
    assert!(run.code != Some(0) && run.err.contains("clipping norm"), "{}", run.err);
}

#[test]
fn identities_for_secure_sums() {
    let bench = Bench::new();
    let mut lines = Vec::new();
    for party in ["coordinator", "1", "2", "3"] {
        let words = format!("fed keys --party {party} --key {party}.party --name name");
        let line = bench.lora(&words).ok();
        assert!(line.starts_with(&format!("{party} ")) && line.ends_with(" name\n"), "{line}");
        assert_eq!(bench.lora(&words).ok(), line, "a key is made once");
        lines.push(line);
    }
    let refused = |words: &str, said: &str| {
        let run = bench.lora(words);
        assert!(run.code != Some(0) && run.err.contains(said), "{words}: {}", run.err);
    };
    refused("fed keys --party 2 --key 1.party", "another party's key");
    refused("fed keys --party one --key x", "expected a number");
    let serve = "fed serve --address 127.0.0.1:1 --insecure --model model --rank 2 --out out --rule ffa";
    bench.write("directory", lines.concat());
    let with = |directory: &str, key: &str, more: &str| {
        format!("{serve} {more} --secure {directory} --party-key {key}")
    };
    refused(&with("directory", "1.party", "--weights equal"), "another key for the coordinator");
    refused(&with("directory", "coordinator.party", ""), "a sum has no weights");
    refused(&with("nowhere", "coordinator.party", ""), "nowhere");
    refused(&with("data.jsonl", "coordinator.party", ""), "line 1");
    refused(&with("directory", "directory", ""), "others may read this private key");
    refused(&format!("{serve} --secure directory"), "--party-key");
    let few = with("directory", "coordinator.party", "--weights equal --parties-at-least 4");
    refused(&few, "of 3 in the directory");
    bench.write("two", lines[..3].concat());
    refused(&with("two", "coordinator.party", "--weights equal"), "three and more");
    let node =
        "fed node --address 127.0.0.1:1 --insecure --model model --data data.jsonl --rank 2 --key bank.pem";
    bench.lora("fed keys --key bank.pem").ok();
    refused(&format!("{node} --secure directory --party-key coordinator.party"), "is no party's");
    refused(
        &format!("{node} --secure directory --party-key 1.party --parties-at-least 2"),
        "in the directory",
    );
    refused(&format!("{node} --parties-at-least 3"), "--secure");
    assert!(!bench.path("out.state").exists());
}

/// An error quotes what it is about; a terminal obeys nothing of that.
#[test]
fn an_error_has_no_control_characters() {
    let run = Bench::new().lora("train --model no\u{1b}[2Jsuch --data data.jsonl --rank 2 --out out");
    assert!(run.code != Some(0) && run.err.contains("[2Jsuch"), "{}", run.err);
    assert!(!run.err.contains('\u{1b}'), "{:?}", run.err);
}

/// Refused before anything is written.
#[test]
fn what_makes_no_sense_leaves_no_trace() {
    let bench = Bench::new();
    let before = bench.files();
    for (more, said) in [
        ("--rule fedfoo", "there is no rule `fedfoo`"),
        ("--client c/d=data.jsonl", "letters, digits"),
        ("--client a=data.jsonl", "two clients are called a"),
        ("--robust krum:1 --rule fedex --weights equal", "fedex needs every client's factors"),
        ("--robust median --rule ffa", "a robust rule has no weights"),
        ("--server momentum:1,0 --rule fedex", "fedex makes new ones"),
        ("--server adam:0.1 --rule fedsvd", "adam's squares cannot follow"),
        ("--weights examples:0", "count for nothing"),
        ("--rank-of a=2", "needs one rank"),
        ("--rank-of nobody=2 --rule flora", "there is no such client"),
        ("--rounds 0", "at least one round"),
        ("--minimum 3 --per-round 2", "fewer clients"),
        ("--proximal=-1", "proximal"),
        ("--jobs 0", "no jobs"),
        ("--jobs 2 --dropout 0.1", "--jobs 1"),
        ("--client-epsilon 3", "--drawn"),
        ("--secure --rule fedex", "is no sum"),
        ("--secure", "a sum has no weights"),
        ("--secure --weights equal --client-epsilon 3 --drawn 1", "cannot be used with"),
        ("--secure --weights equal --parties-at-least 3", "of 2 in the directory"),
        ("--parties-at-least 3", "--secure"),
        ("--adapter nowhere", "nowhere"),
        ("--end", "no round of a run is done"),
    ] {
        let run = bench.lora(
            &format!("{SIMULATE} {more}")
                .replace(" --rank 2", if more.contains("--adapter") { "" } else { " --rank 2" }),
        );
        assert!(run.code != Some(0) && run.err.contains(said), "{more}: {}", run.err);
        assert_eq!(bench.files(), before, "{more}");
    }
}

#[test]
fn a_key_is_made_once() {
    let bench = Bench::new();
    let line = bench.lora("fed keys --key bank.pem --name bank").ok();
    assert!(line.starts_with("ecdsa-sha2-nistp256 ") && line.ends_with(" bank\n"), "{line}");
    assert_eq!(bench.lora("fed keys --key bank.pem --name bank").ok(), line);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(bench.path("bank.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
    }
    bench.write("broken.pem", "nothing");
    let run = bench.lora("fed keys --key broken.pem");
    assert!(run.code != Some(0) && run.err.contains("broken.pem"), "{}", run.err);
}

/// Both ways round: the noise for a promise, and what that noise promises.
#[test]
fn epsilon_and_noise() {
    let bench = Bench::new();
    let out = bench.lora("fed epsilon --rows 60000 --batch 256 --steps 14063 --delta 1e-5 --noise 1.1").ok();
    // Opacus and dp-accounting, shared by the tests of lora-fed.
    assert!(out.contains("epsilon 2.5967") && out.contains("epsilon 2.38"), "{out}");
    let run = bench.lora("fed epsilon --rows 10 --batch 20 --noise 1");
    assert_eq!(run.code, Some(2));
}
