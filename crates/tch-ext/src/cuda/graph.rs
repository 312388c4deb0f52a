//! Recordings of what a device is told: a step of a small model takes its host longer to tell than its device to do.

use std::ffi::{CStr, c_char, c_void};

use tch::TchError;

use crate::function::caught;

unsafe extern "C" {
    fn tch_ext_enter_stream(device: i32, own: *mut i64, before: *mut i64) -> bool;
    fn tch_ext_leave_stream(device: i32, own: i64, before: i64);
    fn tch_ext_record(device: i32, beside: *mut c_void, graph: *mut *mut c_void) -> *mut c_char;
    fn tch_ext_recorded(graph: *mut c_void) -> *mut c_char;
    fn tch_ext_replay(graph: *mut c_void) -> *mut c_char;
    fn tch_ext_forget(graph: *mut c_void);
    fn tch_ext_free_c_string(text: *mut c_char);
}

/// Until it is dropped, what this thread tells a CUDA device goes to a stream of its own: recordings are made there.
#[derive(Debug)]
pub struct OwnStream {
    device: i32,
    own: i64,
    before: i64,
    /// Of this thread.
    _here: std::marker::PhantomData<*const ()>,
}

impl OwnStream {
    /// Waits for the device first. `None` where there is none, or no stream is left.
    pub fn enter(device: usize) -> Option<Self> {
        let (device, mut own, mut before) = (i32::try_from(device).ok()?, 0, 0);
        // SAFETY: fills two numbers.
        let entered = unsafe { tch_ext_enter_stream(device, &mut own, &mut before) };
        entered.then_some(Self { device, own, before, _here: std::marker::PhantomData })
    }
}

impl Drop for OwnStream {
    fn drop(&mut self) {
        // SAFETY: the numbers that `enter` got, on the same thread.
        unsafe { tch_ext_leave_stream(self.device, self.own, self.before) };
    }
}

/// What operators told a device, to be told again at once: a CUDA graph, by libtorch's `at::cuda::CUDAGraph`.
///
/// Told again, they read and write the memory that they read and wrote the first time, whatever is in it now. Sizes
/// cannot change; random numbers go on.
#[derive(Debug)]
pub struct Graph(*mut c_void);

impl Graph {
    /// Writes down what `work` tells the device of `stream`; nothing of it is done before [`Graph::replay`]. The memory
    /// that it takes is kept for that, and shared with `beside`, of which then only one is told at a time. `work` must not
    /// wait for the device, nor use kernels for the first time: let it run once before, on the stream.
    ///
    /// # Errors
    /// What libtorch says; a panic in `work`. Nothing is recorded then.
    pub fn record<R>(
        stream: &OwnStream,
        beside: Option<&Self>,
        work: impl FnOnce() -> R,
    ) -> Result<(Self, R), TchError> {
        let (beside, mut graph) = (beside.map_or(std::ptr::null_mut(), |g| g.0), std::ptr::null_mut());
        // SAFETY: a living graph or none; on success a graph that we own.
        done(unsafe { tch_ext_record(stream.device, beside, &mut graph) })?;
        let graph = Self(graph);
        let made = caught(work).map_err(TchError::Torch);
        // SAFETY: a living graph, whose recording was begun.
        let ended = done(unsafe { tch_ext_recorded(graph.0) });
        let made = made?;
        ended.map(|()| (graph, made))
    }

    /// Tells the device all of it, without waiting.
    ///
    /// # Errors
    /// What libtorch says.
    pub fn replay(&self) -> Result<(), TchError> {
        // SAFETY: a living graph, recorded to its end.
        done(unsafe { tch_ext_replay(self.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: ours, and the last use.
        unsafe { tch_ext_forget(self.0) };
    }
}

fn done(error: *mut c_char) -> Result<(), TchError> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a C string that we own.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        tch_ext_free_c_string(error);
        text
    };
    Err(TchError::Torch(text))
}
