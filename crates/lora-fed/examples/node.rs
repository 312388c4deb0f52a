//! A Flower node with the simplest of apps: adds a constant to every number, and counts its examples.
//!
//! ```text
//! node --address 127.0.0.1:8000 --roots ca.pem --key node.pem --store node.db --add 1 --examples 10
//! node keys --key node.pem                 makes a key, and prints the line for `flwr supernode register`
//! ```
//!
//! `--insecure`, `--self-register`; `--die received|computing|replied|uploading` ends the process there, once (tests).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lora_core::{Error, Result};
use lora_fed::flower::{
    App, Event, Incoming, Limits, NdArray, NodeKey, NodeOptions, Record, Records, Value, Values, only_arrays,
    serve,
};

struct Adder {
    add: f32,
    examples: i64,
    die: String,
    log: std::fs::File,
}

impl Adder {
    fn die_at(&self, place: &str) {
        if self.die == place {
            // As a kill -9: nothing is cleaned up, nothing is flushed.
            std::process::abort();
        }
    }
}

impl App for Adder {
    fn handle(&mut self, message: &Incoming) -> Result<Records> {
        writeln!(self.log, "computes {} {}", message.kind, message.id)
            .map_err(|e| Error::internal(e.to_string()))?;
        self.die_at("computing");
        let examples = Values::from([("num-examples".to_owned(), Value::Int(self.examples))]);
        match message.kind.as_str() {
            "train" => {
                let mut added = lora_fed::flower::Arrays::new();
                for (name, array) in only_arrays(&message.content)? {
                    let numbers: Vec<f32> = array.to_f64().iter().map(|&x| x as f32 + self.add).collect();
                    added.insert(name.clone(), NdArray::of_f32(array.shape().to_vec(), &numbers)?);
                }
                Ok(Records::from([
                    ("arrays".to_owned(), Record::Arrays(added)),
                    ("metrics".to_owned(), Record::Metrics(examples)),
                ]))
            }
            "evaluate" => Ok(Records::from([("metrics".to_owned(), Record::Metrics(examples))])),
            other => Err(Error::unsupported(format!("messages of type {other}"))),
        }
    }

    fn notice(&mut self, event: &Event) {
        let _ = writeln!(self.log, "{event:?}");
        match event {
            Event::Received(..) => self.die_at("received"),
            Event::Replied(_) => self.die_at("replied"),
            Event::Uploaded(_) => self.die_at("uploading"),
            _ => {}
        }
    }
}

fn main() {
    if let Err(e) = run() {
        let hint = e.hint_text().map(|h| format!(" ({h})")).unwrap_or_default();
        let _ = writeln!(std::io::stderr(), "error: {e}{hint}");
        std::process::exit(1);
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
    let number = |name: &str, default: f64| flags.get(name).map_or(default, |v| v.parse().unwrap_or(default));
    let path = text("key")?;
    if flags.contains_key("keys") {
        let key = NodeKey::generate()?;
        key.save(Path::new(&path))?;
        let line = key.openssh("node");
        return std::io::stdout()
            .write_all(line.as_bytes())
            .map_err(|e| Error::io("write", Path::new("stdout"), e));
    }
    let key = NodeKey::load(Path::new(&path))?;
    let store = text("store")?;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(format!("{store}.log"));
    let mut app = Adder {
        add: number("add", 1.0) as f32,
        examples: number("examples", 10.0) as i64,
        die: flags.get("die").cloned().unwrap_or_default(),
        log: log.map_err(|e| Error::io("open the log", Path::new(&store), e))?,
    };
    let options = NodeOptions {
        address: text("address")?,
        roots: flags.get("roots").map(Into::into),
        insecure: flags.contains_key("insecure"),
        key,
        self_register: flags.contains_key("self-register"),
        heartbeat: number("heartbeat", 30.0),
        poll: Duration::from_secs_f64(number("poll", 0.3)),
        store: store.into(),
        limits: Limits::default(),
    };
    // Ends politely once the file of this name is there.
    let stop = AtomicBool::new(false);
    let until = format!("{}.stop", options.store.display());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                stop.store(Path::new(&until).exists(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let ended = serve(&options, &mut app, &stop);
        stop.store(true, Ordering::Relaxed);
        ended
    })
}
