//! What `lora inspect` says of adapters, whatever lies in their files.

#[allow(dead_code)]
mod common;

use std::collections::BTreeMap;
use std::fs;

use common::Bench;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const TRAIN: &str = "train --model model --data data.jsonl --rank 2 --max-steps 1 --dtype f32";

fn refused(bench: &Bench, words: &str, code: i32, said: &[&str]) {
    let run = bench.lora(words);
    assert_eq!(run.code, Some(code), "{words}: {}{}", run.out, run.err);
    assert!(said.iter().all(|said| run.err.contains(said)), "{words}: {}", run.err);
}

/// The folder `out`: the adapter in `good`, changed.
fn change(bench: &Bench, config: impl Fn(&mut Value), tensors: impl Fn(&mut BTreeMap<String, Tensor>)) {
    fs::create_dir_all(bench.path("out")).unwrap();
    let text = fs::read(bench.path("good/adapter_config.json")).unwrap();
    let mut object: Value = serde_json::from_slice(&text).unwrap();
    config(&mut object);
    bench.write("out/adapter_config.json", object.to_string());
    let mut map = lora::read_tensors(&bench.path("good/adapter_model.safetensors")).unwrap();
    tensors(&mut map);
    let named: Vec<_> = map.into_iter().collect();
    lora::write_tensors(&bench.path("out/adapter_model.safetensors"), &named, &[]).unwrap();
}

/// Every tensor under the name and with the value that `each` gives it.
fn turn(map: &mut BTreeMap<String, Tensor>, each: impl Fn(&str, Tensor) -> (String, Tensor)) {
    *map = std::mem::take(map).into_iter().map(|(name, t)| each(&name, t)).collect();
}

/// The name of a base, a module, a row's words.
#[test]
fn what_files_say_moves_no_cursor() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out good --targets q_proj")).ok();
    let config = |c: &mut Value| c["base_model_name_or_path"] = "\u{1b}[2Jowned\u{7}".into();
    change(&bench, config, |map| turn(map, |name, t| (name.replace("self_attn", "\u{1b}[31m"), t)));
    let out = bench.lora("inspect out").ok();
    for said in [r"\u{1b}[2Jowned\u{7}", r"model.layers.0.\u{1b}[31m.q_proj"] {
        assert!(out.contains(said) && !out.contains(['\u{1b}', '\u{7}']), "{out:?}");
    }
    let row = serde_json::json!({ "prompt": "two \u{1b}[2J", "completion": "fo\u{9b}31mur" });
    bench.write("rows.jsonl", row.to_string());
    for more in ["", "--json"] {
        let eval = "eval --model model --dtype f32 --data rows.jsonl --max-tokens 2 --samples 1";
        let run = bench.lora(&format!("{eval} {more}"));
        let said = if more.is_empty() { run.out } else { run.err };
        assert!(said.contains(r"fo\u{9b}31mur") && !said.contains(['\u{1b}', '\u{9b}']), "{said:?}");
    }
}

/// Convolutions, and factors of two ranks.
#[test]
fn factors_that_do_not_fit_are_not_inspected() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out good")).ok();
    for odd in [[1_i64, 2].as_slice(), &[2, 3, 1, 1], &[], &[5]] {
        let first = |map: &mut BTreeMap<String, Tensor>| {
            let (_, a) = map.iter_mut().find(|(name, _)| name.ends_with("lora_A.weight")).unwrap();
            *a = Tensor::ones(odd, (Kind::Float, Device::Cpu));
        };
        change(&bench, |_| {}, first);
        refused(&bench, "inspect out --spectrum", 3, &["no A [r, in] and B [out, r]"]);
    }
}

#[test]
fn an_adapter_of_another_model_does_not_fit() {
    let bench = Bench::new();
    bench.copy("qwen3/model", "other");
    bench.lora(&format!("{TRAIN} --out out")).ok();
    bench.lora("inspect out --model model --json").ok();
    refused(&bench, "inspect out --model other", 3, &["does not fit", "self_attn.q_proj"]);
}
