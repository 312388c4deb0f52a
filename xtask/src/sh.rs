//! Running other programs, and saying what went wrong with which.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

/// A program that ran and failed. `main` passes its exit code on.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) code: i32,
    command: String,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` failed with exit code {}", self.command, self.code)
    }
}

impl std::error::Error for Failed {}

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
        Path::new(&here).parent().map(Path::to_path_buf).unwrap_or_default()
    })
}

/// The cargo that runs us, in the workspace's folder. What it told us about xtask is no business of its children.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The command line as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let flags = ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"];
    shown(command, flags.iter().any(|name| std::env::var_os(name).is_some()))
}

/// `flags`: our flags were replaced, and with them the search path of what is built.
fn shown(command: &Command, flags: bool) -> String {
    let program = Path::new(command.get_program());
    let is_ours = command.get_envs().any(|(name, _)| name == SEARCH_PATH);
    let search = (is_ours && (flags || !program.starts_with(root().join("target"))))
        .then(|| format!("{SEARCH_PATH}={}", quote(&libtorch().to_string_lossy())));
    let program = match program.strip_prefix(root()) {
        Ok(inside) => inside.to_string_lossy(),
        Err(_) if program.file_stem().is_some_and(|s| s == "cargo") => "cargo".into(),
        Err(_) => program.to_string_lossy(),
    };
    let args = command.get_args().map(|arg| quote(&arg.to_string_lossy()));
    search.into_iter().chain([quote(&program)]).chain(args).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs to the end; its output goes where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", show(command)))?;
    checked(command, status)
}

/// An error with the command line and the exit code, unless it went well.
pub(crate) fn checked(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { Err(failed(command, status.code()).into()) }
}

/// Runs to the end and returns its standard output; its errors go where ours go.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", show(command)))?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        return Err(failed(command, output.status.code()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`capture`], for programs whose last line with a `{` in front is a JSON object.
pub(crate) fn capture_json(command: &mut Command) -> Result<Value> {
    let text = capture(command)?;
    let line = text.lines().rev().find(|l| l.starts_with('{'));
    let line = line.with_context(|| format!("`{}` printed no JSON object but: {text}", show(command)))?;
    serde_json::from_str(line).with_context(|| format!("`{}` printed bad JSON: {line}", show(command)))
}

/// A file that cargo built, as told by `--message-format=json`.
pub(crate) struct Built {
    /// Where its package's Cargo.toml lies.
    pub(crate) package_dir: PathBuf,
    /// The target's name: `train_step`.
    pub(crate) target: String,
    /// `bin`, `test`, `bench`, `lib`...
    pub(crate) kind: String,
    pub(crate) file: PathBuf,
}

/// Runs a cargo command to which `--message-format=json-render-diagnostics` is added; returns the executables.
pub(crate) fn built(cargo: &mut Command) -> Result<Vec<Built>> {
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().with_context(|| format!("cannot start `{}`", show(cargo)))?;
    checked(cargo, output.status)?;
    executables(&String::from_utf8_lossy(&output.stdout))
}

/// Builds `lora`; where it lies, whatever target folder and target cargo was told of.
pub(crate) fn lora() -> Result<PathBuf> {
    program(built(cargo().args(["build", "--release", "-p", "lora-cli"]))?, "lora")
}

fn program(built: Vec<Built>, name: &str) -> Result<PathBuf> {
    let found = built.into_iter().find(|b| b.kind == "bin" && b.target == name).map(|b| b.file);
    found.with_context(|| format!("cargo built no program called {name}"))
}

/// Where programs look for libraries first.
const SEARCH_PATH: &str = "LD_LIBRARY_PATH";

fn libtorch() -> PathBuf {
    root().join(".libtorch/lib")
}

/// A program that we built. Its own search path may lead to no libtorch: a target folder may lie anywhere, and a
/// RUSTFLAGS replaces our flags.
pub(crate) fn ours(program: &Path) -> Command {
    let before = std::env::var_os(SEARCH_PATH).unwrap_or_default();
    let before = std::env::split_paths(&before).filter(|path| !path.as_os_str().is_empty());
    let mut command = Command::new(program);
    if let Ok(paths) = std::env::join_paths([libtorch()].into_iter().chain(before)) {
        command.env(SEARCH_PATH, paths);
    }
    command
}

/// Those that cargo's messages tell of.
fn executables(text: &str) -> Result<Vec<Built>> {
    let mut found = Vec::new();
    for line in text.lines().filter(|l| l.starts_with('{')) {
        let message: Value = serde_json::from_str(line).context("cargo's messages")?;
        let (Some(file), Some(manifest)) =
            (message["executable"].as_str(), message["manifest_path"].as_str())
        else {
            continue;
        };
        found.push(Built {
            package_dir: Path::new(manifest).parent().unwrap_or(Path::new("")).to_path_buf(),
            target: message["target"]["name"].as_str().unwrap_or_default().to_owned(),
            kind: message["target"]["kind"][0].as_str().unwrap_or_default().to_owned(),
            file: file.into(),
        });
    }
    Ok(found)
}

fn failed(command: &Command, code: Option<i32>) -> Failed {
    Failed { code: code.unwrap_or(1), command: show(command) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_a_command_as_typed_and_reports_its_exit_code() {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        assert_eq!(show(&command), "sh -c 'exit 7'");
        let error = run(&mut command).unwrap_err();
        assert_eq!(error.downcast_ref::<Failed>().map(|f| f.code), Some(7));
        assert_eq!(error.to_string(), "`sh -c 'exit 7'` failed with exit code 7");
    }

    #[test]
    fn a_program_lies_where_cargo_says_and_finds_libtorch_from_there() {
        let said = r#"   Compiling lora-cli
{"reason":"compiler-artifact","manifest_path":"/w/crates/lora-cli/Cargo.toml","target":{"kind":["lib"],"name":"lora"},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/crates/lora-cli/Cargo.toml","target":{"kind":["test"],"name":"lora"},"executable":"/t/deps/lora-1"}
{"reason":"compiler-artifact","manifest_path":"/w/crates/lora-cli/Cargo.toml","target":{"kind":["bin"],"name":"lora"},"executable":"/else/where/release/lora"}
{"reason":"build-finished","success":true}"#;
        let lora = program(executables(said).unwrap(), "lora").unwrap();
        assert_eq!(lora, Path::new("/else/where/release/lora"));
        let error = program(executables(said).unwrap(), "loro").unwrap_err().to_string();
        assert!(error.contains("no program called loro"), "{error}");

        let command = ours(&lora);
        let paths = command.get_envs().find(|(name, _)| *name == "LD_LIBRARY_PATH").and_then(|(_, to)| to);
        let first = std::env::split_paths(paths.unwrap()).next();
        assert_eq!(first, Some(root().join(".libtorch/lib")));
    }

    /// What is shown for people runs as it is.
    #[test]
    fn what_is_shown_finds_libtorch_and_keeps_words_together() {
        let search = format!("LD_LIBRARY_PATH={} ", quote(&libtorch().to_string_lossy()));
        let elsewhere = ours(Path::new("/else/where/release/lora"));
        assert_eq!(shown(&elsewhere, false), format!("{search}/else/where/release/lora"));
        let here = ours(&root().join("target/release/lora"));
        assert_eq!(shown(&here, false), "target/release/lora");
        assert_eq!(shown(&here, true), format!("{search}target/release/lora"));
        // Others' programs bring their own.
        assert_eq!(shown(&Command::new("/a b/python"), true), "'/a b/python'");
        let apart = ours(Path::new("/my target/lora"));
        assert_eq!(shown(&apart, false), format!("{search}'/my target/lora'"));
        assert_eq!(quote("it's"), r"'it'\''s'");
    }

    #[test]
    fn the_last_json_line_counts() {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo warming up; echo '{"a":1}'; echo '{"a":2}'; echo bye"#]);
        assert_eq!(capture_json(&mut command).unwrap()["a"], 2);
        let error = capture_json(Command::new("sh").args(["-c", "echo nothing"])).unwrap_err();
        assert!(error.to_string().contains("printed no JSON object"), "{error}");
    }
}
