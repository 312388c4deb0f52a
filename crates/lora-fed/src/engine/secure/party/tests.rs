//! What a coordinator learns of a party's rows for nothing: nothing.

use super::*;
use crate::engine::{Noise, Trains};
use crate::privacy::{Accounting, Budget, Unit};
use crate::secagg::Server;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const NAMES: [&str; 4] = ["good", "overflows", "lacks", "odd"];
const NOISE: Noise = Noise { clip: 1.0, sigma: 2.0 };

/// Counts how often it trains. What did not train is not in its reply, as with `lora::Local`.
struct Rows(Arc<AtomicUsize>);

impl Worker for Rows {
    fn train(&mut self, client: &str, task: &Task) -> Result<Reply> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if client == "overflows" {
            let cause = Error::non_finite("step 3: the loss is inf");
            return Err(Error::data("work on its rows failed").because(cause));
        }
        let learn = |(name, t): (&String, &Tensor)| {
            let now = t + 1.0;
            (name.clone(), if client == "odd" { now.reshape([-1]) } else { now })
        };
        let trained = sent(task).filter(|(name, _)| task.trains.holds(name) && client != "lacks");
        Ok(Reply { adapter: trained.map(learn).collect(), examples: 1, metrics: BTreeMap::new() })
    }
}

fn task() -> Task {
    let double = (Dtype::Double, Device::Cpu);
    let a = ("m.lora_A.weight".to_owned(), Tensor::ones([2, 6], double));
    let b = ("m.lora_B.weight".to_owned(), Tensor::zeros([5, 2], double));
    Task {
        run: "a run".into(),
        round: 1,
        rounds: 9,
        trains: Trains::B,
        sends: Trains::B,
        scales: BTreeMap::new(),
        base: None,
        adapter: [a, b].into(),
        beside: BTreeMap::new(),
    }
}

/// Four parties with budgets, and a coordinator that plans as it likes.
struct Bench {
    server: Own,
    directory: Directory,
    parties: Parties<Rows>,
    trained: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let server = Own::generate(None).unwrap();
        let own = [1, 2, 3, 4].map(|number| Own::generate(Some(PartyId(number))).unwrap());
        let pins = own.iter().map(|own| (own.party.unwrap(), own.key.public())).collect();
        let directory = Directory { server: server.key.public(), parties: pins };
        let trained = Arc::new(AtomicUsize::new(0));
        let budget = Budget { unit: Unit::Client, epsilon: 1e9, delta: 1e-5, accounting: Accounting::Rdp };
        let mut parties = Parties::new(Rows(Arc::clone(&trained)), directory.clone());
        for (name, own) in NAMES.into_iter().zip(own) {
            parties = parties.with(name, own, Claims::default()).unwrap();
            parties = parties.promising(name, Ledger::in_memory(&budget).unwrap()).unwrap();
        }
        Self { server, directory, parties, trained }
    }

    /// What each answers when its vector is asked for, in that try of the round, by a plan and a task that were changed so: a
    /// message of so many bytes, or an error.
    fn ask(
        &mut self,
        tries: u64,
        change: fn(&mut Plan, &mut Task),
    ) -> Vec<std::result::Result<usize, String>> {
        let mut task = task();
        let round = round_id(&task.run, task.round, tries);
        let mut plan = Plan::new(round, (1..=4).map(PartyId).collect(), RING, 10);
        change(&mut plan, &mut task);
        plan.context = context(&task, Some(NOISE), self.parties.quorum).unwrap();
        let session = Session::new(plan, &self.directory).unwrap();
        let proposal = session.propose(&self.server.key).unwrap();
        let mut server = Server::open(self.server.key.clone(), session).unwrap();
        self.tell(&mut server, &proposal);
        let keys = server.close_keys().unwrap();
        self.tell(&mut server, &keys);
        let mut said = Vec::new();
        for ((_, bytes), name) in server.close_deals().unwrap().into_iter().zip(NAMES) {
            let letter = Letter { bytes, task: Some(task.share()), noise: Some(NOISE) };
            let answer = self.parties.answer(name, &letter);
            said.push(answer.map(|masked| masked.len()).map_err(|e| e.to_string()));
        }
        said
    }

    fn tell(&mut self, server: &mut Server, bytes: &[u8]) {
        for name in NAMES {
            let letter = Letter { bytes: bytes.to_vec(), task: None, noise: None };
            server.receive(&self.parties.answer(name, &letter).unwrap()).unwrap();
        }
    }

    /// How often anybody trained, and how often anybody was charged.
    fn spent(&self) -> (usize, usize) {
        let charges = self.parties.members.values().map(|member| member.ledger.as_ref().unwrap().charges());
        (self.trained.load(Ordering::Relaxed), charges.sum())
    }
}

/// A plan or a task by which a step fails behind training that went well, and there alone.
#[test]
fn what_would_tell_of_the_rows_is_refused_before_they_are_read() {
    let changes: [fn(&mut Plan, &mut Task); 4] = [
        |plan, _| plan.len += 1,
        |plan, _| plan.len = 0,
        |plan, task| {
            task.sends = Trains::All;
            plan.len = 22;
        },
        |_, task| task.trains = Trains::A,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut bench = Bench::new();
        let said = bench.ask(1, change);
        let why = said[0].clone().unwrap_err();
        assert!(why.contains("the task has"), "{number}: {why}");
        assert!(said.iter().all(|one| *one == said[0]), "{number}: {said:?}");
        assert_eq!(bench.spent(), (0, 0), "{number}");
    }
}

/// Rows that train, rows that overflow, and a reply in which anything is wrong: one answer, and one charge.
#[test]
fn what_fails_behind_training_is_zeros() {
    let mut bench = Bench::new();
    let said = bench.ask(1, |_, _| ());
    assert!(said[0].is_ok() && said.iter().all(|one| *one == said[0]), "{said:?}");
    assert_eq!(bench.spent(), (4, 4));
    // Nobody trains for a vector that may not leave.
    for one in bench.ask(2, |_, _| ()) {
        let refused = one.unwrap_err();
        assert!(refused.contains("has sent its vector for round 1 before"), "{refused}");
    }
    assert_eq!(bench.spent(), (4, 4));
}

#[test]
fn all_but_a_disk_and_a_refusal_is_of_the_rows() {
    let kept_back = |cause: Error| is_of_rows(&Error::data("work on its rows failed").because(cause));
    for cause in [Error::non_finite("inf"), Error::data("a row"), Error::usage("a rate")] {
        assert!(kept_back(cause));
    }
    assert!(!kept_back(Error::io("write", Path::new("kept"), std::io::Error::other("full"))));
    assert!(is_of_rows(&Error::non_finite("step 3")) && is_of_rows(&Error::internal("out of memory")));
    assert!(!is_of_rows(&Error::data("another base model")) && !is_of_rows(&Error::usage("no data")));
}

#[test]
fn where_a_ledger_lies_is_a_cause() {
    let path = || PathBuf::from("bank.privacy.jsonl");
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let full = PrivacyError::Disk { action: "write", path: path(), source };
    for e in [full, PrivacyError::Poisoned { path: path() }, PrivacyError::Locked { path: path() }] {
        let e = of_ledger(e);
        let cause = std::error::Error::source(&e).unwrap().to_string();
        assert!(!e.to_string().contains("bank") && cause.contains("bank.privacy.jsonl"), "{e}: {cause}");
    }
    let spent = PrivacyError::Exceeded { step: 3, would: 9.0, budget: 8.0, delta: 1e-5 };
    assert!(of_ledger(spent).to_string().contains("the budget is 8"));
}
