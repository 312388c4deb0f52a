//! Tasks that are large, for many nodes.

use std::time::Duration;

use lora_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use super::super::app::ServerApp;
use super::super::deflate::held;
use super::superlink::{options, superlink};
use crate::aggregate::Rule;
use crate::engine::{Engine, Federation, Letter, Model, Reply, Server, Settings, Task};

/// Keeps what it is to carry out.
#[derive(Default)]
struct Keeper(Vec<(String, Task)>);

impl Engine for Keeper {
    fn clients(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        self.0 = tasks;
        Err(Error::data("they are kept"))
    }
}

const NODES: [&str; 4] = ["40", "41", "42", "43"];
const WIDTH: i64 = 8192;
/// Bytes of two factors of rank 4.
const LARGE: usize = 2 * 4 * 4 * WIDTH as usize;
/// Heads, names, and what letters say.
const LITTLE: usize = LARGE / 8;

/// A round's tasks, which are one but for those of other ranks.
fn tasks(ranks: &[(&str, i64)]) -> Vec<(String, Task)> {
    let of = |name: &str, tensor: Tensor| (format!("m.{name}.weight"), tensor);
    let f32s = (Kind::Float, Device::Cpu);
    let factors =
        [of("lora_A", Tensor::ones([4, WIDTH], f32s)), of("lora_B", Tensor::zeros([WIDTH, 4], f32s))];
    let ranks = ranks.iter().map(|(client, rank)| ((*client).to_owned(), *rank)).collect();
    let settings = Settings { ranks, ..Settings::new("a run", Rule::Flora, 1) };
    let mut federation = Federation::new(settings, Model::new(factors.into()), |_, _| 1.0).unwrap();
    let mut keeper = Keeper::default();
    federation.round_of(NODES.map(str::to_owned).to_vec(), &mut keeper).unwrap_err();
    keeper.0
}

/// What is one for many is made ready once, in letters too, and of what differs there is one at a time.
#[test]
fn no_more_than_one_task_is_held() {
    let ((address, state), dir) = (superlink(), tempfile::tempdir().unwrap());
    let app = ServerApp::acquire(&options(&address, dir.path())).unwrap();
    let mut server = Server::new(app, Duration::ZERO);
    held::take();
    assert_eq!(server.run(tasks(&[])).unwrap().len(), 4);
    let (most, made) = held::take();
    assert!(most > LARGE && made < LARGE + LITTLE, "{most}, {made}");

    server.run(tasks(&[("40", 3), ("41", 2), ("42", 1)])).unwrap();
    let (most, made) = held::take();
    assert!(most < LARGE + LITTLE && made > 2 * LARGE, "{most}, {made}");

    let say = |(number, (client, task)): (u8, (String, Task))| {
        (client, Letter { bytes: vec![number; 100], task: Some(task), noise: None })
    };
    server.exchange((0..).zip(tasks(&[])).map(say).collect()).unwrap();
    let (most, made) = held::take();
    assert!(most > LARGE && made < LARGE + LITTLE, "{most}, {made}");
    assert_eq!(held::take(), (0, 0));

    let state = state.lock().unwrap();
    assert_eq!(state.sent.len(), 12);
    let uploads = state.calls.iter().filter(|call| *call == "push-object").count();
    assert_eq!(uploads, state.objects.len(), "an object was uploaded twice");
}
