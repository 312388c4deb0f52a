//! What is read is never written over.

#[allow(dead_code)]
mod common;

use std::fs;

use common::Bench;

/// However it is spelt, and before anything is read.
#[cfg(unix)]
#[test]
fn no_output_takes_another_files_place() {
    let bench = Bench::new();
    std::os::unix::fs::symlink(".", bench.path("here")).unwrap();
    let eval = "eval --data data.jsonl --model";
    let train = "train --model nowhere --out out --data";
    let simulate = "fed simulate --model nowhere --out out --client a=data.jsonl";
    for (words, said) in [
        (
            format!("{eval} nowhere --rows model/../seen.jsonl --trace here/seen.jsonl"),
            "--rows and --trace are one file",
        ),
        (format!("{eval} nowhere --rows here/data.jsonl"), "--rows would replace the data"),
        (format!("{eval} here/m.gguf --rows m.gguf"), "--rows would replace the model"),
        (format!("{train} data.jsonl --trace model/../out/"), "--out and --trace are one file"),
        (format!("{train} here/out.metrics.jsonl"), "OUT.metrics.jsonl would replace the data"),
        (
            format!("{train} data.jsonl --eval here/out.metrics.earlier.jsonl"),
            "would replace the held-out rows",
        ),
        (
            format!("{train} data.jsonl --dp-epsilon 8 --dp-ledger here/data.jsonl"),
            "--dp-ledger would replace the data",
        ),
        (format!("{simulate} --client b=here/out.rounds.jsonl"), "OUT.rounds.jsonl would replace these rows"),
    ] {
        let run = bench.lora(&words);
        assert_eq!(run.code, Some(2), "{words}: {}", run.err);
        assert!(run.err.contains(said) && run.err.contains("hint: "), "{words}: {}", run.err);
    }
    assert!(["seen.jsonl", "out", "out.metrics.jsonl"].iter().all(|name| !bench.path(name).exists()));
}

/// All files below the folder, with what is in them.
fn contents(bench: &Bench) -> Vec<(String, Vec<u8>)> {
    let files = bench.files().into_iter().filter(|name| bench.path(name).is_file());
    files.map(|name| (name.clone(), fs::read(bench.path(&name)).unwrap())).collect()
}

/// Nor a folder that holds it, nor a file in a folder that is read; `--overwrite` is for what a command wrote before.
#[test]
fn no_input_is_overwritten() {
    let bench = Bench::new();
    bench.copy("smollm/adapters/lora", "adapter");
    fs::create_dir(bench.path("start")).unwrap();
    bench.copy("smollm/model", "start/base");
    bench.write("m.gguf", "weights");
    let before = contents(&bench);
    let export = "export --adapter adapter --overwrite --model";
    let merge = "merge --model model --adapter adapter --overwrite --out";
    let train = "train --data data.jsonl --adapter adapter --overwrite --model model --out";
    let simulate =
        "fed simulate --data data.jsonl --split 2 --adapter adapter --overwrite --model model --out";
    for (words, said) in [
        (format!("{export} model/../m.gguf --out m.gguf"), "--out would replace the model"),
        (format!("{export} model --merged --out model/config.json"), "would replace a file of the model"),
        (
            format!("{export} m.gguf --out model/../adapter/adapter_config.json"),
            "replace a file of the adapter",
        ),
        (format!("{merge} model/"), "--out would replace the model"),
        (format!("{merge} model/../adapter"), "--out would replace the adapter"),
        ("quantize start/base model/../start/base --overwrite".into(), "OUT would replace the model"),
        ("quantize start/base start --overwrite".into(), "OUT is a folder that holds the model"),
        ("init --model start/base --init pissa --out start --overwrite".into(), "holds the model"),
        (format!("{train} model/../model"), "--out would replace the model"),
        (format!("{simulate} model"), "--out would replace the model"),
    ] {
        let run = bench.lora(&words);
        assert!(run.code != Some(0) && run.err.contains(said), "{words}: {}", run.err);
        assert!(contents(&bench) == before, "{words}");
    }
    // It goes on in its own place, if that is said.
    let on = "--data data.jsonl --model model --dtype f32 --adapter adapter --out adapter";
    for verb in ["train --max-steps 1", "fed simulate --split 2 --rule fedit --rounds 1"] {
        let run = bench.lora(&format!("{verb} {on}"));
        assert!(run.code == Some(2) && run.err.contains("--out would replace the adapter"), "{}", run.err);
        bench.lora(&format!("{verb} {on} --overwrite")).ok();
    }
}

/// They have no `--overwrite`: what they wrote before is theirs to replace, and nothing else is.
#[test]
fn an_evaluation_replaces_what_it_wrote_and_nothing_else() {
    let bench = Bench::new();
    bench.copy("smollm/adapters/lora", "adapter");
    bench.write("notes.txt", "years of work");
    bench.write("other.jsonl", "{\"line\":1,\"prompt\":\"two\"}\n");
    let eval = "eval --model model --adapter adapter --dtype f32 --max-tokens 0 --data data.jsonl";
    let before = contents(&bench);
    for (more, said) in [
        ("--rows model/config.json", "would replace a file of the model"),
        ("--trace model/../model/model.safetensors", "would replace a file of the model"),
        ("--rows adapter/adapter_config.json", "would replace a file of the adapter"),
        ("--trace adapter", "--trace would replace the adapter"),
        ("--rows notes.txt", "--rows did not write it"),
        ("--trace other.jsonl", "--trace did not write it"),
    ] {
        let run = bench.lora(&format!("{eval} {more}"));
        assert_eq!(run.code, Some(2), "{more}: {}", run.err);
        assert!(run.err.contains(said) && run.err.contains("hint: "), "{more}: {}", run.err);
        assert!(contents(&bench) == before, "{more}");
    }
    bench.write("rows.jsonl", "");
    for labels in ["", "--labels auto", ""] {
        bench.lora(&format!("{eval} --rows adapter/rows.jsonl --trace adapter/trace.jsonl {labels}")).ok();
        bench.lora(&format!("{eval} --rows rows.jsonl --trace trace.jsonl {labels}")).ok();
    }
    let run = bench.lora(&format!("{eval} --rows trace.jsonl"));
    assert!(run.code == Some(2) && run.err.contains("--rows did not write it"), "{}", run.err);
}
