//! What clients may send and get: ranks of their own, and nothing that harms the others' round.

#[path = "common/learner.rs"]
mod learner;

use std::collections::BTreeMap;
use std::str::FromStr;

use lora_core::Result;
use lora_fed::aggregate::{Bounds, Rule};
use lora_fed::engine::{Engine, Federation, InProcess, Model, Reply, Settings, Task, Weights, Worker};
use tch::{Kind, Tensor};

use learner::*;

#[test]
fn ranks_may_differ_where_the_rule_allows_it() {
    for rule in [Rule::Flora, Rule::FlexLora] {
        let ranks = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 3)]);
        let mut f = federation(Settings { ranks, ..Settings::new("ranks", rule, 2) }, 5);
        for _ in 0..2 {
            let mut learner = Learner::default();
            round(&mut f, &["a", "b", "c"], &mut learner).unwrap();
            let now = dense(&f.model.adapter, &f.model.beside);
            let mean =
                learner.learnt.iter().map(|(_, all)| &all[MODULES[1]] / 3.0).reduce(|a, b| a + b).unwrap();
            // Module two is 12 x 5: rank 5 holds any sum.
            assert!(error(&now[MODULES[1]], &mean) < 1e-12, "{rule}");
        }
    }
    let ranks = BTreeMap::from([("a".to_owned(), 1)]);
    let settings = Settings { ranks, ..Settings::new("ranks", Rule::FedIt, 1) };
    assert!(settings.check().unwrap_err().to_string().contains("needs one rank"));
}

#[test]
fn a_bad_reply_does_not_count() {
    let name = || format!("{}.lora_A.weight", MODULES[0]);
    let mut learner = Learner::default();
    let mut wrong = |client: &str, how: fn(&mut Reply)| {
        learner.wrong.insert(client.to_owned(), how);
    };
    wrong("nan", |r| r.adapter.values_mut().take(1).for_each(|t| *t = t.full_like(f64::NAN)));
    wrong("infinite", |r| r.adapter.values_mut().skip(3).for_each(|t| *t = t.full_like(f64::INFINITY)));
    wrong("missing", |r| drop(r.adapter.pop_first()));
    wrong("more", |r| drop(r.adapter.insert("what".into(), Tensor::zeros([2], DOUBLE))));
    wrong("shape", |r| r.adapter.values_mut().for_each(|t| *t = t.unsqueeze(0)));
    wrong("whole", |r| r.adapter.values_mut().for_each(|t| *t = t.to_kind(Kind::Int64)));
    wrong("huge", |r| r.adapter.values_mut().for_each(|t| *t = &*t * 1e6));
    wrong("none", |r| r.examples = 0);
    let bounds = Some(Bounds { factor: 100.0, update: 100.0 });
    let weights = Weights::Examples { most: 100 };
    let settings = || Settings { bounds, weights, ..Settings::new("bad", Rule::FedIt, 1) };
    let bad = ["broken", "nan", "infinite", "missing", "more", "shape", "whole", "huge", "none"];

    let mut f = federation(settings(), 2);
    let report = round(&mut f, &[&bad[..], &["a", "b"]].concat(), &mut learner).unwrap();
    for told in &report.clients {
        assert_eq!(told.refused.is_some(), bad.contains(&&*told.client), "{told:?}");
    }
    let mut only = federation(settings(), 2);
    round(&mut only, &["a", "b"], &mut Learner::default()).unwrap();
    assert_eq!(f.model.adapter, only.model.adapter);

    // Too few good ones: nothing has changed, and every reason is given.
    let mut f = federation(Settings { minimum: 2, ..settings() }, 2);
    let e = round(&mut f, &[&bad[..], &["a"]].concat(), &mut learner).unwrap_err().to_string();
    assert!(bad.iter().all(|client| e.contains(&format!("{client}: "))), "{e}");
    assert_eq!((f.model.rounds, &f.model.adapter[&name()]), (0, &start(2)[&name()]));
}

/// Without bounds too: one that sends no numbers does not end the round for all.
#[test]
fn what_is_not_finite_is_one_clients_fault() {
    for rule in ["fedit", "ffa", "fedsvd"] {
        let mut learner = Learner::default();
        learner.wrong.insert("nan".into(), |r| {
            r.adapter.values_mut().for_each(|t| *t = t.full_like(f64::NAN));
        });
        let mut f = federation(Settings::new("nan", Rule::from_str(rule).unwrap(), 1), 2);
        let report = round(&mut f, &["a", "nan", "b"], &mut learner).unwrap();
        let refused = report.clients.iter().filter(|told| told.refused.is_some());
        assert_eq!(refused.map(|told| &*told.client).collect::<Vec<_>>(), ["nan"], "{rule}");
    }
}

/// Nor what overflows, in f32 or in a product of two.
#[test]
fn what_is_huge_is_one_clients_fault() {
    let huge: [fn(&mut Reply); 2] = [
        |r| r.adapter.values_mut().for_each(|t| *t = t.to_kind(Kind::Double).full_like(1e300)),
        |r| r.adapter.values_mut().for_each(|t| *t = t.to_kind(Kind::Float).full_like(1e30)),
    ];
    for rule in ["fedit", "ffa", "fedsvd", "fedex", "flora", "flexlora"] {
        for wrong in huge {
            let mut learner = Learner::default();
            learner.wrong.insert("huge".into(), wrong);
            let start = start(2).into_iter().map(|(name, t)| (name, t.to_kind(Kind::Float)));
            let settings = Settings::new("huge", Rule::from_str(rule).unwrap(), 1);
            let mut f = Federation::new(settings, Model::new(start.collect()), scale).unwrap();
            let report = round(&mut f, &["a", "b", "huge"], &mut learner).unwrap();
            let refused = report.clients.iter().filter(|told| told.refused.is_some());
            assert_eq!(refused.map(|told| &*told.client).collect::<Vec<_>>(), ["huge"], "{rule}");
        }
    }
}

/// Whoever was chosen: the model keeps its rank, and no direction of it is dead.
#[test]
fn flexloras_model_keeps_its_rank() {
    let ranks = BTreeMap::from([("a".to_owned(), 1), ("b".to_owned(), 2)]);
    let settings = Settings { ranks, ..Settings::new("ranks", Rule::FlexLora, 3) };
    let mut f = federation(settings, 5);
    let mut learner = Learner::default();
    round(&mut f, &["a", "b"], &mut learner).unwrap();
    for module in MODULES {
        let a = &f.model.adapter[&format!("{module}.lora_A.weight")];
        assert_eq!(a.size()[0], 5);
        let rows: Vec<f64> =
            Vec::try_from(a.square().sum_dim_intlist([1i64].as_slice(), false, None)).unwrap();
        assert!(rows.iter().all(|norm| *norm > 1e-3), "{rows:?}");
    }
    let now = dense(&f.model.adapter, &f.model.beside);
    let mean = learner.learnt.iter().map(|(_, all)| &all[MODULES[1]] / 2.0).reduce(|a, b| a + b).unwrap();
    assert!(error(&now[MODULES[1]], &mean) < 1e-12);
    let ranks = BTreeMap::from([("a".to_owned(), 6)]);
    let settings = Settings { ranks, ..Settings::new("ranks", Rule::FlexLora, 3) };
    let e = Federation::new(settings, Model::new(start(5)), scale).unwrap_err();
    assert!(e.to_string().contains("rank 5, and a client 6"), "{e}");
}

/// What a client has above the model's rank begins anew: rows of zeros in both factors would learn nothing.
#[test]
fn a_higher_rank_can_learn() {
    struct Looks(Vec<BTreeMap<String, Tensor>>, Learner);
    impl Worker for Looks {
        fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
            if client == "big" {
                self.0.push(task.adapter.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect());
            }
            self.1.train(client, task)
        }
    }
    let ranks = BTreeMap::from([("big".to_owned(), 4)]);
    let settings = Settings { ranks, ..Settings::new("ranks", Rule::Flora, 2) };
    let mut f = federation(settings, 2);
    let mut looks = Looks(Vec::new(), Learner::default());
    struct Lent<'a>(&'a mut Looks);
    impl Worker for Lent<'_> {
        fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
            self.0.train(client, task)
        }
    }
    for _ in 0..2 {
        f.round(&mut InProcess::new(names(&["a", "big"]), vec![Box::new(Lent(&mut looks))])).unwrap();
    }
    assert_eq!(looks.0.len(), 2);
    for given in &looks.0 {
        for module in MODULES {
            let [a, b] = ["A", "B"].map(|f| &given[&format!("{module}.lora_{f}.weight")]);
            assert_eq!((a.size()[0], b.count_nonzero(None).int64_value(&[])), (4, 0));
            // Four rows, none of which is made of the others.
            let (_, s, _) = a.svd(true, true);
            let (most, least) = (s.max().double_value(&[]), s.min().double_value(&[]));
            assert!(least > 0.01 * most, "{least} of {most}");
        }
    }
}

/// A mean in half precision would move by nothing.
#[test]
fn a_start_in_bf16_is_kept_in_f32() {
    let start = start(2).into_iter().map(|(name, t)| (name, t.to_kind(Kind::BFloat16)));
    assert!(Model::new(start.collect()).adapter.values().all(|t| t.kind() == Kind::Float));
}

/// An engine that answers for one client twice.
#[test]
fn a_client_counts_once() {
    struct Twice(Learner);
    impl Engine for Twice {
        fn clients(&mut self) -> Result<Vec<String>> {
            Ok(names(&["a", "a", "b"]))
        }
        fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
            assert_eq!(tasks.len(), 2);
            Ok(tasks.iter().map(|(_, task)| ("a".to_owned(), self.0.train("a", task))).collect())
        }
    }
    let mut f = federation(Settings::new("twice", Rule::FedIt, 1), 2);
    let report = f.round(&mut Twice(Learner::default())).unwrap();
    assert_eq!(report.clients.iter().filter(|t| t.refused.is_none()).count(), 1);
}
