//! Running a kernel.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::{result, sys};
use tch::{Kind, Tensor};

/// A kernel's parameter.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// A pointer to at least so many elements of that dtype; the tensor is contiguous.
    Of(&'a Tensor, Kind, usize),
    /// A null pointer.
    Null,
    /// A 64-bit whole number.
    Int(usize),
    /// An f64.
    Float(f64),
}

impl Arg<'_> {
    /// The 8 bytes that the kernel gets. Panics where the tensor is not what was said.
    pub(super) fn bits(self, vec: usize) -> u64 {
        match self {
            Arg::Null => 0,
            Arg::Int(n) => n as u64,
            Arg::Float(x) => x.to_bits(),
            Arg::Of(t, kind, most) => {
                let fits = t.kind() == kind && t.is_contiguous() && t.numel() >= most;
                assert!(fits, "a kernel wants {most} of {kind:?}, and gets {t:?}, {:?}", t.stride());
                let at = t.data_ptr() as u64;
                assert!(vec == 1 || at.is_multiple_of(16), "a kernel wants memory aligned to 16 bytes");
                at
            }
        }
    }
}

/// A module on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Module {
    module: sys::CUmodule,
    context: sys::CUcontext,
    device: i32,
}

// SAFETY: handles of the driver, which may be used from any thread.
unsafe impl Send for Module {}

unsafe extern "C" {
    fn tch_ext_current_stream(device: i32, stream: *mut *mut c_void) -> bool;
}

/// The context of a device, torch's own, and its architecture (`sm_90`).
pub(super) fn device(index: i32) -> Result<(sys::CUcontext, String), String> {
    // SAFETY: looks for a library; the calls follow the driver's rules: initialised, a device that exists.
    unsafe {
        if !sys::is_culib_present() {
            return Err("no CUDA driver".to_owned());
        }
        let ask = || -> Result<_, result::DriverError> {
            result::init()?;
            let device = result::device::get(index)?;
            use sys::CUdevice_attribute::{
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
                CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
            };
            let of = |what| result::device::get_attribute(device, what);
            Ok((result::primary_ctx::retain(device)?, format!("sm_{}{}", of(MAJOR)?, of(MINOR)?)))
        };
        ask().map_err(|e| format!("CUDA device {index}: {e}"))
    }
}

/// The first number of a device's compute capability: 9 for `sm_90`; 0 without one.
pub(crate) fn generation(index: usize) -> usize {
    static KNOWN: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let ask = || {
        let (_, arch) = device(index as i32).ok()?;
        arch.strip_prefix("sm_")?.parse::<usize>().ok()
    };
    *known.entry(index).or_insert_with(|| ask().unwrap_or(0) / 10)
}

/// Bytes of a device that nobody has taken.
pub(crate) fn free_bytes(index: i32) -> Option<u64> {
    let (context, _) = device(index).ok()?;
    // SAFETY: a living context.
    let free = unsafe { result::ctx::set_current(context) }.and_then(|()| result::mem_get_info());
    free.ok().map(|(free, _)| free as u64)
}

impl Module {
    pub(super) fn load(code: &[u8], context: sys::CUcontext, device: i32) -> Result<Self, String> {
        // SAFETY: a living context; code that NVRTC made.
        let module = unsafe {
            result::ctx::set_current(context).and_then(|()| result::module::load_data(code.as_ptr().cast()))
        };
        module.map(|module| Self { module, context, device }).map_err(|e| format!("CUDA: {e}"))
    }

    /// Runs `kernel` on torch's current stream.
    pub(super) fn launch(
        &self,
        kernel: &str,
        (blocks, threads): (usize, usize),
        args: &[u64],
    ) -> Result<(), String> {
        let mut args: Vec<u64> = args.to_vec();
        let mut places: Vec<*mut c_void> = args.iter_mut().map(|a| (&raw mut *a).cast()).collect();
        let mut stream = std::ptr::null_mut();
        let name = CString::new(kernel).map_err(|e| e.to_string())?;
        // SAFETY: the module is never unloaded; parameters are 8 bytes each, as the kernel declares them, and what
        // they point to was checked by `Arg::bits`.
        unsafe {
            if !tch_ext_current_stream(self.device, &mut stream) {
                return Err("libtorch tells no current stream".to_owned());
            }
            let run = || {
                result::ctx::set_current(self.context)?;
                let function = result::module::get_function(self.module, name)?;
                let (grid, block) = ((blocks as u32, 1, 1), (threads as u32, 1, 1));
                result::launch_kernel(function, grid, block, 0, stream.cast(), &mut places)
            };
            run().map_err(|e: result::DriverError| format!("{kernel}: {e}"))
        }
    }
}
