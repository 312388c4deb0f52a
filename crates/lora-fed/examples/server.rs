//! A Flower server app that averages: the mean of what the nodes send, weighted by their examples.
//!
//! ```text
//! server --address 127.0.0.1:8000 --roots ca.pem --secret secret.bin --store app.db --out result.json
//! ```
//!
//! `--nodes 2`: how many to wait for; `--insecure`; `--die sent|received|added|confirmed` ends the process there in
//! round 2 (tests). The run's setting `num-server-rounds` says how many rounds.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use lora_core::{Error, Result};
use lora_fed::flower::{
    AppOptions, Arrays, Limits, NdArray, Record, Records, Reply, ServerApp, Value, metric, only_arrays,
};
use lora_fed::store::Store;

fn main() {
    if let Err(e) = run() {
        let hint = e.hint_text().map(|h| format!(" ({h})")).unwrap_or_default();
        let _ = writeln!(std::io::stderr(), "error: {e}{hint}");
        std::process::exit(1);
    }
}

/// What must survive: the round's weights, and what each node has sent for it.
struct Rounds(Store);

impl Rounds {
    fn arrays(numbers: &[f64]) -> Result<Records> {
        let numbers: Vec<f32> = numbers.iter().map(|&x| x as f32).collect();
        let arrays = Arrays::from([("w".to_owned(), NdArray::of_f32(vec![numbers.len()], &numbers)?)]);
        Ok(Records::from([("arrays".to_owned(), Record::Arrays(arrays))]))
    }

    fn pack(numbers: &[f64]) -> Vec<u8> {
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn unpack(bytes: &[u8]) -> Vec<f64> {
        bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap_or_default())).collect()
    }

    /// Keeps a reply, once.
    fn keep(&mut self, round: i64, reply: &Reply) -> Result<()> {
        let content =
            reply.content.as_ref().map_err(|e| Error::data(format!("node {}: {}", reply.node, e.reason)))?;
        let mut numbers =
            vec![metric(content, "num-examples").ok_or_else(|| Error::data("no num-examples"))?];
        for array in only_arrays(content)?.values() {
            numbers.extend(array.to_f64());
        }
        self.0.write(|changes| {
            let new = changes.put_new(&format!("round {round}"), &reply.id, &Self::pack(&numbers))?;
            if new { Ok(()) } else { Err(Error::internal("counted twice")) }
        })
    }

    fn mean(&self, round: i64) -> Result<Vec<f64>> {
        let space = format!("round {round}");
        let (mut sum, mut weight) = (Vec::new(), 0.0);
        for id in self.0.keys(&space)? {
            let numbers = Self::unpack(&self.0.get(&space, &id)?.unwrap_or_default());
            let [n, values @ ..] = numbers.as_slice() else { continue };
            sum.resize(values.len(), 0.0);
            for (total, value) in sum.iter_mut().zip(values) {
                *total += n * value;
            }
            weight += n;
        }
        Ok(sum.iter().map(|total| total / weight).collect())
    }
}

fn run() -> Result<()> {
    let mut flags = BTreeMap::new();
    let mut words = std::env::args().skip(1).peekable();
    while let Some(word) = words.next() {
        let value = words.next_if(|next| !next.starts_with("--")).unwrap_or_default();
        flags.insert(word.trim_start_matches("--").to_owned(), value);
    }
    let text =
        |name: &str| flags.get(name).cloned().ok_or_else(|| Error::usage(format!("--{name} is missing")));
    let die = |place: &str| {
        if flags.get("die").is_some_and(|d| d == place) {
            std::process::abort();
        }
    };
    let secret =
        flags.get("secret").map(|p| std::fs::read(p).map_err(|e| Error::io("read", Path::new(p), e)));
    let store = text("store")?;
    let options = AppOptions {
        address: text("address")?,
        roots: flags.get("roots").map(Into::into),
        insecure: flags.contains_key("insecure"),
        secret: secret.transpose()?,
        wait: Duration::from_secs(60),
        store: store.clone().into(),
        limits: Limits::default(),
    };
    let mut app = ServerApp::acquire(&options)?;
    let rounds = match app.run_config().get("num-server-rounds") {
        Some(Value::Int(n)) => *n,
        _ => 3,
    };
    let mut state = Rounds(Store::open(Path::new(&format!("{store}.rounds")))?);
    let wanted: usize = flags.get("nodes").and_then(|n| n.parse().ok()).unwrap_or(2);
    let until = Instant::now() + Duration::from_secs(90);
    let weights = |state: &Rounds, round: i64| {
        let stored = state.0.get("weights", &round.to_string())?;
        Ok::<_, Error>(stored.map_or_else(|| vec![0.5, -1.0, 2.0], |bytes| Rounds::unpack(&bytes)))
    };
    let first = state.0.keys("weights")?.len() as i64 + 1;
    for round in first..=rounds {
        let group = round.to_string();
        // The cohort is drawn once, also if the app dies.
        let cohort = match state.0.get("cohort", &group)? {
            Some(cohort) => {
                cohort.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap_or_default())).collect()
            }
            None => {
                let mut nodes = app.nodes()?;
                while nodes.len() < wanted && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(300));
                    nodes = app.nodes()?;
                }
                let bytes: Vec<u8> = nodes.iter().flat_map(|n| n.to_le_bytes()).collect();
                state.0.put("cohort", &group, &bytes)?;
                nodes
            }
        };
        let content = Rounds::arrays(&weights(&state, round - 1)?)?;
        let to: Vec<(u64, &Records)> = cohort.iter().map(|&node| (node, &content)).collect();
        let ids = app.send(&to, "train", &group, Duration::from_secs(600))?;
        if round == 2 {
            die("sent");
        }
        let mut open = ids.clone();
        open.retain(|id| !state.0.get(&format!("round {round}"), id).is_ok_and(|found| found.is_some()));
        app.confirm(&ids.iter().filter(|id| !open.contains(id)).cloned().collect::<Vec<_>>())?;
        while !open.is_empty() {
            for reply in app.receive(&open)? {
                if round == 2 {
                    die("received");
                }
                state.keep(round, &reply)?;
                if round == 2 {
                    die("added");
                }
                app.confirm(std::slice::from_ref(&reply.id))?;
                open.retain(|id| *id != reply.id);
                if round == 2 {
                    die("confirmed");
                }
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let mean = state.mean(round)?;
        state.0.put("weights", &group, &Rounds::pack(&mean))?;
    }
    let result = weights(&state, rounds)?;
    app.finish(true, "")?;
    let out = text("out")?;
    std::fs::write(&out, format!("{result:?}")).map_err(|e| Error::io("write", Path::new(&out), e))
}
