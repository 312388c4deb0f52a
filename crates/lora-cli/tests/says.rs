//! What the program says of what it was given, and of what it did: nothing untrue, and no silence where it matters.

#[allow(dead_code)]
mod common;

use std::fs;

use common::{Bench, refused};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const TRAIN: &str = "train --model model --data data.jsonl --rank 2 --max-steps 1 --dtype f32";

/// Beside an adapter that is there, of a variant only the storage is left to choose.
#[test]
fn a_variant_that_is_not_the_adapters_is_refused() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out plain")).ok();
    bench.lora(&format!("{TRAIN} --out dora --variant dora")).ok();
    let (on, rows) = ("--model model --dtype f32", "--data data.jsonl --max-tokens 0");
    let simulate = format!("fed simulate {on} --data data.jsonl --split 2 --rule fedit --rounds 1 --out new");
    for words in [
        format!("train {on} --data data.jsonl --adapter plain --variant rslora --out new"),
        format!("train {on} --data data.jsonl --adapter plain --variant qlora+full --out new"),
        format!("eval {on} {rows} --adapter plain --variant dora"),
        format!("eval {on} {rows} --adapter dora --variant dora+rslora"),
        format!("generate {on} --prompt hi --adapter dora --variant full"),
        format!("merge {on} --adapter plain --out new --verify --variant qlora+dora"),
        format!("{simulate} --adapter plain --variant dora"),
    ] {
        refused(&bench, &words, 2, &["the adapter is of another method than"]);
    }
    refused(&bench, &format!("eval {on} {rows} --variant rslora"), 2, &["no adapter is named"]);
    assert!(!bench.path("new").exists());
    for words in ["--adapter plain --variant qlora", "--adapter dora --variant qlora+dora", "--variant qlora"]
    {
        bench.lora(&format!("eval {on} {rows} {words}")).ok();
    }
}

/// Where that is certain, and nowhere else.
#[test]
fn an_adapter_beside_another_base_is_told() {
    let bench = Bench::new();
    let on = "--dtype f32 --overwrite --data data.jsonl --max-steps 1";
    let notes = |words: &str, said: &str| {
        let run = bench.lora(words);
        assert_eq!(run.code, Some(0), "{words}: {}", run.err);
        let notes: Vec<_> = run.err.lines().filter(|line| line.starts_with("note: the adapter ")).collect();
        assert_eq!(notes.len(), usize::from(!said.is_empty()), "{words}: {notes:?}");
        assert!(notes.iter().all(|note| note.contains(said)), "{words}: {notes:?}");
    };
    let eval = |base: &str, more: &str, said: &str| {
        let rows = "--dtype f32 --data data.jsonl --max-tokens 0";
        notes(&format!("eval --model {base} --adapter {more} {rows}"), said);
    };
    let merge = |base: &str, more: &str, said: &str| {
        notes(&format!("merge --model {base} --adapter {more} --dtype f32 --overwrite"), said);
    };

    bench.lora(&format!("{TRAIN} --out plain")).ok();
    eval("model", "plain", "");
    eval("model", "plain --variant qlora", "here `--variant qlora` rounds it");
    merge("model", "plain --out merged", "");
    let others = "other weights than these";
    eval("merged", "plain", others);
    merge("merged", "plain --out twice", others);
    notes("inspect plain --model merged", others);
    notes("generate --model merged --adapter plain --prompt hi --max-tokens 1 --dtype f32", others);
    notes("export --model merged --adapter plain --out plain.gguf", others);
    notes(&format!("train {on} --model merged --adapter plain --out further"), others);
    // The same in another folder, and in a type that need not hold it.
    bench.copy("smollm/model", "moved");
    notes("inspect plain --model moved", "");
    notes("merge --model model --adapter plain --out narrow --dtype bf16", "");
    notes("inspect plain --model narrow", "");

    bench.lora(&format!("{TRAIN} --out four --variant qlora")).ok();
    let rounds = "beside the base as `--variant qlora` rounds it";
    eval("model", "four", rounds);
    merge("model", "four --out merged", rounds);
    merge("model", "four --out merged --verify --variant qlora", "");
    eval("model", "four --variant qlora", "");
    notes("inspect four --model model", "");
    bench.lora("quantize model packed --dtype f32").ok();
    eval("packed", "four", "");

    bench.lora("init --model model --init pissa --rank 4 --dtype f32 --out start").ok();
    eval("start/base", "start/adapter", "");
    let of_init = "lora init --init pissa";
    eval("model", "start/adapter", of_init);
    notes(&format!("train {on} --model start/base --adapter start/adapter --out further"), "");
    eval("start/base", "further", "");
    for base in ["model", "packed"] {
        eval(base, "further", of_init);
    }
    notes(&format!("train {on} --model model --adapter start/adapter --out further"), of_init);
}

/// Which mean a number is: of nothing, of the steps so far with less weight the older, of the last tenth.
#[test]
fn losses_are_called_what_they_are() {
    let bench = Bench::new();
    let more = "--max-steps 20 --epochs 20 --batch-size 2 --lr 1e-2 --out out";
    let run = bench.lora(&format!("train --model model --data data.jsonl --rank 2 --dtype f32 {more}"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    let events = std::fs::read_to_string(bench.path("out.metrics.jsonl")).unwrap();
    let loss =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap();
    let losses: Vec<f64> = events.lines().map(loss).collect();
    assert_eq!(losses.len(), 20);
    let smoothed = losses.iter().copied().reduce(|old, new| 0.9 * old + 0.1 * new).unwrap();
    assert!(run.err.contains(&format!("loss {:.4} (smoothed {smoothed:.4})", losses[19])), "{}", run.err);
    let tenth = (losses[18] + losses[19]) / 2.0;
    let last = format!("loss {:.4} at first, {tenth:.4} over the last tenth, in 20 steps, ", losses[0]);
    assert!(run.out.contains(&last), "{last}: {}", run.out);
}

/// Of base and adapter, as PEFT has it.
#[test]
fn the_share_that_trains_is_one() {
    let bench = Bench::new();
    let trained = bench.lora(&format!("{TRAIN} --out out")).ok();
    let inspected = bench.lora("inspect out --model model").ok();
    let found = bench.lora("inspect out --model model --json").ok();
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    let parameters = lora::model::parameters(lora::open(&bench.path("model")).unwrap().config()) as f64;
    let own = found["parameters"].as_f64().unwrap();
    let share = 100.0 * own / (parameters + own);
    assert!(trained.contains(&format!(" parameters train ({share:.3} %)")), "{share}: {trained}");
    assert!(inspected.contains(&format!("\nshare       {share:.3} % of ")), "{share}: {inspected}");
    assert!((100.0 * found["share"].as_f64().unwrap() - share).abs() < 1e-9, "{share}: {found}");
}

#[test]
fn what_is_beyond_the_model_is_told() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out whole --layers 0-1")).ok();
    bench.lora(&format!("{TRAIN} --out all")).ok();
    let adapter = |out: &str| std::fs::read(bench.path(out).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("whole") == adapter("all"));
    refused(&bench, &format!("{TRAIN} --out out --layers 0-2"), 2, &["no layer 2", "0 to 1"]);
    refused(&bench, &format!("{TRAIN} --out out --layers 0..1"), 2, &["is no layer's number: say 7, or 0-3"]);
    for verb in ["train --data data.jsonl --max-steps 1 --eval data.jsonl --out out", "plan"] {
        let run = bench.lora(&format!("{verb} --model model --max-length 1000"));
        assert_eq!(run.code, Some(0), "{}", run.err);
        let said = "note: --max-length 1000 is beyond the model's context: 256 is taken";
        assert_eq!(run.err.matches(said).count(), 1, "{verb}: {}", run.err);
        let run =
            bench.lora(&format!("{verb} --model model --max-length 256").replace("--out out", "--out fits"));
        assert!(run.code == Some(0) && !run.err.contains("note: --max-length"), "{}", run.err);
    }
}

#[test]
fn no_rank_is_told_of_what_has_none() {
    let bench = Bench::new();
    let told = bench.lora(&format!("{TRAIN} --variant full --out whole")).ok();
    assert!(told.contains("adapter   full: "), "{told}");
    let told = bench.lora("inspect whole").ok();
    assert!(!told.contains("\nrank ") && told.contains("self_attn.q_proj"), "{told}");
    let found: serde_json::Value = serde_json::from_str(&bench.lora("inspect whole --json").ok()).unwrap();
    assert!(found["r"].is_null() && found["modules"][0]["r"].is_null(), "{found}");
    let told = bench.lora(&format!("{TRAIN} --out low")).ok() + &bench.lora("inspect low").ok();
    assert!(told.contains("adapter   lora, rank 2: ") && told.contains("\nrank        2, "), "{told}");
}

/// In the plan as in training.
#[test]
fn rows_that_are_too_long_are_left_out_if_that_is_asked_for() {
    let bench = Bench::new();
    let long = serde_json::json!({ "prompt": "a".repeat(100), "completion": "b" });
    let short = fs::read_to_string(bench.path("data.jsonl")).unwrap();
    bench.write("long.jsonl", format!("{long}\n{short}"));
    let train =
        "train --model model --data long.jsonl --out out --rank 2 --max-steps 1 --dtype f32 --max-length 60";
    let unlearnt = ["long.jsonl:1", "nothing of those is learnt", "--drop-long"];
    refused(&bench, train, 3, &unlearnt);
    refused(&bench, &format!("{train} --truncate"), 3, &unlearnt);
    refused(&bench, &format!("{train} --truncate --drop-long"), 2, &["cannot be used with"]);
    let run = bench.lora(&format!("{train} --drop-long"));
    assert!(run.err.contains("note: long.jsonl: 1 of 4 rows left out"), "{}", run.err);
    assert!(run.ok().contains("3 rows"));
    let planned = |words: &str| {
        let plan = format!("plan --model model --rank 2 --dtype f32 --max-length 60 --json {words}");
        let plan: Value = serde_json::from_str(&bench.lora(&plan).ok()).unwrap();
        let mut parts = plan["parts"].clone();
        // Measured, and not counted alone.
        for measured in ["program", "loading"] {
            parts[measured].take();
        }
        parts
    };
    assert_eq!(planned("--data long.jsonl --drop-long"), planned("--data data.jsonl"));
}

/// Of counts that are slips, neither a panic nor hours.
#[test]
fn absurd_counts_are_refused() {
    let bench = Bench::new();
    let train = "train --model model --data data.jsonl --out out --rank 2 --max-steps 1 --dtype f32";
    for (words, said) in [
        ("--batch-size 4294967296 --accumulate 4294967296", "texts a step"),
        ("--batch-size 18446744073709551615", "texts a step"),
        ("--threads 100000", "--threads must be from 1 to"),
        ("--threads 0", "--threads must be from 1 to"),
        ("--threads -1", "--threads must be from 1 to"),
    ] {
        refused(&bench, &format!("{train} {words}"), 2, &[said]);
        refused(&bench, &format!("plan --model model --rank 2 {words}"), 2, &[said]);
    }
}

/// Not that there is no such option.
#[test]
fn a_negative_number_is_refused_by_what_it_is_for() {
    let bench = Bench::new();
    let train = "train --model model --data data.jsonl --out out --dtype f32";
    for (words, said) in [
        (format!("{train} --rank -1"), "a rank is 1 or more"),
        (format!("{train} --lr -1"), "the learning rate must be positive"),
        (format!("{train} --weight-decay -0.1"), "the weight decay must be 0 or more"),
        (format!("{train} --seed -1"), "invalid value '-1' for '--seed <SEED>'"),
        ("generate --model model --prompt hi --temperature -1".into(), "temperature and top-k from 0"),
        ("plan --model model --beside -1".into(), "invalid value '-1' for '--beside <RANK>'"),
        ("fed epsilon --rows 90 --batch 9 --noise 1 --epochs -1".into(), "-1 passes over the records"),
    ] {
        refused(&bench, &words, 2, &[said]);
    }
    refused(&bench, &format!("{train} -1"), 2, &["unexpected argument '-1'"]);
}

/// However few of the rows are looked at.
#[test]
fn an_answer_is_chosen_among_those_of_all_rows() {
    let bench = Bench::new();
    let eval = "eval --model model --dtype f32 --max-tokens 0 --data data.jsonl --rows seen.jsonl --limit 1";
    for labels in ["auto", "few"] {
        bench.lora(&format!("{eval} --labels {labels}")).ok();
        let seen: Value = serde_json::from_slice(&fs::read(bench.path("seen.jsonl")).unwrap()).unwrap();
        let labels: Vec<_> = seen["scores"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(labels, ["four", "hello", "six"], "{seen}");
    }
    // Of those that are named, each row that is looked at has its own.
    bench.lora(&format!("{eval} --labels four,eight")).ok();
    refused(&bench, &format!("{eval} --labels eight,nine"), 3, &["is none of the labels"]);
}

/// A folder may hold more tensors than its configuration has a place for: nothing here computes with them, and what is
/// written for llama.cpp has none of them.
#[test]
fn tensors_without_a_place_are_not_exported() {
    let bench = Bench::new();
    bench.byte_level();
    let exported = |places: Option<usize>| {
        let run = bench.lora("export --model model --merged --outtype f32 --out out.gguf --overwrite");
        assert_eq!(run.code, Some(0), "{}", run.err);
        let notes: Vec<_> = run.err.lines().filter(|line| line.starts_with("note: ")).collect();
        assert_eq!(notes.len(), usize::from(places.is_some()), "{notes:?}");
        let said = places.map_or(String::new(), |n| format!("are not written: {n}, "));
        assert!(notes.iter().all(|note| note.contains(&said)), "{notes:?}");
        lora::open(&bench.path("out.gguf")).unwrap().names()
    };
    let all = exported(None);
    let file = bench.path("model/model.safetensors");
    let mut tensors: Vec<_> = lora::read_tensors(&file).unwrap().into_iter().collect();
    for part in ["self_attn.q_proj.bias", "self_attn.o_proj.bias", "mlp.router.weight"] {
        tensors.push((format!("model.layers.1.{part}"), Tensor::ones([32], (Kind::Float, Device::Cpu))));
    }
    // Known, and never told.
    let table = Tensor::ones([4], (Kind::Float, Device::Cpu));
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), table));
    lora::write_tensors(&file, &tensors, &[]).unwrap();
    assert_eq!(exported(Some(3)), all);

    // A model may be cut to its first layers by its configuration alone.
    bench.patch("model/config.json", br#""num_hidden_layers": 2"#, br#""num_hidden_layers": 1"#);
    let (second, first): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|name| name.starts_with("model.layers.1."));
    assert_eq!(exported(Some(second.len() + 3)), first);
}
