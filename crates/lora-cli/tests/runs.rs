//! Training that is killed, stopped, resumed, or begun twice.

#[allow(dead_code)]
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::Bench;
use serde_json::Value;

const TRAIN: &str = "train --model model --data data.jsonl --rank 2 --max-steps 2 --dtype f32";

/// It lasts until it is killed, or stopped.
const LONG: &str = "train --model model --data data.jsonl --rank 2 --batch-size 2 --epochs 20000 --dtype f32";

/// The steps that the metrics of that OUT tell of.
fn steps(bench: &Bench, out: &str) -> Vec<u64> {
    let text = fs::read_to_string(bench.path(&format!("{out}.metrics.jsonl"))).unwrap_or_default();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter(|e| e["event"] == "step").map(|e| e["step"].as_u64().unwrap()).collect()
}

/// Waits until the run has done so many steps.
fn await_step(bench: &Bench, (run, out): (&mut Child, &str), step: u64) {
    while steps(bench, out).last().is_none_or(|last| *last < step) {
        assert_eq!(run.try_wait().unwrap(), None, "it should not have ended");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn unfinished(bench: &Bench) -> Vec<String> {
    // Nor what a killed save has begun, which is another output.
    let begun =
        |name: &String| name.contains(".partial-") && !name.contains('/') && !name.contains(".resume.");
    bench.files().into_iter().filter(begun).collect()
}

/// The second is told who is there; of one that was killed nothing is in the way, at once.
#[test]
fn two_runs_do_not_write_one_adapter() {
    let bench = Bench::new();
    for (out, more) in [("out", ""), ("saved", "--save-every 10")] {
        let train = format!("{LONG} --out {out} {more}");
        let mut run = bench.start(&train);
        await_step(&bench, (&mut run, out), 20);
        let second = bench.lora(&train);
        assert_eq!(second.code, Some(2), "{}", second.err);
        assert!(second.err.contains(&format!("process {} is writing it", run.id())), "{}", second.err);
        assert_eq!(run.try_wait().unwrap(), None, "it should not have ended");
        run.kill().unwrap();
        run.wait().unwrap();
        let told = steps(&bench, out);
        assert_eq!(told, (1..=told.len() as u64).collect::<Vec<_>>());
        assert_eq!(unfinished(&bench).len(), 1, "what a killed run leaves");
        let _ = fs::remove_file(bench.path(&format!("{out}.resume.safetensors")));
        bench.lora(&format!("{TRAIN} --out {out}")).ok();
        assert!(unfinished(&bench).is_empty());
    }
}

fn signal(name: &str, run: &Child) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", run.id())]).status().unwrap();
    assert!(sent.success());
}

/// What is saved goes on to the adapter of a run that nobody stopped; of what is not, it is said so, and nothing is left.
#[test]
fn a_stopped_run_says_what_became_of_it() {
    let bench = Bench::new();
    let train = LONG.replace("--epochs 20000", "--epochs 1000");
    bench.lora(&format!("{train} --out whole --eval data.jsonl --eval-every 50")).ok();
    let saving = "--save-every 100000 --eval data.jsonl --eval-every 50";
    let (name, code) = if hears_interrupts() { ("INT", 130) } else { ("TERM", 143) };
    for (out, name, code, more, said) in [
        ("saved", name, code, saving, "the same command goes on after step "),
        ("lost", "TERM", 143, "", "nothing was kept; --save-every"),
    ] {
        let words = format!("{train} --out {out} {more}");
        let mut run = bench.start_into(&words, Stdio::piped());
        await_step(&bench, (&mut run, out), 20);
        signal(name, &run);
        let ended = run.wait_with_output().unwrap();
        let err = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{err}");
        assert!(err.contains("stopped after step ") && err.contains(said), "{err}");
        assert!(unfinished(&bench).is_empty() && !bench.path(out).exists());
        let done = steps(&bench, out).len();
        assert!(err.contains(&format!("stopped after step {done} of 2000: ")), "{err}");
    }
    assert!(!bench.path("lost.resume.safetensors").exists());
    let again = bench.lora(&format!("{train} --out saved {saving}"));
    assert!(again.ok().contains("resumed   after step "));
    let of = |out: &str, file: &str| fs::read(bench.path(&format!("{out}{file}"))).unwrap();
    assert!(of("saved", "/adapter_model.safetensors") == of("whole", "/adapter_model.safetensors"));
    let told = |out: &str| -> Vec<Value> {
        let text = String::from_utf8(of(out, ".metrics.jsonl")).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|e| e["event"] == "eval").collect()
    };
    assert_eq!(told("saved"), told("whole"), "an evaluation is left out, or another");
}

/// Whether these tests, and so what they start, were started to hear Ctrl-C: behind `&` a shell's children may not be.
fn hears_interrupts() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.unwrap_or(0) & 0b10 == 0
}

#[test]
fn a_signal_that_is_ignored_stays_so() {
    let bench = Bench::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"trap '' INT; exec "$0" "$@""#, env!("CARGO_BIN_EXE_lora")]);
    shell.current_dir(bench.path("")).args(format!("{LONG} --out out").split_whitespace());
    let mut run = shell.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    await_step(&bench, (&mut run, "out"), 5);
    signal("INT", &run);
    let then = steps(&bench, "out").len() as u64 + 50;
    await_step(&bench, (&mut run, "out"), then);
    signal("TERM", &run);
    assert_eq!(run.wait().unwrap().code(), Some(143));
}

/// In the midst of an evaluation that nobody wants to wait for.
#[test]
fn a_second_signal_ends_a_run_at_once() {
    let bench = Bench::new();
    bench.write("many.jsonl", "{\"text\": \"two and two is four, and so on\"}\n".repeat(20_000));
    let train = format!("{LONG} --out out --eval many.jsonl --eval-every 1");
    let mut run = bench.start_into(&train, Stdio::piped());
    await_step(&bench, (&mut run, "out"), 1);
    let mut err = BufReader::new(run.stderr.take().unwrap());
    signal("TERM", &run);
    let mut line = String::new();
    while !line.starts_with("stopping") {
        line.clear();
        assert!(err.read_line(&mut line).unwrap() > 0, "it says nothing");
    }
    signal("TERM", &run);
    assert_eq!(run.wait().unwrap().code(), Some(143));
    let mut rest = String::new();
    err.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("stopped after"), "{rest}");
}

/// A step that is charged is charged once: the same command does it again, and goes on.
#[test]
fn a_private_run_that_was_stopped_is_not_charged_again() {
    let bench = Bench::new();
    let train = "train --model model --data data.jsonl --rank 2 --dtype f32 --batch-size 1 --max-steps 100 \
                 --epochs 1000 --dp-epsilon 8 --out";
    let mut run = bench.start_into(&format!("{train} out"), Stdio::piped());
    await_step(&bench, (&mut run, "out"), 5);
    signal("TERM", &run);
    let ended = run.wait_with_output().unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code() == Some(143) && err.contains("is not charged twice"), "{err}");
    assert!(bench.lora(&format!("{train} out")).ok().contains("spent in 100 of 100 steps"));
    let ledger = fs::read_to_string(bench.path("data.jsonl.privacy.jsonl")).unwrap();
    assert_eq!(ledger.lines().count(), 101, "the budget, and each step once");
}

/// What shapes a gradient is part of a run: how the base is rounded, and how texts are divided into passes where those draw
/// masks.
#[test]
fn what_was_saved_is_for_that_run_alone() {
    let bench = Bench::new();
    let train = |every: u64, more: &str| {
        format!(
            "train --model model --data data.jsonl --rank 2 --dtype f32 --epochs 100 --out model/out --overwrite \
             --save-every {every} {more}"
        )
    };
    // Beside the model's own files, which its own are no part of.
    let saved = bench.path("model/out.resume.safetensors");
    let (one, two) = ("--batch-size 2 --accumulate 1", "--batch-size 1 --accumulate 2");
    for (begun, then, goes_on) in [
        (format!("{one} --variant qlora"), format!("{one} --variant qlora --skip q_proj"), false),
        (format!("{one} --variant qlora"), format!("{one} --variant qlora"), true),
        (format!("{one} --dropout 0.1"), format!("{two} --dropout 0.1"), false),
        (one.to_owned(), format!("{two} --recompute all"), true),
    ] {
        let _ = fs::remove_file(&saved);
        let mut run = bench.start(&train(1, &begun));
        while !saved.exists() {
            assert_eq!(run.try_wait().unwrap(), None, "it should not have ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        run.kill().unwrap();
        run.wait().unwrap();
        let again = bench.lora(&train(1000, &then));
        if goes_on {
            assert!(again.ok().contains("resumed   after step "), "{then}");
        } else {
            assert!(again.code == Some(3) && again.err.contains("another run"), "{then}: {}", again.err);
        }
    }
}

/// A number of steps that is none, and settings that may be others when the command is given again.
#[test]
fn a_run_that_could_not_go_on_is_not_begun() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out")).ok();
    let metrics = fs::read(bench.path("out.metrics.jsonl")).unwrap();
    for more in ["--save-every 0", "--save-every 5 --auto"] {
        let run = bench.lora(&format!("{TRAIN} --out out --overwrite {more}"));
        assert_eq!(run.code, Some(2), "{}", run.err);
        assert_eq!(fs::read(bench.path("out.metrics.jsonl")).unwrap(), metrics, "{more}");
    }
}

/// What fails leaves the adapter that was to be replaced, and what was told of it.
#[test]
fn a_run_that_fails_leaves_the_metrics_of_what_is_there() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out")).ok();
    let [now, earlier] = ["out.metrics.jsonl", "out.metrics.earlier.jsonl"].map(|name| bench.path(name));
    let first = fs::read(&now).unwrap();
    let wild = format!("{TRAIN} --out out --overwrite --lr 1e30 --clip 0 --schedule constant --warmup 0");
    for _ in 0..2 {
        assert_eq!(bench.lora(&wild).code, Some(6));
        assert!(fs::read(&earlier).unwrap() == first && fs::read(&now).unwrap() != first);
    }
    bench.lora(&format!("{TRAIN} --out out --overwrite")).ok();
    assert!(!earlier.exists());
    // And a run that is to go on keeps its own.
    bench.write("out.resume.safetensors", "");
    let told = fs::read(&now).unwrap();
    let run = bench.lora(&format!("{TRAIN} --out out --overwrite"));
    assert!(run.code == Some(2) && run.err.contains("--save-every"), "{}", run.err);
    assert_eq!(fs::read(&now).unwrap(), told);
}

/// Killed twice on the way, a run comes to the adapter of one that nobody killed, and tells of each step once.
#[test]
fn a_killed_run_goes_on() {
    let bench = Bench::new();
    let train = "train --model model --data data.jsonl --rank 2 --max-steps 1000 --epochs 1000 --batch-size 2 --dtype f32";
    bench.lora(&format!("{train} --out whole")).ok();
    let saving = format!("{train} --out out --save-every 7");
    let saved = bench.path("out.resume.safetensors");
    for beyond in [20, 60] {
        let mut run = bench.start(&saving);
        await_step(&bench, (&mut run, "out"), beyond);
        run.kill().unwrap();
        run.wait().unwrap();
    }
    // Another base, of one shape with the first.
    bench.lora("merge --model model --adapter whole --dtype f32 --out merged").ok();
    fs::copy(bench.path("model/chat_template.jinja"), bench.path("merged/chat_template.jinja")).unwrap();
    for (other, what) in [
        (format!("{saving} --lr 1e-3"), "another run: --lr 0.0002 there and 0.001 here\n"),
        (saving.replace("--model model", "--model merged"), "another run: another model\n"),
    ] {
        let other = bench.lora(&other);
        assert_eq!(other.code, Some(3), "{}", other.err);
        assert!(other.err.contains(what) && other.err.contains("delete it"), "{}", other.err);
    }
    assert!(bench.lora(&saving).ok().contains("resumed   after step "));
    assert!(!saved.exists());
    assert_eq!(steps(&bench, "out"), (1..=1000).collect::<Vec<_>>());
    let adapter = |out: &str| fs::read(bench.path(&format!("{out}/adapter_model.safetensors"))).unwrap();
    assert!(adapter("out") == adapter("whole"));
}
