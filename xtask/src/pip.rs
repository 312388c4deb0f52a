//! pip as a downloader: nothing is installed into anyone's Python.

use crate::{libtorch, sh, wheels::Wheel};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::fs;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The oldest of each wheel's tags first; any Python and any pip of the last years will do.
const PLATFORMS: [&str; 6] = [
    "manylinux2014_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux_2_18_x86_64",
    "manylinux_2_25_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_28_x86_64",
];

/// Downloads one wheel into `dir` and returns its path.
pub(crate) fn download(wheel: &Wheel, dir: &Path) -> Result<PathBuf> {
    let mut pip = find()?;
    pip.args(["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--progress-bar=off", "-q"]);
    pip.args(["--python-version=3.12", "--implementation=cp"]);
    pip.args(PLATFORMS.map(|p| format!("--platform={p}")));
    pip.arg("-d").arg(dir).arg(wheel.requirement);
    // TMPDIR: the growing file lies where we can watch it, and on the disk where it is to stay.
    pip.env("TMPDIR", dir).env("PIP_REQUIRE_VIRTUALENV", "0").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    let mut child = pip
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", sh::show(&pip)))?;
    let mut pipe = child.stderr.take().context("pip's errors")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    });
    let bar = bar(wheel.requirement, wheel.size);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        bar.set_position(bytes_in(dir).min(wheel.size));
        std::thread::sleep(Duration::from_millis(100));
    };
    bar.finish();
    let errors = errors.join().ok().and_then(|e| e.ok()).unwrap_or_default();
    if !status.success() {
        bail!(
            "pip could not fetch {}:\n{}\n  command: {}\n  hint: needs a network (or an index set in pip's \
             configuration), pip 20.3 or newer, and {} MB of room in {}",
            wheel.requirement,
            errors.trim_end(),
            sh::show(&pip),
            wheel.size / 1_000_000 + 1,
            dir.display()
        );
    }
    let files = fs::read_dir(dir)?.flatten().map(|e| e.path());
    let wheel_file = files.into_iter().find(|p| p.extension().is_some_and(|e| e == "whl"));
    wheel_file.with_context(|| format!("pip said it fetched {}, but left no wheel", wheel.requirement))
}

/// A bar of bytes. Where no terminal is there to draw it on, one plain line instead.
pub(crate) fn bar(what: &str, size: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        eprintln!("{what} ({} MB)", size / 1_000_000);
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:38} {wide_bar} {bytes:>11}/{total_bytes:11} {eta:>4}");
    let bar = ProgressBar::new(size).with_message(what.to_owned());
    bar.set_style(style.unwrap_or(ProgressStyle::default_bar()));
    bar
}

/// The first of the usual ways to call pip that answers.
fn find() -> Result<Command> {
    for way in [&["python3", "-m", "pip"][..], &["python", "-m", "pip"], &["pip3"], &["pip"]] {
        let command = || {
            let mut command = Command::new(way[0]);
            command.args(&way[1..]);
            command
        };
        let probe = command().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if probe.is_ok_and(|s| s.success()) {
            return Ok(command());
        }
    }
    bail!(
        "no pip: libtorch is fetched as a Python wheel, and neither `python3 -m pip` nor `pip3` nor `pip` runs\n  \
         hint: `sudo apt install python3-pip` (Debian, Ubuntu) or `sudo dnf install python3-pip` (Fedora);\n  \
         hint: or set LIBTORCH to the folder of a libtorch {} of your own",
        libtorch::VERSION
    )
}

fn bytes_in(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| if e.path().is_dir() { bytes_in(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) })
        .sum()
}
