//! `adapter_config.json`, against files that PEFT wrote (`data/make.py`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use lora_core::{AdapterConfig, ErrorKind, Init, Targets};
use proptest::prelude::*;
use serde_json::Value;

fn peft(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/configs").join(name)
}

fn read_text(text: &str) -> lora_core::Result<AdapterConfig> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), text).unwrap();
    AdapterConfig::read(folder.path())
}

fn refusal(text: &str) -> (ErrorKind, String) {
    let e = read_text(text).unwrap_err();
    (e.kind(), e.to_string())
}

/// A small configuration, with fields added or replaced.
fn with(fields: &str) -> String {
    let mut config: Value =
        serde_json::from_str(r#"{"peft_type": "LORA", "target_modules": ["q_proj"]}"#).unwrap();
    let fields: Value = serde_json::from_str(fields).unwrap();
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    config.to_string()
}

#[test]
fn peft_files_are_understood() {
    let plain = AdapterConfig::read(&peft("plain.json")).unwrap();
    let Targets::Names(names) = &plain.target_modules else { panic!("{plain:?}") };
    assert_eq!(BTreeSet::from_iter(names.iter().map(String::as_str)), BTreeSet::from(["q_proj", "v_proj"]));
    let target_modules = plain.target_modules.clone();
    assert_eq!(plain, AdapterConfig { r: 4, target_modules, trained: true, ..AdapterConfig::default() });

    let rich = AdapterConfig::read(&peft("rich.json")).unwrap();
    assert_eq!((rich.r, rich.lora_alpha, rich.lora_dropout), (16, 22.5, 0.05));
    assert_eq!(rich.base_model.as_deref(), Some("base/model"));
    assert_eq!(rich.revision.as_deref(), Some("main"));
    assert_eq!(rich.exclude_modules, Some(Targets::Names(vec!["layers.0.mlp.down_proj".into()])));
    assert_eq!(rich.layers_to_transform, Some(vec![0, 2]));
    assert_eq!(rich.layers_pattern, ["layers"]);
    // The file's order (PEFT sorts when it saves) decides.
    assert_eq!(rich.rank_pattern, [("^model.layers.2.mlp.down_proj".into(), 4), ("q_proj".into(), 2)]);
    assert_eq!(rich.alpha_pattern, [("layers.2.*".into(), 3.0)]);
    assert_eq!(rich.init, Init::Gaussian);
    assert_eq!(rich.flags, BTreeSet::from(["use_dora".into(), "use_rslora".into()]));

    let regex = AdapterConfig::read(&peft("regex.json")).unwrap();
    assert_eq!(regex.target_modules, Targets::Regex(r".*\.(?!k_)[a-z]+_proj".into()));
    assert_eq!(regex.task_type, None);
    AdapterConfig::read(&peft("eva.json")).unwrap();
}

/// What we write says what PEFT's own file says, field by field, and leaves out only what PEFT then defaults to.
#[test]
fn what_is_written_says_what_peft_wrote() {
    let defaults: Value =
        serde_json::from_str(&std::fs::read_to_string(peft("plain.json")).unwrap()).unwrap();
    for name in ["plain.json", "rich.json"] {
        let text = AdapterConfig::read(&peft(name)).unwrap().to_json(&["use_rslora", "use_dora"]);
        let ours: Value = serde_json::from_str(&text).unwrap();
        let mut theirs: Value = serde_json::from_str(&std::fs::read_to_string(peft(name)).unwrap()).unwrap();
        theirs["target_modules"].as_array_mut().unwrap().sort_by_key(|v| v.to_string());
        if theirs["layers_pattern"].is_string() {
            theirs["layers_pattern"] = Value::Array(vec![theirs["layers_pattern"].take()]);
        }
        for (key, theirs) in theirs.as_object().unwrap() {
            match ours.get(key) {
                Some(ours) => assert_eq!(ours, theirs, "{name} {key}"),
                None => assert_eq!(theirs, &defaults[key], "{name} {key}"),
            }
        }
        let keys: Vec<_> = ours.as_object().unwrap().keys().cloned().collect();
        assert!(keys.is_sorted() && keys.iter().all(|k| defaults.get(k).is_some()), "{keys:?}");
        assert!(text.starts_with("{\n  \"alpha_pattern\": {"), "{text}");
    }
    // What PEFT lacks it does not read as something else.
    let flags = BTreeSet::from(["use_dora".to_owned(), "use_full".to_owned()]);
    let other = AdapterConfig { flags, ..AdapterConfig::default() };
    assert!(other.to_json(&["use_dora"]).contains("\"peft_type\": \"NOT_IN_PEFT\","));
    assert!(other.to_json(&["use_dora", "use_full"]).contains("\"peft_type\": \"LORA\","));
    // An integer where PEFT has an `int`.
    assert!(AdapterConfig::default().to_json(&[]).contains("\"lora_alpha\": 8,"));
}

#[test]
fn features_that_are_lacking_are_refused_all_at_once_and_by_name() {
    let e = AdapterConfig::read(&peft("refused.json")).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    for key in [
        "`init_lora_weights` is \"pissa_niter_4\"",
        "`bias`",
        "modules_to_save",
        "fan_in_fan_out",
        "use_qalora",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
        "megatron_config",
        "ensure_weight_tying",
    ] {
        assert!(e.to_string().contains(key), "{key} is not in {e}");
    }
    for (fields, said) in [
        (r#"{"peft_type": "LOHA"}"#, "`peft_type` is \"LOHA\""),
        (r#"{"lora_bias": true}"#, "B has a bias"),
        (r#"{"kasa_config": {"a": 1}}"#, "KaSA"),
        (r#"{"use_bdlora": {"a": 1}}"#, "BD-LoRA"),
        (r#"{"from_the_future": 3}"#, "`from_the_future` is 3"),
        (r#"{"use_it": "yes"}"#, "`use_it` is \"yes\""),
        (r#"{"init_lora_weights": "OLoRA"}"#, "changes the base"),
        (r#"{"init_lora_weights": "corda"}"#, "changes the base"),
        (r#"{"init_lora_weights": "loftq"}"#, "changes the base"),
        (r#"{"init_lora_weights": "lora_ga"}"#, "changes the base"),
        (r#"{"init_lora_weights": "new"}"#, "of which nothing is known"),
        ("{\"evil\\u001b[2J\": 1}", r"`evil\u{1b}[2J`"),
    ] {
        let (kind, text) = refusal(&with(fields));
        assert!(kind == ErrorKind::Unsupported && text.contains(said), "{fields}: {text}");
    }
    read_text(&with(r#"{"a": null, "b": false, "c": {}, "d": [], "loftq_config": {}, "bias": "none"}"#))
        .unwrap();
    // A switch not known here is the recipe's to judge.
    assert!(read_text(&with(r#"{"use_new_method": true}"#)).unwrap().flags.contains("use_new_method"));
}

#[test]
fn malformed_values_are_refused_all_at_once() {
    let bad = r#"{"r": 0, "lora_alpha": -1, "lora_dropout": 1.0, "rank_pattern": {"q": 0}, "alpha_pattern": {"(": 1},
                  "layers_to_transform": [-1], "layers_pattern": "[", "revision": 7, "lora_bias": true}"#;
    let (kind, text) = refusal(&with(bad));
    assert_eq!((kind, text.lines().count()), (ErrorKind::Data, 10), "{text}");
    for (fields, said) in [
        (r#"{"r": 4.5}"#, "`r` is 4.5, not a whole number"),
        (r#"{"r": null}"#, "`r` is null"),
        (r#"{"r": -3}"#, "`r` is -3"),
        (r#"{"lora_alpha": 1e999}"#, "out of range"),
        (r#"{"target_modules": null}"#, "`target_modules` is missing"),
        (r#"{"target_modules": []}"#, "`target_modules` is empty"),
        (r#"{"target_modules": [1]}"#, "`target_modules` is [1]"),
        (r#"{"target_modules": ".*(_proj"}"#, "does not compile"),
        (
            r#"{"target_modules": ".*_proj", "layers_to_transform": [1]}"#,
            "needs `target_modules` to be a list",
        ),
        (r#"{"layers_pattern": "h"}"#, "needs `layers_to_transform`"),
        (r#"{"peft_type": null}"#, "`peft_type` is missing"),
    ] {
        // A number that is out of range is not even a JSON value, so these are put in as text.
        let text = format!(r#"{{"peft_type": "LORA", "target_modules": ["q_proj"], {}"#, &fields[1..]);
        let text = if fields.contains("target_modules") || fields.contains("peft_type") {
            with(fields)
        } else {
            text
        };
        let (kind, text) = refusal(&text);
        assert!(kind == ErrorKind::Data && text.contains(said), "{fields}: {text}");
    }
    let (_, text) = refusal("{\n  \"r\": 4,\n  \"s\" 5}");
    assert!(text.contains("line 3 column 7"), "{text}");
    assert!(refusal("{\"r\": 1, \"r\": 2}").1.contains("\"r\" comes twice"));
    let (_, text) = refusal("{\"r\": 1,\n\"alpha_pattern\": {\"q_proj\": 2, \"v_proj\": 3, \"q_proj\": 6}}");
    assert!(text.contains("\"q_proj\" comes twice at line 2 column 52"), "{text}");
    assert!(refusal("{\"loftq_config\": [{\"a\": {\"b\": 1, \"b\": 1}}]}").1.contains("\"b\" comes twice"));
    assert!(refusal("[]").1.contains("malformed"));
    assert_eq!(AdapterConfig::read(Path::new("/nowhere/at/all")).unwrap_err().kind(), ErrorKind::Io);
}

/// The first would train, and the last would be in the file.
#[test]
fn a_pattern_has_a_key_once() {
    let twice = AdapterConfig {
        rank_pattern: vec![("q_proj".into(), 2), ("v_proj".into(), 2), ("q_proj".into(), 4)],
        alpha_pattern: vec![("q_proj".into(), 2.0), ("q_proj".into(), 2.0)],
        ..AdapterConfig::default()
    };
    let e = twice.check().unwrap_err();
    assert_eq!((e.kind(), e.to_string().lines().count()), (ErrorKind::Usage, 3), "{e}");
    for field in ["rank_pattern", "alpha_pattern"] {
        assert!(e.to_string().contains(&format!("`{field}` has \"q_proj\" twice")), "{e}");
    }
}

fn targets() -> impl Strategy<Value = Targets> {
    prop_oneof![
        Just(Targets::AllLinear),
        prop::collection::btree_set("[a-z_.]{1,8}", 1..4)
            .prop_map(|s| Targets::Names(s.into_iter().collect())),
        "[a-z]{1,5}(\\.\\*)?".prop_map(Targets::Regex),
    ]
}

proptest! {
    #[test]
    fn writing_and_reading_is_the_identity(
        (r, alpha, dropout, target) in (1..512_i64, 0.01..1e4_f64, 0.0..0.99_f64, targets()),
        whole in any::<bool>(),
        layers in prop::option::of(prop::collection::vec(0..40_i64, 1..4)),
        ranks in prop::collection::hash_map("[a-z.*]{1,6}x", 1..99_i64, 0..5),
        alphas in prop::collection::hash_map("[a-z]{1,6}", 0.5..99.0_f64, 0..5),
        gaussian in any::<bool>(),
        flags in prop::collection::btree_set("use_[a-z]{3}", 0..3),
        base in prop::option::of("\\PC{0,9}"),
    ) {
        let layers = layers.filter(|_| matches!(target, Targets::Names(_)));
        let config = AdapterConfig {
            r, lora_dropout: dropout, base_model: base, target_modules: target, flags,
            lora_alpha: if whole { alpha.ceil() } else { alpha },
            layers_pattern: if layers.is_some() { vec!["layers".into()] } else { Vec::new() },
            layers_to_transform: layers,
            rank_pattern: ranks.into_iter().filter(|(k, _)| !k.starts_with('*') && !k.contains("**")).collect(),
            alpha_pattern: alphas.into_iter().collect(),
            init: if gaussian { Init::Gaussian } else { Init::Kaiming },
            trained: true,
            ..AdapterConfig::default()
        };
        prop_assert_eq!(&read_text(&config.to_json(&["use_dora"])).unwrap(), &config);
    }

    #[test]
    fn mutated_files_never_panic(at in 0..2000_usize, byte in any::<u8>(), cut in prop::option::of(0..2000_usize)) {
        let mut text = std::fs::read(peft("rich.json")).unwrap();
        let at = at % text.len();
        text[at] = byte;
        text.truncate(cut.unwrap_or(usize::MAX));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("any.json");
        std::fs::write(&file, text).unwrap();
        let _ = AdapterConfig::read(&file);
    }
}
