//! What a task may leave behind at a client, and what a reply tells.

use std::collections::BTreeMap;

use lora::AdapterConfig;
use lora::fed::aggregate::Rule;
use lora::fed::engine::{Task, Worker};
use tch::{Device, Kind, Tensor};

use super::{RANDOM, config, local, local_with, training};

type Pairs = BTreeMap<String, (Tensor, Tensor)>;

fn task(start: &BTreeMap<String, Tensor>, beside: Pairs) -> Task {
    let (trains, sends) = Rule::FedIt.trains();
    let adapter = start.iter().map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    let (run, scales) = ("tasks".into(), BTreeMap::new());
    Task { run, round: 1, rounds: 1, trains, sends, scales, base: None, adapter, beside }
}

/// By it a coordinator could give a client a model of its own: factors for all modules but the last, which is refused, and then
/// a task like all others'.
#[test]
fn a_task_that_is_refused_leaves_nothing_beside_the_weights() {
    let _alone = RANDOM.lock();
    let mut node = local("lora", &["one"], training());
    let start = node.start().unwrap();
    // In the model's order.
    let names = node.model().linears().into_iter().map(|(name, _)| format!("base_model.model.{name}"));
    let names: Vec<String> =
        names.filter(|module| start.contains_key(&format!("{module}.lora_A.weight"))).collect();
    let pair = |module: &str, value: f64| {
        let [a, b] = ["A", "B"].map(|factor| start[&format!("{module}.lora_{factor}.weight")].size());
        let full = |size: [i64; 2]| Tensor::full(size, value, (Kind::Float, Device::Cpu));
        (full([2, a[1]]), full([b[0], 2]))
    };
    let laid =
        |value: f64| -> Pairs { names.iter().map(|module| (module.clone(), pair(module, value))).collect() };
    let fresh = |beside: Pairs| {
        local("lora", &["one"], training()).train("one", &task(&start, beside)).unwrap().adapter
    };
    assert_ne!(fresh(Pairs::new()), fresh(laid(0.02)), "or what lies beside would not show");

    let last = names.last().unwrap();
    let (a, b) = pair(last, 0.05);
    let narrow = (a.narrow(1, 0, a.size()[1] - 1), b);
    for (bad, why) in [(pair(last, f64::NAN), "not finite"), (narrow, "do not fit")] {
        let mut half = laid(0.05);
        half.insert(last.clone(), bad);
        let half = task(&start, half);
        for before in [Pairs::new(), laid(0.02)] {
            let before = task(&start, before);
            let want =
                fresh(before.beside.iter().map(|(m, (a, b))| (m.clone(), (a.copy(), b.copy()))).collect());
            assert_eq!(node.train("one", &before).unwrap().adapter, want);
            let refused = node.train("one", &half).unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert_eq!(node.train("one", &before).unwrap().adapter, want, "{why}");
        }
    }
}

/// Over other weights of the same shapes the same numbers mean something else. A coordinator that does not say over which ones, as
/// one of a version before, is believed.
#[test]
fn a_client_over_another_base_refuses() {
    let _alone = RANDOM.lock();
    let mut node = local("lora", &["one"], training()).over("0a".into());
    let start = node.start().unwrap();
    let over = |base: Option<&str>| Task { base: base.map(str::to_owned), ..task(&start, Pairs::new()) };
    for refused in [
        node.train("one", &over(Some("0b"))).unwrap_err(),
        node.evaluate("one", &over(Some("0b"))).unwrap_err(),
    ] {
        assert!(refused.to_string().contains("the base model 0b, and here is 0a"), "{refused}");
        assert!(refused.hint_text().is_some_and(|hint| hint.contains("--model")), "{refused:?}");
    }
    for base in [Some("0a"), None] {
        node.train("one", &over(base)).unwrap();
    }
    let mut silent = local("lora", &["one"], training());
    silent.train("one", &over(Some("0b"))).unwrap();
}

/// Whether it keeps something tells whether a round before went well: a task of other shapes, which what it keeps would not fit, is
/// done as by one that keeps nothing.
#[test]
fn a_task_that_does_not_fit_what_a_client_keeps_is_done() {
    let _alone = RANDOM.lock();
    let (trains, sends) = Rule::FedSa.trains();
    let of = |start: &BTreeMap<String, Tensor>, round: u64| Task {
        round,
        trains,
        sends,
        ..task(start, Pairs::new())
    };
    let mut node = local("lora", &["one"], training());
    let start = node.start().unwrap();
    node.train("one", &of(&start, 1)).unwrap();
    let narrow = AdapterConfig { r: 2, ..config() };
    let narrow = local_with(narrow, "lora", &["one"], training()).start().unwrap();
    let fresh = local("lora", &["one"], training()).train("one", &of(&narrow, 2)).unwrap();
    assert_eq!(node.train("one", &of(&narrow, 2)).unwrap().adapter, fresh.adapter);
}

/// Nothing of how long the work on the rows took.
#[test]
fn a_reply_tells_two_losses() {
    let _alone = RANDOM.lock();
    let mut node = local("lora", &["one"], training());
    let start = node.start().unwrap();
    let reply = node.train("one", &task(&start, Pairs::new())).unwrap();
    assert_eq!(reply.metrics.keys().collect::<Vec<_>>(), ["first_loss", "loss"]);
}
