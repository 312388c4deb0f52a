//! The rules of the workspace that no compiler knows. Pure: a tree in, faults out.

use crate::lexer::{code_only, is_word, without_comments};
use std::collections::BTreeMap;

/// The most lines a file may have.
const LONGEST: usize = 400;

/// What the rules look at.
pub(crate) struct Tree {
    pub(crate) packages: Vec<Package>,
    /// Text by path, relative to the workspace.
    pub(crate) files: BTreeMap<String, String>,
    /// Paths of all that git keeps.
    pub(crate) tracked: Vec<String>,
}

pub(crate) struct Package {
    pub(crate) name: String,
    /// Relative to the workspace; empty for the root package.
    pub(crate) dir: String,
    pub(crate) manifest: String,
    pub(crate) dependencies: Vec<Dependency>,
}

pub(crate) struct Dependency {
    pub(crate) name: String,
    /// One of the workspace's own.
    pub(crate) local: bool,
    pub(crate) dev: bool,
    /// Asks for the feature `testkit`.
    pub(crate) testkit: bool,
}

/// Every fault of the tree, as `place: what (why)`.
pub(crate) fn faults(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    graph(tree, &mut faults);
    manifests(tree, &mut faults);
    for (path, text) in &tree.files {
        source(path, text, &mut faults);
    }
    for path in tree.tracked.iter().filter(|path| path.ends_with(".snap.new")) {
        faults.push(format!("{path}: a snapshot that nobody accepted: take it in, or away"));
    }
    faults
}

/// The workspace's crates that `name` may depend on, and those it must; none for a name of no place in the design.
///
/// A crate that is not listed is a further method: it stands beside `lora-dora`.
fn allowed<'a>(name: &str, tree: &'a Tree) -> (Vec<&'a str>, Vec<&'a str>) {
    let ours = |names: &[&str]| -> Vec<&'a str> {
        tree.packages.iter().map(|p| p.name.as_str()).filter(|n| names.contains(n)).collect()
    };
    let (may, must): (&[&str], &[&str]) = match name {
        "tch-ext" | "xtask" => (&[], &[]),
        "lora-core" => (&["tch-ext"], &["tch-ext"]),
        "lora-train" => (&["tch-ext", "lora-core", "lora-fed", "lora-model"], &["lora-model"]),
        "lora-cli" => (&["lora"], &["lora"]),
        "lora-fed" => (&["tch-ext", "lora-core"], &[]),
        "lora" => {
            let libraries = tree.packages.iter().map(|p| p.name.as_str());
            let all: Vec<_> = libraries.filter(|n| !["lora", "lora-cli", "xtask"].contains(n)).collect();
            let must = all.iter().copied().filter(|n| *n != "tch-ext").collect();
            return (all, must);
        }
        _ => (&["tch-ext", "lora-core"], &["lora-core"]),
    };
    (ours(may), ours(must))
}

fn graph(tree: &Tree, faults: &mut Vec<String>) {
    for package in &tree.packages {
        let (may, must) = allowed(&package.name, tree);
        let place = join(&package.dir, "Cargo.toml");
        for dep in package.dependencies.iter().filter(|d| d.local) {
            let testkits = ["lora-core", "tch-ext"].contains(&dep.name.as_str());
            let testkit = dep.dev && testkits && package.name != "xtask";
            if !may.contains(&dep.name.as_str()) && !testkit {
                let may = if may.is_empty() { "none of ours".into() } else { may.join(", ") };
                faults.push(format!(
                    "{place}: {} may not depend on {} (it may on: {may})",
                    package.name, dep.name
                ));
            }
            if dep.testkit && !dep.dev {
                faults
                    .push(format!("{place}: the feature `testkit` of {} is for dev-dependencies", dep.name));
            }
        }
        for needed in must {
            if !package.dependencies.iter().any(|d| !d.dev && d.name == needed) {
                faults.push(format!("{place}: {} must depend on {needed}", package.name));
            }
        }
    }
}

fn manifests(tree: &Tree, faults: &mut Vec<String>) {
    let readme = tree.files.get("README.md");
    if readme.is_none() {
        faults.push("README.md: is missing".into());
    }
    for package in &tree.packages {
        let mut lines = package.manifest.lines().skip_while(|l| l.trim() != "[lints]").skip(1);
        if !lines.by_ref().take_while(|l| !l.starts_with('[')).any(|l| l.replace(' ', "") == "workspace=true")
        {
            faults.push(format!("{}: lacks `[lints] workspace = true`", join(&package.dir, "Cargo.toml")));
        }
        let shown = package.dir.rsplit('/').next().unwrap_or_default();
        if readme.is_some_and(|text| !words(text, "-").any(|word| word == shown)) && !shown.is_empty() {
            faults.push(format!("README.md: its tree does not name {shown}"));
        }
    }
}

fn source(path: &str, text: &str, faults: &mut Vec<String>) {
    let length = text.lines().count();
    if length > LONGEST && !path.ends_with(".md") {
        faults.push(format!("{path}: {length} lines, {LONGEST} is the ceiling"));
    }
    if !path.ends_with(".rs") {
        return;
    }
    let code = code_only(text);
    let tests = tests_begin(&code);
    let mut report = |line: usize, what: &str| faults.push(format!("{path}:{}: {what}", line + 1));
    for (number, line) in code.lines().enumerate() {
        if !path.starts_with("crates/tch-ext/") && words(line, "").any(|w| w == "unsafe") {
            report(number, "`unsafe` stands in tch-ext only");
        }
        if is_library(path)
            && words(line, "!").any(|w| matches!(w, "println!" | "print!" | "eprintln!" | "eprint!"))
        {
            report(number, "a library does not print: return it, or take a callback");
        }
        if is_model(path) && words(line, "").any(is_adapter_word) {
            report(number, "models know nothing of adapters");
        }
        if words(line, "!").any(|w| matches!(w, "todo!" | "unimplemented!")) || line.contains("#[ignore") {
            report(number, "unfinished code, or a test that does not run");
        }
        if is_shipped(path) && number < tests && words(line, "").any(|w| w == "no_grad") {
            report(number, "after a panic in `no_grad` the thread has no gradients: take `no_grad_guard`");
        }
    }
    if path.starts_with("crates/lora-core/src/") && !path.contains("testkit") {
        let spoken = without_comments(text).to_lowercase();
        // Unit tests may well read what PEFT writes.
        for (number, line) in spoken.lines().take(tests).enumerate() {
            if let Some(name) = ["qlora", "rslora", "dora", "nf4"].iter().find(|name| line.contains(**name)) {
                report(number, &format!("lora-core names the method `{name}`: methods name themselves"));
            }
        }
    }
}

/// The number of the line where unit tests begin, which come last in a file.
fn tests_begin(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    lines.iter().rposition(|line| *line == "#[cfg(test)]").unwrap_or(lines.len())
}

/// Of libraries and programs; unit tests have files of their own where they are long.
fn is_shipped(path: &str) -> bool {
    path.split('/').any(|part| part == "src") && !path.ends_with("tests.rs")
}

fn is_library(path: &str) -> bool {
    let inside = path.strip_prefix("crates/").and_then(|p| p.split_once('/'));
    match inside {
        Some((krate, rest)) => krate != "lora-cli" && rest.starts_with("src/"),
        None => path.starts_with("src/"),
    }
}

/// All of lora-model's source: architectures, loading and generation alike. Strings may speak of adapters, to hint.
fn is_model(path: &str) -> bool {
    path.starts_with("crates/lora-model/src/")
}

/// `lora_core` and `lora_model` are paths, not mentions.
fn is_adapter_word(word: &str) -> bool {
    let word = word.to_lowercase();
    !matches!(word.as_str(), "lora_core" | "lora_model")
        && (word.contains("lora") || word.contains("adapter"))
}

/// The identifiers of a text; `more` are further characters that belong to them.
fn words<'a>(text: &'a str, more: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(|c: char| !is_word(c) && !more.contains(c)).filter(|word| !word.is_empty())
}

fn join(dir: &str, file: &str) -> String {
    if dir.is_empty() { file.to_owned() } else { format!("{dir}/{file}") }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
