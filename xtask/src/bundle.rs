//! `bundle`: binaries, tests and benches with their data, to run where torch is but Rust is not.

use crate::{cache, setup, sh};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder to fill; the archive lies beside it, as FOLDER.tar.xz
    #[arg(long, default_value = "target/bundle", value_name = "FOLDER")]
    out: PathBuf,
    /// Leave out the tests and benches of these packages
    #[arg(long, value_delimiter = ',', value_name = "PACKAGE")]
    exclude: Vec<String>,
}

/// More than this would not pass where such bundles go.
const MOST_MB: f64 = 64.0;

/// The executables are much alike: a dictionary that holds several of them makes the archive less than half as large.
const XZ: &str = "-T0 --lzma2=preset=3,dict=64MiB";

/// Folder of the bundle, cargo's arguments, and the kinds of target to take.
const BUILDS: [(&str, &[&str], &[&str]); 3] = [
    ("bin", &["build", "--release"], &["bin"]),
    ("tests", &["test", "--release", "--no-run"], &["lib", "bin", "test"]),
    ("benches", &["bench", "--benches", "--no-run"], &["bench"]),
];

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::ensure(false)?;
    let root = sh::root();
    let out = root.join(&args.out);
    let mut executables = Vec::new();
    for (folder, cargo, kinds) in BUILDS {
        let built = sh::built(sh::cargo().args(cargo).args(["--workspace", "--exclude", "xtask"]))?;
        // `cargo test` also builds the plain binary that integration tests run; what is a test lies in `deps`.
        let is_test = |b: &sh::Built| b.file.parent().is_some_and(|d| d.ends_with("deps"));
        let is_left_out = |b: &sh::Built| {
            let package = b.package_dir.file_name();
            args.exclude.iter().any(|name| package.is_some_and(|package| package == name.as_str()))
        };
        let wanted = |b: &sh::Built| {
            kinds.contains(&b.kind.as_str()) && (folder == "bin" || is_test(b) && !is_left_out(b))
        };
        executables.extend(built.into_iter().filter(wanted).map(|b| (folder, b)));
    }
    cache::remove(&out)?;
    let mut lists: [(&str, String); 2] = [("tests", String::new()), ("benches", String::new())];
    for (folder, built) in &executables {
        let package = built.package_dir.strip_prefix(root).unwrap_or(&built.package_dir);
        let name = name(folder, package, &built.target);
        let to = out.join(folder).join(&name);
        copy(&built.file, &to)?;
        strip(&to);
        if let Some((_, list)) = lists.iter_mut().find(|(f, _)| f == folder) {
            let package = if package.as_os_str().is_empty() { Path::new(".") } else { package };
            *list += &format!("{name} {}\n", package.display());
            fs::create_dir_all(out.join(package))?;
        }
    }
    for (folder, list) in &lists {
        fs::create_dir_all(out.join(folder))?;
        fs::write(out.join(format!("{folder}.txt")), list)?;
    }
    for place in ["tests", "benches", "docs/demo", "crates", "src", "xtask/peers"] {
        copy_data(&root.join(place), &out.join(place))?;
    }
    script(&out)?;
    let archive = PathBuf::from(format!("{}.tar.xz", out.display()));
    let (parent, name) = (out.parent().context("--out names no folder")?, out.file_name().context("--out")?);
    let mut tar = Command::new("tar");
    sh::run(tar.env("XZ_OPT", XZ).arg("-cJf").arg(&archive).arg("-C").arg(parent).arg(name))?;
    let mb = fs::metadata(&archive)?.len() as f64 / (1 << 20) as f64;
    println!("{} ({} executables, {mb:.1} MiB)", archive.display(), executables.len());
    if mb > MOST_MB {
        anyhow::bail!(
            "the bundle is larger than {MOST_MB} MiB\n  hint: leave something out with --exclude; what is large? `du -a {} | sort -n`",
            out.display()
        );
    }
    Ok(())
}

/// `lora-core-pairs` for the test `pairs` of lora-core; just `lora` for the binary.
fn name(folder: &str, package: &Path, target: &str) -> String {
    let package = package.file_name().map_or("root".into(), |n| n.to_string_lossy());
    if folder == "bin" { target.to_owned() } else { format!("{package}-{target}") }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Smaller, if the machine can; a bundle with symbols is as good.
fn strip(file: &Path) {
    if let Ok(status) = Command::new("strip").arg(file).status() {
        debug_assert!(status.success() || file.exists());
    }
}

/// Whatever is no source: goldens, snapshots, texts.
fn copy_data(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
            let entry = entry?;
            copy_data(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if from.is_file() && !from.extension().is_some_and(|e| ["rs", "cpp", "h"].iter().any(|s| e == *s))
    {
        copy(from, to)?;
    }
    Ok(())
}

fn script(out: &Path) -> Result<()> {
    let path = out.join("run.sh");
    fs::write(&path, include_str!("bundle.sh"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    #[cfg(unix)]
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}
