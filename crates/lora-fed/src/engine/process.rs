//! All clients in this process, for research and tests: the same bits every time.

use super::{Engine, Letter, Reply, Task};
use lora_core::{Error, Result};

/// Does clients' work: any client's, one after another.
pub trait Worker: Send {
    /// What `client` makes of `task`.
    ///
    /// # Errors
    /// What ends this client's part of the round. One that hangs on the client's rows is [`Error::non_finite`] or
    /// [`Error::internal`], or has an [`Error`] as its cause, which is told to nobody: in noised sums such a part counts as zeros,
    /// unless that cause is a disk's. Any other is told: it is met before a row is read, and hangs on no round before.
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply>;

    /// The loss of the task's adapter on rows that `client` holds out, and how many they are.
    ///
    /// # Errors
    /// Where there are none; what ends this client's part.
    fn evaluate(&mut self, client: &str, task: &Task) -> Result<(f64, u64)> {
        let _ = (client, task);
        Err(Error::unsupported("no rows are held out here"))
    }

    /// What `client` answers to `letter`.
    ///
    /// # Errors
    /// By a client that does not know what it is about; what ends its part.
    fn answer(&mut self, client: &str, letter: &Letter) -> Result<Vec<u8>> {
        let _ = (client, letter);
        Err(Error::unsupported("this client answers no letters: it takes no part in secure rounds"))
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
        self.ask(tasks, |i, _| i, |worker, client, task| worker.train(client, task))
    }

    fn exchange(&mut self, letters: Vec<(String, Letter)>) -> Result<Vec<(String, Result<Vec<u8>>)>> {
        // Always the same worker: it remembers the letters before.
        let names = self.clients.clone();
        let place = |i, client: &str| names.iter().position(|name| name == client).unwrap_or(i);
        self.ask(letters, place, |worker, client, letter| worker.answer(client, letter))
    }
}

impl<'a> InProcess<'a> {
    /// Each question to the worker at its `place`, side by side.
    fn ask<Q: Send, A: Send>(
        &mut self,
        questions: Vec<(String, Q)>,
        place: impl Fn(usize, &str) -> usize,
        answer: impl Fn(&mut dyn Worker, &str, &Q) -> Result<A> + Sync,
    ) -> Result<Vec<(String, Result<A>)>> {
        if self.workers.is_empty() {
            return Err(Error::usage("there is nobody to do the clients' work"));
        }
        let count = self.workers.len();
        let mut lists: Vec<Vec<(usize, String, Q)>> = (0..count).map(|_| Vec::new()).collect();
        for (i, (client, question)) in questions.into_iter().enumerate() {
            lists[place(i, &client) % count].push((i, client, question));
        }
        let play = |worker: &mut Box<dyn Worker + 'a>, list: Vec<(usize, String, Q)>| -> Vec<_> {
            let one = |(i, client, question): (usize, String, Q)| {
                let reply = answer(&mut **worker, &client, &question);
                (i, client, reply)
            };
            list.into_iter().map(one).collect()
        };
        let play = &play;
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
