//! Every recipe obeys the laws, and several adapters share one base.

use lora::tch_ext::cuda::here;
use lora::testkit::{Case, Toy};
use lora::{AdapterConfig, Init, Linear, Linears, Mode, Targets, VARIANTS, params, recipe};
use tch::{Kind, Tensor};

lora::law_tests!(plain: "lora", VARIANTS);
lora::law_tests!(rslora: "lora+rslora", VARIANTS);
lora::law_tests!(dora: "dora", VARIANTS);
lora::law_tests!(dora_rslora: "dora+rslora", VARIANTS);
lora::law_tests!(qlora: "qlora", VARIANTS);
lora::law_tests!(qlora_rslora: "qlora+rslora", VARIANTS);
lora::law_tests!(qdora: "qlora+dora", VARIANTS);
lora::law_tests!(qdora_rslora: "qlora+dora+rslora", VARIANTS);

#[test]
fn names_come_in_any_order() {
    let orders = [
        "qlora+lora+rslora+dora",
        "dora+rslora+qlora+lora",
        "rslora+dora+lora+qlora",
        "lora + dora + qlora + rslora",
    ];
    let shown: Vec<_> = orders.iter().map(|o| recipe(o).unwrap().to_string()).collect();
    assert!(shown.iter().all(|s| *s == shown[0]), "{shown:?}");
    assert_eq!(recipe(&shown[0]).unwrap().flags(), recipe("rslora+dora").unwrap().flags());
    assert_eq!(recipe("dora+rslora").unwrap().scale(16.0, 64), 2.0);
    assert_eq!(recipe("dora").unwrap().scale(16.0, 64), 0.25);
}

#[test]
fn two_names_for_one_hole_are_refused_by_both_names() {
    for (spec, a, b, hole) in [
        ("dense+dora+qlora", "dense", "qlora", "storage"),
        ("lora+rslora+lora", "lora", "lora", "update"),
        ("rslora+qlora+rslora", "rslora", "rslora", "scaling"),
        ("dora+dora", "dora", "dora", "top"),
    ] {
        let e = recipe(spec).unwrap_err();
        assert_eq!(e.to_string(), format!("`{a}` and `{b}` both fill the {hole} hole"), "{spec}");
    }
    let e = recipe("lora+dorra").unwrap_err();
    assert!(e.to_string().contains("`dorra`") && e.hint_text().unwrap().contains("dora"), "{e}");
}

/// The example of the LoRA literature: 8 of 1024 directions are 1.5625 % of the weight.
#[test]
fn rank_8_trains_one_in_64_of_a_square_of_1024() {
    let mut layer = Linear::dense(Tensor::zeros([1024, 1024], (Kind::Float, here())), None);
    let (out, inp) = layer.base().shape();
    assert_eq!(out * inp, 1_048_576);
    let adapter = recipe("lora").unwrap().adapter(layer.base(), 8, 16.0, 0.0, Init::Kaiming).unwrap();
    layer.attach("a", adapter).unwrap();
    let trained: usize = layer.adapter().unwrap().params().iter().map(|(_, p)| p.numel()).sum();
    assert_eq!(trained, 16_384);
    assert_eq!(100.0 * trained as f64 / (out * inp) as f64, 1.5625);
}

/// PEFT would take it for a LoRA, find none of its tensors, and go on with the bare base.
#[test]
fn an_update_that_peft_lacks_is_not_written_as_one_of_pefts() {
    let case = Case {
        out: 24,
        inp: 16,
        rank: 4,
        alpha: 8.0,
        init: Init::Kaiming,
        kind: Kind::Float,
        bias: false,
        seed: 7,
    };
    let specs =
        [("lora", "LORA"), ("dora+rslora", "LORA"), ("full", "NOT_IN_PEFT"), ("dora+full", "NOT_IN_PEFT")];
    for (spec, kind) in specs {
        let recipe = recipe(spec).unwrap();
        let mut model = Toy::new(&case, &recipe);
        lora::attach(&mut model, "a", &recipe, &Toy::config(&case)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        lora::save(&model, "a", &recipe, &Toy::config(&case), VARIANTS, folder.path()).unwrap();
        let file = folder.path().join(lora::CONFIG_FILE);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(&format!("\"peft_type\": \"{kind}\"")), "{spec}: {text}");
        // Older folders say LORA, whatever they hold.
        std::fs::write(&file, text.replace("NOT_IN_PEFT", "LORA")).unwrap();
        let (read, _) = lora::load(&mut model, "b", folder.path(), VARIANTS).unwrap();
        assert_eq!(read.flags(), recipe.flags(), "{spec}");
    }
}

/// A layer whose adapters are held to `y = x Wᵀ` computed here.
fn toy() -> (Toy, Tensor) {
    let case = Case {
        out: 24,
        inp: 16,
        rank: 4,
        alpha: 8.0,
        init: Init::Kaiming,
        kind: Kind::Double,
        bias: false,
        seed: 7,
    };
    (Toy::new(&case, &recipe("dense").unwrap()), case.input())
}

fn outputs(model: &Toy, x: &Tensor) -> Vec<Tensor> {
    model.linears().iter().map(|(_, l)| tch::no_grad(|| l.forward(x, Mode::Eval))).collect()
}

/// `x W'ᵀ` of each layer by the adapter's definition, for adapters that are not active.
fn defined(model: &Toy, name: &str, x: &Tensor) -> Vec<Tensor> {
    tch::no_grad(|| {
        let layers = model.linears();
        let weight = |l: &Linear| {
            let w = l.base().dense(Kind::Double);
            l.adapter_named(name).map_or(w.shallow_clone(), |a| a.effective(&w))
        };
        layers.iter().map(|(_, l)| x.matmul(&weight(l).tr())).collect()
    })
}

fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    a.iter().zip(b).all(|(a, b)| lora::testkit::relative(a, b) < 1e-12)
}

#[test]
fn adapters_on_one_base_are_switched_at_run_time() {
    let (mut model, x) = toy();
    let base = outputs(&model, &x);
    let config = |r, targets| AdapterConfig {
        r,
        lora_alpha: 8.0,
        target_modules: targets,
        ..AdapterConfig::default()
    };
    let one_layer = Targets::Names(vec!["q_proj".to_owned()]);
    for (name, spec, config) in [
        ("plain", "lora", config(2, Targets::AllLinear)),
        ("turned", "dora+rslora", config(4, Targets::AllLinear)),
        ("partial", "rslora", config(3, one_layer)),
    ] {
        lora::attach(&mut model, name, &recipe(spec).unwrap(), &config).unwrap();
        model.scramble(name.len() as i64);
    }
    assert_eq!(params(&model, "partial").len(), 2);
    assert_eq!(params(&model, "turned").len(), 6);

    for name in ["plain", "turned", "partial", "plain"] {
        lora::activate(&mut model, Some(name)).unwrap();
        let now = outputs(&model, &x);
        assert!(same(&now, &defined(&model, name, &x)), "{name} gives another's outputs");
        assert!(!same(&now[..1], &base[..1]), "{name} has no effect");
        for other in ["plain", "turned", "partial"].iter().filter(|o| **o != name) {
            assert!(!same(&now, &defined(&model, other, &x)), "{name} is {other}");
        }
        // A layer that the adapter leaves alone is the bare base.
        assert_eq!(now[1] == base[1], name == "partial", "{name}");
        lora::activate(&mut model, None).unwrap();
        assert!(outputs(&model, &x) == base, "without an adapter, the base exactly");
    }

    lora::activate(&mut model, Some("partial")).unwrap();
    lora::detach(&mut model, "plain").unwrap();
    let now = outputs(&model, &x);
    assert!(same(&now, &defined(&model, "partial", &x)), "detaching one switched another");
    assert!(lora::activate(&mut model, Some("plain")).unwrap_err().to_string().contains("`plain`"));
    lora::detach(&mut model, "partial").unwrap();
    assert!(outputs(&model, &x) == base, "a detached adapter acts no more");
    lora::activate(&mut model, Some("turned")).unwrap();
    assert!(same(&outputs(&model, &x), &defined(&model, "turned", &x)));
}

#[test]
fn what_is_merged_is_neither_switched_nor_detached() {
    let (mut model, x) = toy();
    let config = AdapterConfig { r: 2, target_modules: Targets::AllLinear, ..AdapterConfig::default() };
    lora::attach(&mut model, "a", &recipe("dora").unwrap(), &config).unwrap();
    model.scramble(1);
    let adapted = outputs(&model, &x);
    lora::merge(&mut model).unwrap();
    for e in [lora::activate(&mut model, None), lora::detach(&mut model, "a")] {
        assert!(e.unwrap_err().hint_text().unwrap().contains("unmerge"));
    }
    lora::unmerge(&mut model);
    assert!(outputs(&model, &x) == adapted);
}

/// Where an adapter lies beside some layers only, the others have what they had when a merged one refuses.
#[test]
fn a_model_that_is_merged_in_part_loses_nothing() {
    let (mut model, x) = toy();
    let config = |targets| AdapterConfig { r: 2, target_modules: targets, ..AdapterConfig::default() };
    let (plain, all) = (recipe("lora").unwrap(), config(Targets::AllLinear));
    lora::attach(&mut model, "b", &plain, &all).unwrap();
    model.scramble(1);
    let down = config(Targets::Names(vec!["down_proj".to_owned()]));
    lora::attach(&mut model, "a", &plain, &down).unwrap();
    model.scramble(2);
    lora::merge(&mut model).unwrap();
    let before = outputs(&model, &x);
    let refused = [
        lora::detach(&mut model, "b"),
        lora::activate(&mut model, Some("b")),
        lora::attach(&mut model, "c", &plain, &all),
    ];
    for e in refused.map(Result::unwrap_err) {
        assert!(e.to_string().contains("down_proj") && e.hint_text().unwrap().contains("unmerge"), "{e}");
    }
    assert_eq!(["a", "b", "c"].map(|name| params(&model, name).len()), [2, 4, 0]);
    assert!(outputs(&model, &x) == before);
}

#[test]
fn the_storage_hole_decides_how_a_weight_is_kept() {
    let w = Tensor::randn([8, 4], (Kind::Float, here()));
    let stored = recipe("dora").unwrap().store(w.shallow_clone()).unwrap();
    assert!(stored.dense(Kind::Float) == w);
    let quantised = recipe("qlora").unwrap().store(w.shallow_clone()).unwrap();
    assert!(quantised.dense(Kind::Float) != w);
}
