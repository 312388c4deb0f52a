//! What a run writes, where, and what becomes of it when something is in the way.

#[allow(dead_code)]
mod common;

use std::fs;
use std::path::Path;

use common::Bench;
use serde_json::Value;

const TRAIN: &str = "train --model model --data data.jsonl --rank 2 --max-steps 2 --dtype f32";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// As the shell completes it.
#[test]
fn an_output_may_end_in_a_slash() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out/")).ok();
    assert!(bench.path("out.metrics.jsonl").is_file());
    bench.lora(&format!("{TRAIN} --out out/ --overwrite")).ok();
    assert_eq!(
        fs::read_dir(bench.path("out")).unwrap().count(),
        3,
        "the adapter, its settings, training.json"
    );

    let simulate =
        "fed simulate --model model --dtype f32 --data data.jsonl --split 2 --rule fedit --rank 2 --rounds 1";
    for more in ["", " --overwrite"] {
        bench.lora(&format!("{simulate} --out together/{more}")).ok();
    }
    assert!(bench.path("together.rounds.jsonl").is_file() && !bench.path("together.state").exists());
}

/// What is written names the modules that a pattern chose, whatever wrote it.
#[test]
fn a_pattern_is_written_by_name() {
    let bench = Bench::new();
    let pattern = r"--targets regex:.*\.mlp\.[a-z_]+";
    bench.lora(&format!("{TRAIN} {pattern} --trace trace --out trained")).ok();
    bench.lora(&format!("init --model model --init pissa --rank 2 --dtype f32 --out start {pattern}")).ok();
    let simulate =
        "fed simulate --model model --dtype f32 --data data.jsonl --split 2 --rule fedex --rounds 2";
    bench.lora(&format!("{simulate} --rank 2 --out together {pattern}")).ok();
    for folder in ["trained", "trace", "start/adapter", "together"] {
        let config = fs::read_to_string(bench.path(folder).join("adapter_config.json")).unwrap();
        let targets = &json(&config)["target_modules"];
        assert_eq!(*targets, serde_json::json!(["down_proj", "gate_proj", "up_proj"]), "{folder}");
        bench.lora(&format!("inspect {folder}")).ok();
    }
}

/// A file that is not ours comes into the folder while the run goes on.
#[test]
fn a_finished_adapter_is_not_thrown_away() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out")).ok();
    let run = bench.lora(&format!("{TRAIN} --out out --overwrite --trace out/trace"));
    assert_eq!(run.code, Some(2), "{}", run.err);
    assert!(run.err.contains("trace/") && run.err.contains("out.finished-"), "{}", run.err);
    let kept = bench.files().into_iter().find(|name| name.starts_with("out.finished-")).unwrap();
    fs::rename(bench.path(&kept), bench.path("kept")).unwrap();
    bench.lora("generate --model model --adapter kept --dtype f32 --prompt hi --max-tokens 2").ok();
}

#[test]
fn metrics_that_cannot_be_written_stop_nothing() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let bench = Bench::new();
    std::os::unix::fs::symlink("/dev/full", bench.path("out.metrics.jsonl")).unwrap();
    let run = bench.lora(&format!("{TRAIN} --out out"));
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(run.err.matches("cannot write the metrics").count(), 1, "{}", run.err);
    assert!(bench.path("out/adapter_model.safetensors").is_file());
}

#[test]
fn a_single_step_learns_something() {
    let bench = Bench::new();
    bench.lora("train --model model --data data.jsonl --rank 2 --max-steps 1 --dtype f32 --out out").ok();
    let inspected = json(&bench.lora("inspect out --json").ok());
    let norms: Vec<f64> = inspected["modules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|module| module["norm_b"].as_f64().unwrap())
        .collect();
    assert!(norms.iter().any(|norm| *norm > 0.0), "{norms:?}");
}

#[test]
fn a_json_object_stands_alone() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out")).ok();
    let eval =
        "eval --model model --adapter out --dtype f32 --data data.jsonl --max-tokens 2 --samples 2 --json";
    let run = bench.lora(eval);
    json(&run.out);
    assert_eq!(run.err.matches("question").count(), 2, "{}", run.err);
    let merge = "merge --model model --adapter out --out merged --requantize --verify --tolerance 1e9 --json";
    let found = json(&bench.lora(merge).ok());
    assert!(found["rounding"]["bits"].as_f64().unwrap() > 4.0, "{found}");
}

/// Rows whose first 1024 tokens, or those of the context, are all prompt.
#[test]
fn a_merge_is_verified_on_rows_of_any_length() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out")).ok();
    let row = |prompt: &str| serde_json::json!({ "prompt": prompt, "completion": "four" });
    bench.write("long.jsonl", format!("{}\n{}\n", row("two"), row(&"two ".repeat(200))));
    let run = bench.lora("merge --model model --adapter out --out merged --dtype f32 --verify long.jsonl");
    assert!(run.ok().contains("positions"));
}

#[test]
fn what_an_evaluation_cannot_write_or_judge_is_said_first() {
    let bench = Bench::new();
    let eval = "eval --model model --dtype f32 --max-tokens 2 --data data.jsonl";
    let before = fs::read(bench.path("data.jsonl")).unwrap();
    fs::create_dir(bench.path("folder")).unwrap();
    for (more, said) in [
        ("--rows ./data.jsonl", "would replace the data"),
        ("--trace data.jsonl", "would replace the data"),
        ("--trace ./seen.jsonl --rows seen.jsonl", "are one file"),
        ("--rows folder", "not a plain file"),
        ("--labels four,hello --rows seen.jsonl --samples 3", "is none of the labels"),
    ] {
        let run = bench.lora(&format!("{eval} {more}"));
        assert!(run.code != Some(0) && run.err.contains(said), "{more}: {}", run.err);
        assert!(run.out.is_empty(), "nothing was computed: {}", run.out);
    }
    assert_eq!(fs::read(bench.path("data.jsonl")).unwrap(), before);
    assert!(!bench.path("seen.jsonl").exists());
}

/// The tokens that a row is judged by are those that it is learnt by, however it is written.
#[test]
fn what_is_asked_can_be_asked_elsewhere() {
    let bench = Bench::new();
    let chat = |answer: &str| {
        let turns = serde_json::json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": answer }]);
        serde_json::json!({ "messages": turns })
    };
    let pair = |answer: &str| serde_json::json!({ "prompt": "two and two is", "completion": answer });
    let rows = [
        chat("four"),
        pair(" six</s>"),
        chat("six "),
        pair("four"),
        serde_json::json!({ "text": "and so on" }),
    ];
    bench.write("rows.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let train =
        "train --model model --data rows.jsonl --out out --rank 2 --max-steps 1 --batch-size 5 --trace t";
    bench.lora(&format!("{train} --dtype f32")).ok();
    let learnt = json(&fs::read_to_string(bench.path("t/batches.jsonl")).unwrap());
    let learnt = learnt["texts"].as_array().unwrap();
    for (labels, answers) in [("", None), ("--labels auto", Some(["four", "six"]))] {
        let eval = "eval --model model --dtype f32 --max-tokens 0 --data rows.jsonl --trace asked.jsonl";
        bench.lora(&format!("{eval} {labels}")).ok();
        let text = fs::read_to_string(bench.path("asked.jsonl")).unwrap();
        let asked: Vec<_> = text.lines().map(json).collect();
        assert_eq!(asked.len(), rows.len());
        for (row, line) in rows.iter().zip(&asked) {
            let answers = answers.filter(|_| row.get("text").is_none());
            let texts = line["texts"].as_array().unwrap();
            assert_eq!(texts.len(), answers.map_or(1, |a| a.len()), "{line}");
            assert_eq!(line["answers"], serde_json::json!(answers), "{line}");
            let right = line["right"].as_u64().unwrap_or(0) as usize;
            assert!(learnt.contains(&texts[right]), "{line} of {learnt:?}");
            if let Some(answers) = answers {
                assert!(row.to_string().contains(answers[right]), "{row}: {line}");
            }
        }
    }
}

/// A label is scored as the rows have it: trained with a blank before it, with one.
#[test]
fn a_label_is_scored_in_its_rows_white_space() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out --lr 3e-2")).ok();
    let row = |label: &str| {
        serde_json::json!({ "prompt": "two and two is", "completion": label }).to_string() + "\n"
    };
    let loss = |label: &str| {
        bench.write("one.jsonl", row(label));
        let words = "eval --model model --adapter out --dtype f32 --max-tokens 0 --data one.jsonl --json";
        json(&bench.lora(words).ok())["loss"].as_f64().unwrap() * (label.len() + 1) as f64
    };
    let wanted = [loss(" four"), loss(" six")];
    bench.write("rows.jsonl", row(" four") + &row(" six"));
    for labels in ["four,six", "auto"] {
        let words =
            "eval --model model --adapter out --dtype f32 --max-tokens 0 --data rows.jsonl --rows seen.jsonl";
        bench.lora(&format!("{words} --labels {labels}")).ok();
        let text = fs::read_to_string(bench.path("seen.jsonl")).unwrap();
        for line in text.lines().map(json) {
            for (label, loss) in ["four", "six"].iter().zip(wanted) {
                let score = line["scores"][label].as_f64().unwrap();
                assert!((score / -loss - 1.0).abs() < 1e-5, "{label}: {score} for {loss}");
            }
        }
    }
}

/// What training keeps in its blocks is planned so.
#[test]
fn a_packed_checkpoint_is_planned_as_it_is_trained() {
    let bench = Bench::new();
    bench.lora("quantize model four").ok();
    let plan = |more: &str| json(&bench.lora(&format!("plan --model four --length 32 --json{more}")).ok());
    let asked = plan("");
    let weights = |plan: &Value| plan["parts"]["weights"].as_u64().unwrap();
    assert_eq!(weights(&asked), weights(&plan(" --base-storage native")));
    assert!(weights(&asked) < weights(&plan(" --base-storage dense")));
    assert_eq!(asked["settings"][0]["weights"], "native");
    let run = bench.lora(&format!("{TRAIN} --out out").replace("--model model", "--model four"));
    assert!(run.ok().contains("native weights"));
}

/// Two layers, each of 32 x 32 and 16 x 32 and 48 x 32, twice, and 32 x 48: 7680 numbers, 224 rows, 464 rows and columns.
#[test]
fn whole_weights_and_what_lies_beside_them_are_planned() {
    let bench = Bench::new();
    let parts = |more: &str| {
        let plan = bench.lora(&format!("plan --model model --length 32 --json {more}"));
        let parts = json(&plan.ok())["parts"].clone();
        ["weights", "adapters", "optimiser"].map(|part| parts[part].as_u64().unwrap())
    };
    for (method, numbers) in [
        ("--variant full", 15360),
        ("--variant full --layers 1 --dtype f32", 7680),
        ("--variant qlora+full", 15360),
        ("--variant dora+full", 15360 + 448),
    ] {
        // Each with its gradient, and with two moments, in f32.
        assert_eq!(parts(method)[1..], [8 * numbers; 2], "{method}");
    }
    for (method, bytes) in [
        ("", 4 * 5 * 928),
        ("--variant qlora --layers 1", 4 * 5 * 464),
        // Added to a copy of the weight.
        ("--dtype f32", 4 * (5 * 928 + 15360)),
    ] {
        let [bare, laid] = ["", "--beside 5"].map(|beside| parts(&format!("{method} {beside}"))[0]);
        assert_eq!(laid - bare, bytes, "{method}");
    }
    let run = bench.lora(&format!("{TRAIN} --variant full --auto --memory 8GB --out out")).ok();
    assert!(run.contains("plan ") && run.contains("dense weights"), "{run}");
}
