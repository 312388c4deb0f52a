//! Every rule against its dense formula, in f64; and what clients may not do.

use lora_fed::aggregate::{Bounds, Layer, Robust, Rule, ServerOptimiser, ServerRule, Shared, Stack, Upload};
use proptest::prelude::*;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Clients of these ranks, scales and weights, with one layer `l` of `out x inp`.
#[derive(Debug, Clone)]
struct Case {
    out: i64,
    inp: i64,
    clients: Vec<(i64, f64, f64)>,
    seed: i64,
}

fn cases(mixed: bool) -> impl Strategy<Value = Case> {
    let client = (1..5i64, 0.1..4.0f64, 0.1..9.0f64);
    (1..12i64, 1..12i64, prop::collection::vec(client, 1..6), any::<u32>()).prop_map(
        move |(out, inp, clients, seed)| {
            let rank = clients[0].0;
            let of = |(r, s, w)| (if mixed { r } else { rank }, s, w);
            Case { out, inp, clients: clients.into_iter().map(of).collect(), seed: i64::from(seed) }
        },
    )
}

#[derive(Clone, Copy, PartialEq)]
enum Kept {
    Nothing,
    A,
    B,
}

fn uploads(case: &Case, kept: Kept) -> Vec<Upload> {
    static RANDOM: std::sync::Mutex<()> = std::sync::Mutex::new(()); // One generator for all threads.
    let _alone = RANDOM.lock();
    tch::manual_seed(case.seed);
    let random = |size: [i64; 2]| Tensor::randn(size, OPTIONS);
    let (a, b) = (random([case.clients[0].0, case.inp]), random([case.out, case.clients[0].0]));
    let upload = |(i, &(rank, scale, weight)): (usize, &(i64, f64, f64))| {
        let a = if kept == Kept::A { a.copy() } else { random([rank, case.inp]) };
        let b = if kept == Kept::B { b.copy() } else { random([case.out, rank]) };
        let layers = BTreeMap::from([("l".to_owned(), Layer { a, b, scale })]);
        let others = BTreeMap::from([("m".to_owned(), random([case.out, 1]).reshape(-1))]);
        Upload { client: format!("c{i}"), weight, layers, others }
    };
    case.clients.iter().enumerate().map(upload).collect()
}

/// `Σ p_k s_k B_k A_k`, dense.
fn dense(uploads: &[Upload]) -> Tensor {
    let total: f64 = uploads.iter().map(|u| u.weight).sum();
    let one = |u: &Upload| {
        let l = &u.layers["l"];
        l.b.matmul(&l.a) * (l.scale * u.weight / total)
    };
    uploads.iter().map(one).reduce(|a, b| a + b).unwrap()
}

fn mean(uploads: &[Upload], of: impl Fn(&Layer) -> Tensor) -> Tensor {
    let total: f64 = uploads.iter().map(|u| u.weight).sum();
    uploads.iter().map(|u| of(&u.layers["l"]) * (u.weight / total)).reduce(|a, b| a + b).unwrap()
}

/// What a client has that takes what is shared and keeps the rest of `own`.
fn taken(shared: &Shared, own: &Layer) -> Tensor {
    let (a, b) = (shared.a.as_ref().unwrap_or(&own.a), shared.b.as_ref().unwrap_or(&own.b));
    b.matmul(a) * shared.scale
}

fn near(what: &str, a: &Tensor, b: &Tensor) {
    let error = ((a - b).norm() / (b.norm() + 1e-300)).double_value(&[]);
    assert!(a.size() == b.size() && error < 1e-12, "{what} is off by {error:e}");
}

proptest! {
    #[test]
    fn exact_rules_are_the_dense_sum(case in cases(false)) {
        let some = uploads(&case, Kept::Nothing);
        let fedex = Rule::FedEx.aggregate(&some).unwrap();
        let mut whole = taken(&fedex.layers["l"], &some[0].layers["l"]);
        // Clients that agree leave nothing beside; others what their differences span.
        if let Some(side) = fedex.side.get("l") {
            whole += side.b.matmul(&side.a);
            prop_assert!(side.a.size()[0] <= (some.len() as i64 - 1) * some[0].layers["l"].a.size()[0]);
        }
        near("fedex", &whole, &dense(&some));

        let fixed_a = uploads(&case, Kept::A);
        for rule in [Rule::Ffa, Rule::RoLora { round: 3 }, Rule::FedSvd] {
            let got = rule.aggregate(&fixed_a).unwrap();
            near(&rule.to_string(), &taken(&got.layers["l"], &fixed_a[0].layers["l"]), &dense(&fixed_a));
        }
        let fixed_b = uploads(&case, Kept::B);
        let got = Rule::RoLora { round: 4 }.aggregate(&fixed_b).unwrap();
        prop_assert!(got.layers["l"].b.is_none());
        near("rolora, even", &taken(&got.layers["l"], &fixed_b[0].layers["l"]), &dense(&fixed_b));
    }

    /// A last bit may turn a pair of vectors, so their sign is chosen: the largest number of each left one is positive.
    #[test]
    fn a_decomposition_has_one_sign(case in cases(true)) {
        let some = uploads(&case, Kept::Nothing);
        let parts: Vec<_> = some.iter().map(|u| (1.0, &u.layers["l"].b, &u.layers["l"].a)).collect();
        let stack = Stack::new(&parts).unwrap();
        let sum = stack.decompose().unwrap();
        let (least, most) = (sum.u.amin([0i64].as_slice(), false), sum.u.amax([0i64].as_slice(), false));
        prop_assert!((most + least).min().double_value(&[]) >= 0.0, "{}", sum.u);
        let (b, a) = stack.into_factors();
        near("the sum", &(&sum.u * &sum.s).matmul(&sum.vt), &b.matmul(&a));
    }

    #[test]
    fn stacks_take_mixed_ranks_and_scales(case in cases(true)) {
        let some = uploads(&case, Kept::Nothing);
        let sum = dense(&some);
        let flora = Rule::Flora.aggregate(&some).unwrap();
        near("flora", &taken(&flora.layers["l"], &some[0].layers["l"]), &sum);
        // Every client's cut is the nearest matrix of its rank: the rest of the singular values is what it misses.
        let flex = Rule::FlexLora.aggregate(&some).unwrap();
        let (_, values, _) = sum.svd(true, false);
        for &(rank, ..) in &case.clients {
            let (b, a) = flex.sums["l"].at_rank(rank);
            prop_assert_eq!((a.size()[0], b.size()[1]), (rank, rank));
            let missed = (b.matmul(&a) - &sum).norm().double_value(&[]);
            let rest = values.narrow(0, rank.min(values.size()[0]), (values.size()[0] - rank).max(0));
            prop_assert!((missed - rest.norm().double_value(&[])).abs() < 1e-11 * sum.norm().double_value(&[]));
        }
    }

    #[test]
    fn means_are_means(case in cases(false)) {
        let some = uploads(&case, Kept::Nothing);
        let fedit = Rule::FedIt.aggregate(&some).unwrap();
        let s = some[0].layers["l"].scale;
        near("A", fedit.layers["l"].a.as_ref().unwrap(), &mean(&some, |l| l.a.copy()));
        near("B", fedit.layers["l"].b.as_ref().unwrap(), &mean(&some, |l| &l.b * (l.scale / s)));
        let fedsa = Rule::FedSa.aggregate(&some).unwrap();
        near("fedsa", fedsa.layers["l"].a.as_ref().unwrap(), &mean(&some, |l| l.a.copy()));
        prop_assert!(fedsa.layers["l"].b.is_none());
        let total: f64 = some.iter().map(|u| u.weight).sum();
        let others = some.iter().map(|u| &u.others["m"] * (u.weight / total)).reduce(|a, b| a + b).unwrap();
        near("others", &fedit.others["m"], &others);
    }

    #[test]
    fn one_client_gets_its_own_back(case in cases(false)) {
        let one = uploads(&Case { clients: case.clients[..1].to_vec(), ..case }, Kept::Nothing);
        for rule in ["fedit", "ffa", "rolora", "fedex", "flora", "flexlora", "fedsvd", "fedsa"] {
            let rule: Rule = rule.parse().unwrap();
            let got = rule.aggregate(&one).unwrap();
            near(&rule.to_string(), &taken(&got.layers["l"], &one[0].layers["l"]), &dense(&one));
        }
    }
}

#[test]
fn the_mean_of_factors_misses_what_fedex_adds() {
    let case = Case { out: 9, inp: 7, clients: vec![(2, 1.0, 1.0), (2, 1.0, 3.0)], seed: 3 };
    let some = uploads(&case, Kept::Nothing);
    let fedit = Rule::FedIt.aggregate(&some).unwrap();
    let got = taken(&fedit.layers["l"], &some[0].layers["l"]);
    assert!(((got - dense(&some)).norm() / dense(&some).norm()).double_value(&[]) > 0.1);
    // Σ p_k (B_k - B̄)(A_k - Ā) has rank (K - 1) r.
    let side = &Rule::FedEx.aggregate(&some).unwrap().side["l"];
    let (_, values, _) = side.b.matmul(&side.a).svd(true, false);
    let above = values.gt(1e-12).sum(Kind::Int64).int64_value(&[]);
    assert_eq!(above, 2);
}

#[test]
fn energy_cuts_where_it_says() {
    let a = Tensor::eye(4, OPTIONS);
    let b = Tensor::from_slice(&[3.0, 2.0, 1.0, 0.5]).diag(0);
    let sum = Stack::new(&[(1.0, &b, &a)]).unwrap().decompose().unwrap();
    // Squares 9, 4, 1, 0.25 of 14.25.
    assert_eq!([0.5, 0.63, 0.64, 0.9, 0.99, 1.0].map(|e| sum.rank_for(e)), [1, 1, 2, 2, 4, 4]);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let case = Case { out: 6, inp: 5, clients: vec![(2, 1.0, 1.0), (3, 1.0, 1.0), (2, 1.0, 1.0)], seed: 1 };
    let mut some = uploads(&case, Kept::Nothing);
    let error = |some: &[Upload], rule: Rule| rule.aggregate(some).unwrap_err().to_string();
    assert!(
        error(&some, Rule::FedIt).contains("[2, 3, 2]") && error(&some, Rule::FedEx).contains("one rank")
    );
    assert!(
        error(&some, Rule::Ffa).contains("keeps A")
            && error(&some, Rule::RoLora { round: 2 }).contains("keeps B")
    );
    assert!(error(&[], Rule::FedIt).contains("no client"));
    some[1].client = "c0".into();
    some[2].weight = -1.0;
    some[0].layers.get_mut("l").unwrap().a = Tensor::full([2, 5], f64::NAN, OPTIONS);
    let text = error(&some, Rule::Flora);
    for part in ["c0: is there twice", "c2: the weight -1", "c0: l: numbers that are not finite"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!("fedavg".parse::<Rule>().unwrap_err().hint_text().unwrap().contains("fedit, ffa"));
}

/// Ten clients near one another, of whom two send their update times minus one.
fn attacked() -> (Vec<Upload>, Tensor) {
    let case = Case { out: 8, inp: 6, clients: vec![(2, 1.0, 1.0); 10], seed: 5 };
    let mut some = uploads(&case, Kept::Nothing);
    let truth = (some[0].layers["l"].a.copy(), some[0].layers["l"].b.copy());
    for (i, u) in some.iter_mut().enumerate() {
        let layer = u.layers.get_mut("l").unwrap();
        layer.a = &truth.0 + &layer.a * 0.01;
        layer.b = (&truth.1 + &layer.b * 0.01) * if i < 2 { -10.0 } else { 1.0 };
    }
    (some, truth.1.matmul(&truth.0))
}

#[test]
fn robust_rules_hold_where_the_mean_fails() {
    let (some, truth) = attacked();
    let off = |a: &Tensor, b: &Tensor| ((b.matmul(a) - &truth).norm() / truth.norm()).double_value(&[]);
    let mean = Rule::FedIt.aggregate(&some).unwrap();
    let shared = &mean.layers["l"];
    assert!(off(shared.a.as_ref().unwrap(), shared.b.as_ref().unwrap()) > 1.0, "the control must fail");
    for rule in [Robust::Median, Robust::TrimmedMean(0.2), Robust::Krum { lying: 2 }] {
        let got = rule.aggregate(&some).unwrap();
        assert!(off(&got.layers["l"].a, &got.layers["l"].b) < 0.1, "{rule:?}");
    }
    assert!(Robust::Krum { lying: 4 }.aggregate(&some).unwrap_err().to_string().contains("needs 11"));
    assert!(Robust::TrimmedMean(0.5).aggregate(&some).is_err());
}

/// A fifth of twenty, by attacks of the literature: each robust rule stays with the others. The mean fails by all but the
/// one that hides in the spread.
#[test]
fn known_attacks_of_a_fifth_are_borne() {
    let waves = |size: [i64; 2]| (Tensor::arange(size[0] * size[1], OPTIONS) * 1.7).sin().view(size);
    let truth = (waves([2, 6]), waves([5, 2]));
    let spread = 0.02;
    let near = |t: &Tensor| t + t.randn_like() * spread;
    let dense = truth.1.matmul(&truth.0);
    type Attack<'a> = Box<dyn Fn() -> (Tensor, Tensor) + 'a>;
    let attacks: [(&str, bool, Attack<'_>); 4] = [
        // Xie et al. 2020, inner-product manipulation.
        ("the opposite, fivefold", true, Box::new(|| (near(&truth.0), &truth.1 * -5.0))),
        // Of one update there are many pairs of factors: the mean of theirs is none of it.
        ("another pair of the same update", true, Box::new(|| (&truth.0 * 50.0, &truth.1 / 50.0))),
        ("a claim of a million", true, Box::new(|| (&truth.0 * 1e3, &truth.1 * 1e3))),
        // Baruch et al. 2019, a little is enough.
        ("a step within the spread", false, Box::new(|| (&truth.0 - spread, &truth.1 - spread))),
    ];
    for (what, mean_fails, attack) in &attacks {
        let one = |i: usize| {
            let (a, b) = if i < 4 { attack() } else { (near(&truth.0), near(&truth.1)) };
            let layers = BTreeMap::from([("l".to_owned(), Layer { a, b, scale: 1.0 })]);
            Upload { client: format!("c{i}"), weight: 1.0, layers, others: BTreeMap::new() }
        };
        let some: Vec<Upload> = (0..20).map(one).collect();
        let off = |a: &Tensor, b: &Tensor| ((b.matmul(a) - &dense).norm() / dense.norm()).double_value(&[]);
        let mean = Rule::FedIt.aggregate(&some).unwrap();
        let mean = off(mean.layers["l"].a.as_ref().unwrap(), mean.layers["l"].b.as_ref().unwrap());
        assert_eq!(mean > 0.3, *mean_fails, "{what}: {mean}");
        for rule in [Robust::Median, Robust::TrimmedMean(0.2), Robust::Krum { lying: 4 }] {
            let got = rule.aggregate(&some).unwrap();
            let off = off(&got.layers["l"].a, &got.layers["l"].b);
            assert!(off < 0.1, "{what}, {rule:?}: {off}");
        }
    }
}

#[test]
fn bounds_hold_for_factors_and_for_their_product() {
    let (mut some, _) = attacked();
    let before = &attacked().0[5];
    let norm = |t: &Tensor| t.norm().double_value(&[]);
    let layer = &before.layers["l"];
    let update = norm(&layer.b.matmul(&layer.a));
    let bounds = Bounds { factor: 2.0 * norm(&layer.a).max(norm(&layer.b)), update: 1.5 * update };
    // The same update by other factors; not finite; another shape.
    let change =
        |some: &mut Vec<Upload>, i: usize, a: &dyn Fn(&Tensor) -> Tensor, b: &dyn Fn(&Tensor) -> Tensor| {
            let layer = some[i].layers.get_mut("l").unwrap();
            (layer.a, layer.b) = (a(&layer.a), b(&layer.b));
        };
    change(&mut some, 2, &|a| a * 1e6, &|b| b / 1e6);
    change(&mut some, 3, &|a| a * f64::NAN, &|b| b.copy());
    change(&mut some, 4, &|a| a.narrow(1, 0, 5), &|b| b.copy());
    change(&mut some, 5, &|a| a * f64::INFINITY, &|b| b.copy());
    let (kept, refused) = bounds.screen(some, before);
    let who: Vec<_> = refused.iter().map(|r| r.client.as_str()).collect();
    assert_eq!(who, ["c0", "c1", "c2", "c3", "c4", "c5"], "{refused:?}");
    assert_eq!(kept.len(), 4);
    assert!(refused[4].why.contains("another shape") && refused[2].why.contains("norm of A"), "{refused:?}");
}

/// Updates of one number each, of this scale.
fn numbers(values: &[f64], scale: f64) -> Vec<Upload> {
    let upload = |(i, &x): (usize, &f64)| {
        let (a, b) = (Tensor::ones([1, 1], OPTIONS), Tensor::full([1, 1], x, OPTIONS));
        let layers = BTreeMap::from([("l".to_owned(), Layer { a, b, scale })]);
        Upload { client: format!("c{i}"), weight: 1.0, layers, others: BTreeMap::new() }
    };
    values.iter().enumerate().map(upload).collect()
}

#[test]
fn krum_asks_the_nearest_alone_and_bounds_count_the_scale() {
    // By the distances to all, 5 would be chosen: it is nearest to those who lie.
    let some = numbers(&[0.0, 0.1, 0.2, 0.3, 5.0, 100.0, 100.0], 1.0);
    let chosen = Robust::Krum { lying: 2 }.aggregate(&some).unwrap();
    assert!(chosen.layers["l"].b.double_value(&[0, 0]) < 0.25);
    let kept = |update: f64| {
        let bounds = Bounds { factor: 1e9, update };
        bounds.screen(numbers(&[1.0], 3.0), &numbers(&[0.0], 3.0)[0]).0.len()
    };
    assert_eq!((kept(3.01), kept(2.99)), (1, 0));
}

/// Krum takes the chosen upload whole. A liar with the others' factors and magnitudes of its own is not the nearest.
#[test]
fn krum_counts_all_that_it_takes() {
    let mut some = numbers(&[0.0, 0.1, 0.15, 0.2, 0.3], 1.0);
    for (i, upload) in some.iter_mut().enumerate() {
        let magnitudes = Tensor::full([4], if i == 2 { 1e3 } else { 1.0 + 0.01 * i as f64 }, OPTIONS);
        upload.others.insert("m".into(), magnitudes);
    }
    let magnitude = |some: &[Upload]| {
        let chosen = Robust::Krum { lying: 1 }.aggregate(some).unwrap();
        chosen.others["m"].double_value(&[0])
    };
    assert!(magnitude(&some) < 1.1, "{}", magnitude(&some));
    // Without the lie it is the one in the middle.
    some[2].others.insert("m".into(), Tensor::full([4], 1.02, OPTIONS));
    assert_eq!(magnitude(&some), 1.02);
    // What has another shape, or another name, cannot be compared.
    for (name, size, said) in [("m", 5, "c2: m: another shape"), ("w", 4, "c2: has other modules")] {
        some[2].others = BTreeMap::from([(name.to_owned(), Tensor::ones([size], OPTIONS))]);
        let refused = Robust::Krum { lying: 1 }.aggregate(&some).unwrap_err().to_string();
        assert!(refused.contains(said), "{refused}");
    }
}

/// A fifth of four is nobody: the plain mean, which one liar moves anywhere. So one of each side goes, if any stays then.
#[test]
fn a_trimmed_mean_cuts_somebody_or_says_so() {
    let of = |values: &[f64], share: f64| {
        let got = Robust::TrimmedMean(share).aggregate(&numbers(values, 1.0));
        got.map(|upload| upload.layers["l"].b.double_value(&[0, 0]))
    };
    assert!((of(&[0.0, 0.1, 0.2, 1e6], 0.2).unwrap() - 0.15).abs() < 1e-12);
    assert!(of(&[0.0, 1e6], 0.2).unwrap_err().to_string().contains("of 2 uploads"));
    assert_eq!([0.2, 0.25, 0.1, 1.0 / 49.0, 0.0].map(|s| Robust::TrimmedMean(s).least()), [5, 4, 10, 50, 1]);
    assert!((of(&[0.0, 0.1, 0.2, 0.3, 1e6], 0.2).unwrap() - 0.2).abs() < 1e-12);
    assert!((of(&[0.0, 0.1, 0.3, 1e6], 0.25).unwrap() - 0.2).abs() < 1e-12);
    // Who asks for none has the mean.
    assert_eq!(of(&[0.0, 1.0, 2.0, 5.0], 0.0).unwrap(), 2.0);
}

/// Reddi et al. 2021, algorithm 2, by hand.
#[test]
fn server_optimisers_are_the_papers() {
    let at = |x: f64| Tensor::from_slice(&[x]);
    let value = |t: Tensor| t.double_value(&[0]);
    let mut momentum = ServerOptimiser::new(ServerRule::Momentum { rate: 0.5, momentum: 0.9 });
    let x = momentum.step("w", &at(1.0), &at(2.0)).unwrap();
    assert!((value(x.copy()) - 1.5).abs() < 1e-15);
    // v = 0.9 * 1 + (2 - 1.5), x = 1.5 + 0.5 v.
    assert!((value(momentum.step("w", &x, &at(2.0)).unwrap()) - 2.2).abs() < 1e-15);
    let mut adam = ServerOptimiser::new(ServerRule::Adam { rate: 0.1, betas: (0.9, 0.99), tau: 1e-3 });
    let x = value(adam.step("w", &at(1.0), &at(2.0)).unwrap());
    assert!((x - (1.0 + 0.1 * 0.1 / (0.1 + 1e-3))).abs() < 1e-15, "{x}");
    assert!(adam.step("w", &Tensor::from_slice(&[1.0, 2.0]), &at(1.0)).is_err());
}

/// `xtask/peers/fedavg.py`: what flwr 1.41.0 makes of the same arrays, in f32.
#[test]
fn fedit_is_flowers_fedavg() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fedavg.safetensors");
    let file = lora_core::read_tensors(&path).unwrap();
    let of = |prefix: &str| -> BTreeMap<String, Tensor> {
        let mine = file.iter().filter_map(|(key, t)| Some((key.strip_prefix(prefix)?.to_owned(), t.copy())));
        mine.collect()
    };
    let client = |(k, n): (usize, f64)| {
        Upload::from_tensors(format!("c{k}"), n, of(&format!("{k}/")), |_| 2.0).unwrap()
    };
    let uploads: Vec<_> = [942.0, 188.0, 1931.0].into_iter().enumerate().map(client).collect();
    let got = Rule::FedIt.aggregate(&uploads).unwrap();
    for (name, theirs) in of("mean/") {
        let ours = match name.rsplit_once(".lora_") {
            Some((module, "A.weight")) => got.layers[module].a.as_ref().unwrap(),
            Some((module, "B.weight")) => got.layers[module].b.as_ref().unwrap(),
            _ => &got.others[&name],
        };
        let error = (ours - &theirs).abs().max().double_value(&[]);
        assert!(ours.size() == theirs.size() && error < 1e-6, "{name} is off by {error:e}");
    }
    assert_eq!((got.layers.len(), got.others.len()), (2, 1));
}
