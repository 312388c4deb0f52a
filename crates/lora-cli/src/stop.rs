//! A run that is to end: Ctrl-C, or what `kill` and schedulers send.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use lora::train::Stop;
use lora::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

/// The first signal that came.
pub(crate) struct Heard(Arc<AtomicI32>);

impl Heard {
    /// From now on the first signal asks `stop`, and the second ends the process at once.
    ///
    /// # Errors
    /// The system lets nobody listen.
    pub(crate) fn asking(stop: Stop) -> Result<Self> {
        let ignored = ignored();
        let signals = Signals::new([SIGINT, SIGTERM].into_iter().filter(|signal| !ignored.contains(signal)));
        let mut signals = signals.map_err(|e| Error::io("listen for", "signals".as_ref(), e))?;
        let heard = Arc::new(AtomicI32::new(0));
        let first = heard.clone();
        std::thread::spawn(move || {
            for signal in signals.forever() {
                if first.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                    low_level::exit(128 + signal);
                }
                stop.ask();
                let mut err = std::io::stderr();
                // Behind the bar, and the ^C that terminals show.
                let gap = if err.is_terminal() { "\n" } else { "" };
                let _ = writeln!(
                    err,
                    "{gap}stopping  when this step, and its evaluation if one is due, is done; once more ends it at once"
                );
            }
        });
        Ok(Self(heard))
    }

    /// None yet, or which.
    pub(crate) fn signal(&self) -> Option<i32> {
        Some(self.0.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

/// The signals that this process was started to ignore, as a shell without job control starts those behind `&`, and `nohup`.
fn ignored() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    (1..=64).filter(|signal| mask.unwrap_or(0) >> (signal - 1) & 1 == 1).collect()
}

/// A run that was asked to end, and did: no fault, but not what the command was for.
#[derive(Debug)]
pub(crate) struct Stopped {
    /// Which signal asked.
    pub(crate) signal: i32,
    /// What became of it.
    pub(crate) said: String,
}

impl Stopped {
    /// As shells have it.
    pub(crate) fn code(&self) -> u8 {
        u8::try_from(128 + self.signal).unwrap_or(1)
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.said)
    }
}

impl std::error::Error for Stopped {}
