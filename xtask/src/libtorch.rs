//! What lies in `.libtorch`: unpacked from the pinned wheels, or links to a libtorch of the user's own.

use crate::{cache, unpack as zip, wheels};
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) const VERSION: &str = "2.11.0";
/// Whether setup can fetch libtorch and the compiler of CUDA kernels: the pinned wheels are of one platform.
pub(crate) const FETCHES: bool = cfg!(all(target_os = "linux", target_arch = "x86_64"));
const MARK: &str = "complete";
const CPU_LIB: &str = "libtorch_cpu.so";

/// Where a `.libtorch` comes from.
pub(crate) enum Source {
    /// The pinned wheels.
    Wheels { cuda: bool },
    /// A libtorch of the user's: a folder with `lib` and `include`.
    Linked(PathBuf),
}

impl Source {
    /// What the mark of a complete folder says: it changes with the pinned wheels.
    fn fingerprint(&self) -> String {
        match self {
            Source::Linked(dir) => format!("linked {}", dir.display()),
            Source::Wheels { cuda } => {
                let cuda_wheels: &[_] = if *cuda { &wheels::CUDA } else { &[] };
                let all = [&wheels::TORCH].into_iter().chain(&wheels::RUNTIME).chain(cuda_wheels);
                let hashes: String = all.map(|w| w.sha256).collect();
                let hash = cache::hex(&Sha256::digest(hashes)[..8]);
                format!("wheels {VERSION} {} {hash}", if *cuda { "cuda" } else { "cpu" })
            }
        }
    }
}

/// Whether `home` was finished and is (or holds more than) what `source` would make of it.
pub(crate) fn is_complete(home: &Path, source: &Source) -> bool {
    let mark = fs::read_to_string(home.join(MARK)).unwrap_or_default();
    let fits = mark == source.fingerprint()
        || match source {
            // Links made under an earlier LIBTORCH stay until `.libtorch` is deleted.
            Source::Wheels { cuda } => {
                mark.starts_with("linked ") || !cuda && mark == Source::Wheels { cuda: true }.fingerprint()
            }
            Source::Linked(_) => false,
        };
    // `exists` follows links: a libtorch that was deleted since is no libtorch.
    fits && home.join("lib").join(CPU_LIB).exists() && home.join("include").exists()
}

pub(crate) fn mark(dir: &Path, source: &Source) -> Result<()> {
    fs::write(dir.join(MARK), source.fingerprint())
        .with_context(|| format!("cannot write in {}", dir.display()))
}

/// The user's own libtorch, if the environment names one: `LIBTORCH_USE_PYTORCH` or `LIBTORCH`.
pub(crate) fn foreign(home: &Path) -> Result<Option<PathBuf>> {
    let set = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    if set("LIBTORCH_USE_PYTORCH").is_some_and(|v| v != "0") {
        let code = "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])";
        let out = Command::new(set("PYTHON").as_deref().unwrap_or("python3")).args(["-c", code]).output();
        let out = out.ok().filter(|o| o.status.success()).context(
            "LIBTORCH_USE_PYTORCH is set, but python3 finds no torch\n  hint: unset it (setup fetches libtorch \
             itself), or activate the environment that has torch",
        )?;
        return checked(Path::new(String::from_utf8_lossy(&out.stdout).trim()), "LIBTORCH_USE_PYTORCH")
            .map(Some);
    }
    // Cargo sets LIBTORCH to our own folder for everything it runs; that is no wish of the user's.
    let Some(dir) = set("LIBTORCH").map(PathBuf::from) else { return Ok(None) };
    if std::path::absolute(&dir)? == std::path::absolute(home)? || is_same(&dir, home) {
        return Ok(None);
    }
    checked(&dir, "LIBTORCH").map(Some)
}

fn is_same(a: &Path, b: &Path) -> bool {
    let real = |p: &Path| {
        let parent = p.parent().and_then(|d| d.canonicalize().ok());
        p.canonicalize().ok().or(parent.zip(p.file_name()).map(|(d, n)| d.join(n)))
    };
    real(a).is_some_and(|path| Some(path) == real(b))
}

fn checked(dir: &Path, variable: &str) -> Result<PathBuf> {
    let hint =
        format!("hint: unset {variable} (setup then fetches libtorch itself), or name a libtorch {VERSION}");
    let at = || format!("{variable} names {}", dir.display());
    let Ok(dir) = dir.canonicalize() else { bail!("{}, which does not exist\n  {hint}", at()) };
    if !dir.join("lib").join(CPU_LIB).exists() {
        bail!("{}, which has no lib/{CPU_LIB}\n  {hint}", at());
    }
    match version(&dir) {
        Some(v) if fits(&v) => Ok(dir),
        Some(v) => bail!("{}, which is version {v}; this needs {VERSION}\n  {hint}", at()),
        None => bail!("{}, which has neither build-version nor version.py\n  {hint}", at()),
    }
}

/// What torch-sys demands of the `build-version` that lies in `.libtorch`.
fn fits(version: &str) -> bool {
    let bypass = std::env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_some();
    bypass || version.split('+').next() == Some(VERSION)
}

/// A download of libtorch says its version in `build-version`, a Python package in `version.py`.
fn version(dir: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(dir.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs::read_to_string(dir.join("version.py")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("__version__"))?;
    Some(line.trim_matches([' ', '=', '\'', '"']).to_owned())
}

/// Fills `into` from the wheels.
pub(crate) fn unpack(into: &Path, cuda: bool) -> Result<()> {
    if !FETCHES {
        bail!(
            "setup fetches libtorch for Linux on x86_64 only\n  hint: download libtorch {VERSION} for this platform \
             from pytorch.org, or pip install torch=={VERSION}, and set LIBTORCH to its folder"
        );
    }
    let cuda_wheels: &[_] = if cuda { &wheels::CUDA } else { &[] };
    let all: Vec<_> = [&wheels::TORCH].into_iter().chain(&wheels::RUNTIME).chain(cuda_wheels).collect();
    let files = wheels::fetch(&all)?;
    for (index, file) in files.iter().enumerate() {
        let place = |name: &str| match index {
            0 => place_torch(name, cuda),
            1 | 2 => place_runtime(name),
            _ => place_cuda(name),
        };
        if zip::unpack(file, into, &place)? == 0 {
            bail!("{} holds nothing that we need", file.display());
        }
    }
    // torch-sys links `-ltorch`; the real libtorch.so would pull in CUDA.
    fs::write(into.join("lib/libtorch.so"), "INPUT(-ltorch_cpu)\n")?;
    fs::write(into.join("build-version"), format!("{VERSION}\n"))?;
    for needed in ["libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"] {
        if !into.join("lib").join(needed).exists() {
            bail!("the wheels hold no {needed}");
        }
    }
    Ok(())
}

fn place_torch(name: &str, cuda: bool) -> Option<String> {
    let inside = name.strip_prefix("torch/")?;
    match inside {
        "lib/libtorch_cpu.so" | "lib/libc10.so" | "lib/libgomp.so.1" | "version.py" => {
            Some(inside.to_owned())
        }
        "lib/libtorch_cuda.so"
        | "lib/libtorch_cuda_linalg.so"
        | "lib/libc10_cuda.so"
        | "lib/libcaffe2_nvrtc.so"
        | "lib/libtorch_nvshmem.so" => cuda.then(|| format!("cuda/{inside}")),
        _ => inside.starts_with("include/").then(|| inside.to_owned()),
    }
}

fn place_runtime(name: &str) -> Option<String> {
    let file = name.rsplit('/').next()?;
    matches!(file, "libcudart.so.13" | "libcupti.so.13").then(|| format!("lib/{file}"))
}

/// All in one folder: torch's own search path ends in `$ORIGIN`.
fn place_cuda(name: &str) -> Option<String> {
    let file = name.rsplit('/').next()?;
    file.contains(".so").then(|| format!("cuda/lib/{file}"))
}

/// The compiler of CUDA kernels beside a libtorch for CPUs, so that kernels are compiled where no GPU is.
pub(crate) fn nvrtc(home: &Path) -> Result<()> {
    const NAME: &str = "libnvrtc.so.13";
    let folder = home.join("nvrtc");
    let elsewhere = ["lib", "cuda/lib"].map(|dir| home.join(dir).join(NAME).exists()).contains(&true);
    if elsewhere || folder.join(NAME).exists() || !FETCHES {
        return Ok(());
    }
    let wheel = wheels::fetch(&[wheels::NVRTC])?.remove(0);
    let partial = home.join(format!("nvrtc.partial-{}", std::process::id()));
    cache::remove(&partial)?;
    let place = |name: &str| {
        let file = name.rsplit('/').next()?;
        (file.contains(".so") && !file.contains(".alt.")).then(|| file.to_owned())
    };
    if zip::unpack(&wheel, &partial, &place)? == 0 {
        bail!("{} holds no compiler", wheel.display());
    }
    fs::rename(&partial, &folder).with_context(|| format!("cannot put {} in place", folder.display()))
}

/// Makes `into` a folder of links to the libtorch in `dir` and, for a Python package, to its CUDA libraries.
pub(crate) fn link(dir: &Path, into: &Path) -> Result<()> {
    let lib = into.join("lib");
    fs::create_dir_all(&lib).with_context(|| format!("cannot make {}", lib.display()))?;
    let mut folders = vec![dir.join("lib")];
    for package in entries(&dir.join("../nvidia")) {
        folders.extend(
            entries(&package)
                .into_iter()
                .filter(|p| p.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"lib"))),
        );
    }
    for file in folders.iter().flat_map(|folder| entries(folder)) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let to = lib.join(&name);
        if name.contains(".so") && fs::symlink_metadata(&to).is_err() {
            symlink(&file.canonicalize()?, &to)?;
        }
    }
    symlink(&dir.join("include"), &into.join("include"))?;
    fs::write(into.join("build-version"), version(dir).unwrap_or_default() + "\n")?;
    Ok(())
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    all.sort();
    all
}

#[cfg(unix)]
fn symlink(from: &Path, to: &Path) -> Result<()> {
    std::os::unix::fs::symlink(from, to).with_context(|| format!("cannot link {}", to.display()))
}

#[cfg(not(unix))]
fn symlink(_: &Path, to: &Path) -> Result<()> {
    bail!(
        "cannot link {} on this platform\n  hint: copy libtorch's lib and include into .libtorch",
        to.display()
    )
}

#[cfg(test)]
#[path = "libtorch_tests.rs"]
mod tests;
