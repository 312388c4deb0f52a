//! Federations of a real model: rounds are training, and what is saved is what was learnt.

#[allow(dead_code)]
mod common;
#[path = "federated/tasks.rs"]
mod tasks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::relative;
use lora::fed::aggregate::Rule;
use lora::fed::engine::{Federation, InProcess, Model as Common, Settings, Task, Worker};
use lora::model::{Keep, Llama, Model, Texts};
use lora::train::{AdamWConfig, Dataset, Sample, Schedule, TrainConfig, train};
use lora::{AdapterConfig, Linears, Local, Mode, VARIANTS, attach, load, params, recipe};
use tch::{Device, Kind, Tensor};

/// libtorch's generator is one for the whole process.
static RANDOM: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn llama(variant: &str) -> Llama {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/smollm/model");
    let checkpoint = lora::open(&path).unwrap();
    let recipe = recipe(variant).unwrap();
    let keep = Keep { storage: recipe.storage(), packed: None, skip: &[] };
    Llama::load(checkpoint.as_ref(), Kind::Float, Device::Cpu, keep).unwrap()
}

fn data(vocabulary: i64, seed: i64, rows: i64) -> Dataset {
    let sample = |line| {
        let random = |salt: i64| (0..9).map(|i| (seed * 31 + line * 7 + i * i + salt) % vocabulary).collect();
        Sample { ids: random(0), labels: random(3), line: line as usize }
    };
    Dataset {
        path: PathBuf::from("made"),
        rows: vec![],
        samples: (1..=rows).map(sample).collect(),
        truncated: 0,
        left_out: 0,
    }
}

fn training() -> TrainConfig {
    TrainConfig {
        epochs: 1.0,
        max_steps: None,
        batch_size: 2,
        accumulate: 1,
        learning_rate: 5e-3,
        schedule: Schedule::Constant,
        warmup: 0.0,
        adamw: AdamWConfig::default(),
        clip: Some(1.0),
        proximal: None,
        recompute: 0,
        record: true,
        seed: 3,
        eval_every: None,
        save: None,
        stop: None,
    }
}

fn config() -> AdapterConfig {
    AdapterConfig { r: 4, lora_alpha: 8.0, ..AdapterConfig::default() }
}

/// Ranks and alphas that differ from module to module.
fn with_patterns() -> AdapterConfig {
    AdapterConfig {
        // One of them under the name that what lies beside is written by.
        rank_pattern: vec![("down_proj".into(), 2), ("model.layers.1.self_attn.q_proj".into(), 5)],
        alpha_pattern: vec![("o_proj".into(), 40.0), ("down_proj".into(), 3.0)],
        ..config()
    }
}

fn local(variant: &str, clients: &[&str], training: TrainConfig) -> Local {
    local_with(config(), variant, clients, training)
}

fn local_with(config: AdapterConfig, variant: &str, clients: &[&str], training: TrainConfig) -> Local {
    let model = llama(variant);
    let vocabulary = model.config().vocab_size;
    let data = clients.iter().zip(1..).map(|(name, i)| ((*name).to_owned(), data(vocabulary, i, 4 + i)));
    Local::new(Box::new(model), recipe(variant).unwrap(), config, training, data.collect())
}

struct Lent<'a>(&'a mut Local);

impl Worker for Lent<'_> {
    fn train(
        &mut self,
        client: &str,
        task: &lora::fed::engine::Task,
    ) -> lora::Result<lora::fed::engine::Reply> {
        self.0.train(client, task)
    }
}

/// Some rounds of a rule over these clients.
fn rounds(variant: &str, rule: Rule, clients: &[&str], count: u64) -> (Local, Common) {
    rounds_with(config(), variant, rule, clients, count)
}

fn rounds_with(
    config: AdapterConfig,
    variant: &str,
    rule: Rule,
    clients: &[&str],
    count: u64,
) -> (Local, Common) {
    tch::manual_seed(5);
    let mut local = local_with(config, variant, clients, training());
    let start = local.start().unwrap();
    let settings = Settings::new("test", rule, count);
    let mut federation = Federation::new(settings, Common::new(start), local.scale().unwrap()).unwrap();
    for _ in 0..count {
        let names = clients.iter().map(|c| (*c).to_owned()).collect();
        let report = federation.round(&mut InProcess::new(names, vec![Box::new(Lent(&mut local))])).unwrap();
        assert!(report.clients.iter().all(|c| c.refused.is_none()), "{report:?}");
    }
    (local, federation.model)
}

fn logits(model: &dyn Model) -> Tensor {
    let ids = Tensor::from_slice(&[3i64, 1, 4, 1, 5, 9, 2, 6]).unsqueeze(0);
    tch::no_grad(|| model.logits(Texts::Rows(&ids), None, Mode::Eval).unwrap())
}

#[test]
fn one_client_and_one_round_are_plain_training() {
    let _alone = RANDOM.lock();
    let (_, model) = rounds("dora", Rule::FedIt, &["alone"], 1);
    tch::manual_seed(5);
    let mut plain = llama("dora");
    attach(&mut plain, "a", &recipe("dora").unwrap(), &config()).unwrap();
    let data = data(plain.config().vocab_size, 1, 5);
    let seed = 3u64.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let training = TrainConfig { seed, ..training() };
    train(&plain, params(&plain, "a"), &data, None, &training, &mut |_| Ok(())).unwrap();
    for p in params(&plain, "a") {
        assert_eq!(model.adapter[&p.key()], p.tensor.detach(), "{}", p.key());
    }
}

/// What lies beside becomes a part of the adapter that is written, on every storage and top.
#[test]
fn what_is_saved_is_what_was_learnt() {
    let _alone = RANDOM.lock();
    for variant in ["lora", "rslora", "dora", "qlora", "qlora+dora+rslora"] {
        for rule in [Rule::FedEx, Rule::Flora, Rule::FedSvd] {
            let (mut local, model) = rounds(variant, rule, &["one", "two", "three"], 2);
            assert_eq!(model.beside.is_empty(), rule == Rule::FedSvd);
            local.put(&model.adapter, &model.beside).unwrap();
            let live = logits(local.model());
            let folder = tempfile::tempdir().unwrap();
            local.save(&model, "base", folder.path()).unwrap();
            let mut fresh = llama(variant);
            let bare = logits(&fresh);
            load(&mut fresh, "saved", folder.path(), VARIANTS).unwrap();
            let (error, learnt) = (relative(&logits(&fresh), &live), relative(&bare, &live));
            assert!(error < 1e-5 && learnt > 100.0 * error, "{variant}, {rule}: {error:e} of {learnt:e}");
        }
    }
}

/// After many rounds more lies beside a weight than it has room for: what is written has no rank above its shorter side.
#[test]
fn a_long_run_is_saved_too() {
    let _alone = RANDOM.lock();
    let clients = ["one", "two", "three", "four", "five", "six"];
    let (mut local, model) = rounds("rslora", Rule::FedEx, &clients, 8);
    let over = |(module, (a, b)): (&String, &(Tensor, Tensor))| {
        let own = model.adapter[&format!("{module}.lora_A.weight")].size()[0];
        own + a.size()[0] > a.size()[1].max(b.size()[0])
    };
    assert!(model.beside.iter().any(over), "the run was too short to show anything");
    local.put(&model.adapter, &model.beside).unwrap();
    let live = logits(local.model());
    let folder = tempfile::tempdir().unwrap();
    local.save(&model, "base", folder.path()).unwrap();
    let mut fresh = llama("rslora");
    load(&mut fresh, "saved", folder.path(), VARIANTS).unwrap();
    let error = relative(&logits(&fresh), &live);
    assert!(error < 1e-5, "{error:e}");
}

/// Every module's own rank and alpha count: the common model is the mean of the clients', and what is saved is that.
#[test]
fn patterns_of_rank_and_alpha_are_heeded() {
    let _alone = RANDOM.lock();
    let effective = |local: &Local| -> BTreeMap<String, Tensor> {
        let layers = local.model().linears().into_iter();
        layers.map(|(name, layer)| (name, layer.effective(Kind::Float))).collect()
    };
    for rule in [Rule::FedEx, Rule::Flora, Rule::FedSvd] {
        for variant in ["lora", "rslora"] {
            let clients = ["one", "two"];
            let mut means = BTreeMap::<String, Tensor>::new();
            for client in clients {
                // Alone, so that the model is left with what that client learnt.
                tch::manual_seed(5);
                let mut local = local_with(with_patterns(), variant, &clients, training());
                let adapter = local.start().unwrap();
                let (trains, sends) = rule.trains();
                let beside = BTreeMap::new();
                let (run, scales, base) = ("test".into(), BTreeMap::new(), None);
                let task = Task { run, round: 1, rounds: 1, trains, sends, scales, base, adapter, beside };
                local.train(client, &task).unwrap();
                for (name, w) in effective(&local) {
                    let half = w / 2.0;
                    let sum = means.remove(&name).map_or(half.shallow_clone(), |sum| sum + &half);
                    means.insert(name, sum);
                }
            }
            let (mut local, model) = rounds_with(with_patterns(), variant, rule, &clients, 1);
            local.put(&model.adapter, &model.beside).unwrap();
            let bare = effective(&Local::new(
                Box::new(llama(variant)),
                recipe(variant).unwrap(),
                config(),
                training(),
                BTreeMap::new(),
            ));
            let live = effective(&local);
            for (name, w) in &live {
                let moved = relative(&bare[name], w);
                let error = relative(w, &means[name]);
                assert!(
                    error < 1e-6 || error < 1e-3 * moved,
                    "{rule}, {variant}, {name}: {error:e} of {moved:e}"
                );
            }
            let folder = tempfile::tempdir().unwrap();
            local.save(&model, "base", folder.path()).unwrap();
            let mut fresh = llama(variant);
            load(&mut fresh, "saved", folder.path(), VARIANTS).unwrap();
            for (name, layer) in fresh.linears() {
                assert!(
                    relative(&layer.effective(Kind::Float), &live[&name]) < 1e-6,
                    "{rule}, {variant}, {name}"
                );
            }
        }
    }
}

/// Four bits stay four bits, whatever lies beside them.
#[test]
fn a_packed_base_stays_as_it_is() {
    let _alone = RANDOM.lock();
    let before = llama("qlora");
    let (local, model) = rounds("qlora", Rule::FedEx, &["one", "two"], 2);
    assert!(!model.beside.is_empty());
    let packed = |layer: &lora::Linear| layer.base().bytes();
    let pairs = before.linears().into_iter().zip(local.model().linears());
    for ((name, own), (_, now)) in pairs.filter(|((_, own), _)| own.base().parts().is_some()) {
        // The weight itself and the two factors beside it, nothing dense.
        let (out, inp) = own.base().shape();
        let rank = model.beside[&format!("base_model.model.{name}")].0.size()[0];
        // The last round began before the second round's residual was known.
        assert!(packed(now) <= packed(own) + ((out + inp) * rank * 4) as u64, "{name}");
    }
}

#[test]
fn a_factor_that_is_to_stay_stays() {
    let _alone = RANDOM.lock();
    let (_, model) = rounds("lora", Rule::Ffa, &["one", "two"], 2);
    tch::manual_seed(5);
    let start = local("lora", &[], training()).start().unwrap();
    let moved = |(name, t): (&String, &Tensor)| (name.contains("lora_B"), t != &start[name]);
    assert!(model.adapter.iter().map(moved).all(|(is_b, moved)| is_b == moved));
}

/// FedSA's clients go on with their own B.
#[test]
fn what_a_client_keeps_it_finds_again() {
    let _alone = RANDOM.lock();
    let (mut local, model) = rounds("lora", Rule::FedSa, &["one", "two"], 2);
    let own = |client: &str, local: &Local| local.own_adapter((client, "test"), &model.adapter);
    let (one, two) = (own("one", &local), own("two", &local));
    let name = one.keys().find(|n| n.contains("lora_B")).unwrap().clone();
    assert_ne!(one[&name], two[&name]);
    assert!(one[&name].abs().sum(Kind::Float).double_value(&[]) > 0.0);
    local.put(&one, &BTreeMap::new()).unwrap();
}

/// And after a crash too, be it in the midst of a round that is then done again.
#[test]
fn what_a_client_keeps_outlives_it() {
    let _alone = RANDOM.lock();
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let local = local("lora", &["one"], training());
        local.keeping(folder.path().join("kept")).unwrap()
    };
    tch::manual_seed(5);
    let start = open().start().unwrap();
    let task = |round: u64| {
        let (trains, sends) = Rule::FedSa.trains();
        let adapter = start.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        Task {
            run: "kept".into(),
            round,
            rounds: 3,
            trains,
            sends,
            scales: BTreeMap::new(),
            base: None,
            adapter,
            beside: BTreeMap::new(),
        }
    };
    let own = |local: &Local| local.own_adapter(("one", "kept"), &start);
    let mut calm = local("lora", &["one"], training());
    // Not every round asks it.
    for round in [1, 2, 6] {
        calm.train("one", &task(round)).unwrap();
    }
    for round in [1, 2, 2, 6, 6] {
        open().train("one", &task(round)).unwrap();
    }
    assert_eq!(own(&open()), own(&calm));
    assert_ne!(own(&calm), start);
    // Of that run alone: another begins with what it is given.
    let other = Task { run: "another".into(), ..task(2) };
    let fresh = local("lora", &["one"], training()).train("one", &other).unwrap();
    assert_eq!(open().train("one", &other).unwrap().adapter, fresh.adapter);
    assert_eq!(own(&open()), own(&calm));
    // A run of the same name that begins anew does not find what the last one ended with.
    let mut again = open();
    again.train("one", &task(1)).unwrap();
    let mut first = local("lora", &["one"], training());
    first.train("one", &task(1)).unwrap();
    assert_eq!((own(&again), own(&open())), (own(&first), own(&first)));
}

/// Every module's scale is the coordinator's, and not the first one's alone.
#[test]
fn a_client_that_scales_a_module_otherwise_refuses() {
    let _alone = RANDOM.lock();
    let own = AdapterConfig { alpha_pattern: vec![("o_proj".into(), 40.0)], ..config() };
    let mut node = local_with(own, "lora", &["one"], training());
    let start = node.start().unwrap();
    assert!(!start.keys().next().unwrap().contains("o_proj"));
    let scale = local("lora", &[], training()).scale().unwrap();
    let settings = Settings::new("test", Rule::FedSvd, 1);
    let mut federation = Federation::new(settings, Common::new(start), scale).unwrap();
    let mut engine = InProcess::new(vec!["one".into()], vec![Box::new(Lent(&mut node))]);
    let e = federation.round(&mut engine).unwrap_err().to_string();
    assert!(e.contains("o_proj: the task's updates are scaled by 2, here by 10"), "{e}");
}

/// What comes from elsewhere has any shape.
#[test]
fn a_task_of_odd_shapes_is_refused() {
    let _alone = RANDOM.lock();
    let mut local = local("lora", &["one"], training());
    let start = local.start().unwrap();
    let (trains, sends) = Rule::FedIt.trains();
    let first = start.keys().find_map(|name| name.strip_suffix(".lora_A.weight")).unwrap();
    for shape in [&[][..], &[0], &[4], &[0, 64], &[4, 64, 1], &[1, 1]] {
        let mut adapter: BTreeMap<_, _> = start.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        for (name, t) in adapter.iter_mut().filter(|(name, _)| name.contains("layers.0.")) {
            if name.contains("lora_A") || shape.len() != 2 {
                *t = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
            }
        }
        let (run, scales, beside) = ("odd".into(), [(first.to_owned(), 2.0)].into(), BTreeMap::new());
        let base = None;
        let task = Task { run, round: 1, rounds: 1, trains, sends, scales, base, adapter, beside };
        assert!(local.train("one", &task).is_err(), "{shape:?}");
    }
}

/// FedProx: the stronger the pull, the nearer it stays.
#[test]
fn the_proximal_term_pulls_back() {
    let _alone = RANDOM.lock();
    let run = |mu: f64| {
        let mut model = llama("lora");
        tch::manual_seed(5);
        attach(&mut model, "a", &recipe("lora").unwrap(), &config()).unwrap();
        let leaves = params(&model, "a");
        let start: Vec<_> = leaves.iter().map(|p| p.tensor.detach().copy()).collect();
        let data = data(model.config().vocab_size, 1, 8);
        let training = TrainConfig { proximal: Some(mu), epochs: 5.0, ..training() };
        train(&model, params(&model, "a"), &data, None, &training, &mut |_| Ok(())).unwrap();
        let far = leaves.iter().zip(&start).map(|(p, s)| (p.tensor.detach() - s).square().sum(Kind::Double));
        far.map(|t| t.double_value(&[])).sum::<f64>().sqrt()
    };
    let (none, some, much) = (run(0.0), run(0.1), run(10.0));
    assert!(none > some && some > much, "{none} {some} {much}");
}
