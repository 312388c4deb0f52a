//! Loading libtorch's CUDA half at start.

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

unsafe extern "C" {
    fn tch_ext_sum_wide();
}

/// What [`load_cuda`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CudaState {
    /// Loaded, from here.
    Loaded(PathBuf),
    /// No libtorch_cuda beside libtorch: a CPU-only installation.
    Absent,
    /// It is there and does not load; why.
    Broken(String),
}

/// Loads `libtorch_cuda.so` if it lies beside `libtorch_cpu.so` or in `../cuda/lib`, so that nothing needs to
/// link it. Call it before the first use of tch: libtorch looks for CUDA once. Further calls cost nothing.
///
/// Products in half precision add up in f32 from then on. By libtorch's default cuBLAS may divide a sum and round its parts to
/// half precision, where a small term that is added to them (an adapter's first steps) is lost.
pub fn load_cuda() -> &'static CudaState {
    static STATE: OnceLock<CudaState> = OnceLock::new();
    STATE.get_or_init(|| {
        let Some(lib) = libtorch_folder() else { return CudaState::Absent };
        let places = [lib.join("libtorch_cuda.so"), lib.join("../cuda/lib/libtorch_cuda.so")];
        let Some(path) = places.into_iter().find(|p| p.exists()) else { return CudaState::Absent };
        match open(&path) {
            Ok(()) => {
                // SAFETY: sets two flags of libtorch's.
                unsafe { tch_ext_sum_wide() };
                CudaState::Loaded(path)
            }
            Err(why) => CudaState::Broken(why),
        }
    })
}

/// The folder of the `libtorch_cpu.so` that this process runs on.
pub fn libtorch_folder() -> Option<PathBuf> {
    // SAFETY: dladdr fills `info` for the address of a libtorch function; the name is a C string that lives as
    // long as the library, and is copied.
    let name = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"_ZN2at15get_num_threadsEv".as_ptr());
        if symbol.is_null() || libc::dladdr(symbol.cast_const(), &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname).to_str().ok()?.to_owned()
    };
    Path::new(&name).canonicalize().ok()?.parent().map(Path::to_owned)
}

pub(super) fn open(path: &Path) -> Result<(), String> {
    let name = CString::new(path.to_string_lossy().as_bytes()).map_err(|e| e.to_string())?;
    // SAFETY: plain dlopen and dlerror; the handle is kept for the life of the process on purpose.
    unsafe {
        let handle: *mut c_void = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
        if !handle.is_null() {
            return Ok(());
        }
        let why = libc::dlerror();
        Err(if why.is_null() { "unknown".into() } else { CStr::from_ptr(why).to_string_lossy().into_owned() })
    }
}
