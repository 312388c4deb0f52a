//! `bundle`: binaries, tests and benches with their data, to run where torch is but Rust is not.

use crate::{cache, setup, sh};
use anyhow::{Context, Result, bail};
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
    let root = sh::root();
    let out = root.join(&args.out);
    // Before the minutes that building takes.
    refuse(&out)?;
    setup::ensure(false)?;
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
    begin(&out)?;
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
    let archive = PathBuf::from(format!("{}.tar.xz", out.display()));
    let (parent, name) = (out.parent().context("--out names no folder")?, out.file_name().context("--out")?);
    let mut tar = Command::new("tar");
    sh::run(tar.env("XZ_OPT", XZ).arg("-cJf").arg(&archive).arg("-C").arg(parent).arg(name))?;
    let mb = fs::metadata(&archive)?.len() as f64 / (1 << 20) as f64;
    println!("{} ({} executables, {mb:.1} MiB)", archive.display(), executables.len());
    if mb > MOST_MB {
        bail!(
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

/// What every bundle has from its beginning.
const MARKS: [&str; 2] = ["run.sh", "tests.txt"];

/// The folder is emptied: one of somebody's own would be lost.
fn refuse(out: &Path) -> Result<()> {
    let is_ours = MARKS.iter().all(|name| out.join(name).is_file());
    let is_free = match fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_none(),
        Err(_) => fs::symlink_metadata(out).is_err(),
    };
    if !is_ours && !is_free {
        bail!(
            "--out {} is there already and is no bundle, and would be deleted\n  hint: name a new folder, or delete it \
             yourself",
            out.display()
        );
    }
    Ok(())
}

/// An empty bundle, known as one even if it is never finished.
fn begin(out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let [script, list] = MARKS.map(|name| out.join(name));
    fs::write(&script, include_str!("bundle.sh"))
        .with_context(|| format!("cannot write {}", script.display()))?;
    #[cfg(unix)]
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    fs::write(&list, "").with_context(|| format!("cannot write {}", list.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bundle_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        refuse(&out).unwrap();
        begin(&out).unwrap();
        fs::write(out.join("half of a program"), "").unwrap();
        refuse(&out).unwrap();

        let mine = dir.path().join("mine");
        fs::create_dir(&mine).unwrap();
        refuse(&mine).unwrap();
        for name in ["thesis.tex", "run.sh"] {
            fs::write(mine.join(name), "").unwrap();
            let error = refuse(&mine).unwrap_err().to_string();
            assert!(error.contains("is no bundle") && error.contains("hint: "), "{error}");
        }
        assert!(refuse(&mine.join("thesis.tex")).is_err(), "nor is a file");
    }
}
