//! Kernels on a machine without a GPU, for tests: the same text, compiled by the C++ compiler.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind};

use super::compile::whole;

thread_local! {
    static ACTIVE: Cell<bool> = const { Cell::new(false) };
    static LAUNCHES: Cell<u64> = const { Cell::new(0) };
}

/// Where tests put their tensors: `LORA_DEVICE` says `cuda` on a machine that has one; else the CPU.
///
/// # Panics
/// Where it says `cuda` and there is none.
pub fn here() -> Device {
    if std::env::var("LORA_DEVICE").is_ok_and(|name| name == "cuda") {
        super::load_cuda();
        assert!(tch::Cuda::is_available(), "LORA_DEVICE=cuda, and no CUDA device");
        return Device::Cuda(0);
    }
    Device::Cpu
}

/// Seeds libtorch's generator for a test. A device is looked for before libtorch is first used, which looks once.
pub fn seed(n: i64) {
    here();
    tch::manual_seed(n);
}

pub(super) fn count() {
    LAUNCHES.set(LAUNCHES.get() + 1);
}

/// Runs `work` with CPU tensors taken for those of a device: [`super::Source::on`] gives kernels for them, which run
/// thread by thread. On this thread only. Where [`here`] is a device, the kernels run there, as always.
///
/// # Panics
/// Where the C++ compiler is missing or refuses a kernel; where `work` runs no kernel at all, and so tests none.
pub fn emulated<R>(work: impl FnOnce() -> R) -> R {
    struct Back(bool);
    impl Drop for Back {
        fn drop(&mut self) {
            ACTIVE.set(self.0);
        }
    }
    let (_back, before) = (Back(ACTIVE.replace(true)), LAUNCHES.get());
    let result = work();
    assert!(LAUNCHES.get() > before, "no kernel was run");
    result
}

pub(super) fn active() -> bool {
    ACTIVE.get()
}

/// A compiled text, never unloaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Program(*mut c_void);

// SAFETY: the handle of a shared library; its functions run under the lock in `run`.
unsafe impl Send for Program {}

static PROGRAMS: Mutex<BTreeMap<String, Program>> = Mutex::new(BTreeMap::new());
/// The emulator has one set of threads.
static RUNNING: Mutex<()> = Mutex::new(());

impl Program {
    pub(super) fn of(name: &str, text: &str, kind: Kind, vec: usize) -> Self {
        let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
        let key = format!("{name}-{kind:?}-{vec}");
        *programs.entry(key.clone()).or_insert_with(|| build(&key, &translated(text, kind, vec)))
    }

    pub(super) fn run(
        &self,
        kernel: &str,
        blocks: usize,
        threads: usize,
        args: &[u64],
    ) -> Result<(), String> {
        let _alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let symbol = CString::new(format!("emulated_{kernel}")).map_err(|e| e.to_string())?;
        let mut args = args.to_vec();
        // SAFETY: the functions that `translated` writes have this type; the arguments are as many as the kernel has, or
        // it says so, and point to what `Arg::bits` checked.
        let wanted = unsafe {
            let at = libc::dlsym(self.0, symbol.as_ptr());
            if at.is_null() {
                return Err(format!("there is no kernel {kernel}"));
            }
            type Run = unsafe extern "C" fn(*mut u64, usize, u32, u32) -> usize;
            let run = std::mem::transmute::<*mut c_void, Run>(at);
            run(args.as_mut_ptr(), args.len(), blocks as u32, threads as u32)
        };
        if wanted == args.len() {
            return Ok(());
        }
        Err(format!("{kernel} has {wanted} parameters, and gets {}", args.len()))
    }
}

/// The text with the emulator before it, and behind it a way in for each kernel.
fn translated(text: &str, kind: Kind, vec: usize) -> String {
    let whole = whole(text, kind, vec).unwrap_or_else(|why| panic!("{why}"));
    let names = text.split("KERNEL ").skip(1).filter_map(|rest| rest.split_once('(').map(|(name, _)| name));
    let entries = names.map(|name| {
        format!(
            "extern \"C\" size_t emulated_{name}(uint64_t* args, size_t n, unsigned blocks, unsigned threads) {{\n  \
             if (n == emulator::parameters(&{name}))\n    \
             emulator::run([](uint64_t* a) {{ emulator::call(&{name}, a); }}, args, blocks, threads);\n  \
             return emulator::parameters(&{name});\n}}\n"
        )
    });
    format!("{}\n{whole}\n{}", include_str!("emulate.hpp"), entries.collect::<String>())
}

fn build(name: &str, text: &str) -> Program {
    let folder = std::env::temp_dir().join(format!("tch-ext-emulated-{}", std::process::id()));
    let (source, library) = (folder.join(format!("{name}.cpp")), folder.join(format!("{name}.so")));
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&source, text));
    written.unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w", "-shared", "-fPIC"]);
    // Kernels may be called like functions of the C library.
    command.args(["-Wl,-Bsymbolic", "-o"]).arg(&library).arg(&source);
    let out = command.output();
    let out = out.unwrap_or_else(|e| panic!("the C++ compiler {compiler} does not start: {e}"));
    assert!(out.status.success(), "{name}:\n{}", String::from_utf8_lossy(&out.stderr));
    let program = open(&library);
    let _ = std::fs::remove_dir_all(&folder);
    program
}

fn open(library: &Path) -> Program {
    let path = CString::new(library.to_string_lossy().as_bytes()).expect("a path");
    // SAFETY: a library that was made a moment ago; it runs nothing when it is loaded.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null(), "{} does not load", library.display());
    Program(handle)
}
