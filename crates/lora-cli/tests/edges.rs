//! What lies at the edge of what the program can do: said, not guessed.

#[allow(dead_code)]
mod common;

use std::fs;

use common::{Bench, refused};
use serde_json::Value;

#[test]
fn a_generation_that_cannot_be_is_refused() {
    let bench = Bench::new();
    let generate = "generate --model model --dtype f32 --max-tokens 4";
    let long = "a".repeat(300);
    refused(&bench, &format!("{generate} --raw --prompt {long}"), 3, &["no room", "context of 256"]);
    refused(&bench, &format!("{generate} --raw --system be-brief --prompt hi"), 2, &["--raw"]);
    // However cold.
    let cold = bench.lora(&format!("{generate} --prompt hi --temperature 1e-40")).ok();
    assert_eq!(cold, bench.lora(&format!("{generate} --prompt hi")).ok());
    fs::remove_file(bench.path("model/chat_template.jinja")).unwrap();
    refused(&bench, &format!("{generate} --system be-brief --prompt hi"), 2, &["no chat template"]);
}

/// So that a plan of many runs can be tried on `lora` beforehand, at no cost.
#[test]
fn a_command_line_that_makes_no_sense_is_told_before_the_model_is_looked_for() {
    let bench = Bench::new();
    let train = "train --model nowhere --data data.jsonl --out out";
    for options in [
        "--limit 3",
        "--dp-clip 0.5",
        "--eval-every 10",
        "--schedule cosin",
        "--weight-decay nan",
        "--rank-pattern q_proj=2 --rank-pattern q_proj=4",
        "--save-every 5 --trace trace",
        "--adapter start --dropout 0.1",
        "--adapter start --schedule cosin",
        "--dp-epsilon 8 --dropout 0.1",
        "--dp-epsilon 8 --trace trace",
        "--max-step 3",
    ] {
        assert_eq!(bench.lora(&format!("{train} {options}")).code, Some(2), "{options}");
    }
    let simulate = "fed simulate --model nowhere --data data.jsonl --split 2 --rounds 2 --out out";
    for options in ["--adapter start --schedule cosin", "--adapter start --rule flora --robust median"] {
        assert_eq!(bench.lora(&format!("{simulate} {options}")).code, Some(2), "{options}");
    }
    bench.write("rows.jsonl", "");
    refused(&bench, "merge --model nowhere --adapter a --out out --verify --limit 2", 2, &["--limit"]);
    for verb in [
        train.to_owned(),
        format!("{train} --truncate --max-length 64 --warmup 0.1"),
        "eval --model nowhere --data data.jsonl --labels few --trace trace.jsonl".into(),
        "merge --model nowhere --adapter a --out out --verify rows.jsonl --limit 2".into(),
        "init --model nowhere --init loftq --variant qlora --out out".into(),
        simulate.into(),
    ] {
        assert_eq!(bench.lora(&verb).code, Some(5), "{verb}");
    }
    assert!(!bench.path("out").exists() && !bench.path("trace.jsonl").exists());
}

/// Told with the plan, and by the exit code: a script asks before it trains.
#[test]
fn a_plan_says_where_nothing_fits() {
    let bench = Bench::new();
    let plan = "plan --model model --length 64 --memory";
    let run = bench.lora(&format!("{plan} 1mb --json"));
    assert!(run.code == Some(2) && run.err.contains("nothing fits in 0.00 GB"), "{}", run.err);
    let told: Value = serde_json::from_str(&run.out).unwrap();
    assert!(told["fastest"].is_null() && told["bytes"].is_u64(), "{told}");
    let run = bench.lora(&format!("{plan} 1mb"));
    assert!(run.code == Some(2) && run.out.contains("what fits in"), "{}{}", run.out, run.err);
    refused(&bench, &format!("{plan} 8"), 2, &["`8` of what? say 8GB"]);
    bench.lora(&format!("{plan} 8gb")).ok();
}

#[test]
fn what_is_to_be_skipped_must_be_there() {
    let bench = Bench::new();
    for skip in ["down_prj", "model.layers.0", "lm_head"] {
        refused(&bench, &format!("quantize model four --skip {skip}"), 2, &[skip, "skipped"]);
        let train = "train --model model --data data.jsonl --out out --variant qlora --rank 2 --skip";
        refused(&bench, &format!("{train} {skip}"), 2, &[skip]);
    }
    bench.lora("quantize model four --skip down_proj").ok();
    let config: Value = serde_json::from_slice(&fs::read(bench.path("four/config.json")).unwrap()).unwrap();
    let skipped = &config["quantization_config"]["llm_int8_skip_modules"];
    let all = ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"];
    assert_eq!(*skipped, serde_json::json!(all));
}

/// Readers of before and after transformers 5 find the rotary base.
#[test]
fn the_rotary_base_is_written_in_both_spellings() {
    let bench = Bench::new();
    let mut config: Value =
        serde_json::from_slice(&fs::read(bench.path("model/config.json")).unwrap()).unwrap();
    let scaled = serde_json::json!({ "rope_theta": 5e5, "rope_type": "linear", "factor": 2.0 });
    config.as_object_mut().unwrap().remove("rope_theta");
    config["rope_parameters"] = scaled.clone();
    bench.write("model/config.json", config.to_string());
    bench.lora("train --model model --data data.jsonl --out out --rank 2 --max-steps 1 --dtype f32").ok();
    bench.lora("merge --model model --adapter out --out merged --dtype f32").ok();
    let config: Value = serde_json::from_slice(&fs::read(bench.path("merged/config.json")).unwrap()).unwrap();
    assert_eq!(
        (&config["rope_theta"], &config["rope_scaling"]),
        (&scaled["rope_theta"], &scaled),
        "{config}"
    );
    assert_eq!(config["rope_parameters"], scaled);
}

#[test]
fn named_chat_templates_come_along() {
    let bench = Bench::new();
    let name = "additional_chat_templates/tool_use.jinja";
    fs::create_dir(bench.path("model/additional_chat_templates")).unwrap();
    bench.write(&format!("model/{name}"), "{{ tools }}");
    bench.lora("train --model model --data data.jsonl --out out --rank 2 --max-steps 1 --dtype f32").ok();
    let merge = "merge --model model --adapter out --out merged --dtype f32";
    // It is the model's, and may be written over.
    for merge in [merge.to_owned(), format!("{merge} --overwrite")] {
        bench.lora(&merge).ok();
        assert_eq!(fs::read_to_string(bench.path(&format!("merged/{name}"))).unwrap(), "{{ tools }}");
    }
}

/// The default is narrower than many a base.
#[test]
fn a_merge_says_what_it_rounds() {
    let bench = Bench::new();
    bench.lora("train --model model --data data.jsonl --out out --rank 2 --max-steps 1 --dtype f32").ok();
    let merge = |words: &str| {
        let run = bench.lora(&format!("merge --overwrite --out merged --adapter out {words}"));
        assert_eq!(run.code, Some(0), "{}", run.err);
        run.err
    };
    let said = merge("--model model");
    assert!(said.contains("stored as f32, and --dtype bf16 rounds"), "{said}");
    assert!(said.contains("--dtype f32 keeps it"), "{said}");
    assert_eq!(merge("--model model --verify --tolerance 9 --json"), "");
    assert_eq!(merge("--model model --dtype f32"), "");
    // A base in each of the narrow types.
    for (dtype, into, note) in [("f16", "bf16", "--dtype f16 keeps it"), ("bf16", "f32", "")] {
        merge(&format!("--model model --dtype {dtype}"));
        let _ = fs::remove_dir_all(bench.path("base"));
        fs::rename(bench.path("merged"), bench.path("base")).unwrap();
        let said = merge(&format!("--model base --dtype {into}"));
        assert_eq!((said.is_empty(), said.contains(note)), (note.is_empty(), true), "{said}");
    }
}

/// An adapter that learnt beside 4 bits is another model beside the base as it was.
#[test]
fn a_merge_is_verified_beside_the_base_that_was_trained() {
    let bench = Bench::new();
    let train = "train --model model --data data.jsonl --out out --rank 2 --max-steps 1 --dtype f32";
    bench.lora(&format!("{train} --variant qlora")).ok();
    let merge = "merge --model model --adapter out --out merged --overwrite --dtype f32 --verify";
    let found = |more: &str| -> Value {
        serde_json::from_str(bench.lora(&format!("{merge} --json {more}")).ok().trim()).unwrap()
    };
    let kl = |found: &Value| found["mean_kl"].as_f64().unwrap();
    let (asked, beside) = (found("--tolerance 9"), found("--tolerance 9 --variant qlora"));
    let (asked, rounded) = (kl(&asked), kl(&beside));
    assert!(asked < 1e-6 && rounded > 100.0 * asked.max(1e-9), "{asked} {rounded}");

    // What rounding the base had changed refuses nothing: the tolerance is for what merging itself changes.
    let between = (asked.max(1e-9) * rounded).sqrt();
    let kept = found(&format!("--variant qlora --tolerance {between:e}"));
    assert!(kl(&kept) > between && kl(&kept["merging"]) < between, "{kept}");
    let said = bench.lora(&format!("{merge} --variant qlora --tolerance {between:e}")).ok();
    for part in ["beside the base as qlora", "beside the base that is merged into", "written to merged"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // A result in 4 bits is rounded by the merge.
    let run = bench.lora(&format!("{merge} --variant qlora --requantize --tolerance 0"));
    assert!(run.code == Some(3) && run.err.contains("leave out --requantize"), "{}", run.err);
}

/// What would change nothing is not taken for a promise.
#[test]
fn an_option_that_would_do_nothing_is_refused() {
    let bench = Bench::new();
    let (merge, train) = ("merge --model model --adapter out --out new", "train --model model --out new");
    let generate = "generate --model model --dtype f32 --prompt hi";
    let before = bench.files();
    for (words, said) in [
        (format!("{merge} --tolerance 0.001"), "--verify"),
        (format!("{merge} --variant qlora"), "--verify"),
        (format!("{train} --data data.jsonl --dp-clip 0.5"), "--dp-epsilon"),
        (format!("{train} --data data.jsonl --limit 2"), "--eval"),
        (format!("{train} --data data.jsonl --eval-every 2"), "--eval"),
        (format!("{generate} --top-p 0.9"), "--temperature"),
        (format!("{generate} --top-k 4"), "--temperature"),
    ] {
        refused(&bench, &words, 2, &[said]);
    }
    assert_eq!(bench.files(), before);
}

/// A full disk behind standard output.
#[cfg(target_os = "linux")]
#[test]
fn what_could_not_be_told_is_an_error() {
    let bench = Bench::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let run = bench.lora_into("variants --json", full);
    assert_eq!(run.code, Some(5), "{}", run.err);
    assert!(run.err.contains("standard output") && run.err.contains("cut short"), "{}", run.err);
    // Who stops reading knows it.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(bench.lora_into("variants --json", writer).code, Some(0));
}

/// A model card, or a licence that is not the model's, is somebody's work.
#[test]
fn what_people_lay_into_an_output_is_not_replaced() {
    let bench = Bench::new();
    bench.write("model/LICENSE", "the model's");
    let train = "train --model model --data data.jsonl --rank 2 --max-steps 1 --dtype f32 --out out";
    let merge = "merge --model model --adapter out --dtype f32 --out merged";
    let init = "init --model model --init pissa --rank 2 --dtype f32 --out start";
    for (words, files) in [
        (train, &["out/README.md"][..]),
        (merge, &["merged/README.md", "merged/LICENSE"][..]),
        (init, &["start/base/LICENSE", "start/adapter/README.md"][..]),
        ("quantize model four", &["four/LICENSE"][..]),
    ] {
        bench.lora(words).ok();
        let again = format!("{words} --overwrite");
        // What it has written itself, it replaces.
        bench.lora(&again).ok();
        for file in files {
            let own = fs::read(bench.path(file));
            bench.write(file, "years of work");
            refused(&bench, &again, 2, &["not of this program's making"]);
            assert_eq!(fs::read(bench.path(file)).unwrap(), b"years of work");
            match own {
                Ok(own) => bench.write(file, own),
                Err(_) => fs::remove_file(bench.path(file)).unwrap(),
            }
        }
    }
}

/// PEFT writes the base's own weight beside an adapter of the output head: it is none of the adapter's.
#[test]
fn an_adapter_of_the_output_head_is_read_by_all() {
    let bench = Bench::new();
    let train = "train --model model --data data.jsonl --out out --rank 2 --max-steps 1 --dtype f32";
    bench.lora(&format!("{train} --targets q_proj,lm_head")).ok();
    let inspect = |more: &str| -> Value {
        serde_json::from_str(&bench.lora(&format!("inspect out --json {more}")).ok()).unwrap()
    };
    let before = inspect("");
    let file = bench.path("out/adapter_model.safetensors");
    let adapter = lora::read_tensors(&file).unwrap();
    let base = lora::read_tensors(&bench.path("model/model.safetensors")).unwrap();
    let lay_beside = |more: f64| {
        let mut named: Vec<_> = adapter.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        let head = &base["model.embed_tokens.weight"] + more;
        named.push(("base_model.model.lm_head.base_layer.weight".into(), head));
        lora::write_tensors(&file, &named, &[]).unwrap();
    };
    lay_beside(0.0);
    for more in ["", "--model model"] {
        let now = inspect(more);
        let same = ["parameters", "modules"].iter().all(|key| now[key] == before[key]);
        assert!(same, "{now} {before}");
    }
    let simulate = "fed simulate --model model --dtype f32 --data data.jsonl --split 2 --rule fedit --rounds 1 \
                    --adapter out --out together";
    bench.lora(simulate).ok();
    lay_beside(0.5);
    refused(&bench, &format!("{simulate} --overwrite"), 3, &["another weight than this model's"]);
}

/// The score of an answer is what a row with that answer loses, however many are read in a pass and however they begin.
#[test]
fn the_score_of_an_answer_is_its_loss() {
    let bench = Bench::new();
    bench
        .lora("train --model model --data data.jsonl --out out --rank 4 --lr 3e-2 --max-steps 5 --dtype f32")
        .ok();
    let prompts = ["two and two is ", "x"];
    let row = |prompt: &str, label: &str| {
        let pair = serde_json::json!({ "prompt": prompt, "completion": label });
        let chat = serde_json::json!({ "messages": [
            { "role": "user", "content": prompt }, { "role": "assistant", "content": label }] });
        [pair, chat]
    };
    let rows: Vec<Value> = prompts.iter().flat_map(|prompt| row(prompt, "four")).collect();
    bench.write("rows.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let eval = "eval --model model --adapter out --dtype f32 --max-tokens 0";
    let scored = |labels: &[&str], batch: usize| -> Vec<Value> {
        let all: String = labels.iter().map(|label| format!(" --labels {label}")).collect();
        bench.lora(&format!("{eval} --data rows.jsonl --batch-size {batch} --rows seen.jsonl{all}")).ok();
        let text = fs::read_to_string(bench.path("seen.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let number = |value: &Value| value.as_f64().unwrap();
    for labels in [&["six", "f", "four"][..], &["four", "fourteen"]] {
        let (together, singly) = (scored(labels, 4), scored(labels, 1));
        assert_eq!(together.len(), rows.len());
        for (i, label) in (0..rows.len()).flat_map(|i| labels.iter().map(move |label| (i, *label))) {
            bench.write("one.jsonl", row(prompts[i / 2], label)[i % 2].to_string());
            let one = bench.lora(&format!("{eval} --data one.jsonl --json")).ok();
            // A token a character, and the end.
            let lost =
                number(&serde_json::from_str::<Value>(&one).unwrap()["loss"]) * (label.len() + 1) as f64;
            for seen in [&together, &singly] {
                let score = number(&seen[i]["scores"][label]);
                assert!((score / -lost - 1.0).abs() < 1e-5, "row {i}, {label}: {score} for {lost}");
            }
        }
    }
}

/// What an evaluation says does not depend on what is read with what: the loss of a row whose answer is a label, of one whose
/// answer is a label but for white space, of one that writes its end, of one without an answer; and the answers.
#[test]
fn an_evaluation_is_that_of_its_rows() {
    let bench = Bench::new();
    bench.write("model/generation_config.json", r#"{"eos_token_id": [2, 1]}"#);
    bench
        .lora("train --model model --data data.jsonl --out out --rank 4 --lr 3e-2 --max-steps 20 --dtype f32")
        .ok();
    let pair =
        |prompt: &str, completion: &str| serde_json::json!({ "prompt": prompt, "completion": completion });
    let text = serde_json::json!({ "text": "two and two is four" });
    let mut rows = vec![
        pair("two and two is ", "four"),
        pair("two and three is ", " four "),
        pair("x", "six"),
        text,
        pair("two and two is five, or ", "four"),
        pair("two and one is ", "four<s>"),
    ];
    // More than fit a pass.
    rows.extend((0..20).map(|i| pair(&format!("{i}{}", " and".repeat(57)), "six")));
    bench.write("rows.jsonl", rows.iter().map(|row| format!("{row}\n")).collect::<String>());
    let eval = |more: &str| -> Value {
        let words = "eval --model model --adapter out --dtype f32 --data rows.jsonl --rows seen.jsonl --json";
        serde_json::from_str(&bench.lora(&format!("{words} {more}")).ok()).unwrap()
    };
    let loss = eval("--max-tokens 0")["loss"].as_f64().unwrap();
    let mut answers = Vec::new();
    for batch in [1, 2, 64] {
        let seen = eval(&format!("--max-tokens 12 --labels four,six --batch-size {batch}"));
        let error = seen["loss"].as_f64().unwrap() / loss - 1.0;
        assert!(error.abs() < 1e-5, "in batches of {batch}: {} for {loss}", seen["loss"]);
        let text = fs::read_to_string(bench.path("seen.jsonl")).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        answers.push(rows.iter().map(|row| row["answer"].clone()).collect::<Vec<_>>());
    }
    assert_eq!(answers[0].iter().filter(|a| a.is_string()).count(), 25);
    assert!(answers.iter().all(|of| *of == answers[0]), "{answers:?}");
}

/// What was learnt with a turn that the template writes more into than its content is right, and known as the label it is.
#[test]
fn an_answer_is_judged_without_what_its_template_writes() {
    let bench = Bench::new();
    bench.write(
        "model/chat_template.jinja",
        "{% for m in messages %}<|{{ m.role }}|>{% if loop.last and m.role == 'assistant' %}[] {% endif %}{{ m.content }}\
         {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    );
    let turns =
        serde_json::json!([{ "role": "user", "content": "hi" }, { "role": "assistant", "content": "yes" }]);
    bench.write("chat.jsonl", serde_json::json!({ "messages": turns }).to_string());
    let train =
        "train --model model --data chat.jsonl --out out --variant full --rank 4 --lr 1e-2 --dtype f32";
    bench.lora(&format!("{train} --epochs 200")).ok();
    let eval = "eval --model model --adapter out --dtype f32 --data chat.jsonl --rows seen.jsonl --json";
    // Room for the reference alone would be none for what stands before it.
    let seen = bench.lora(&format!("{eval} --max-tokens 1 --labels yes,no")).ok();
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert!(seen["loss"].as_f64().unwrap() < 0.4, "it should be memorised: {seen}");
    assert_eq!(seen["accuracy"], 1.0, "{seen}");
    assert_eq!(seen["macro_f1"], 1.0, "{seen}");
    let row: Value = serde_json::from_slice(&fs::read(bench.path("seen.jsonl")).unwrap()).unwrap();
    assert_eq!(row["answer"], " yes", "{row}");
    assert_eq!(row["right"], true, "{row}");
}
