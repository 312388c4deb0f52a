//! From text to a device's code, by NVRTC.

use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};
use tch::Kind;

use super::load::{libtorch_folder, open};

const PRELUDE: &str = include_str!("prelude.cuh");

/// The text as a compiler gets it, and what it is told: elements of `kind`, `vec` of them together.
pub(super) fn whole(text: &str, kind: Kind, vec: usize) -> Result<String, String> {
    let number = match kind {
        Kind::BFloat16 => "bf16",
        Kind::Float => "float",
        Kind::Double => "double",
        other => return Err(format!("there are no kernels for {other:?}")),
    };
    Ok(format!("#define NUMBER {number}\n#define VEC {vec}\n{PRELUDE}\n{text}"))
}

/// The code for one architecture (`sm_90`).
pub(super) fn compile(name: &str, text: &str, arch: &str) -> Result<Vec<u8>, String> {
    nvrtc()?;
    let (text, file) = (CString::new(text), CString::new(format!("{name}.cu")));
    let (Ok(text), Ok(file)) = (text, file) else { return Err(format!("{name}: a zero in the source")) };
    let program = result::create_program(&text, Some(&file)).map_err(|e| format!("NVRTC: {e}"))?;
    // Sums and products as they are written: results do not depend on what the compiler joins.
    let options = [format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--fmad=false".into()];
    // SAFETY: `program` was made above and lives until the end.
    let code = unsafe {
        let done = result::compile_program(program, &options).map_err(|e| {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
            format!("{name} for {arch}: {e}\n{}", String::from_utf8_lossy(&log))
        });
        done.and_then(|()| code(program).map_err(|e| format!("{name} for {arch}: {e}")))
    };
    // SAFETY: as above; the last use.
    let _ = unsafe { result::destroy_program(program) };
    code
}

/// # Safety
/// `program` was compiled.
unsafe fn code(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the caller's promise; the buffer has the size that was asked for.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &mut size).result()?;
        let mut code = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()).result()?;
        Ok(code)
    }
}

/// Loads NVRTC, once: the one that belongs to libtorch, or the system's.
fn nvrtc() -> Result<(), String> {
    static STATE: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || {
        const NAME: &str = "libnvrtc.so.13";
        let lib = libtorch_folder().unwrap_or_default();
        // Beside libtorch; where `cargo xtask setup --cuda` and `--nvrtc` put it; where pip does.
        let folders =
            [lib.clone(), lib.join("../cuda/lib"), lib.join("../nvrtc"), lib.join("../../nvidia/cu13/lib")];
        let found: Vec<PathBuf> =
            folders.iter().map(|dir| dir.join(NAME)).filter(|path| path.exists()).collect();
        // Whoever asks for the library by name from now on gets this one.
        let opened = found.first().map(|path| {
            // NVRTC asks for this one by name.
            let _ = open(&path.with_file_name("libnvrtc-builtins.so.13.0"));
            open(path)
        });
        // SAFETY: looks for the library, and runs what it runs when it is loaded.
        if opened.is_some_and(|o| o.is_ok()) || unsafe { sys::is_culib_present() } {
            return Ok(());
        }
        Err(format!("no {NAME} beside libtorch: `cargo xtask setup --nvrtc` fetches it"))
    };
    STATE.get_or_init(load).clone()
}
