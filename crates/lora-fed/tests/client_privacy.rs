//! A bound on what is learnt of a client: clipped, noised, divided by what is public.

use std::collections::BTreeMap;

use lora_core::{Error, Result};
use lora_fed::aggregate::Rule;
use lora_fed::engine::{Federation, InProcess, Model, Reply, Settings, Task, Weights, Worker};
use lora_fed::privacy::{Accounting, Budget, Ledger, Mechanism, Release, ReleaseConfig, Secret, Unit};
use lora_fed::store::Store;
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn start() -> Model {
    let a = Tensor::arange(24, F32).view([3, 8]) / 24.0;
    let b = Tensor::arange(18, F32).view([6, 3]) / 18.0;
    Model::new([("m.lora_A.weight".to_owned(), a), ("m.lora_B.weight".to_owned(), b)].into())
}

/// Moves by its own number, a wild one by far more; a broken one by nothing.
struct Learner {
    wild: Option<&'static str>,
    broken: Option<&'static str>,
}

impl Worker for Learner {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        if self.broken == Some(client) {
            return Err(Error::data("gone"));
        }
        let far = if self.wild == Some(client) { 1e6 } else { 1.0 };
        let step = far * (f64::from(client.as_bytes()[1]) - 48.0) / 100.0;
        let sent = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
        let adapter = sent.map(|(name, t)| (name.clone(), t + step)).collect();
        Ok(Reply { adapter, examples: 1, metrics: BTreeMap::new() })
    }
}

fn population() -> Vec<String> {
    (0..8).map(|i| format!("c{i}")).collect()
}

fn federation(rule: Rule) -> Federation {
    Federation::new(Settings::new("a run", rule, 3), start(), |_, r| 6.0 / r as f64).unwrap()
}

fn config(clip: f64, rate: f64, dimension: usize) -> ReleaseConfig {
    ReleaseConfig {
        clip,
        mechanism: Mechanism::new(0.8, rate).unwrap(),
        records: 8,
        dimension,
        divisor: 8.0 * rate,
        bits: 20,
        run: "a run".into(),
        data: [1; 32],
        configuration: [2; 32],
    }
}

fn bare(clip: f64, dimension: usize) -> Release {
    Release::unprotected(config(clip, 1.0, dimension), Secret::from_bytes([5; 32])).unwrap()
}

fn private(f: &mut Federation, release: &mut Release, learner: Learner) -> Result<lora_fed::engine::Round> {
    f.private_round(release, &population(), &mut InProcess::new(population(), vec![Box::new(learner)]))
}

fn apart(a: &Model, b: &Model) -> f64 {
    let pairs = a.adapter.iter().map(|(name, t)| (t - &b.adapter[name]).square().sum(Kind::Double));
    pairs.map(|t| t.double_value(&[])).sum::<f64>().sqrt()
}

const CALM: Learner = Learner { wild: None, broken: None };

#[test]
fn with_nothing_to_hide_it_is_the_plain_round() {
    for rule in [Rule::FedIt, Rule::Ffa, Rule::FedSvd, Rule::RoLora { round: 1 }] {
        let (mut plain, mut hidden) = (federation(rule), federation(rule));
        let mut release = bare(1e6, hidden.dimension());
        // RoLoRA sends the other factor in the second.
        for _ in 0..if matches!(rule, Rule::RoLora { .. }) { 2 } else { 1 } {
            plain.round(&mut InProcess::new(population(), vec![Box::new(CALM)])).unwrap();
            private(&mut hidden, &mut release, CALM).unwrap();
        }
        let (error, moved) = (apart(&plain.model, &hidden.model), apart(&plain.model, &start()));
        assert!(error < 1e-5 && moved > 0.1, "{rule}: {error:e} of {moved}");
    }
}

#[test]
fn one_client_moves_the_model_by_the_clip_at_most() {
    let run = |learner| {
        let mut f = federation(Rule::Ffa);
        let mut release = bare(0.05, f.dimension());
        private(&mut f, &mut release, learner).unwrap();
        f.model
    };
    let calm = run(CALM);
    for learner in [Learner { wild: Some("c3"), broken: None }, Learner { wild: None, broken: Some("c3") }] {
        // Each was clipped to 0.05, and there are eight.
        let apart = apart(&run(learner), &calm);
        assert!(apart <= 0.05 / 8.0 * 1.0001, "{apart}");
    }
}

/// It is divided by how many were to be drawn, and who gives nothing adds nothing.
#[test]
fn who_gives_no_reply_learnt_nothing() {
    let mut f = federation(Rule::Ffa);
    let mut release = bare(1e6, f.dimension());
    private(&mut f, &mut release, Learner { wild: None, broken: Some("c3") }).unwrap();
    let moved = &f.model.adapter["m.lora_B.weight"] - &start().adapter["m.lora_B.weight"];
    // c0 to c7 move by 0 to 7 hundredths, but c3.
    let error = (moved - (28.0 - 3.0) / 100.0 / 8.0).abs().max().double_value(&[]);
    assert!(error < 1e-5, "{error:e}");
}

/// Noise belongs to the model that it is added to: two models in one place of a run do not share it.
#[test]
fn another_model_gets_other_noise() {
    let noise = |start: fn() -> Model| {
        let folder = tempfile::tempdir().unwrap();
        let budget = Budget { unit: Unit::Client, epsilon: 6.0, delta: 1e-3, accounting: Accounting::Pld };
        let ledger = Ledger::open(&folder.path().join("ledger"), &budget).unwrap();
        let settings = Settings::new("a run", Rule::Ffa, 3);
        let mut f = Federation::new(settings, start(), |_, r| 6.0 / r as f64).unwrap();
        let mut release =
            Release::new(config(0.5, 0.5, f.dimension()), Secret::from_bytes([5; 32]), ledger).unwrap();
        // Nobody learns anything: what moves is noise.
        let still = Still;
        f.private_round(
            &mut release,
            &population(),
            &mut InProcess::new(population(), vec![Box::new(still)]),
        )
        .unwrap();
        &f.model.adapter["m.lora_B.weight"] - &start().adapter["m.lora_B.weight"]
    };
    fn other() -> Model {
        let mut model = start();
        model.adapter.values_mut().for_each(|t| *t = &*t + 0.5);
        model
    }
    let (one, again, two) = (noise(start), noise(start), noise(other));
    assert_eq!(one, again);
    let apart = (&one - &two).norm().double_value(&[]) / one.norm().double_value(&[]);
    assert!(apart > 0.5, "{apart:e}");
}

/// Sends what it got.
struct Still;

impl Worker for Still {
    fn train(&mut self, _: &str, task: &Task) -> Result<Reply> {
        let sent = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
        let adapter = sent.map(|(name, t)| (name.clone(), t.copy())).collect();
        Ok(Reply { adapter, examples: 1, metrics: BTreeMap::new() })
    }
}

#[test]
fn a_round_done_again_is_the_same_release() {
    let folder = tempfile::tempdir().unwrap();
    let budget = Budget { unit: Unit::Client, epsilon: 6.0, delta: 1e-3, accounting: Accounting::Pld };
    let run = |rounds: usize| {
        let ledger = Ledger::open(&folder.path().join("ledger"), &budget).unwrap();
        let mut f = federation(Rule::FedSvd);
        let mut release =
            Release::new(config(0.5, 0.5, f.dimension()), Secret::from_bytes([5; 32]), ledger).unwrap();
        let asked: Vec<_> = (0..rounds)
            .map(|_| private(&mut f, &mut release, CALM).map(|round| round.clients.len()))
            .collect();
        (f.model.adapter, asked, release.ledger().charges())
    };
    let (first, asked, charges) = run(2);
    let (again, asked_again, charges_again) = run(2);
    assert_eq!((&first, charges), (&again, charges_again));
    assert_eq!(charges, 2);
    assert_eq!(format!("{asked:?}"), format!("{asked_again:?}"));
    // The budget ends it, and the model stays as it was after the last round that fits.
    let (_, asked, charges) = run(40);
    assert!(asked.iter().any(Result::is_err) && charges < 40, "{charges}");
    assert!(asked.iter().skip(charges).all(Result::is_err));
}

/// Tells how it fared.
struct Tells;

impl Worker for Tells {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        let metrics = BTreeMap::from([("loss".to_owned(), 2.5)]);
        let reply = Learner { wild: None, broken: None }.train(client, task)?;
        Ok(Reply { metrics, ..reply })
    }
}

/// Whoever is drawn, what is told and what is written down is the same.
#[test]
fn who_was_drawn_is_told_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let rounds = [1, 2, 3, 4, 5, 6, 7, 8].map(|secret| {
        let mut store = Store::open(&folder.path().join(format!("state {secret}"))).unwrap();
        let mut f = federation(Rule::Ffa);
        f.resume(&mut store).unwrap();
        let config = config(1e6, 0.5, f.dimension());
        let mut release = Release::unprotected(config, Secret::from_bytes([secret; 32])).unwrap();
        let mut engine = InProcess::new(population(), vec![Box::new(Tells)]);
        let round = f.private_round_in(&mut store, &mut release, &population(), &mut engine).unwrap();
        assert_eq!(f.model.rounds, 1);
        (round, Federation::reports(&store).unwrap())
    });
    assert!(rounds.iter().all(|round| *round == rounds[0]), "{rounds:?}");
    let (round, reports) = &rounds[0];
    let [each] = &round.clients[..] else { panic!("{round:?}") };
    // B alone is sent back.
    assert_eq!((&*each.client, each.bytes_down, each.bytes_up), ("", (24 + 18) * 4, 18 * 4));
    let report = String::from_utf8_lossy(&reports[0]);
    let named = population().iter().any(|client| report.contains(&format!("\"{client}\"")));
    assert!(reports.len() == 1 && !named && !report.contains("2.5"), "{report}");
}

#[test]
fn what_bounds_nothing_is_refused() {
    let faults = Settings {
        weights: Weights::Examples { most: 9 },
        per_round: Some(3),
        ..Settings::new("x", Rule::FedEx, 1)
    };
    assert_eq!(faults.check_private().unwrap_err().to_string().lines().count(), 4);
    let own = Settings { weights: Weights::Equal, ..Settings::new("x", Rule::FedSa, 1) };
    assert!(own.check_private().unwrap_err().to_string().contains("factors that nothing is added to"));
    let mut f = federation(Rule::Ffa);
    let dimension = f.dimension();
    let mut release = Release::unprotected(
        ReleaseConfig { records: 7, ..config(1.0, 1.0, dimension) },
        Secret::from_bytes([5; 32]),
    )
    .unwrap();
    assert!(private(&mut f, &mut release, CALM).is_err());
    assert_eq!(f.model.rounds, 0);
}
