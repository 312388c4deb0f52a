//! A network that misbehaves, between a SuperLink and those who talk to it: bytes turned over, sent twice, held back, cut off,
//! and answers that get lost, so that what was asked is asked again.

use super::faults::Random;
use anyhow::Result;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Of so many connections one meets a fault.
const ONE_IN: usize = 2;
/// Where in a connection, at most: its handshake is 4 KiB, an adapter 2 MB, most calls little.
const PLACES: [usize; 3] = [1 << 10, 1 << 13, 1 << 18];
/// The most milliseconds that bytes are held back.
const LONGEST: u64 = 5000;

#[derive(Clone, Copy)]
enum Fault {
    Turned,
    Twice,
    Late,
    Cut,
}

const FAULTS: [Fault; 4] = [Fault::Turned, Fault::Twice, Fault::Late, Fault::Cut];

/// A fault of one direction of a connection, behind so many bytes.
#[derive(Clone, Copy)]
struct Plan {
    fault: Fault,
    behind: u64,
    is_answer: bool,
}

impl Plan {
    fn name(self) -> &'static str {
        match (self.fault, self.is_answer) {
            (Fault::Turned, _) => "bits turned",
            (Fault::Twice, _) => "bytes sent twice",
            (Fault::Late, _) => "bytes held back",
            (Fault::Cut, false) => "requests cut",
            // What was asked is done, and asked again.
            (Fault::Cut, true) => "answers lost",
        }
    }
}

/// Passes connections on to an address.
pub(super) struct Network {
    address: String,
    shared: Arc<Shared>,
}

struct Shared {
    to: String,
    random: Mutex<Random>,
    met: Mutex<BTreeMap<&'static str, usize>>,
}

impl Network {
    pub(super) fn before(to: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared {
            to: to.to_owned(),
            random: Mutex::new(Random(0x0123_4567_89ab_cdef)),
            met: Mutex::default(),
        });
        let mine = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = Arc::clone(&mine);
                thread::spawn(move || shared.carry(client));
            }
        });
        Ok(Self { address, shared })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// What was met so far, by kind.
    pub(super) fn met(&self) -> BTreeMap<&'static str, usize> {
        self.shared.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    fn below(&self, n: u64) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).below(n)
    }

    fn carry(&self, client: TcpStream) {
        let Ok(server) = TcpStream::connect(&self.to) else { return };
        for side in [&client, &server] {
            // A call is two small records: the second would wait for word of the first.
            let _ = side.set_nodelay(true);
        }
        let pick = |n: usize| self.below(n as u64) as usize;
        let plan = (pick(ONE_IN) == 0).then(|| Plan {
            fault: FAULTS[pick(FAULTS.len())],
            behind: pick(PLACES[pick(PLACES.len())]) as u64,
            is_answer: pick(2) == 0,
        });
        let of = |is_answer| plan.filter(|plan| plan.is_answer == is_answer);
        thread::scope(|scope| {
            scope.spawn(|| self.pump(&client, &server, of(false)));
            self.pump(&server, &client, of(true));
        });
    }

    /// Until the end, or a fault that ends it, which ends the other direction too.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, mut plan: Option<Plan>) {
        let (mut passed, mut buffer) = (0, vec![0; 1 << 14]);
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let bytes = &mut buffer[..n];
            passed += n as u64;
            let now = plan.take_if(|plan| passed > plan.behind);
            if let Some(plan) = now {
                *self.met.lock().unwrap_or_else(PoisonError::into_inner).entry(plan.name()).or_default() += 1;
            }
            match now.map(|plan| plan.fault) {
                Some(Fault::Turned) => bytes[n / 2] ^= 1 << self.below(8),
                Some(Fault::Twice) => drop(to.write_all(bytes)),
                Some(Fault::Late) => thread::sleep(Duration::from_millis(200 + self.below(LONGEST))),
                Some(Fault::Cut) => break,
                None => {}
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }
}
