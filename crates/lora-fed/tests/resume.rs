//! A coordinator that dies anywhere goes on with the round that it was in.

use std::collections::BTreeMap;

use lora_core::{Error, Result};
use lora_fed::aggregate::{Rule, ServerRule};
use lora_fed::engine::{Engine, Federation, Model, Reply, Settings, Task};
use lora_fed::store::Store;
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

fn start() -> Model {
    of_rank(2)
}

fn of_rank(rank: i64) -> Model {
    let a = Tensor::arange(6 * rank, F32).view([rank, 6]) / 12.0;
    let b = Tensor::zeros([5, rank], F32);
    Model::new([("m.lora_A.weight".to_owned(), a), ("m.lora_B.weight".to_owned(), b)].into())
}

/// Clients come and go; each reply depends on who, when and from what. Dies where it is told to.
#[derive(Default)]
struct Nodes {
    calls: u64,
    settled: u64,
    asked: Vec<(u64, Vec<String>)>,
    bases: Vec<Option<String>>,
    dies_running: bool,
    dies_settling: bool,
}

impl Engine for Nodes {
    fn clients(&mut self) -> Result<Vec<String>> {
        // Another one is away each time that one looks.
        self.calls += 1;
        let all = ["a", "b", "c", "d", "e"];
        Ok(all
            .iter()
            .enumerate()
            .filter(|(i, _)| *i as u64 != self.calls % 5)
            .map(|(_, c)| (*c).to_owned())
            .collect())
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        let round = tasks[0].1.round;
        self.asked.push((round, tasks.iter().map(|(client, _)| client.clone()).collect()));
        self.bases.extend(tasks.iter().map(|(_, task)| task.base.clone()));
        if std::mem::take(&mut self.dies_running) {
            return Err(Error::data("killed"));
        }
        let reply = |(client, task): (String, Task)| {
            let step = f64::from(client.as_bytes()[0]) / 1000.0 + round as f64 / 10.0;
            let moved = task.adapter.iter().filter(|(name, _)| task.sends.holds(name));
            let adapter: BTreeMap<_, _> = moved.map(|(name, t)| (name.clone(), t * 0.9 + step)).collect();
            (client, Ok(Reply { adapter, examples: 1, metrics: BTreeMap::new() }))
        };
        Ok(tasks.into_iter().map(reply).collect())
    }

    fn settle(&mut self) -> Result<()> {
        if std::mem::take(&mut self.dies_settling) {
            return Err(Error::data("killed"));
        }
        self.settled += 1;
        Ok(())
    }
}

fn settings(rule: Rule, seed: u64) -> Settings {
    let server =
        Some(ServerRule::Adam { rate: 0.1, betas: (0.9, 0.99), tau: 1e-3 }).filter(|_| rule == Rule::FedIt);
    Settings { per_round: Some(3), server, seed, ..Settings::new("a run", rule, 4) }
}

fn open(rule: Rule, store: &mut Store) -> Federation {
    let mut federation = Federation::new(settings(rule, 1), start(), |_, r| 4.0 / r as f64).unwrap();
    federation.resume(store).unwrap();
    federation
}

#[test]
fn it_goes_on_where_it_was() {
    for rule in [Rule::FedIt, Rule::FedEx, Rule::Flora, Rule::RoLora { round: 1 }] {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, deaths: &[(u64, bool)]| {
            let path = folder.path().join(format!("{rule} {name}"));
            let mut nodes = Nodes::default();
            let mut deaths = deaths.to_vec();
            let mut model = None;
            for _ in 0..20 {
                // A new process each time.
                let mut store = Store::open(&path).unwrap();
                let mut federation = open(rule, &mut store);
                while federation.model.rounds < 4 {
                    let next = federation.model.rounds + 1;
                    if let Some(at) = deaths.iter().position(|(round, _)| *round == next) {
                        let (_, running) = deaths.remove(at);
                        nodes.dies_running = running;
                        nodes.dies_settling = !running;
                    }
                    let settling = nodes.dies_settling;
                    if federation.round_in(&mut store, &mut nodes).is_err() || settling {
                        break;
                    }
                }
                let reports = Federation::reports(&store).unwrap();
                assert_eq!(reports.len() as u64, federation.model.rounds);
                if federation.model.rounds == 4 {
                    model = Some(federation.model);
                    break;
                }
            }
            // Whoever was chosen for a round stays chosen, whoever is there later.
            let mut by_round = BTreeMap::new();
            for (round, clients) in &nodes.asked {
                assert_eq!(by_round.entry(*round).or_insert_with(|| clients.clone()), clients);
            }
            assert!(nodes.asked.len() as u64 >= 4);
            (model.unwrap(), by_round)
        };
        let (calm, asked) = run("calm", &[]);
        let (stormy, again) =
            run("stormy", &[(1, true), (1, true), (2, false), (3, true), (4, false), (4, true)]);
        assert_eq!(asked, again, "{rule}");
        assert_eq!((calm.adapter, calm.beside), (stormy.adapter, stormy.beside), "{rule}");
    }
}

/// All are there, and one of them never answers well.
struct Calm {
    asked: Vec<Vec<String>>,
}

impl Engine for Calm {
    fn clients(&mut self) -> Result<Vec<String>> {
        Ok(["a", "b", "c", "d", "bad"].map(str::to_owned).to_vec())
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        self.asked.push(tasks.iter().map(|(client, _)| client.clone()).collect());
        let reply = |(client, task): (String, Task)| {
            let moved = task.adapter.into_iter().filter(|(name, _)| task.sends.holds(name));
            let reply = Reply { adapter: moved.collect(), examples: 1, metrics: BTreeMap::new() };
            let bad = client == "bad";
            (client, if bad { Err(Error::data("its budget is spent")) } else { Ok(reply) })
        };
        Ok(tasks.into_iter().map(reply).collect())
    }

    fn settle(&mut self) -> Result<()> {
        Err(Error::data("the line is down"))
    }
}

/// Tried again, a round asks others, after a restart too; and what is safe is done, whatever the engine forgets.
#[test]
fn another_try_asks_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let settings = || Settings { per_round: Some(3), minimum: 3, ..Settings::new("a run", Rule::FedIt, 9) };
    let mut engine = Calm { asked: Vec::new() };
    let mut tries = 0;
    loop {
        let mut store = Store::open(&path).unwrap();
        let mut federation = Federation::new(settings(), start(), |_, _| 1.0).unwrap();
        federation.resume(&mut store).unwrap();
        if federation.model.rounds == 9 {
            break;
        }
        if federation.round_in(&mut store, &mut engine).is_err() {
            federation.choose_again(&mut store).unwrap();
            tries += 1;
            assert!(tries < 60, "{:?}", engine.asked);
        }
    }
    assert!(tries > 0, "or nothing was tried again");
}

#[test]
fn a_store_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&folder.path().join("store")).unwrap();
    let other = || Federation::new(settings(Rule::FedIt, 2), start(), |_, _| 1.0).unwrap();
    // A run that came to nothing is in nobody's way.
    open(Rule::FedIt, &mut store);
    assert!(!other().resume(&mut store).unwrap());
    let mut federation = open(Rule::FedIt, &mut store);
    federation.round_in(&mut store, &mut Nodes::default()).unwrap();
    let e = other().resume(&mut store).unwrap_err();
    assert!(e.to_string().contains("1 of whose rounds") && e.hint_text().is_some(), "{e}");
}

/// Of another rank it would write what nothing loads, and by another alpha or variant all that was learnt would count otherwise.
#[test]
fn a_run_of_another_rank_scale_or_variant_is_refused() {
    type Scale = fn(&str, i64) -> f64;
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&folder.path().join("store")).unwrap();
    open(Rule::FedIt, &mut store).round_in(&mut store, &mut Nodes::default()).unwrap();
    let mut with_magnitudes = start();
    with_magnitudes.adapter.insert("m.lora_magnitude_vector".to_owned(), Tensor::ones([5], F32));
    let same: Scale = |_, r| 4.0 / r as f64;
    let others: [(Model, Scale); 4] = [
        (of_rank(3), same),
        (start(), |_, r| 8.0 / r as f64),
        (start(), |_, r| 4.0 / (r as f64).sqrt()),
        (with_magnitudes, same),
    ];
    for (number, (model, scale)) in others.into_iter().enumerate() {
        let mut other = Federation::new(settings(Rule::FedIt, 1), model, scale).unwrap();
        let e = other.resume(&mut store).unwrap_err();
        assert!(e.to_string().contains("1 of whose rounds"), "{number}: {e}");
        assert!(e.hint_text().is_some_and(|hint| hint.contains("rank")), "{number}: {e}");
    }
    assert_eq!(open(Rule::FedIt, &mut store).model.rounds, 1);
}

/// What neither settings nor shapes show: over other weights of the same shapes all that was learnt means something else.
#[test]
fn a_run_over_another_base_or_from_another_start_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&folder.path().join("store")).unwrap();
    let of = |base: &str, begun: &str, adapter: Model| {
        let f = Federation::new(settings(Rule::FedIt, 1), adapter, |_, r| 4.0 / r as f64).unwrap();
        f.over(base).known_by("start", begun)
    };
    // Of a run that came to nothing, nothing is taken over: its start was another.
    let mut other = start();
    other.adapter.values_mut().for_each(|t| *t = &*t + 1.0);
    assert!(!of("one", "zeros", other).resume(&mut store).unwrap());
    let mut federation = of("one", "fresh", start());
    assert!(!federation.resume(&mut store).unwrap());
    assert_eq!(federation.model.adapter, start().adapter);
    let mut nodes = Nodes::default();
    federation.round_in(&mut store, &mut nodes).unwrap();
    assert!(nodes.bases.len() == 3 && nodes.bases.iter().all(|base| base.as_deref() == Some("one")));
    for (mut other, said) in [
        (of("two", "fresh", start()), "another base model: one, and here it is two"),
        (of("one", "zeros", start()), "another start: fresh, and here it is zeros"),
    ] {
        let e = other.resume(&mut store).unwrap_err();
        assert!(e.to_string().contains(said) && e.to_string().contains("1 of whose rounds"), "{e}");
        assert!(e.hint_text().is_some_and(|hint| hint.contains("--model")), "{e:?}");
    }
    assert!(of("one", "fresh", start()).resume(&mut store).unwrap());
}

/// A version before said neither.
#[test]
fn what_a_state_does_not_say_is_not_compared() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = Store::open(&folder.path().join("store")).unwrap();
    open(Rule::FedIt, &mut store).round_in(&mut store, &mut Nodes::default()).unwrap();
    for base in ["one", "two"] {
        let mut federation =
            Federation::new(settings(Rule::FedIt, 1), start(), |_, r| 4.0 / r as f64).unwrap().over(base);
        assert!(federation.resume(&mut store).unwrap() && federation.model.rounds == 1);
    }
}

/// Clients keep things by a run's name: one that begins anew, after its end or because its state is lost, is another run. One that
/// a build before began has the name that it was made with.
#[test]
fn a_run_has_a_name_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let [mut first, mut second] =
        ["first", "second"].map(|name| Store::open(&folder.path().join(name)).unwrap());
    let named = |store: &mut Store| {
        let mut federation = open(Rule::FedIt, store);
        federation.named_in(store).unwrap();
        federation
    };
    let mut one = named(&mut first);
    let name = one.settings().run.clone();
    assert!(name.starts_with("a run ") && name.len() > 30, "{name}");
    one.round_in(&mut first, &mut Nodes::default()).unwrap();
    let again = named(&mut first);
    assert_eq!((again.model.rounds, &again.settings().run), (1, &name));
    let mut two = named(&mut second);
    assert_ne!(two.settings().run, name);
    two.round_in(&mut second, &mut Nodes::default()).unwrap();
    assert_eq!(one.model.adapter, two.model.adapter, "what is learnt hangs on the name");
    first.write(|changes| changes.remove("secure", "name")).unwrap();
    let former = named(&mut first);
    assert_eq!((former.model.rounds, &*former.settings().run), (1, "a run"));
}
