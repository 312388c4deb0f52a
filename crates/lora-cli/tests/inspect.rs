//! What `lora inspect` says of adapters, whatever lies in their files.

#[allow(dead_code)]
mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{Bench, refused};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const TRAIN: &str = "train --model model --data data.jsonl --rank 2 --max-steps 1 --dtype f32";

type Tensors = BTreeMap<String, Tensor>;
/// What is wrong, in the configuration and in the tensors.
type Case = (&'static str, fn(&mut Value), fn(&mut Tensors));

/// The folder `out`: the adapter in `good`, changed.
fn change(bench: &Bench, config: impl Fn(&mut Value), tensors: impl Fn(&mut Tensors)) {
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
fn turn(map: &mut Tensors, each: impl Fn(&str, Tensor) -> (String, Tensor)) {
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
        let first = |map: &mut Tensors| {
            let (_, a) = map.iter_mut().find(|(name, _)| name.ends_with("lora_A.weight")).unwrap();
            *a = Tensor::ones(odd, (Kind::Float, Device::Cpu));
        };
        change(&bench, |_| {}, first);
        refused(&bench, "inspect out --spectrum", 3, &["shape of model.layers.0."]);
    }
}

#[test]
fn an_adapter_of_another_model_does_not_fit() {
    let bench = Bench::new();
    bench.copy("qwen3/model", "other");
    bench.lora(&format!("{TRAIN} --out out")).ok();
    bench.lora("inspect out --model model --json").ok();
    refused(&bench, "inspect out --model other", 3, &["do not fit", "self_attn.q_proj"]);
}

/// As every verb refuses it, beside its model; and what shows by itself, by itself.
#[test]
fn an_adapter_that_is_not_what_it_says_is_refused() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out good --targets q_proj,v_proj")).ok();
    let cases: [Case; 8] = [
        ("", |_| {}, |map| map.retain(|name, _| name.contains("layers.0."))),
        ("missing: ", |_| {}, |map| map.retain(|name, _| name.contains("lora_A"))),
        ("missing: ", |c| c["use_dora"] = true.into(), |_| {}),
        (
            "unused: ",
            |_| {},
            |map| {
                let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
                map.insert(name.to_owned(), Tensor::ones([32], (Kind::Float, Device::Cpu)));
            },
        ),
        ("unused: ", |_| {}, |map| turn(map, |name, t| (name.replace(".weight", ".default.weight"), t))),
        ("dtype of ", |_| {}, |map| turn(map, |name, t| (name.to_owned(), t.to_kind(Kind::Bool)))),
        ("shape of ", |c| c["r"] = 1.into(), |_| {}),
        // Of rank 0.
        (
            "shape of ",
            |_| {},
            |map| {
                turn(map, |name, t| (name.to_owned(), t.narrow(i64::from(name.contains("lora_B")), 0, 0)));
            },
        ),
    ];
    for (said, config, tensors) in cases {
        change(&bench, config, tensors);
        // Half of the modules may be all that there are.
        match said {
            "" => drop(bench.lora("inspect out").ok()),
            _ => refused(&bench, "inspect out", 3, &[said, "do not fit its configuration"]),
        }
        let [here, there] = ["inspect out", "merge --adapter out --out merged --dtype f32"]
            .map(|words| bench.lora(&format!("{words} --model model")));
        assert_eq!((here.code, there.code), (Some(3), Some(3)), "{said}: {}", here.out);
        assert_eq!(here.err, there.err);
    }
}

/// Modules that an exclusion leaves out are in no file.
#[test]
fn an_adapter_with_an_exclusion_is_inspected() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out out --targets q_proj,v_proj --exclude v_proj")).ok();
    for more in ["", "--model model"] {
        let out = bench.lora(&format!("inspect out {more}")).ok();
        assert!(out.contains("in 2 modules"), "{out}");
    }
}

/// A product of 320 GB; and numbers of which there are no eigenvalues.
#[test]
fn what_cannot_be_computed_is_refused() {
    let bench = Bench::new();
    bench.lora(&format!("{TRAIN} --out good --targets q_proj")).ok();
    let wide = |map: &mut Tensors| {
        let ones = |size: [i64; 2]| Tensor::ones(size, (Kind::Float, Device::Cpu));
        let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
        *map = [(name("lora_A"), ones([200_000, 1])), (name("lora_B"), ones([1, 200_000]))].into();
    };
    for (r, code, said) in [(1, 3, "of rank 1 by configuration"), (200_000, 2, "too small for the rank")] {
        change(&bench, |c| c["r"] = r.into(), wide);
        refused(&bench, "inspect out --spectrum", code, &[said]);
    }
    let large = |map: &mut Tensors| {
        turn(map, |name, t| (name.to_owned(), t.to_kind(Kind::Double).ones_like() * 1e300));
    };
    change(&bench, |_| {}, large);
    for more in ["", "--spectrum", "--spectrum --model model"] {
        refused(&bench, &format!("inspect out {more}"), 6, &["infinite in f32", "lora_A.weight"]);
    }
}
