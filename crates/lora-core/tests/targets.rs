//! Which modules are meant, against PEFT's own answers (`data/make.py`).

use std::path::Path;

use lora_core::{AdapterConfig, Linear, Linears, Selection, Targets, compact_names, targets_by_name};
use proptest::prelude::*;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

type Modules = Vec<(String, (i64, i64))>;

fn golden() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/targets.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn modules(model: &Value) -> Modules {
    serde_json::from_value(model["modules"].clone()).unwrap()
}

fn read(fields: &Value, r: i64) -> AdapterConfig {
    let mut config = json!({"peft_type": "LORA", "r": r, "lora_alpha": 9});
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    AdapterConfig::read(file.path()).unwrap_or_else(|e| panic!("{fields}: {e}"))
}

#[test]
fn selects_what_peft_selects() {
    let mut compared = 0;
    for model in golden() {
        for case in model["cases"].as_array().unwrap() {
            let ours = read(&case["config"], 4).select(&modules(&model), model["output_head"].as_str());
            match case.get("selected") {
                None => assert!(ours.is_err(), "{}: PEFT fails, we select {ours:?}", case["config"]),
                Some(theirs) => {
                    let ours = ours.unwrap_or_else(|e| panic!("{}: {e}", case["config"]));
                    let ours: Vec<_> = ours.into_iter().map(|s| (s.name, s.r, s.alpha)).collect();
                    let theirs: Vec<(String, i64, f64)> = serde_json::from_value(theirs.clone()).unwrap();
                    assert_eq!(ours, theirs, "{}", case["config"]);
                }
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 28);
}

fn fault(fields: Value, r: i64) -> (String, String) {
    let model = &golden()[0];
    let config = AdapterConfig { trained: false, ..read(&fields, r) };
    let e = config.select(&modules(model), Some("lm_head")).unwrap_err();
    (e.to_string(), e.hint_text().unwrap_or_default().to_owned())
}

/// Where PEFT says nothing and trains something else.
#[test]
fn nothing_is_without_effect_in_silence() {
    let (e, hint) = fault(json!({"target_modules": ["q_proj", "v_porj"]}), 4);
    assert!(e.contains("no linear layer \"v_porj\""), "{e}");
    assert!(hint.contains("did you mean `v_proj`?") && hint.contains("gate_proj"), "{hint}");
    let (e, hint) = fault(json!({"target_modules": ".*query_key_value"}), 4);
    assert!(e.contains("no module") && hint.contains("down_proj, gate_proj, k_proj, lm_head"), "{e} {hint}");
    let (e, hint) = fault(json!({"target_modules": ["q_proj"], "layers_to_transform": [1, 12]}), 4);
    assert!(e.contains("no layer 12") && hint == "its layers are 0 to 11", "{e} {hint}");
    let (e, _) = fault(json!({"target_modules": ["q_proj"], "rank_pattern": {"v_proj": 2, "q_proj": 2}}), 4);
    assert!(e.contains("`rank_pattern` has \"v_proj\"") && !e.contains("\"q_proj\""), "{e}");
    let (e, _) = fault(json!({"target_modules": ["q_proj"], "alpha_pattern": {"^layers.0": 2}}), 4);
    assert!(e.contains("`alpha_pattern` has \"^layers.0\""), "{e}");
    let (e, _) = fault(json!({"target_modules": ["q_proj", "k_proj"], "layers_to_transform": 5}), 9);
    assert!(e.contains("`model.layers.5.self_attn.k_proj` is 4 x 8, too small for the rank 9"), "{e}");
    let (e, _) = fault(json!({"target_modules": ["q_proj"], "rank_pattern": {"layers.3.*": 99}}), 4);
    assert!(
        e.contains("layers.3.self_attn.q_proj") && e.contains("rank 99") && e.lines().count() == 2,
        "{e}"
    );
    assert_eq!(fault(json!({"target_modules": "all-linear"}), 1 << 31).0.lines().count(), 10);
}

/// Where the engine here reads a pattern otherwise, or Python reads none.
#[test]
fn patterns_are_those_of_pythons_re() {
    let modules = modules(&golden()[0]);
    let chosen = |fields: Value| read(&fields, 1).select(&modules, None).map(names);
    // What Python 3.11 finds; of each layer the first alone is listed.
    for (pattern, expected) in [
        ("[[q]_proj", &["q_proj"][..]),
        ("[q&&v]_proj", &["q_proj", "v_proj"]),
        ("[q~~k]_proj", &["q_proj", "k_proj"]),
        ("[]q]_proj", &["q_proj"]),
        (r"[\]q-]_proj", &["q_proj"]),
        (r"[n-\161]_proj", &["q_proj", "o_proj"]),
        (r"\161_proj", &["q_proj"]),
        (r"(?i:\x51)\_\u0070roj", &["q_proj"]),
        (r"(?P<last>q)_(?!(?P=last))proj(?#, or\) none)", &["q_proj"]),
        (r"([o-r])?(?(1)_proj|up_proj)", &["q_proj", "o_proj", "up_proj"]),
        ("q{1,}_{,1}proj{1}", &["q_proj"]),
        (r"(?>[qk])_++proj\Z", &["q_proj", "k_proj"]),
        (r"(?iu:Q)(?u:_)(?u-s:proj)\z", &["q_proj"]),
    ] {
        let fields = json!({"target_modules": format!(r"(?s)model\.layers\.0\.[a-z_]+\.{pattern}")});
        let found = chosen(fields).unwrap_or_else(|e| panic!("{pattern}: {e}"));
        let last: Vec<_> = found.iter().map(|name| name.rsplit('.').next().unwrap()).collect();
        assert_eq!(last, expected, "{pattern}");
    }
    // Flags for all of it, and comments before them.
    for flags in ["(?i)(?s)", "(?#all)(?i)", "(?i)(?#all)(?s)", "(?u)(?i)", "(?iu)", "(?iu)(?u)(?m)"] {
        let found = chosen(json!({"target_modules": format!(r"{flags}model\.layers\.0\..*Q_PROJ")}));
        assert_eq!(found.unwrap_or_else(|e| panic!("{flags}: {e}")).len(), 1, "{flags}");
    }
    for nothing in
        [r".*[a-z&&[^q]]_proj", r".*\<q_proj", r".*\.q_proj{}", r"model\.layers(?i:\.0)\b{start}.*"]
    {
        let e = chosen(json!({"target_modules": nothing})).unwrap_err();
        assert!(e.to_string().contains("no module"), "{nothing}: {e}");
    }
    let refused = |fields: Value| {
        let mut config = json!({"peft_type": "LORA", "target_modules": ["q_proj"]});
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), config.to_string()).unwrap();
        AdapterConfig::read(file.path()).unwrap_err().to_string()
    };
    for (pattern, said) in [
        ("(?<name>q)_proj", "(?P<name>...)"),
        (r"\p{L}_proj", r"Python has no `\p`"),
        (r"\h_proj\z", r"Python has no `\h`"),
        (r"q_proj[\z]", r"Python has no `\z`"),
        (r"[\w--v]_proj", "a range of characters"),
        ("a**", "two repetitions"),
        ("^*q_proj", "nothing to repeat"),
        ("(?x)q_proj # all", "`(?x`"),
        ("(?i)(?a)q_proj", "`(?a`"),
        ("(?i-u:q)_proj", "`(?i-u`"),
        (r"\N{LATIN SMALL LETTER Q}_proj", "a character's name"),
        ("q_proj|(?i)v_proj", "first of all"),
        ("(?#all)(?:)(?i)q_proj", "first of all"),
        ("(?i)*q_proj", "nothing to repeat"),
        (r"(q)\2", r"`\2` is of no group"),
        ("q_proj)|(v_proj", "a `)` has no `(`"),
        ("(?~q)_proj", "nothing of Python's"),
        ("[q", "does not end"),
        (r"\400", "an escape of no character"),
    ] {
        let e = refused(json!({"target_modules": pattern}));
        assert!(e.contains("does not compile") && e.contains(said), "{pattern}: {e}");
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        let e = refused(json!({field: {r"(?i)\p{L}_proj": 2}}));
        assert!(e.contains(&format!("`{field}`")) && e.contains("first of all"), "{e}");
    }
    assert!(refused(json!({"layers_to_transform": 1, "layers_pattern": r"\p{L}+"})).contains(r"`\p`"));
    // Both alternatives begin where a path does.
    let list =
        json!({"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h|layers"});
    chosen(list).unwrap_err();
}

/// A pattern can be given whose matching would take years; it is given up within a second.
#[test]
fn hostile_patterns_end() {
    let start = std::time::Instant::now();
    for pattern in [r"(?=(m|mo|mod|o|d|e|l|.)*$)(.+)+(?!x)\1y", r"(([a-z.]+)*)*(?<!q)z"] {
        let _ =
            read(&json!({"target_modules": pattern}), 4).select(&modules(&golden()[0]), None).unwrap_err();
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

fn names(selected: Vec<Selection>) -> Vec<String> {
    selected.into_iter().map(|s| s.name).collect()
}

#[test]
fn all_linear_written_out_is_short() {
    let modules = modules(&golden()[0]);
    let all: Vec<_> = modules.iter().map(|(name, _)| name.clone()).collect();
    let selected =
        names(AdapterConfig { r: 1, ..AdapterConfig::default() }.select(&modules, Some("lm_head")).unwrap());
    assert_eq!(
        compact_names(&selected, &all),
        ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    );
}

struct Model(Vec<(String, Linear)>);

impl Model {
    fn new(modules: Modules) -> Self {
        let layer = |(name, (out, inp)): (String, (i64, i64))| {
            let weight = Tensor::zeros([out, inp], (Kind::Float, Device::Cpu));
            (name, Linear::dense(weight, None))
        };
        Self(modules.into_iter().map(layer).collect())
    }
}

impl Linears for Model {
    fn linears(&self) -> Vec<(String, &Linear)> {
        self.0.iter().map(|(name, layer)| (name.clone(), layer)).collect()
    }

    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        self.0.iter_mut().map(|(name, layer)| (name.clone(), layer)).collect()
    }
}

/// PEFT would hold a pattern against every module: against `mlp.act_fn` too.
#[test]
fn what_a_pattern_chose_is_written_by_name() {
    let models: Vec<_> = golden().iter().map(|model| Model::new(modules(model))).collect();
    let cases = [
        (0, json!({"target_modules": r".*\.mlp\.[a-z_]+"}), &["down_proj", "gate_proj", "up_proj"][..]),
        (0, json!({"target_modules": r".*\.[a-z](?<![kv])_proj"}), &["o_proj", "q_proj"]),
        (
            0,
            json!({"target_modules": ["q_proj", "v_proj"], "exclude_modules": r".*\.[&&v]_proj"}),
            &["q_proj"],
        ),
        (
            0,
            json!({"target_modules": ["q_proj"], "layers_to_transform": [3, 11], "layers_pattern": "(?:h|layers)"}),
            &["11.self_attn.q_proj", "3.self_attn.q_proj"],
        ),
        (
            0,
            json!({"target_modules": r".*layers\.11\.mlp\.\w+", "exclude_modules": ["up_proj"]}),
            &["11.mlp.down_proj", "11.mlp.gate_proj"],
        ),
        (1, json!({"target_modules": r".*experts\.2\.\w+"}), &["2.down", "2.up"]),
    ];
    for (model, fields, names) in cases {
        let named = targets_by_name(&models[model], &read(&fields, 1)).unwrap();
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(named.target_modules, Targets::Names(names), "{fields}");
        assert_eq!(named.exclude_modules, None, "{fields}");
    }
    let patterns = json!({
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {r"layers\.(?:0|11)\..*q_proj": 2, "[u]p_proj": 3, ".*": 1},
        "alpha_pattern": {"^model.layers.3.mlp.up_proj": 5.5, ".+q_proj": 9},
    });
    let named = targets_by_name(&models[0], &read(&patterns, 1)).unwrap();
    let ranks = [("0.self_attn.q_proj", 2), ("11.self_attn.q_proj", 2), ("up_proj", 3)];
    assert_eq!(named.rank_pattern, ranks.map(|(name, r)| (name.to_owned(), r)));
    assert_eq!(named.alpha_pattern, [("3.mlp.up_proj".to_owned(), 5.5)]);
    // Nothing that could be misread; and what a list cannot say.
    let plain = json!({
        "target_modules": ["q_proj"], "exclude_modules": ["layers.1.self_attn.q_proj"],
        "layers_to_transform": [1, 2], "layers_pattern": "layers", "rank_pattern": {"layers.2.self_attn.q_proj": 2},
    });
    for (model, fields) in [(0, plain), (1, json!({"target_modules": "down"}))] {
        let config = read(&fields, 1);
        assert_eq!(targets_by_name(&models[model], &config).unwrap(), config);
    }
}

proptest! {
    /// Whatever was selected, its short names select it again, and a list shorter by one does not.
    #[test]
    fn compact_names_select_the_same(which in 0..2_usize, picks in prop::collection::vec(any::<bool>(), 85)) {
        let modules = modules(&golden()[which]);
        let all: Vec<_> = modules.iter().map(|(name, _)| name.clone()).collect();
        let chosen: Vec<_> = all.iter().zip(picks).filter(|(_, p)| *p).map(|(n, _)| n.clone()).collect();
        // The bare `down` of the second model is a suffix of others: PEFT's list cannot say it.
        prop_assume!(!chosen.is_empty() && !chosen.contains(&"down".to_owned()));
        let select = |list: Vec<String>| {
            let config = AdapterConfig { r: 1, target_modules: Targets::Names(list), ..AdapterConfig::default() };
            names(config.select(&modules, None).unwrap())
        };
        let short = compact_names(&chosen, &all);
        prop_assert!(short.is_sorted());
        prop_assert_eq!(&select(short.clone()), &chosen);
        if short.len() > 1 {
            prop_assert!(select(short[1..].to_vec()).len() < chosen.len());
        }
    }
}
