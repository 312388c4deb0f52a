//! A worker that "trains" by adding noise, and a federation of such.

use std::collections::BTreeMap;

use lora_core::{Error, Result};
use lora_fed::engine::{Federation, InProcess, Model, Reply, Settings, Task, Worker};
use tch::{Device, Kind, Tensor};

pub(crate) const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);
pub(crate) const MODULES: [&str; 2] = ["base_model.model.one", "base_model.model.two"];

pub(crate) fn scale(_: &str, rank: i64) -> f64 {
    6.0 / rank as f64
}

/// By a hash of who and when, not by libtorch's generator: threads share that one.
pub(crate) fn noise(seed: &str, size: &[i64]) -> Tensor {
    let mut state =
        seed.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let count: i64 = size.iter().product();
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 - 0.5
    };
    let values: Vec<f64> = (0..count).map(|_| next()).collect();
    Tensor::from_slice(&values).view(size)
}

pub(crate) fn start(rank: i64) -> BTreeMap<String, Tensor> {
    let mut adapter = BTreeMap::new();
    for (module, (out, inp)) in MODULES.iter().zip([(7, 9), (12, 5)]) {
        adapter.insert(format!("{module}.lora_A.weight"), noise(module, &[rank, inp]));
        adapter.insert(format!("{module}.lora_B.weight"), Tensor::zeros([out, rank], DOUBLE));
        adapter.insert(format!("{module}.lora_magnitude_vector"), noise("m", &[out]));
    }
    adapter
}

/// "Trains" by adding noise of its own; remembers what every client's whole model would be.
#[derive(Default)]
pub(crate) struct Learner {
    pub(crate) learnt: Vec<(String, BTreeMap<String, Tensor>)>,
    pub(crate) wrong: BTreeMap<String, fn(&mut Reply)>,
}

pub(crate) fn dense(
    adapter: &BTreeMap<String, Tensor>,
    beside: &BTreeMap<String, (Tensor, Tensor)>,
) -> BTreeMap<String, Tensor> {
    let of = |module: &&str| {
        let [a, b] = ["A", "B"].map(|f| &adapter[&format!("{module}.lora_{f}.weight")]);
        let mut w = b.matmul(a) * scale(module, a.size()[0]);
        if let Some((a, b)) = beside.get(*module) {
            w += b.matmul(a);
        }
        (module.to_string(), w)
    };
    MODULES.iter().map(of).collect()
}

impl Worker for Learner {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        if client == "broken" {
            return Err(Error::data("the disk is gone"));
        }
        let learn = |(name, t): (&String, &Tensor)| {
            let seed = format!("{client} {name} {}", task.round);
            let delta = if task.trains.holds(name) { noise(&seed, &t.size()) } else { t.zeros_like() };
            (name.clone(), (t + delta).to_kind(t.kind()))
        };
        let now: BTreeMap<_, _> = task.adapter.iter().map(learn).collect();
        self.learnt.push((client.to_owned(), dense(&now, &task.beside)));
        let adapter = now.into_iter().filter(|(name, _)| task.sends.holds(name)).collect();
        let examples = client.len() as u64;
        let mut reply = Reply { adapter, examples, metrics: BTreeMap::from([("loss".into(), 1.0)]) };
        if let Some(wrong) = self.wrong.get(client) {
            wrong(&mut reply);
        }
        Ok(reply)
    }
}

pub(crate) fn names(clients: &[&str]) -> Vec<String> {
    clients.iter().map(|c| (*c).to_owned()).collect()
}

pub(crate) fn federation(settings: Settings, rank: i64) -> Federation {
    Federation::new(settings, Model::new(start(rank)), scale).unwrap()
}

pub(crate) fn round(
    f: &mut Federation,
    clients: &[&str],
    learner: &mut Learner,
) -> Result<lora_fed::engine::Round> {
    struct Lent<'a>(&'a mut Learner);
    impl Worker for Lent<'_> {
        fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
            self.0.train(client, task)
        }
    }
    f.round(&mut InProcess::new(names(clients), vec![Box::new(Lent(learner))]))
}

pub(crate) fn error(a: &Tensor, b: &Tensor) -> f64 {
    ((a - b).norm() / b.norm().clamp_min(1e-300)).double_value(&[])
}
