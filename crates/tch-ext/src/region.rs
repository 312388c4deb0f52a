//! Where time and memory go: named regions of code.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Instant;

use tch::Cuda;

/// Regions that one program may have.
pub(crate) const MOST: usize = 32;

/// What runs while no region is entered.
const OUTSIDE: &str = "other";

static NAMES: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());
static TIMED: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
static CALLS: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];

thread_local! {
    static CURRENT: Cell<u8> = const { Cell::new(0) };
    /// Nanoseconds of the regions inside the current one.
    static INNER: Cell<u64> = const { Cell::new(0) };
}

/// A part of a program, by name: `attention`, `optimiser`. Time is that of the innermost region; memory from
/// [`crate::memory`]'s allocator belongs to the region in which it was asked for. Entering costs some nanoseconds.
///
/// ```
/// use tch_ext::{Region, profile};
/// static SORTING: Region = Region::new("sorting");
/// let ((), spent) = profile(|| {
///     let _inside = SORTING.enter();
///     [3, 1, 2].sort();
/// });
/// assert!(spent.iter().any(|s| s.name == "sorting" && s.calls == 1));
/// ```
#[derive(Debug)]
pub struct Region {
    name: &'static str,
    id: AtomicU8,
}

impl Region {
    /// Regions of one name are one.
    pub const fn new(name: &'static str) -> Self {
        Self { name, id: AtomicU8::new(0) }
    }

    /// From here until the guard is dropped.
    pub fn enter(&self) -> Inside {
        let timed = TIMED.load(Ordering::Relaxed);
        if timed {
            wait_for_devices();
        }
        Inside {
            id: self.id(),
            outer: CURRENT.replace(self.id()),
            start: timed.then(|| (Instant::now(), INNER.replace(0))),
        }
    }

    fn id(&self) -> u8 {
        match self.id.load(Ordering::Relaxed) {
            0 => {
                let mut names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let known = names.iter().position(|name| *name == self.name);
                let at = known.unwrap_or_else(|| {
                    names.push(self.name);
                    names.len() - 1
                });
                // Past the last, regions share what is outside all.
                let id = if at + 1 < MOST { at as u8 + 1 } else { 0 };
                self.id.store(id, Ordering::Relaxed);
                id
            }
            id => id,
        }
    }
}

/// The region is left when this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Inside {
    id: u8,
    outer: u8,
    start: Option<(Instant, u64)>,
}

impl Drop for Inside {
    fn drop(&mut self) {
        CURRENT.set(self.outer);
        if let Some((start, inner_of_outer)) = self.start {
            wait_for_devices();
            let whole = start.elapsed().as_nanos() as u64;
            let own = whole.saturating_sub(INNER.replace(inner_of_outer + whole));
            NANOSECONDS[self.id as usize].fetch_add(own, Ordering::Relaxed);
            CALLS[self.id as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The region that this thread is in.
pub(crate) fn current() -> usize {
    CURRENT.get() as usize
}

/// The name of a region by number.
pub(crate) fn name(id: usize) -> &'static str {
    let names = NAMES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    id.checked_sub(1).and_then(|i| names.get(i)).copied().unwrap_or(OUTSIDE)
}

/// What a region took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    /// The region.
    pub name: &'static str,
    /// Wall time without the regions inside it.
    pub seconds: f64,
    /// How often it was entered.
    pub calls: u64,
}

/// Regions are timed until this is dropped, be it by a panic: else devices would be waited for ever after, and nothing be
/// recorded for them ([`profiling`]).
struct Timed;

impl Drop for Timed {
    fn drop(&mut self) {
        TIMED.store(false, Ordering::Relaxed);
    }
}

/// Runs `work` and tells what each region took, the longest first; what no region covers comes as `other`. Devices
/// are waited for at every border, which costs what overlaps. One at a time in a process.
pub fn profile<R>(work: impl FnOnce() -> R) -> (R, Vec<Spent>) {
    let read = |of: &[AtomicU64; MOST]| of.each_ref().map(|x| x.load(Ordering::Relaxed));
    let (before, calls_before, start) = (read(&NANOSECONDS), read(&CALLS), Instant::now());
    TIMED.store(true, Ordering::Relaxed);
    let timed = Timed;
    let result = work();
    drop(timed);
    let whole = start.elapsed().as_secs_f64();
    let (after, calls_after) = (read(&NANOSECONDS), read(&CALLS));
    let spent = (1..MOST).map(|id| Spent {
        name: name(id),
        seconds: (after[id] - before[id]) as f64 * 1e-9,
        calls: calls_after[id] - calls_before[id],
    });
    let mut spent: Vec<Spent> = spent.filter(|s| s.calls > 0).collect();
    let rest = whole - spent.iter().map(|s| s.seconds).sum::<f64>();
    spent.push(Spent { name: OUTSIDE, seconds: rest.max(0.0), calls: 1 });
    spent.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    (result, spent)
}

/// Whether [`profile`] runs: devices are waited for then.
pub fn profiling() -> bool {
    TIMED.load(Ordering::Relaxed)
}

fn wait_for_devices() {
    for device in 0..Cuda::device_count() {
        Cuda::synchronize(device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_belongs_to_the_innermost_region() {
        // What a device takes to begin is nobody's.
        crate::cuda::here();
        wait_for_devices();
        static OUTER: Region = Region::new("outer");
        static INNER: Region = Region::new("inner");
        let wait = || std::thread::sleep(std::time::Duration::from_millis(20));
        let ((), spent) = profile(|| {
            let _outer = OUTER.enter();
            wait();
            for _ in 0..3 {
                let _inner = INNER.enter();
                wait();
            }
            wait();
        });
        let of = |name| spent.iter().find(|s| s.name == name).copied().unwrap();
        assert_eq!((of("outer").calls, of("inner").calls), (1, 3));
        let (outer, inner) = (of("outer").seconds, of("inner").seconds);
        assert!(outer >= 0.04 && inner >= 0.06 && outer + inner < 0.5, "{outer} {inner}");
        assert!(of("other").seconds < 0.02);

        // Here, as there is one profile at a time.
        let panics = crate::function::caught(|| profile(|| assert!(!profiling(), "it ends")));
        assert_eq!((panics.map(drop), profiling()), (Err("it ends".to_owned()), false));
    }
}
