//! The program as a person meets it: what it says when something is wrong, and one run from end to end.

#[allow(dead_code)]
mod common;

use std::fs;

use common::Bench;
use insta::assert_snapshot;
use serde_json::Value;

/// Every case: a name, what is made wrong, and the words after `lora`. The snapshot is the exit code and what
/// stands on standard error; whatever went wrong, no file may have come, gone or been left half written.
macro_rules! refused {
    ($($name:ident: $words:expr, $break:expr;)*) => {$(
        #[test]
        fn $name() {
            refuse(stringify!($name), Bench::lora, $words, $break);
        }
    )*};
}

fn refuse(name: &str, run: fn(&Bench, &str) -> common::Run, words: &str, broken: fn(&Bench)) {
    let bench = Bench::new();
    broken(&bench);
    let before = bench.files();
    let run = run(&bench, words);
    assert_ne!(run.code, Some(0), "{}", run.out);
    assert_eq!(bench.files(), before, "{}", run.err);
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"mean KL of \d\.\d+e-\d+", "mean KL of [NUMBER]");
    let _bound = settings.bind_to_scope();
    assert_snapshot!(name, format!("$ lora {words}\nexit code {}\n{}", run.code.unwrap_or(-1), run.err));
}

const TRAIN: &str = "train --model model --data data.jsonl --out out --dtype f32 --epochs 3";
const EVAL: &str = "eval --model model --adapter adapter --data data.jsonl --dtype f32";
const MERGE: &str = "merge --model model --adapter adapter --out merged";

fn with(words: &str, more: &str) -> String {
    format!("{words} {more}")
}

fn nothing(_: &Bench) {}

const WEIGHTS: &str = "model/model.safetensors";
const Q_PROJ: &[u8] = br#"_proj.weight":{"dtype":"F32","shape":[16,32],"data_offsets":[30976,"#;
const Q_PROJ_TURNED: &[u8] = br#"_proj.weight":{"dtype":"F32","shape":[32,16],"data_offsets":[30976,"#;

fn index_of_two_shards(bench: &Bench) {
    fs::rename(bench.path(WEIGHTS), bench.path("model/model-00001-of-00002.safetensors")).unwrap();
    let map = r#"{"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors",
        "model.norm.weight": "model-00002-of-00002.safetensors"}}"#;
    bench.write("model/model.safetensors.index.json", map);
}

fn two_billion_layers(bench: &Bench) {
    let config = fs::read_to_string(bench.path("model/config.json")).unwrap();
    let layers = "\"num_hidden_layers\": 2";
    assert!(config.contains(layers));
    bench.write("model/config.json", config.replace(layers, &format!("{layers}000000000")));
}

fn cut_short(bench: &Bench) {
    let bytes = fs::read(bench.path(WEIGHTS)).unwrap();
    bench.write(WEIGHTS, &bytes[..40_000]);
}

fn not_a_number(bench: &Bench) {
    let mut bytes = fs::read(bench.path(WEIGHTS)).unwrap();
    // Of the last tensor but one: `layers.1.self_attn.v_proj`.
    let at = bytes.len() - 1000;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bench.write(WEIGHTS, bytes);
}

fn only_a_pickle(bench: &Bench) {
    fs::rename(bench.path(WEIGHTS), bench.path("model/pytorch_model.bin")).unwrap();
}

fn dora_called_lora(bench: &Bench) {
    bench.copy("smollm/adapters/dora", "adapter");
    let config = fs::read_to_string(bench.path("adapter/adapter_config.json")).unwrap();
    assert!(config.contains(r#""use_dora": true"#));
    let config = config.replace(r#""use_dora": true"#, r#""use_dora": false"#);
    bench.write("adapter/adapter_config.json", config);
}

fn long_row(bench: &Bench) {
    let row = format!(r#"{{"prompt": "{}", "completion": "b"}}"#, "a".repeat(300));
    bench.write("data.jsonl", format!("{{\"text\": \"short\"}}\n{row}\n"));
}

fn output_that_is_there(bench: &Bench) {
    fs::create_dir(bench.path("out")).unwrap();
    bench.write("out/adapter_config.json", "{}");
}

fn output_of_others(bench: &Bench) {
    fs::create_dir(bench.path("out")).unwrap();
    bench.write("out/thesis.tex", "years of work");
}

refused! {
    missing_model: &TRAIN.replace("--model model", "--model nowhere"), nothing;
    missing_shard: TRAIN, index_of_two_shards;
    truncated_weights: TRAIN, cut_short;
    more_layers_than_tensors: TRAIN, two_billion_layers;
    wrong_shape: TRAIN, |b| b.patch(WEIGHTS, Q_PROJ, Q_PROJ_TURNED);
    nan_in_the_weights: TRAIN, not_a_number;
    pickle_only: TRAIN, only_a_pickle;
    unknown_variant: &with(TRAIN, "--variant lora+drora"), nothing;
    two_variants_for_one_hole: &with(TRAIN, "--variant qlora+lora+dora+dora"), nothing;
    rank_0: &with(TRAIN, "--rank 0"), nothing;
    rank_above_the_layer: &with(TRAIN, "--rank 33"), nothing;
    target_that_matches_nothing: &with(TRAIN, "--targets query_key_value"), nothing;
    unknown_device: &with(TRAIN, "--device tpu"), nothing;
    learning_rate_0: &with(TRAIN, "--lr 0 --warmup 3"), nothing;
    empty_data: TRAIN, |b| b.write("data.jsonl", "\n");
    malformed_row: TRAIN, |b| b.write("data.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"\n");
    unknown_fields: TRAIN, |b| b.write("data.jsonl", "{\"question\": \"a\", \"answer\": \"b\"}\n");
    looping_template: TRAIN, |b| b.write("model/chat_template.jinja",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}");
    broken_template: TRAIN, |b| b.write("model/chat_template.jinja", "{% for m in messages %}");
    row_longer_than_the_context: TRAIN, long_row;
    output_exists: TRAIN, output_that_is_there;
    output_of_someone_else: &with(TRAIN, "--overwrite"), output_of_others;
    missing_adapter: EVAL, nothing;
    adapter_of_another_base: EVAL, |b| b.copy("qwen3/adapters/lora", "adapter");
    flags_against_keys: EVAL, dora_called_lora;
    export_of_nothing: "export --model model --out out.gguf", nothing;
    export_of_a_folder_whole: "export --model model --merged --out out.gguf", nothing;
    export_onto_a_file: "export --model model --adapter adapter --out data.jsonl",
        |b| b.copy("smollm/adapters/dora", "adapter");
    export_of_a_dora: "export --model model --adapter adapter --out out.gguf",
        |b| b.copy("smollm/adapters/dora", "adapter");
    quantize_in_odd_blocks: "quantize model out --block-size 48", nothing;
    quantize_nothing: "quantize nowhere out", nothing;
    merge_that_fails_to_verify: &with(MERGE, "--tolerance 0 --verify data.jsonl"),
        |b| b.copy("smollm/adapters/dora", "adapter");
    empty_prompt: "generate --model model --prompt ''", nothing;
    empty_input: "generate --model model", nothing;
    bad_sampling: "generate --model model --prompt a --top-p 0", nothing;
}

#[test]
fn disk_full_at_train() {
    refuse("disk_full_at_train", Bench::lora_without_room, TRAIN, nothing);
}

#[test]
fn disk_full_at_merge() {
    let adapter = |b: &Bench| b.copy("smollm/adapters/lora", "adapter");
    refuse("disk_full_at_merge", Bench::lora_without_room, MERGE, adapter);
}

/// The metrics stay, for whoever wants to see how it went; the adapter does not.
#[test]
fn diverging() {
    let bench = Bench::new();
    let mut files = bench.files();
    let words = with(TRAIN, "--lr 1e30 --clip 0 --schedule constant --warmup 0");
    let run = bench.lora(&words);
    files.extend(["out.metrics.jsonl".to_owned()]);
    assert_eq!((run.code, bench.files()), (Some(6), files), "{}", run.err);
    let (_, error) = run.err.split_once("error: ").unwrap();
    assert_snapshot!(error);
}

#[test]
fn help() {
    let bench = Bench::new();
    assert_snapshot!("variants", bench.lora("variants").ok());
    assert_snapshot!("help", bench.lora("--help").ok());
    for verb in
        ["train", "plan", "init", "eval", "generate", "merge", "export", "inspect", "variants", "doctor"]
    {
        assert_snapshot!(format!("help_{verb}"), bench.lora(&format!("{verb} --help")).ok());
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Train, inspect, evaluate, merge, generate, for a method of each kind.
#[test]
fn from_training_to_the_merged_model() {
    for variant in ["lora", "qlora+dora+rslora", "full"] {
        let bench = Bench::new();
        let before = bench.files();
        let train = |seed: u64, out: &str| {
            let train = TRAIN.replace("--out out", &format!("--out {out}"));
            bench.lora(&format!("{train} --variant {variant} --rank 4 --lr 1e-2 --seed {seed}")).ok();
            fs::read(bench.path(out).join("adapter_model.safetensors")).unwrap()
        };
        let first = train(7, "out");
        let made: Vec<_> = bench.files().into_iter().filter(|f| !before.contains(f)).collect();
        let files = ["adapter_config.json", "adapter_model.safetensors", "training.json"];
        let expected = ["out".to_owned(), "out.metrics.jsonl".to_owned()].into_iter();
        assert_eq!(made, expected.chain(files.map(|f| format!("out/{f}"))).collect::<Vec<_>>());
        let training = json(&fs::read_to_string(bench.path("out/training.json")).unwrap());
        assert_eq!(training["outcome"]["steps"], 3);
        let metrics = fs::read_to_string(bench.path("out.metrics.jsonl")).unwrap();
        assert_eq!(metrics.lines().map(json).filter(|e| e["event"] == "step").count(), 3);

        // The same seed, the same bytes; another one, others.
        assert!(train(7, "again") == first);
        assert!(train(8, "other") != first);
        // Nor do they depend on what is kept; and the tables add up.
        let again = TRAIN.replace("--out out", "--out recomputed --recompute all --profile");
        let shown = bench.lora(&format!("{again} --variant {variant} --rank 4 --lr 1e-2 --seed 7")).ok();
        assert!(fs::read(bench.path("recomputed/adapter_model.safetensors")).unwrap() == first);
        for part in [
            "time ",
            "matrix products",
            "attention",
            "optimiser",
            "limit ",
            "memory ",
            "of what was measured",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }

        // Both layers' 4 + 3 matrices: A and B of rank 4, and DoRA's magnitudes, one a row; or a whole one each.
        let sides = [(32, 32), (16, 32), (16, 32), (32, 32), (48, 32), (48, 32), (32, 48)];
        let low_rank: i64 = sides.iter().map(|(o, i)| 2 * 4 * (o + i)).sum();
        let magnitudes: i64 = sides.iter().map(|(o, _)| 2 * o).sum();
        let whole: i64 = sides.iter().map(|(o, i)| 2 * o * i).sum();
        let all = match variant {
            "lora" => low_rank,
            "full" => whole,
            _ => low_rank + magnitudes,
        };
        let inspected = json(&bench.lora("inspect out --json").ok());
        assert_eq!(inspected["parameters"], all);
        assert_eq!(inspected["modules"].as_array().unwrap().len(), 14);

        let loss = |words: &str| {
            let words = format!("eval --data data.jsonl --dtype f32 --json --max-tokens 4 {words}");
            json(&bench.lora(&words).ok())["loss"].as_f64().unwrap()
        };
        let (plain, tuned) = (loss("--model model"), loss("--model model --adapter out"));
        assert!(tuned < plain, "{tuned} after training, {plain} before");
        bench.lora("merge --model model --adapter out --out merged --dtype f32 --verify").ok();
        let merged = loss("--model merged");
        assert!((merged - tuned).abs() < 1e-5, "{merged} merged, {tuned} with the adapter");

        let generate = "generate --dtype f32 --max-tokens 8 --prompt hi --model";
        let (a, b) = (format!("{generate} model --adapter out"), format!("{generate} merged"));
        assert_eq!(bench.lora(&a).ok(), bench.lora(&b).ok());
        assert!(bench.files().iter().all(|f| !f.contains("partial")), "{:?}", bench.files());
    }
}

/// Of one layer, by number; what is written names its modules, so that it is read back as it was meant.
#[test]
fn only_some_layers_train() {
    let bench = Bench::new();
    for variant in ["lora", "full"] {
        bench.lora(&format!("{TRAIN} --overwrite --variant {variant} --layers 1 --rank 4")).ok();
        let inspected = json(&bench.lora("inspect out --json").ok());
        let modules = inspected["modules"].as_array().unwrap();
        let name = |m: &Value| m["name"].as_str().unwrap_or_default().to_owned();
        assert_eq!(modules.len(), 7, "{modules:?}");
        assert!(modules.iter().all(|m| name(m).contains("layers.1.")), "{modules:?}");
        bench.lora("eval --model model --adapter out --data data.jsonl --max-tokens 0 --json").ok();
    }
}

/// A plan is made without the weights; a setting that is chosen for memory learns the same.
#[test]
fn what_is_planned_and_chosen() {
    let bench = Bench::new();
    let plan = "plan --model model --length 64 --dtype f32 --batch-size 4 --json --memory";
    let wide = json(&bench.lora(&format!("{plan} 8GB")).ok());
    assert_eq!(wide["fastest"]["weights"], "dense");
    assert_eq!(wide["fastest"]["recompute"], 0);
    assert!(wide["bytes"].as_u64().unwrap() > wide["parts"]["program"].as_u64().unwrap());
    let settings = wide["settings"].as_array().unwrap();
    assert_eq!(settings.len(), 4, "{settings:?}");
    let bytes = |at: usize| settings[at]["bytes"].as_u64().unwrap();
    assert!(bytes(1) < bytes(0), "recomputing takes less: {settings:?}");

    // Between what the least and the asked setting take, something slower is chosen.
    let middle = (bytes(0) + bytes(1)) / 2;
    let narrow = json(&bench.lora(&format!("{plan} {}B", middle + middle / 30 + 1)).ok());
    let chosen = &narrow["fastest"];
    assert!(chosen["bytes"].as_u64().unwrap() <= middle);
    assert!(chosen != &wide["fastest"], "{chosen}");

    bench.lora(&format!("{TRAIN} --auto --memory 8GB")).ok();
    bench.lora(&TRAIN.replace("--out out", "--out plain")).ok();
    let weights = |folder: &str| fs::read(bench.path(folder).join("adapter_model.safetensors")).unwrap();
    assert!(weights("out") == weights("plain"));

    for words in
        [format!("{TRAIN} --overwrite --auto --memory 1MB"), format!("{TRAIN} --auto --recompute all")]
    {
        let refused = bench.lora(&words);
        assert_eq!(refused.code, Some(2), "{}", refused.err);
    }
    let refused = bench.lora(&format!("{TRAIN} --overwrite --auto --memory 1MB")).err;
    assert!(refused.contains("nothing fits in 0.00 GB; the least is"), "{refused}");
    for bad in ["--length 0", "--length 99999", "--memory lots", "--data data.jsonl --length 5", "--rank 0"] {
        assert_eq!(bench.lora(&format!("plan --model model {bad}")).code, Some(2), "{bad}");
    }
}

/// A start that changes the base: base and adapter together are the model that there was, and train on.
#[test]
fn started_from_the_weights() {
    let bench = Bench::new();
    let loss = |words: &str| {
        let words = format!("eval --data data.jsonl --dtype f32 --json --max-tokens 4 {words}");
        json(&bench.lora(&words).ok())["loss"].as_f64().unwrap()
    };
    let plain = loss("--model model");
    for (words, most) in [
        ("--init pissa", 1e-5),
        ("--init olora --variant dora+rslora", 1e-5),
        ("--init loftq --variant qlora", 0.2),
        ("--init pissa --variant qlora+dora --rounds 2", 0.2),
    ] {
        bench.lora(&format!("init --model model --out start --overwrite --rank 8 --dtype f32 {words}")).ok();
        let started = loss("--model start/base --adapter start/adapter");
        assert!((started - plain).abs() < most, "{words}: {started}, {plain} before");
        let train = TRAIN
            .replace("--model model", "--model start/base --adapter start/adapter --lr 1e-2 --overwrite");
        bench.lora(&train).ok();
        assert!(loss("--model start/base --adapter out") < started, "{words}");
    }
    let files = bench.files();
    for (words, what) in [
        ("init --model model --out other --init kaiming", "no start that looks at the weight"),
        ("init --model model --out other --init loftq", "nothing is quantised"),
        ("init --model model --out other --init olora --rounds 3", "3 rounds of olora"),
        ("init --model model --out other --init pissa --rank 99", "rank"),
        ("init --model model --out start --init pissa", "is there already"),
        ("init --model model --out out --init pissa --overwrite", "not of this program's making"),
        (&TRAIN.replace("--out out", "--out other --init pissa"), "changes the base"),
    ] {
        let refused = bench.lora(words);
        assert_ne!(refused.code, Some(0), "{words}");
        assert!(refused.err.contains(what), "{words}: {}", refused.err);
        assert_eq!(bench.files(), files, "{words}");
    }
}

/// A folder with an adapter, merged and written for llama.cpp, says what folder and adapter say.
#[test]
fn exported_as_gguf() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --lr 1e-2")).ok();
    // The toy's tokenizer is of no sort that llama.cpp has.
    let export = "export --model model --adapter out --merged --outtype f32 --out out.gguf";
    let refused = bench.lora(export);
    assert!(refused.code == Some(4) && refused.err.contains("hint"), "{}", refused.err);
    bench.byte_level();
    bench.lora(export).ok();
    let say = "generate --dtype f32 --max-tokens 8 --prompt hi --model";
    assert_eq!(
        bench.lora(&format!("{say} out.gguf")).ok(),
        bench.lora(&format!("{say} model --adapter out")).ok()
    );
    let again = bench.lora("export --model out.gguf --merged --out again.gguf --pre gpt-2");
    assert!(again.code == Some(2) && again.err.contains("leave out --pre"), "{}", again.err);
}

/// llama.cpp has no adapter of an output head that is the embedding.
#[test]
fn an_adapter_of_a_tied_head_is_not_exported() {
    let bench = Bench::new();
    let config = fs::read_to_string(bench.path("model/config.json")).unwrap();
    assert!(json(&config)["tie_word_embeddings"] == true);
    bench.lora(&format!("{TRAIN} --targets q_proj,lm_head")).ok();
    let refused = bench.lora("export --model model --adapter out --out out.gguf");
    assert_eq!(refused.code, Some(4), "{}", refused.err);
    assert!(refused.err.contains("the embedding") && refused.err.contains("--merged"), "{}", refused.err);
    assert!(!bench.path("out.gguf").exists());
}
