//! Loops over libtorch's own threads, so that its operators and ours share one pool.

use std::ffi::c_void;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gemm::InLoop;

unsafe extern "C" {
    fn tch_ext_parallel(
        n: i64,
        grain: i64,
        call: unsafe extern "C" fn(*mut c_void, i64, i64),
        state: *mut c_void,
    );
    fn tch_ext_threads() -> i32;
}

/// The threads that libtorch's operators use.
pub fn threads() -> usize {
    // SAFETY: reads a setting.
    unsafe { tch_ext_threads() }.max(1) as usize
}

struct Call<'a> {
    each: &'a (dyn Fn(Range<usize>) + Sync),
    n: usize,
    grain: usize,
    threads: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

impl Call<'_> {
    /// The next range that nobody has taken: half of an even share, so that threads which the machine slows down
    /// do less, and at least the grain.
    fn take(&self) -> Option<Range<usize>> {
        let share = |start: usize| ((self.n - start) / (2 * self.threads)).max(self.grain);
        let end = |start: usize| (start < self.n).then(|| self.n.min(start + share(start)));
        let start = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, end).ok()?;
        Some(start..end(start)?)
    }
}

/// Runs `each` over ranges that make up `0..n`, at least `grain` long but for the last. A panic in a range goes on
/// in the caller, once all have ended. In a range no operator of libtorch's comes between the products of [`crate::Panels`].
pub fn parallel(n: usize, grain: usize, each: impl Fn(Range<usize>) + Sync) {
    let (grain, threads) = (grain.max(1), threads());
    if threads == 1 || n <= grain {
        return if n > 0 {
            let _here = InLoop::new();
            each(0..n)
        };
    }
    let call = Call { each: &each, n, grain, threads, next: AtomicUsize::new(0), panic: Mutex::new(None) };
    // SAFETY: `run` gets `call` back, which outlives the loop, and never unwinds.
    unsafe { tch_ext_parallel(threads as i64, 1, run, (&raw const call).cast_mut().cast()) };
    if let Some(panic) = call.panic.into_inner().unwrap_or_default() {
        resume_unwind(panic);
    }
}

unsafe extern "C" fn run(state: *mut c_void, begin: i64, end: i64) {
    // SAFETY: made by `parallel`; shared by the threads, `each` is Sync.
    let call = unsafe { &*state.cast::<Call<'_>>() };
    let work = || {
        let _here = InLoop::new();
        for _ in begin..end {
            while let Some(range) = call.take() {
                (call.each)(range);
            }
        }
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work))
        && let Ok(mut first) = call.panic.lock()
    {
        first.get_or_insert(panic);
    }
}

/// What can be cut at a row, so that threads get parts of their own.
pub trait Split: Sized + Send {
    /// The first `rows` rows and the others.
    fn split(self, rows: usize) -> (Self, Self);
}

/// Rows of `width` elements.
#[derive(Debug)]
pub struct Rows<'a, T> {
    /// All of them.
    pub data: &'a mut [T],
    /// Elements in one.
    pub width: usize,
}

impl<T: Send> Split for Rows<'_, T> {
    fn split(self, rows: usize) -> (Self, Self) {
        let (a, b) = self.data.split_at_mut(rows * self.width);
        (Self { data: a, width: self.width }, Self { data: b, width: self.width })
    }
}

impl<A: Split, B: Split> Split for (A, B) {
    fn split(self, rows: usize) -> (Self, Self) {
        let ((a, a2), (b, b2)) = (self.0.split(rows), self.1.split(rows));
        ((a, b), (a2, b2))
    }
}

impl<A: Split, B: Split, C: Split> Split for (A, B, C) {
    fn split(self, rows: usize) -> (Self, Self) {
        let ((a, a2), (b, b2), (c, c2)) = (self.0.split(rows), self.1.split(rows), self.2.split(rows));
        ((a, b, c), (a2, b2, c2))
    }
}

/// Cuts `work`, of `rows` rows, into parts of at least `grain` rows, and gives each to `each` with the number of
/// its first row and how many it has.
pub fn parallel_rows<W: Split>(work: W, rows: usize, grain: usize, each: impl Fn(usize, usize, W) + Sync) {
    // More parts than threads: see `Call::take`.
    let count = (rows / grain.max(1)).clamp(1, 8 * threads());
    let step = rows.div_ceil(count).max(1);
    let (mut parts, mut rest, mut first) = (Vec::new(), work, 0);
    while rows - first > step {
        let (part, other) = rest.split(step);
        parts.push(Mutex::new(Some((first, step, part))));
        (rest, first) = (other, first + step);
    }
    parts.push(Mutex::new(Some((first, rows - first, rest))));
    parallel(parts.len(), 1, |range| {
        for part in &parts[range] {
            let part = part.lock().ok().and_then(|mut part| part.take());
            if let Some((first, rows, work)) = part {
                each(first, rows, work);
            }
        }
    });
}
