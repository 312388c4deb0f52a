//! libtorch's CPU memory out of one region of addresses.

use std::ffi::c_void;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::arena::{Arena, Counts};
use super::{Part, Usage};
use crate::region;

/// Smaller pieces are the system allocator's affair.
const LEAST: usize = 4096;
/// What the system gives and takes back at a time, if it can.
const HUGE_PAGE: usize = 2 << 20;

struct Managed {
    base: usize,
    size: usize,
    arena: Mutex<Arena>,
}

static MANAGED: OnceLock<Option<Managed>> = OnceLock::new();

unsafe extern "C" {
    fn tch_ext_set_allocator();
}

/// From here on libtorch's CPU tensors get their memory from an allocator that keeps what is given back for the
/// next tensor: a training step asks for the same sizes again and again, and fresh pages from the system cost it a
/// tenth of its time. It also knows who holds what ([`alive_at_peak`]). Call it early, once; further calls cost
/// nothing. Gives whether it is so: false where the system grants no addresses, or is no Linux.
pub fn manage() -> bool {
    MANAGED
        .get_or_init(|| {
            let managed = Managed::new()?;
            // SAFETY: installs an allocator of static lifetime, once.
            unsafe { tch_ext_set_allocator() };
            Some(managed)
        })
        .is_some()
}

fn managed() -> Option<&'static Managed> {
    MANAGED.get()?.as_ref()
}

impl Managed {
    #[cfg(target_os = "linux")]
    fn new() -> Option<Self> {
        // SAFETY: asks for settings, then for fresh addresses that nobody else has; pages come when they are used.
        unsafe {
            let pages = usize::try_from(libc::sysconf(libc::_SC_PHYS_PAGES)).ok()?;
            let size = pages.checked_mul(usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).ok()?)?;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let base = libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return None;
            }
            libc::madvise(base, size, libc::MADV_HUGEPAGE);
            let base = base as usize;
            let skip = base.next_multiple_of(HUGE_PAGE) - base;
            let size = size.checked_sub(skip)? / HUGE_PAGE * HUGE_PAGE;
            Some(Self { base: base + skip, size, arena: Mutex::new(Arena::new(size)) })
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn new() -> Option<Self> {
        None
    }

    fn with<R>(&self, work: impl FnOnce(&mut Arena) -> R) -> R {
        work(&mut self.arena.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// # Safety
/// Called by libtorch alone. Never unwinds; null where there is no memory.
#[unsafe(no_mangle)]
unsafe extern "C" fn tch_ext_allocate(bytes: usize) -> *mut c_void {
    if bytes >= LEAST
        && let Some(managed) = managed()
        && let Some(offset) = managed.with(|arena| arena.take(bytes, region::current()))
    {
        return std::ptr::with_exposed_provenance_mut(managed.base + offset);
    }
    let mut place = std::ptr::null_mut();
    // SAFETY: a live pointer to fill; libtorch aligns to 64 too.
    let failed = unsafe { libc::posix_memalign(&mut place, 64, bytes.max(1)) };
    if failed == 0 { place } else { std::ptr::null_mut() }
}

/// # Safety
/// Called by libtorch alone, once for each piece from [`tch_ext_allocate`].
#[unsafe(no_mangle)]
unsafe extern "C" fn tch_ext_release(place: *mut c_void) {
    match managed() {
        Some(m) if (m.base..m.base + m.size).contains(&place.addr()) => {
            m.with(|arena| arena.give(place.addr() - m.base));
        }
        // SAFETY: it came from posix_memalign, or is null.
        _ => unsafe { libc::free(place) },
    }
}

fn counts() -> Option<Counts> {
    Some(managed()?.with(|arena| arena.counts))
}

/// Bytes of CPU tensors (of 4 KiB and more); `None` unless [`manage`] was called.
pub fn cpu() -> Option<Usage> {
    counts().map(|c| Usage { current: c.total as u64, peak: c.peak as u64 })
}

/// The bytes that made up the highest point of [`cpu`], by the [`crate::Region`] that asked for them; the most first.
pub fn alive_at_peak() -> Vec<Part> {
    parts(counts().map_or([0; region::MOST], |c| c.at_peak))
}

/// The most bytes that each [`crate::Region`] had alive at any one time, each at a time of its own; the most first.
pub fn most_alive() -> Vec<Part> {
    parts(counts().map_or([0; region::MOST], |c| c.most))
}

fn parts(bytes: [usize; region::MOST]) -> Vec<Part> {
    let parts = bytes.iter().enumerate().filter(|(_, bytes)| **bytes > 0);
    let mut parts: Vec<Part> =
        parts.map(|(id, &bytes)| Part { name: region::name(id), bytes: bytes as u64 }).collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.bytes));
    parts
}

/// Begins the peak of [`cpu`], and [`most_alive`], anew.
pub fn reset_peak() {
    if let Some(managed) = managed() {
        managed.with(|arena| arena.counts.reset_peak());
    }
}

/// Gives free memory back to the system, after loading, say.
pub(super) fn trim() {
    #[cfg(target_os = "linux")]
    if let Some(managed) = managed() {
        managed.with(|arena| {
            for (offset, size) in arena.free() {
                let (start, end) =
                    (offset.next_multiple_of(HUGE_PAGE), (offset + size) / HUGE_PAGE * HUGE_PAGE);
                if start < end {
                    let place = std::ptr::with_exposed_provenance_mut(managed.base + start);
                    // SAFETY: a range that nobody has, while the lock is held; its pages come back as zeros.
                    unsafe { libc::madvise(place, end - start, libc::MADV_DONTNEED) };
                }
            }
        });
    }
}
