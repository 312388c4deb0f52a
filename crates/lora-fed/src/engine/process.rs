//! All clients in this process, for research and tests: the same bits every time.

use super::{Engine, Reply, Task};
use lora_core::{Error, Result};

/// Does clients' work: any client's, one after another.
pub trait Worker: Send {
    /// What `client` makes of `task`.
    ///
    /// # Errors
    /// What ends this client's part of the round.
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply>;

    /// The loss of the task's adapter on rows that `client` holds out, and how many they are.
    ///
    /// # Errors
    /// Where there are none; what ends this client's part.
    fn evaluate(&mut self, client: &str, task: &Task) -> Result<(f64, u64)> {
        let _ = (client, task);
        Err(Error::unsupported("no rows are held out here"))
    }
}

/// Clients by name, and workers that play them. Which worker plays which client changes nothing, if a worker keeps nothing
/// of one client for the next.
pub struct InProcess<'a> {
    clients: Vec<String>,
    workers: Vec<Box<dyn Worker + 'a>>,
}

impl<'a> InProcess<'a> {
    /// Several workers work side by side: each needs a model of its own then.
    pub fn new(clients: Vec<String>, workers: Vec<Box<dyn Worker + 'a>>) -> Self {
        Self { clients, workers }
    }
}

impl std::fmt::Debug for InProcess<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InProcess({} clients, {} workers)", self.clients.len(), self.workers.len())
    }
}

impl<'a> Engine for InProcess<'a> {
    fn clients(&mut self) -> Result<Vec<String>> {
        Ok(self.clients.clone())
    }

    fn run(&mut self, tasks: Vec<(String, Task)>) -> Result<Vec<(String, Result<Reply>)>> {
        if self.workers.is_empty() {
            return Err(Error::usage("there is nobody to do the clients' work"));
        }
        let count = self.workers.len();
        let mut lists: Vec<Vec<(usize, String, Task)>> = (0..count).map(|_| Vec::new()).collect();
        for (i, (client, task)) in tasks.into_iter().enumerate() {
            lists[i % count].push((i, client, task));
        }
        let play = |worker: &mut Box<dyn Worker + 'a>, list: Vec<(usize, String, Task)>| -> Vec<_> {
            let one = |(i, client, task): (usize, String, Task)| {
                let reply = worker.train(&client, &task);
                (i, client, reply)
            };
            list.into_iter().map(one).collect()
        };
        let mut all = match &mut self.workers[..] {
            [one] => play(one, lists.swap_remove(0)),
            many => std::thread::scope(|scope| {
                let threads = many.iter_mut().zip(lists).map(|(w, list)| scope.spawn(move || play(w, list)));
                let threads: Vec<_> = threads.collect();
                let ends = threads.into_iter().map(|thread| thread.join());
                let crashed = |_| Error::internal("a worker panicked");
                let all = ends.map(|end| end.map_err(crashed)).collect::<Result<Vec<_>>>()?;
                Ok::<_, Error>(all.into_iter().flatten().collect::<Vec<_>>())
            })?,
        };
        all.sort_by_key(|(i, ..)| *i);
        Ok(all.into_iter().map(|(_, client, reply)| (client, reply)).collect())
    }
}
