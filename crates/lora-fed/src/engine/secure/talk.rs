//! The letters of a round, and what came of each client's part.

use super::WHO;
use crate::engine::{Engine, Letter, Noise, Task, Told, bytes_of_task};
use crate::plain::reason;
use crate::secagg::{PartyId, Server};
use lora_core::{Error, Result};
use std::collections::BTreeMap;

/// A coordinator and the clients that it asked.
pub(super) struct Talk<'a> {
    engine: &'a mut dyn Engine,
    /// By party; none of them twice.
    names: BTreeMap<PartyId, String>,
    told: Vec<Told>,
}

impl<'a> Talk<'a> {
    /// Asks the clients who they are. One that says what it is not cannot sign for it.
    pub(super) fn begin(engine: &'a mut dyn Engine, clients: Vec<String>, round: u64) -> Result<Self> {
        let blank = |client: &String| Told {
            client: client.clone(),
            refused: None,
            examples: 0,
            metrics: BTreeMap::new(),
            bytes_down: 0,
            bytes_up: 0,
        };
        let told = clients.iter().map(blank).collect();
        let mut talk = Self { engine, names: BTreeMap::new(), told };
        let who = || Letter { bytes: [WHO, &round.to_le_bytes()].concat(), task: None, noise: None };
        for (client, answer) in talk.exchange(clients.into_iter().map(|client| (client, who())).collect())? {
            let party = answer.and_then(|bytes| {
                let number =
                    <[u8; 4]>::try_from(bytes).map_err(|_| Error::data("it is no party's number"))?;
                Ok(PartyId(u32::from_le_bytes(number)))
            });
            match party {
                Ok(party) if talk.names.contains_key(&party) => {
                    talk.refuse(&client, format!("party {party} is there twice"));
                }
                Ok(party) => drop(talk.names.insert(party, client)),
                Err(e) => talk.refuse(&client, e.to_string()),
            }
        }
        Ok(talk)
    }

    /// Those that said who they are, in rising order.
    pub(super) fn parties(&self) -> Vec<PartyId> {
        self.names.keys().copied().collect()
    }

    /// Lets those go whom `known` does not know.
    pub(super) fn keep(&mut self, known: impl Fn(PartyId) -> bool) {
        let strangers: Vec<_> = self.names.keys().copied().filter(|party| !known(*party)).collect();
        for party in strangers {
            if let Some(client) = self.names.remove(&party) {
                self.refuse(&client, format!("the directory has no party {party}"));
            }
        }
    }

    /// Sends each its letter, and gives the answers to `server`.
    pub(super) fn ask(
        &mut self,
        server: &mut Server,
        letters: Vec<(PartyId, Vec<u8>)>,
        (task, noise): (Option<&Task>, Option<Noise>),
    ) -> Result<()> {
        let letter = |(party, bytes): (PartyId, Vec<u8>)| {
            let name = self.names.get(&party)?;
            Some((name.clone(), Letter { bytes, task: task.map(Task::share), noise }))
        };
        for (client, answer) in self.exchange(letters.into_iter().filter_map(letter).collect())? {
            let received = answer.and_then(|bytes| {
                let receipt = server.receive(&bytes)?;
                let mine = self.names.get(&receipt.from) == Some(&client);
                if mine { Ok(()) } else { Err(Error::data(format!("it answers for party {}", receipt.from))) }
            });
            if let Err(e) = received {
                self.refuse(&client, e.to_string());
            }
        }
        Ok(())
    }

    /// The same to all whose message the server awaits.
    pub(super) fn ask_all(&mut self, server: &mut Server, bytes: &[u8]) -> Result<()> {
        let letters = server.missing().into_iter().map(|party| (party, bytes.to_vec())).collect();
        self.ask(server, letters, (None, None))
    }

    /// What came of it. Who is not among `counted` dropped out.
    pub(super) fn end(mut self, counted: &[PartyId]) -> Vec<Told> {
        let names: Vec<_> = counted.iter().filter_map(|party| self.names.get(party)).collect();
        for told in &mut self.told {
            if told.refused.is_none() && !names.contains(&&told.client) {
                told.refused = Some("its part is not in the sum".into());
            }
        }
        self.told
    }

    fn exchange(&mut self, letters: Vec<(String, Letter)>) -> Result<Vec<(String, Result<Vec<u8>>)>> {
        for (client, letter) in &letters {
            let task = letter.task.as_ref().map_or(0, bytes_of_task);
            if let Some(told) = self.told.iter_mut().find(|told| told.client == *client) {
                told.bytes_down += letter.bytes.len() as u64 + task;
            }
        }
        let answers = self.engine.exchange(letters)?;
        for (client, answer) in &answers {
            if let (Ok(bytes), Some(told)) = (answer, self.told.iter_mut().find(|t| t.client == *client)) {
                told.bytes_up += bytes.len() as u64;
            }
        }
        Ok(answers)
    }

    /// `why` may quote the client, at any length.
    fn refuse(&mut self, client: &str, why: String) {
        if let Some(told) = self.told.iter_mut().find(|told| told.client == client) {
            told.refused.get_or_insert_with(|| reason(&why));
        }
    }
}
