//! Memory: what is in use and was at the highest point, of the process, of CPU tensors and of a CUDA device.

mod arena;
mod groups;
mod manage;

use std::path::Path;

pub use manage::{alive_at_peak, cpu, manage, most_alive, reset_peak};

unsafe extern "C" {
    fn tch_ext_device_bytes(index: i32, peak: *mut i64, current: *mut i64) -> bool;
    fn tch_ext_reset_device_peak(index: i32) -> bool;
}

/// Bytes in use and at the highest point so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Now.
    pub current: u64,
    /// At the highest point so far.
    pub peak: u64,
}

/// Bytes that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Whose they are.
    pub name: &'static str,
    /// How many.
    pub bytes: u64,
}

/// Resident memory of this process (Linux: VmRSS and VmHWM), mapped files included; `None` elsewhere.
pub fn process() -> Option<Usage> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|l| l.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(Usage { current: field("VmRSS:")?, peak: field("VmHWM:")? })
}

/// Bytes that this process can still take without pushing others out: of the machine, and of the control groups that
/// hold it (a container's limit), whichever is least (Linux); `None` elsewhere. Copies of files, which make room, count
/// as free in both.
pub fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    });
    let mine = read("/proc/self/cgroup").unwrap_or_default();
    groups::available(&mine, Path::new("/sys/fs/cgroup")).into_iter().chain(machine).min()
}

/// Bytes handed out by libtorch's allocator on CUDA device `index`; `None` without one.
pub fn cuda(index: usize) -> Option<Usage> {
    let (mut peak, mut current) = (0, 0);
    // SAFETY: two live integers.
    let found = unsafe { tch_ext_device_bytes(i32::try_from(index).ok()?, &mut peak, &mut current) };
    found.then_some(Usage { current: current.try_into().ok()?, peak: peak.try_into().ok()? })
}

/// Begins the peak of [`cuda`] anew.
pub fn reset_cuda_peak(index: usize) {
    let Ok(index) = i32::try_from(index) else { return };
    // SAFETY: changes a statistic of the allocator.
    unsafe { tch_ext_reset_device_peak(index) };
}

/// Bytes of CUDA device `index` that nobody has taken, by the driver; `None` without one.
pub fn cuda_available(index: usize) -> Option<u64> {
    crate::cuda::free_bytes(i32::try_from(index).ok()?)
}

/// Gives memory that was freed back to the system: after loading, the buffers of conversions would stay with the
/// process otherwise.
pub fn trim() {
    manage::trim();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: touches free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
